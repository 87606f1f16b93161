"""Steps weighted into one score a row, and the switch from outcome to process where a whole group is wrong (P2S, arXiv 2601.20649).

process_b = sum_i w_i r_bi        w_i = sigmoid(k (i/m - 1/2)) over i = 1..m, normalised to sum 1: later steps count more
R_b = -1                          the layout is not kept
    = outcome_b                   somebody in the group is right
    = c sigmoid(process_b)        nobody is; c <= 1/2, so that no wrong rollout ever outranks a right one
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guerdon.credit.link import Levels, LinkBase, planned_name, require_level
from guerdon.errors import ChainError, ConfigError
from guerdon.rewards import Reasons, Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.spans import Spans


def sigmoid_step_weights(mask: Tensor, steepness: float = 10.0) -> Tensor:
    """[B, S] float64 weights, each row summing to 1 over its steps (0 in a row without any).

    Args:
        mask: [B, S] bool, the steps, in order.
        steepness: k; 0 weighs all alike, negative ones favour early steps.
    """
    rank, count = mask.long().cumsum(1).double(), mask.sum(1, keepdim=True).clamp(min=1)
    logits = torch.nn.functional.logsigmoid(steepness * (rank / count - 0.5))
    logits = logits.masked_fill(~mask, float("-inf"))
    # In logarithms: sigmoids of a steep curve underflow, their ratios do not.
    return torch.where(mask.any(1, keepdim=True), torch.softmax(logits, 1), 0.0) if mask.shape[1] else logits


def hierarchical_rewards(
    format_ok: Tensor,
    outcome: Tensor,
    process: Tensor,
    group_ids: Tensor,
    *,
    applies: Tensor | None = None,
    counts: Tensor | None = None,
    threshold: float = 0.99,
    scale: float = 0.5,
    wrong_format: float = -1.0,
) -> tuple[Tensor, Tensor]:
    """The switch above.

    Args:
        format_ok: [B] bool.
        outcome: [B].
        process: [B], unbounded; -inf is squashed to 0.
        group_ids: [B] int64.
        applies: [B] bool, rows with a process score; others keep their outcome.
        counts: [B] bool, rows that may make their group a solved one.
        threshold: an outcome of at least this is right.
        scale: c.
        wrong_format: what a broken layout gets.

    Returns:
        rewards [B]; [B] bool, rows of solved groups.
    """
    right = format_ok & (outcome >= threshold)
    if counts is not None:
        right = right & counts
    solved = torch.isin(group_ids, group_ids[right])
    dense = scale * torch.sigmoid(process)
    plain = solved if applies is None else solved | ~applies
    values = torch.where(plain, outcome, dense)
    return torch.where(format_ok, values, torch.full_like(values, wrong_format)), solved


@dataclass(frozen=True, repr=False)
class WeightedSteps(LinkBase):
    """A source with one value a step becomes one value a row: sum_i w_i r_i, see `sigmoid_step_weights`.

    A row without steps stays without a value (masked); a row with a failed step fails.

    Attributes:
        name: the source.
        steepness: k.
        into: name of the result; None = the same.
    """

    name: str
    steepness: float = 10.0
    into: str | None = None

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.name, levels)
        if levels[self.name] in ("sequence", "token"):
            raise ChainError(f"{self.name!r} is at {levels[self.name]!r} level, WeightedSteps takes one value a step")
        return {**{n: lvl for n, lvl in levels.items() if n != self.name}, self.into or self.name: "sequence"}

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        rewards = scores[self.name]
        weights = sigmoid_step_weights(rewards.mask, self.steepness).to(rewards.values.dtype)
        total = torch.where(rewards.mask, weights * rewards.values, 0.0).sum(1)
        whole = Spans.sequence(rollouts.lengths.to(total.device))
        spans = replace(whole, mask=rewards.mask.any(1, keepdim=True))
        reasons: Reasons = {(row, 0): text for (row, _), text in reversed(list(rewards.reasons.items()))}
        result = Rewards(torch.where(spans.mask, total[:, None], 0.0), spans, reasons)
        return scores.with_source(self.into or self.name, result, drop=[self.name])


@dataclass(frozen=True, repr=False)
class Hierarchical(LinkBase):
    """Outcome where the group has a right rollout, squashed process where it has none: `hierarchical_rewards`.

    Outcome and process leave the chain; the format stays (a warm-up may want it), Drop it where it is not wanted.

    Attributes:
        outcome, process, format: sources, one value a row. Format at most 1/2 is broken; a masked process keeps the outcome.
        into: name of the result.
        threshold, scale, wrong_format: see `hierarchical_rewards`.
    """

    outcome: str
    process: str
    format: str
    into: str = "reward"
    threshold: float = 0.99
    scale: float = 0.5
    wrong_format: float = -1.0

    scope: ClassVar[Literal["row", "group", "batch"]] = "group"

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= self.threshold:
            raise ConfigError(
                f"scale={self.scale} must be in [0, threshold={self.threshold}]: a wrong rollout must not outrank a right one"
            )

    def plan(self, levels: Levels) -> Levels:
        for name in (self.outcome, self.process, self.format):
            require_level(planned_name(name, levels), levels, "sequence", "Hierarchical takes one value a row")
        gone = (self.outcome, self.process)
        return {**{n: lvl for n, lvl in levels.items() if n not in gone}, self.into: "sequence"}

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        outcome, process, layout = (scores[name] for name in (self.outcome, self.process, self.format))
        kept = scores.keep.to(outcome.values.device)
        values, solved = hierarchical_rewards(
            layout.values[:, 0] > 0.5,
            outcome.values[:, 0],
            process.values[:, 0],
            rollouts.groups.to(outcome.values.device),
            applies=process.mask[:, 0],
            counts=kept & outcome.usable[:, 0],
            threshold=self.threshold,
            scale=self.scale,
            wrong_format=self.wrong_format,
        )
        reasons: Reasons = {**process.reasons, **outcome.reasons, **layout.reasons}
        result = Rewards(values[:, None], outcome.spans, reasons)
        live = kept & (layout.values[:, 0] > 0.5)
        dense = live & ~solved & process.mask[:, 0]
        size = kept.sum().clamp(min=1)
        scores = scores.with_metrics(
            **{
                f"{self.into}/solved_groups": float((kept & solved).sum() / size),
                f"{self.into}/process": float(dense.sum() / size),
                f"{self.into}/format": float(live.sum() / size),
            }
        )
        return scores.with_source(self.into, result, drop=[self.outcome, self.process])
