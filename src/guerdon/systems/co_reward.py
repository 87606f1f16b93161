"""Co-rewarding: training without labels, where the label comes from another view of the question or from a slow teacher.

Problem: rewarding agreement with one's own majority answer lets the policy certify itself; it learns to answer the same everywhere and
gets full reward. Idea: I (Co-Reward) - sample the question and a rewording of it with the same answer; each is rewarded for the majority
answer of the OTHER. II - rewards agreement with the majority of a teacher, a moving average of the policy, on the same question.

    co_reward()                                    I: rows in pairs, `question_id` and `view` (guerdon.tasks.views makes them)
    co_rewarding_ii()                              II
    majority_vote()                                the baseline: the own group's majority

Source: "Co-rewarding: Stable Self-supervised RL for Eliciting Reasoning in LLMs", arXiv 2508.00410 (v1: Co-Reward); official code
github.com/tmlr-group/Co-rewarding and tmlr-group/Co-Reward. The moving average's weight is the POLICY's, as in the code (the paper prints
the teacher's). Both views' rollouts are one batch here, not two losses that are added: the gradient is half of theirs, before Adam.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit import Drop, GroupNorm, OnFailure, ToTokens, group_normalise
from guerdon.errors import ConfigError
from guerdon.lm.ema import CosineRate, cosine_rate, ema_update_
from guerdon.options import checked, require_range
from guerdon.signals.agreement.answers import answer_codes, boxed_as_written
from guerdon.signals.agreement.teacher import TeacherVote
from guerdon.signals.agreement.vote import CrossViewVote, SameViewVote, Vote, cross_labels, majority
from guerdon.signals.verifiable.extraction import Extract
from guerdon.system import Model, System
from guerdon.systems.base import Published, VectorFunctions
from guerdon.systems.pure import _grid, _ids
from guerdon.systems.settings import settings

Label = Literal["other_view", "own_view"]


@checked
def co_reward(
    *,
    label: Label = "other_view",
    extract: Extract = "final",
    normalise: Any = None,
    question: str = "question_id",
    view: str = "view",
    truth: str | None = None,
    norm_by_std: bool = True,
) -> System:
    """Co-rewarding-I: each view of a question is rewarded for the majority answer of the other one.

    Args:
        label: "own_view" is the baseline on the same rows: the majority of the rollout's own group.
        extract: where the answer is in a completion: "final" = by whichever mark it uses, a box first (`verifiable.final_answer`);
            "boxed_as_written" as the official code, which gives a completion without a box no vote and no reward; "boxed", "tag",
            "after:MARKER", a function.
        normalise: answers are compared as written (None, official), as tidied mathematics ("math"), or after a function.
        question, view: data columns: equal for the views of one question; what tells them apart.
        truth: data column with the right answer, to log how often the labels are right; never trained on.
        norm_by_std: divide by the group's sample std.

    The official loss has a KL term to the starting policy, coefficient 0.005 (in TRL beta=0.005).
    """
    signal: Vote
    if label == "other_view":
        signal = CrossViewVote(extract, normalise, truth, question=question, view=view)
    elif label == "own_view":
        signal = SameViewVote(extract, normalise, truth)
    else:
        raise ConfigError(f"label={label!r}: use 'other_view' or 'own_view'")
    return System({"vote": signal}, _credit(signal, norm_by_std), name="co_reward")


@checked
def majority_vote(
    *,
    extract: Extract = "final",
    normalise: Any = None,
    truth: str | None = None,
    norm_by_std: bool = True,
) -> System:
    """The baseline: agreement with the majority of the rollout's own group. Needs no pairs. Options as for `co_reward`."""
    signal = SameViewVote(extract, normalise, truth)
    return System({"vote": signal}, _credit(signal, norm_by_std), name="majority_vote")


@checked
def co_rewarding_ii(
    *,
    max_completion_length: int = 3072,
    teacher_samples: int = 8,
    teacher_temperature: float = 1.0,
    alpha_start: float = 0.01,
    alpha_end: float = 1e-5,
    extract: Extract = "final",
    normalise: Any = None,
    truth: str | None = None,
    norm_by_std: bool = True,
) -> System:
    """Co-rewarding-II: agreement with the majority of a teacher's rollouts; the teacher is a moving average of the policy.

    Args:
        max_completion_length: cap on a teacher's rollout: the policy's own. On the command line the task's.
        teacher_samples: teacher rollouts of each prompt.
        teacher_temperature: of these.
        alpha_start, alpha_end: the POLICY's weight in the average, from first to last step by a cosine. The paper's alpha is 1 minus it:
            0.99 to 0.9999 (the official scripts: to 0.99999).
        extract, normalise, truth, norm_by_std: as for `co_reward`.

    The teacher is also the reference of the KL term, where there is one: the official script has coefficient 0.001 (in TRL beta=0.001).
    """
    require_range(0, above=True, teacher_temperature=teacher_temperature)
    signal = TeacherVote(
        extract,
        normalise,
        truth,
        max_tokens=max_completion_length,
        samples=teacher_samples,
        temperature=teacher_temperature,
        role="reference",
    )
    models = {"reference": Model("policy", "ema", CosineRate(alpha_start, alpha_end))}
    return System({"vote": signal}, _credit(signal, norm_by_std), models=models, name="co_rewarding_ii")


