"""IGPO: every tool turn is paid for how much it raised the policy's own probability of the true answer.

Problem: a search agent gets one F1 score at the end, and a group in which every rollout fails teaches nothing. Idea: before each turn,
ask the policy in one teacher-forced forward how probable the reference answer would be now; what a turn adds to that is its reward.
It is dense, knows the ground truth, and needs no reward model and no further sampling. Gains and the final F1 are normalised within
the group, summed from each turn on, and every token of a turn gets its turn's sum in the usual clipped loss; tool output is never in it.

The paper's estimator z-scores gains before it sums them, so every further turn costs a rollout the group's mean gain: where the policy decides
when to stop, that teaches it to stop (or to go on) by what its turns earn against other turns and not against stopping. `estimator="returns"`
centres the sums instead.

It pays for belief, not for truth: a policy can raise its confidence by restating a guess. Watch `gain.end` beside true success.

Source: "Information Gain-based Policy Optimization", arXiv 2510.14967 (ICLR 2026); official code github.com/GuoqingWang1/IGPO. The default is
the paper's (gains and outcomes normalised apart, sample std). The code of January 2026 normalises them jointly with the population
std (`normalization="joint", std="population"`); the estimators of the code before that are `estimator="early_position"` and
`"early_start"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit import (
    Accumulate,
    BlockedReturns,
    Drop,
    Fuse,
    GroupNorm,
    LeaveOneOut,
    OnFailure,
    OnLastSpan,
    ToTokens,
    blocked_returns,
    early_advantages,
)
from guerdon.errors import ConfigError
from guerdon.options import checked, require_range
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.segment import ByTurn
from guerdon.signals.likelihood import information_gain as gain
from guerdon.signals.verifiable.tagged_answer import SPLIT, TaggedAnswer, tagged_answer_reward
from guerdon.spans import Spans
from guerdon.system import System
from guerdon.systems.base import Published, VectorFunctions
from guerdon.systems.pure import _grid, _ids
from guerdon.systems.settings import settings

Normalization = Literal["separate", "joint"]
Estimator = Literal["turns", "returns", "early_position", "early_start"]
Paid = Literal["both", "gain", "outcome"]
ADVANTAGE = "advantage"


@checked
def igpo(
    *,
    reference: str = "answer",
    rewards: Paid = "both",
    confidence: gain.Confidence = "prob",
    answer_head: str = gain.ANSWER_HEAD,
    outcome: Any = "f1",
    format_penalty: float = -2.0,
    alpha: float = 1.0,
    normalization: Normalization = "separate",
    gamma: float | None = None,
    std: Literal["sample", "population"] = "sample",
    eps: float = 1e-6,
    flat_below: float = 0.0,
    estimator: Estimator = "turns",
    turn_header: str | None = None,
    temperature: float = 1.0,
    information_gain: Any = None,
) -> System:
    """IGPO with the paper's defaults.

    Args:
        reference: the data column with the true answer.
        rewards: "both"; "gain" or "outcome" alone are the ablations (outcome alone is GRPO).
        confidence: "prob" (arXiv v1, code) or "logprob" (ICLR text).
        answer_head: text between a turn's history and the scored answer; it has to fit how the policy answers.
        outcome: "f1", "em" or "noformatf1" (see `signals.TaggedAnswer`), or any sequence-level signal.
        format_penalty: what an unbalanced or missing tag gets under "f1" and "em".
        alpha: weight of the outcome beside the gains: of its z-score ("separate"), or of itself.
        normalization: "separate" z-scores of gains and outcomes, or one "joint" z-score over all of a group's rewards.
        gamma: discount per turn, default 1; the early estimators discount per token (default 1 for "early_position", 0.5 for "early_start").
        std, eps: of the z-scores; "population" is what the official code of January 2026 uses.
        flat_below: a group whose gains have a smaller std is not taught by them ("separate" only). The paper's z-scores have no such floor, and
            make as much of gains of 1e-5 as of 0.5: set it, to 0.05 for probabilities, where confidences hardly move before a turn that finds
            the answer.
        estimator: "turns" is the paper's. "returns" subtracts from each turn's return what the others got from that turn on, divides by
            nothing, and is unbiased where the policy decides when to stop; `normalization`, `std` and `flat_below` do not apply.
            "early_position" and "early_start" are those of the first published code.
        turn_header: how turns are found in texts without tokens, see `segment.ByTurn`; None = runs of the policy's own tokens.
        temperature: of the scored probabilities.
        information_gain: another signal in the place of `signals.InformationGain`: gains at the level "turns", none on a row's last turn.
    """
    require_range(format_penalty=format_penalty)
    require_range(0, alpha=alpha, eps=eps, flat_below=flat_below)
    require_range(0, above=True, temperature=temperature)
    if rewards not in ("both", "gain", "outcome"):
        raise ConfigError(f"rewards={rewards!r}: use 'both', 'gain' or 'outcome'")
    signals: dict[str, Any] = {}
    gains, drops = None, []
    if rewards != "outcome":
        signals["gain"] = information_gain or gain.InformationGain(
            reference=reference, confidence=confidence, head=answer_head, temperature=temperature
        )
        level = signals["gain"].level
        gains = "gain" if isinstance(level, str) else "gain.gain"
        drops = [] if isinstance(level, str) else [f"gain.{part}" for part in level if part != "gain"]
    if rewards != "gain":
        kind: Any = outcome
        tagged = isinstance(outcome, str)
        signals["f1"] = (
            TaggedAnswer(reference=reference, kind=kind, format_penalty=format_penalty) if tagged else outcome
        )
    if flat_below and (normalization, estimator) != ("separate", "turns"):
        raise ConfigError(
            f"flat_below={flat_below}: gains are z-scored by themselves under normalization='separate' and estimator='turns' only"
        )
    if estimator == "returns" and normalization != "separate":
        raise ConfigError("estimator='returns' normalises nothing, so normalization= does not apply: leave it out")
    paid = None if rewards == "gain" else "f1"
    links = turn_chain(gains, paid, normalization, gamma, alpha, std, eps, estimator, flat_below=flat_below)
    if estimator in ("turns", "returns"):
        links.append(ToTokens(placement="whole"))
    return System(
        signals,
        [OnFailure("row"), *([Drop(*drops)] if drops else []), *links],
        segments={"turns": ByTurn(turn_header, role="assistant" if turn_header else None)},
        name="igpo" if rewards == "both" else f"igpo:rewards={rewards}",
    )


def turn_chain(
    gains: str | None,
    outcome: str | None,
    normalization: Normalization = "separate",
    gamma: float | None = None,
    alpha: float = 1.0,
    std: Literal["sample", "population"] = "sample",
    eps: float = 1e-6,
    estimator: Estimator = "turns",
    dtype: Literal["float32", "float64"] = "float32",
    flat_below: float = 0.0,
) -> list[Any]:
    """The links from gains (one a tool turn) and outcomes (one a row) to one advantage a turn; to tokens for the early estimators."""
    if normalization not in ("separate", "joint"):
        raise ConfigError(f"normalization={normalization!r}: use 'separate' or 'joint'")
    norm: dict[str, Any] = {"std": std, "eps": eps, "dtype": dtype}
    names = [name for name in (gains, outcome) if name]
    onto = [OnLastSpan(outcome)] if outcome else []
    join = [Fuse(*names, weights=(1.0, alpha), into=ADVANTAGE)] if len(names) > 1 else []
    credit = ADVANTAGE if join else names[0]
    if estimator == "returns":
        baseline = LeaveOneOut(credit, "per_index", singleton="raw")
        return [*onto, *join, Accumulate(credit, 1.0 if gamma is None else gamma), baseline]
    if estimator == "turns":
        accumulate = Accumulate(credit, 1.0 if gamma is None else gamma)
        if normalization == "separate" or not join:
            floors = {name: flat_below if name == gains else 0.0 for name in names}
            return [*[GroupNorm(name, flat_below=floors[name], **norm) for name in names], *onto, *join, accumulate]
        return [*onto, *join, GroupNorm(credit, **norm), accumulate]
    if estimator not in ("early_position", "early_start"):
        raise ConfigError(f"estimator={estimator!r}: use 'turns', 'returns', 'early_position' or 'early_start'")
    at: Literal["position", "start"] = "position" if estimator == "early_position" else "start"
    per_token = (1.0 if at == "position" else 0.5) if gamma is None else gamma
    return [*onto, *join, ToTokens(credit, "end"), BlockedReturns(credit, per_token, at, eps=eps)]


# --- the functions of the conformance vectors ----------------------------------------------------------------------------


def answer_reward(response: str, ground_truth: str, kind: Any = "f1") -> dict[str, float]:
    """The reward of a response; alternatives of the ground truth are joined by `<|answer_split|>`."""
    return {"reward": tagged_answer_reward(response, ground_truth.lower().split(SPLIT), kind).value}


def information_gain_rewards(answer_logprobs: Sequence[Sequence[float]], mode: Any = "prob") -> dict[str, Tensor]:
    """Confidences of states 0..T-1 and the gains of turns 1..T-1, from the answer's log-probabilities in each state."""
    states = [torch.tensor(list(logprobs), dtype=torch.float64) for logprobs in answer_logprobs]
    confidences = [gain.answer_confidence(values, torch.ones_like(values, dtype=torch.bool), mode) for values in states]
    stacked = torch.stack(confidences) if confidences else torch.zeros(0, dtype=torch.float64)
    return {"confidences": stacked, "gains": gain.information_gains(stacked)}


