"""CRM and CRF: a reward model for conciseness, and a reward function that multiplies its score into the outcome.

Problem: a length penalty added to the reward shortens reasoning, and often too far: the length collapses while the reward still
rises, or both collapse. Idea: train a small model (CRM) to say how concise the CONTENT of a solution is, and pay its score only where the
answer is right: R = R_o (1 + alpha c (s + d_q)). Being short can then never make up for being wrong.

alpha (s + d_q) at most 1 keeps correctness dominant (the default 0.2 reaches 0.74). A CRM can be hacked by leaving out necessary steps:
watch length/right_and_short and conciseness/right in the log.

Source: "Efficient Reasoning via Reward Model", arXiv 2511.09158. Its code was not available. Known from the paper's abstract and
reviews: the formula, scores in [0.1, 1], the data pipeline. d_q = exp(share of right rollouts) is known from one reading of the paper;
alpha, the annealing's shape and the std of the group normalisation are guesses. All are parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit import GroupNorm, ToTokens
from guerdon.credit.conciseness import (
    ConcisenessReward,
    Difficulty,
    Form,
    conciseness_function,
    question_difficulty,
)
from guerdon.credit.length import WatchLength, cosine_length_reward, kimi_length_reward
from guerdon.credit.link import StdKind
from guerdon.credit.schedule import Annealing, AnnealingKind, annealing
from guerdon.errors import ConfigError
from guerdon.options import checked, require_range
from guerdon.system import System
from guerdon.systems.base import Published, VectorFunctions
from guerdon.systems.pure import _ids
from guerdon.systems.settings import settings


@checked
def crm(
    *,
    verifier: Any,
    crm: Any,
    alpha: float = 0.2,
    schedule: Literal["linear", "cosine", "constant"] = "linear",
    reverse: bool = False,
    difficulty: Difficulty = "exp",
    form: Form = "multiplied",
    question: str | None = None,
    unreadable: float | None = 0.5,
    std: StdKind = "sample",
    eps: float = 1e-6,
    short: int = 4,
) -> System:
    """Outcome times one plus alpha times conciseness, group-normalised.

    Args:
        verifier: the outcome signal, 1 right and 0 wrong. Where it is not above 0 conciseness changes nothing.
        crm: path or hub id of a conciseness reward model, a judge (anything with `chat`), or any sequence signal; a `RewardModel`
            is squashed into [0.1, 1], other signals have to give scores in [0.1, 1] themselves.
        alpha: factor of conciseness, at least 0 (guess).
        schedule: s over the run, from 1 to 0; "constant" is 1 (guess). reverse: from 0 to 1.
        difficulty: d_q: "exp" of the share of right rollouts, "exp_neg", "share" or "none".
        form: "multiplied", or "added", the baseline that also pays wrong answers for being short.
        question: data column with the question for the CRM; None = the prompt.
        unreadable: score for an answer of the CRM without a number (guess); None = the row is left out.
        std, eps: of the group normalisation.
        short: right completions with fewer tokens are counted in the log as suspiciously short.
    """
    require_range(0, alpha=alpha, eps=eps)
    require_range(0, 1, unreadable=unreadable)
    kind: AnnealingKind = schedule
    if schedule not in ("linear", "cosine", "constant"):
        raise ConfigError(f"schedule={schedule!r}: use linear, cosine or constant")
    by = "answer" if form == "multiplied" else None
    signals = {"answer": verifier, "concise": _scorer(crm, by, question, unreadable)}
    link = ConcisenessReward("answer", "concise", alpha, difficulty, Annealing(kind, reverse), form, "reward")
    chain = [WatchLength("answer", short), link, GroupNorm("reward", std=std, eps=eps), ToTokens("reward", "whole")]
    return System(signals, chain, name="crm" if form == "multiplied" else f"crm:form={form}")


def _scorer(model: Any, by: str | None, question: str | None, unreadable: float | None) -> Any:
    from guerdon.signals.learned.conciseness import Conciseness
    from guerdon.signals.learned.scalar import RewardModel

    if callable(model) and hasattr(model, "level") and not isinstance(model, RewardModel):
        return model
    return Conciseness(model, by=by, question=question, unreadable=unreadable)


# --- the functions of the conformance vectors ----------------------------------------------------------------------------


def _numbers(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64).reshape(-1)


def crf_reward(
    outcome_rewards: Any, conciseness_scores: Any, alpha: float, annealing: float, difficulty: float
) -> dict[str, Tensor]:
    """R_o (1 + alpha c (s + d)) for the rollouts of one question."""
    found = conciseness_function(_numbers(outcome_rewards), _numbers(conciseness_scores), alpha, annealing, difficulty)
    return {"rewards": found}


def additive_conciseness_reward(
    outcome_rewards: Any, conciseness_scores: Any, alpha: float, annealing: float, difficulty: float
) -> dict[str, Tensor]:
    """R_o + alpha c (s + d)."""
    values = _numbers(outcome_rewards), _numbers(conciseness_scores)
    return {"rewards": conciseness_function(*values, alpha, annealing, difficulty, form="added")}


def crf_group_rewards(
    outcome_rewards: Any, conciseness_scores: Any, group_ids: Sequence[Any], alpha: float, annealing: float
) -> dict[str, Tensor]:
    """Difficulty exp(right / group size) and reward of each rollout."""
    outcomes = _numbers(outcome_rewards)
    difficulty = question_difficulty(outcomes, _ids(group_ids))
    rewards = conciseness_function(outcomes, _numbers(conciseness_scores), alpha, annealing, difficulty)
    return {"difficulty": difficulty, "rewards": rewards}


def annealing_coefficient(step: float, total_steps: float, schedule: str = "linear") -> dict[str, float]:
    """s at a step of a run."""
    return {"s": annealing(step / max(total_steps, 1), schedule)}


def filter_discriminative_pairs(
    concise_scores: Any, redundant_scores: Any, high: float = 0.8, low: float = 0.5
) -> dict[str, list[bool]]:
    """Which pairs the data builder keeps."""
    from guerdon.signals.learned.train_crm import is_discriminative

    return {"keep": is_discriminative(_numbers(concise_scores), _numbers(redundant_scores), high, low).tolist()}


def kimi_length_rewards(outcome_rewards: Any, response_lengths: Any) -> dict[str, Tensor]:
    """1/2 - (len - min) / (max - min) within one question, at most 0 where wrong."""
    lengths = _numbers(response_lengths)
    if not len(lengths):
        return {"length_rewards": lengths}
    shortest, longest = lengths.min().expand_as(lengths), lengths.max().expand_as(lengths)
    return {"length_rewards": kimi_length_reward(_numbers(outcome_rewards), lengths, shortest, longest)}


def cosine_length_rewards(
    correct: bool,
    length: float,
    max_length: int,
    r_correct_short: float = 2.0,
    r_correct_long: float = 1.0,
    r_wrong_short: float = -10.0,
    r_wrong_long: float = 0.0,
    r_exceed: float = -10.0,
) -> dict[str, Tensor]:
    """The cosine reward of one response."""
    found = cosine_length_reward(
        torch.tensor([float(correct)]),
        torch.tensor([float(length)]),
        max_length,
        right=(r_correct_short, r_correct_long),
        wrong=(r_wrong_short, r_wrong_long),
        exceed=r_exceed,
    )
    return {"reward": found[0]}


VECTORS: VectorFunctions = {
    "crf_reward": crf_reward,
    "additive_conciseness_reward": additive_conciseness_reward,
    "crf_group_rewards": crf_group_rewards,
    "annealing_coefficient": annealing_coefficient,
    "filter_discriminative_pairs": filter_discriminative_pairs,
    "kimi_length_reward": kimi_length_rewards,
    "cosine_length_reward": cosine_length_rewards,
}

PUBLISHED = Published(
    slug="crm",
    title="CRM and CRF (conciseness reward model and conciseness reward function)",
    arxiv="2511.09158",
    kinds=("sequence reward", "reward shaping", "reward model"),
    summary="A learned score of how concise the reasoning is, multiplied into the outcome: being short is paid only when right.",
    vectors=VECTORS,
    settings=settings(
        shown={"algorithm": "GRPO [paper]", "group size, KL, clip range, learning rate": "not found [guess]"},
    ),
)
