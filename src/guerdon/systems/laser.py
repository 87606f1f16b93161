"""LaSeR: a policy that scores its own solutions in one more token, trained beside the verifier's reward.

Problem: at test time there is no verifier, and a separate one costs a second model or a second generation. Idea: after the end of a
solution read the policy's log-probability of one fixed token that it never writes; scaled and shifted it is a score. Squared error
against the verifier's reward trains it during ordinary RL, at the price of one more position; it ranks samples and weighs votes at test
time (`guerdon.signals.agreement.choice`), and a small share of the advantages can come from it.

Never drop the verifier: advantages from the score alone collapse. The score holds for the verifier and the prompt format it was trained
with, it does not say where an error is, and outside its domain it is weak.

Source: "LaSeR: Reinforcement Learning with Last-Token Self-Rewarding", arXiv 2510.14943; official code github.com/RUCBM/LaSeR. Differs
from the code on purpose: the score comes from a pass that holds the token (the code's advantages read passes without it) and always has
temperature 1; a cut completion scores 0 everywhere; a solution that ends exactly at the length cap has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit import (
    GroupNorm,
    MixSelfReward,
    OnFailure,
    Onset,
    RewardIs,
    ToTokens,
    WatchVerification,
    self_reward_advantages,
    verification_metrics,
)
from guerdon.errors import ConfigError
from guerdon.objectives.self_reward import SelfRewardRegression, class_weights, self_reward_loss
from guerdon.options import checked, require_range
from guerdon.signals.agreement.choice import weighted_vote
from guerdon.signals.likelihood.last_token import Constant, LastTokenScore, last_token_score
from guerdon.system import Model, System
from guerdon.systems.base import Published, VectorFunctions
from guerdon.systems.pure import _ids
from guerdon.systems.settings import settings


@checked
def laser(
    *,
    verifier: Any,
    token: str | int | None = None,
    constant: Constant = "calibrate",
    beta: float = 0.1,
    coefficient: float = 0.1,
    balance: bool = True,
    divide: Literal["rows", "finished"] = "rows",
    mix: float = 0.1,
    std_threshold: float = 0.1,
    clip: bool = True,
    warmup: int | None = None,
    mix_after: int | None = None,
    calibration_rows: int = 256,
) -> System:
    """GRPO on the verifier's reward, and the last-token score beside it, with the defaults of the official scripts.

    Args:
        verifier: the outcome signal, 1 right and 0 wrong; other real numbers are regressed on as they are.
        token: the token of the score, one that the policy never writes: an id or its text; None = an unused special token.
        constant: c, or "calibrate" (the mean over the first finished rollouts, see `LastTokenScore`), or "reference" (the starting
            policy, row by row; one more model in memory). The paper's numbers: -23.0 Qwen2.5-7B, -25.0 OctoThinker-3B.
        beta: KL coefficient of the score. A vocabulary without an improbable token needs more; calibration warns.
        coefficient: alpha, of the squared error. 0 is plain GRPO.
        balance: weigh right and wrong solutions alike.
        divide: the squared errors by all "rows" (the code) or the "finished" ones (the paper).
        mix: share of the self-rewarding advantages; 0 leaves them out.
        std_threshold: groups whose scores spread less keep the verifier's advantages.
        clip: limit the score to [0, 1] before it becomes an advantage (the code; the paper does not).
        warmup: steps of RL alone. None = 200, or an eighth of a shorter run; the official script of a model that was trained by RL
            before has 0.
        mix_after: further steps before the advantages are mixed. None = 200, or an eighth of a shorter run.
        calibration_rows: of the constant.
    """
    require_range(0, above=True, beta=beta)
    first = Onset(warmup, usual=200, share=1 / 8)
    score = LastTokenScore(
        constant=constant, beta=beta, token=token, calibration_rows=calibration_rows, trained_from=first
    )
    second = Onset(mix_after, usual=200, share=1 / 8, after=first)
    chain: list[Any] = [
        OnFailure("source", sources=("self",)),
        OnFailure("row", sources=("answer",)),
        WatchVerification("self", by="answer"),
        RewardIs("answer"),
        GroupNorm("answer", eps=1e-6, singleton="raw"),
        MixSelfReward("answer", "self", mix, std_threshold, clip, second),
        ToTokens("answer", "whole"),
    ]
    return System(
        {"answer": verifier, "self": score},
        chain,
        objectives=[
            SelfRewardRegression(score, "answer", coefficient=coefficient, balance=balance, divide=divide, onset=first)
        ],
        models={"reference": Model("policy", "phase_start")} if constant == "reference" else {},
        name="laser",
    )


# --- the functions of the conformance vectors ----------------------------------------------------------------------------


def _numbers(values: Any) -> Tensor:
    return torch.tensor([float("nan") if v is None else float(v) for v in values], dtype=torch.float64)


def _grid(values: Any) -> Tensor:
    rows = [[float(v) for v in row] for row in values]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), -1 if rows and rows[0] else 0)


def _after_the_end(values: Tensor, response_mask: Tensor) -> tuple[Tensor, Tensor]:
    """[B] what stands at the first position after each response, 0 where there is none, and [B] bool, whether there is one.

    The vectors' grid has it beside the response's tokens; the signal itself appends the token to the ids (`LastTokenScore.sequences`).
    """
    outside = response_mask == 0
    room = outside.any(1)
    if not values.shape[1]:
        return values.new_zeros(len(values)), room
    first = outside.int().argmax(1, keepdim=True)
    return torch.where(room, values.gather(1, first)[:, 0], 0.0), room


def _scores(
    logprobs: Any, ref_logprobs: Any, response_mask: Any, kl_coef: float, ref_constant: float | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """[B] scores and [B] bool: the row has a position after its end. A constant that is not negative asks for the reference, too."""
    mask = _grid(response_mask)
    values, room = _after_the_end(_grid(logprobs), mask)
    if ref_constant is not None and ref_constant < 0:
        return last_token_score(temperature * values, float(ref_constant), kl_coef), room
    if ref_logprobs is None:
        raise ConfigError("without a negative ref_constant the reference's log-probabilities are needed")
    reference, _ = _after_the_end(_grid(ref_logprobs), mask)
    return last_token_score(temperature * values, temperature * reference, kl_coef), room


def class_weights_vector(correct: Any, not_truncated: Any) -> Tensor:
    """[B] weights; every row has the weight of its class."""
    return class_weights(_numbers(correct) > 0.5, _numbers(not_truncated) > 0)


def self_rewarding_loss(
    logprobs: Any,
    ref_logprobs: Any,
    response_mask: Any,
    verifier_rewards: Any,
    class_weights: Any = None,
    kl_coef: float = 0.1,
    ref_constant: float | None = -23.0,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """Scores, None for a truncated row, and the loss over all rows."""
    scores, room = _scores(logprobs, ref_logprobs, response_mask, kl_coef, ref_constant, temperature)
    weights = None if class_weights is None else _numbers(class_weights)
    loss = self_reward_loss(scores, _numbers(verifier_rewards), room, weights)
    shown = [score if there else None for score, there in zip(scores.tolist(), room.tolist(), strict=True)]
    return {"self_rewarding_scores": shown, "loss": loss}


def self_rewarding_advantages(
    old_logprobs: Any,
    ref_logprobs: Any,
    response_mask: Any,
    group_ids: Sequence[Any],
    advantages: Any,
    kl_coef: float = 0.1,
    ref_constant: float | None = -23.0,
    std_threshold: float = 0.1,
    mix_coef: float = 0.1,
) -> dict[str, Tensor]:
    """Advantages of the scores, one a row, and their mixture with those given; a truncated row's score is 0."""
    scores, room = _scores(old_logprobs, ref_logprobs, response_mask, kl_coef, ref_constant, 1.0)
    given = _numbers(advantages)
    clipped = torch.where(room, scores.clamp(0.0, 1.0), 0.0)
    own = self_reward_advantages(clipped, given, _ids(group_ids), std_threshold=std_threshold)
    return {"self_rewarding_advantages": own, "mixed_advantages": (1 - mix_coef) * given + mix_coef * own}


