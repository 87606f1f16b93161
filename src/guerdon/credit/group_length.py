"""Length compared within a group: how far a completion is from its group's correct ones, and what that costs.

A cap or a target (`signals.Length`) is the same for all questions, and the rewards of `credit.length` pay for being short; here
the yardstick is what it took to be right on THIS question, and being shorter than that may cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from guerdon.credit.groups import group_stats
from guerdon.credit.link import Levels, LinkBase, planned_name, require_level, row_totals
from guerdon.errors import CapabilityError, ChainError, ConfigError
from guerdon.options import checked
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts

Side = Literal["short", "long", "both"]


class GroupLengths(NamedTuple):
    """rewards: [B] float64, in [-p_max, 0]. target: [B] float64, mean length of the group's correct rows; NaN where too few."""

    rewards: Tensor
    target: Tensor


@checked
def group_length_penalty(
    lengths: Tensor,
    accuracy: Tensor,
    group_ids: Tensor,
    *,
    sample_ids: Tensor | None = None,
    p_max: float = 0.5,
    tau: float = 0.5,
    side: Side = "short",
    correct_threshold: float = 0.5,
    min_correct: int = 1,
    exempt_correct: bool = False,
) -> GroupLengths:
    """R_i = -p_max min(1, d_i / tau), where d_i is the relative distance to L*, the mean length of the group's correct rows.

    short: d = max(0, (L* - L_i) / L*);  long: max(0, (L_i - L*) / L*);  both: |L_i - L*| / L*

    Args:
        lengths: [B], tokens.
        accuracy: [B]; a row is correct where it reaches `correct_threshold`. NaN is not correct.
        group_ids: [B].
        sample_ids: [B], rows that are one sample count once.
        p_max: largest penalty.
        tau: the relative distance at which it is reached.
        side: which deviations cost.
        min_correct: groups with fewer correct rows have no target and no penalty.
        exempt_correct: a correct row pays nothing.

    Returns:
        `GroupLengths`; rewards 0 where there is no target, or where it is 0 (only empty completions were right).

    Raises:
        ConfigError: an option out of range.

    Source: HARMO (arXiv 2510.05283) gives a penalty computed in the group, which needs a correct rollout, with P_max and tau; this
    form of it is a reconstruction.
    """
    if side not in ("short", "long", "both"):
        raise ConfigError(f"side={side!r}: use short, long or both")
    if p_max < 0 or tau <= 0 or min_correct < 1:
        raise ConfigError(
            f"p_max={p_max} must not be negative, tau={tau} must be positive, min_correct={min_correct} at least 1"
        )
    sizes = lengths.double()
    correct = accuracy >= correct_threshold
    found = group_stats(sizes, group_ids, correct, sample_ids=sample_ids, std="population")
    target = torch.where(found.size >= min_correct, found.mean, float("nan"))
    usable = target > 0
    signed = (sizes - target) / torch.where(usable, target, 1.0)
    distance = {"short": -signed, "long": signed, "both": signed.abs()}[side].clamp(min=0)
    pays = usable & ~correct if exempt_correct else usable
    rewards = torch.where(pays, -p_max * (distance / tau).clamp(max=1), 0.0)
    return GroupLengths(rewards, target)


@dataclass(frozen=True, repr=False)
class GroupLengthPenalty(LinkBase):
    """`group_length_penalty` as one more source of the chain, and the lengths as metrics.

    Attributes:
        by: the accuracy source, one value a row.
        into: name of the result.
        p_max, tau, side, correct_threshold, min_correct, exempt_correct: see `group_length_penalty`.
        truncated: a completion cut at the length cap has the greatest length there is, which is not to be a merit: "full" gives
            it -p_max in groups that have a target, "as_is" treats it as any other. It never counts as correct.
    """

    by: str
    into: str = "length"
    p_max: float = 0.5
    tau: float = 0.5
    side: Side = "short"
    correct_threshold: float = 0.5
    min_correct: int = 1
    exempt_correct: bool = False
    truncated: Literal["full", "as_is"] = "full"

    scope: ClassVar[Literal["row", "group", "batch"]] = "group"

    def __post_init__(self) -> None:
        if self.truncated not in ("full", "as_is"):
            raise ConfigError(f"truncated={self.truncated!r}: use 'full' or 'as_is'")
        none = torch.zeros(0)
        self._penalty(none, none, none.long(), None)  # refuses bad options here

    def _penalty(self, lengths: Tensor, accuracy: Tensor, groups: Tensor, samples: Tensor | None) -> GroupLengths:
        return group_length_penalty(
            lengths, accuracy, groups, sample_ids=samples, p_max=self.p_max, tau=self.tau, side=self.side,
            correct_threshold=self.correct_threshold, min_correct=self.min_correct, exempt_correct=self.exempt_correct,
        )  # fmt: skip

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.by, levels)
        require_level(self.by, levels, "sequence", "and lengths are compared once a row")
        if self.into in levels:
            raise ChainError(f"there is a source {self.into!r} already")
        return {**levels, self.into: "sequence"}

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        """Raises CapabilityError for rollouts without tokens: there is no length to compare."""
        if not rollouts.has_tokens or rollouts.policy_mask is None:
            raise CapabilityError(f"{self!r} counts tokens, and these rollouts are texts only")
        totals, live = (tensor.cpu() for tensor in row_totals(scores, scores[self.by]))
        lengths = rollouts.policy_mask.sum(1).cpu()
        cut = torch.zeros_like(live) if rollouts.finished is None else ~rollouts.finished.bool().cpu()
        accuracy = torch.where(live & ~cut, totals.double(), float("nan"))
        samples = None if rollouts.sample_ids is None else rollouts.sample_ids.cpu()
        values, target = self._penalty(lengths, accuracy, rollouts.groups.cpu(), samples)
        if self.truncated == "full":
            values = torch.where(cut & (target > 0), -self.p_max, values)
        values = torch.where(live, values, 0.0)
        correct = live & (accuracy >= self.correct_threshold)
        shown = {
            f"{self.into}/penalty": (values, live),
            f"{self.into}/target": (target, live & ~target.isnan()),
            f"{self.into}/correct": (lengths.double(), correct),
            f"{self.into}/wrong": (lengths.double(), live & ~correct),
        }
        metrics = {name: float(numbers[rows].mean()) for name, (numbers, rows) in shown.items() if bool(rows.any())}
        reasons = {
            row: f"{int(lengths[row])} tokens, correct completions of its group have {float(target[row]):.1f}"
            for row in (values < 0).nonzero()[:, 0].tolist()
        }
        penalty = Rewards.sequence(values.to(scores[self.by].values), rollouts, reasons)
        return scores.with_source(self.into, penalty).with_metrics(**metrics)