def _credit(signal: Vote, norm_by_std: bool) -> list[Any]:
    """Group-relative advantages within each view; what is watched leaves first, so that its failures drop nothing."""
    watched = [f"vote.{name}" for name in signal.watched()]
    std: Literal["sample"] | None = "sample" if norm_by_std else None
    live = "vote.agrees"
    return [
        Drop(*watched),
        OnFailure("group"),
        GroupNorm(live, std=std, eps=1e-6, singleton="raw"),
        ToTokens(live, "whole"),
    ]


# --- the functions of the conformance vectors ----------------------------------------------------------------------------


def extract_boxed_answer(response: str) -> dict[str, str]:
    """The answer of one response, as written; "" where there is none."""
    return {"answer": boxed_as_written(response)}


def majority_label(answers: Sequence[str | None]) -> dict[str, str]:
    """The most frequent answer that is not blank, the first seen of several; "" where there is none."""
    known: dict[str, int] = {}
    codes = answer_codes(answers, known)
    label = int(majority(codes, torch.zeros_like(codes), 1).label[0])
    return {"label": "" if label < 0 else list(known)[label]}


def _codes(responses: Sequence[str], known: dict[str, int]) -> Tensor:
    return answer_codes([boxed_as_written(text) for text in responses], known)


def cross_majority_rewards(
    responses: Sequence[str], rephrased_responses: Sequence[str], group_ids: Sequence[Any]
) -> dict[str, Tensor]:
    """1 where a response's answer is the majority of the other view's responses with its id."""
    codes = _codes([*responses, *rephrased_responses], {})
    ids = _ids(group_ids)
    question = ids.repeat(2)
    view = torch.arange(2).repeat_interleave(len(ids))
    label = cross_labels(codes, question, view).label
    rewards = ((codes == label) & (label >= 0)).double()
    return {"rewards": rewards[: len(ids)], "rephrased_rewards": rewards[len(ids) :]}


def teacher_vote_rewards(
    responses: Sequence[str], teacher_responses: Sequence[str], group_ids: Sequence[Any]
) -> dict[str, Tensor]:
    """1 where a response's answer is the majority of the teacher's responses with its id."""
    ids = _ids(group_ids)
    known: dict[str, int] = {}
    codes, votes = _codes(responses, known), _codes(teacher_responses, known)
    label = majority(votes, ids, int(ids.max()) + 1 if len(ids) else 0).label[ids]
    return {"rewards": ((codes == label) & (label >= 0)).double()}


def grpo_outcome_advantages(
    token_level_rewards: Any, response_mask: Any, group_ids: Sequence[Any], norm_by_std: bool = True
) -> dict[str, Tensor]:
    """[B, T]: summed rewards, centred in the group, over its sample std; a group of one keeps its reward."""
    values = _grid(token_level_rewards).sum(1)
    std: Literal["sample"] | None = "sample" if norm_by_std else None
    advantages = group_normalise(values, _ids(group_ids), std=std, eps=1e-6, singleton="raw", dtype=torch.float64)
    return {"advantages": advantages[:, None] * _grid(response_mask)}


def teacher_update_rate(step: int, total_steps: int, alpha_start: float, alpha_end: float) -> dict[str, float]:
    """The policy's weight in the teacher at a step, from 1."""
    return {"alpha": cosine_rate(step, total_steps, alpha_start, alpha_end)}


def ema_teacher_update(
    teacher_params: Sequence[float], policy_params: Sequence[float], alpha: float
) -> dict[str, Tensor]:
    """(1 - alpha) teacher + alpha policy."""
    teacher = torch.tensor(teacher_params, dtype=torch.float64)
    ema_update_([teacher], [torch.tensor(policy_params, dtype=torch.float64)], alpha)
    return {"teacher_params": teacher}


VECTORS: VectorFunctions = {
    "extract_boxed_answer": extract_boxed_answer,
    "majority_vote": majority_label,
    "cross_majority_rewards": cross_majority_rewards,
    "grpo_outcome_advantages": grpo_outcome_advantages,
    "teacher_vote_rewards": teacher_vote_rewards,
    "teacher_update_rate": teacher_update_rate,
    "ema_teacher_update": ema_teacher_update,
}

PUBLISHED = Published(
    slug="co_reward",
    title="Co-rewarding (Co-Reward), I and II",
    arxiv="2508.00410",
    kinds=("sequence reward", "self-supervised"),
    summary="Without labels: each wording of a question is rewarded for the other's majority answer, or for a slow teacher's.",
    vectors=VECTORS,
    settings=settings(
        code={
            "num_generations": 8,
            "temperature": 1.0,
            "epsilon": 0.2,
            "delta": 3.0,
            "beta": 0.005,
            "learning_rate": 3e-6,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "num_train_epochs": 3,
            "max_completion_length": 3072,
        },
        shown={
            "batch": "128 questions, each in two views [code]",
            "prompt length": "512 [code]",
            "delta": "verl's dual clip constant; it bounds the loss of negative advantages [code]",
        },
    ),
    variants={
        "co_rewarding_ii": settings(
            code={
                "num_generations": 8,
                "temperature": 1.0,
                "epsilon": 0.2,
                "delta": 3.0,
                "beta": 0.001,
                "learning_rate": 3e-6,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 0.1,
                "num_train_epochs": 3,
                "max_completion_length": 3072,
            },
            shown={"KL": "0.005 in the paper, 0.001 in its script; towards the moving teacher [code]"},
        )
    },
)