def self_verification_metrics(scores: Any, correct: Any, threshold: float = 0.5) -> dict[str, float]:
    """Accuracies on right, wrong and all solutions, and their f1."""
    return verification_metrics(list(scores), list(correct), threshold)._asdict()


def weighted_majority_vote(answers: Any, scores: Any) -> dict[str, Any]:
    """The winner and each answer's total."""
    return weighted_vote(list(answers), list(scores))._asdict()


VECTORS: VectorFunctions = {
    "class_weights": class_weights_vector,
    "self_rewarding_loss": self_rewarding_loss,
    "self_rewarding_advantages": self_rewarding_advantages,
    "self_verification_metrics": self_verification_metrics,
    "weighted_majority_vote": weighted_majority_vote,
}

PUBLISHED = Published(
    slug="laser",
    title="LaSeR (last-token self-rewarding)",
    arxiv="2510.14943",
    kinds=("policy loss", "reward model", "advantage estimator", "inference-time search"),
    summary="One token after the end of a solution tells how good the policy finds it; trained by squared error beside the verifier.",
    vectors=VECTORS,
    settings=settings(
        code={
            "num_generations": 8,
            "temperature": 1.0,
            "beta": 0.0,
            "learning_rate": 1e-6,
            "num_train_epochs": 2,
            "max_completion_length": 8192,
        },
        shown={
            "batch": "128 prompts, one update a batch [code]",
            "starts": "the squared error after 200 steps, its advantages after 200 more [code]",
        },
    ),
)