def turn_returns_position_baseline(
    token_level_rewards: Any, response_mask: Any, group_ids: Sequence[Any]
) -> dict[str, Tensor]:
    """The early code's default estimator on [B, L] token rewards."""
    mask = _grid(response_mask) > 0
    returns = blocked_returns(_grid(token_level_rewards), mask)
    advantages = early_advantages(returns, _ids(group_ids), "position")
    return {"advantages": torch.where(mask, advantages, 0.0), "returns": torch.where(mask, returns, 0.0)}


def turn_returns_scalar_baseline(
    token_level_rewards: Any,
    response_mask: Any,
    group_ids: Sequence[Any],
    gamma: float = 0.5,
    normalize_std: bool = True,
) -> dict[str, Tensor]:
    """The early code's alternative: discounted, one baseline a group."""
    mask = _grid(response_mask) > 0
    returns = blocked_returns(_grid(token_level_rewards), mask, gamma)
    advantages = early_advantages(returns, _ids(group_ids), "start", scale=normalize_std)
    return {"advantages": torch.where(mask, advantages, 0.0), "returns": torch.where(mask, returns, 0.0)}


def igpo_turn_advantages(
    info_gains: Sequence[Sequence[float]],
    outcome_rewards: Sequence[float],
    group_ids: Sequence[Any],
    gamma: float = 1.0,
    normalization: Normalization = "separate",
    eps: float = 1e-6,
) -> dict[str, list[Tensor]]:
    """Turn advantages of each rollout, the answer turn last: the system's own links, on one token a turn."""
    counts = torch.tensor([len(gains) + 1 for gains in info_gains], dtype=torch.long)
    width = int(counts.max()) if len(counts) else 0
    turns = Spans.tokens(torch.arange(width) < counts[:, None]).renamed("turns")
    values = torch.zeros(len(counts), width, dtype=torch.float64)
    for row, gains in enumerate(info_gains):
        values[row, : len(gains)] = torch.tensor(list(gains), dtype=torch.float64)
    rollouts = Rollouts(
        [""] * len(counts),
        [""] * len(counts),
        completion_ids=torch.zeros(len(counts), width, dtype=torch.long),
        completion_mask=turns.mask,
        group_ids=_ids(group_ids),
        spans={"turns": turns},
    )
    paid = Spans(turns.start, turns.end, torch.arange(width) < counts[:, None] - 1, name="turns")
    outcome = Rewards.sequence(torch.tensor([float(x) for x in outcome_rewards], dtype=torch.float64), rollouts)
    scores = Scores({"gain": Rewards(values, paid), "f1": outcome}, torch.ones(len(counts), dtype=torch.bool))
    for link in turn_chain("gain", "f1", normalization, gamma, eps=eps, dtype="float64"):
        scores = link(scores, rollouts)
    found = scores[ADVANTAGE].values
    return {"advantages": [row[:count] for row, count in zip(found, counts.tolist(), strict=True)]}


VECTORS: VectorFunctions = {
    "answer_reward": answer_reward,
    "information_gain_rewards": information_gain_rewards,
    "turn_returns_position_baseline": turn_returns_position_baseline,
    "turn_returns_scalar_baseline": turn_returns_scalar_baseline,
    "igpo_turn_advantages": igpo_turn_advantages,
}

PUBLISHED = Published(
    slug="igpo",
    title="IGPO (information gain-based policy optimisation)",
    arxiv="2510.14967",
    kinds=("turn reward", "credit assignment", "advantage estimator"),
    summary="Every tool turn is paid for how much it raised the policy's own probability of the true answer.",
    vectors=VECTORS,
    settings=settings(
        code={
            "num_generations": 16,
            "temperature": 1.0,
            "epsilon": 0.2,
            "beta": 0.001,
            "entropy_coef": 0.001,
            "learning_rate": 1e-6,
            "num_train_epochs": 1,
        },
        note={"loss_type": "grpo"},
        shown={
            "batch": "32 questions [code]",
            "lengths": "prompt 30767, 2000 tokens a call, at most 10 turns [code]",
        },
    ),
)
