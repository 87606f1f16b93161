"""Advantages of a self-rewarding score, mixed into the verifier's (LaSeR, arXiv 2510.14943)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guerdon.credit.groups import group_stats
from guerdon.credit.link import Levels, LinkBase, countable, planned_name, require_level
from guerdon.credit.schedule import Onset
from guerdon.errors import ChainError
from guerdon.options import require_range
from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts


def self_reward_advantages(
    scores: Tensor, advantages: Tensor, group_ids: Tensor, mask: Tensor | None = None, *, std_threshold: float = 0.1
) -> Tensor:
    """A_s = (s - mean_g) / std_g where std_g > threshold, else the advantages given: a flat group's scores are noise.

    Args:
        scores: [B] s, already clipped to [0, 1] (the paper leaves it unclipped, its code clips).
        advantages: [B] A, of the verifier's reward.
        group_ids: [B] int64.
        mask: [B] bool, rows with a score; others keep A and are in no statistic.
        std_threshold: of the sample std, without an epsilon. A group of one has mean 0 and std 1.

    Returns:
        [B] float64.
    """
    counts = torch.isfinite(scores) if mask is None else mask.bool() & torch.isfinite(scores)
    stats = group_stats(scores, group_ids, counts, std="sample", singleton="raw")
    spread = counts & (stats.std > std_threshold)
    own = (scores.double() - stats.mean) / torch.where(spread, stats.std, 1.0)
    return torch.where(spread, own, advantages.double())


@dataclass(frozen=True, repr=False)
class MixSelfReward(LinkBase):
    """(1 - mix) A + mix A_s, with A the advantages of `name` and A_s those of the score `by`, which then leaves the chain.

    Where a row has no score (masked), and before `onset`, A stays as it is.

    Attributes:
        name: advantages, one a row: after a centring link.
        by: the score, one a row.
        mix: share of A_s. Keep it small: a policy trained on its own score alone learns to please it, and collapses.
        std_threshold: see `self_reward_advantages`.
        clip: limit the score to [0, 1] first.
        onset: from which step on.
    """

    name: str
    by: str
    mix: float = 0.1
    std_threshold: float = 0.1
    clip: bool = True
    onset: Onset = field(default_factory=Onset)

    scope: ClassVar[Literal["row", "group", "batch"]] = "group"

    def __post_init__(self) -> None:
        require_range(0, 1, mix=self.mix)
        require_range(0, std_threshold=self.std_threshold)

    def plan(self, levels: Levels) -> Levels:
        for name in (self.name, self.by):
            require_level(planned_name(name, levels), levels, "sequence", "MixSelfReward takes one value a row")
        return {name: level for name, level in levels.items() if name != self.by}

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        credit, score = scores[self.name], scores[self.by]
        if credit.kind != "advantage":
            raise ChainError(
                f"MixSelfReward mixes advantages, {self.name!r} holds a {credit.kind}: centre it first (GroupNorm)"
            )
        counts = countable(scores, score, rollouts)[:, 0]
        if not self.onset.reached(rollouts.clock) or not self.mix:
            return scores.with_source(self.name, credit, drop=[self.by])
        given = credit.values[:, 0]
        values = score.values[:, 0].clamp(0.0, 1.0) if self.clip else score.values[:, 0]
        groups = rollouts.groups.to(given.device)
        own = self_reward_advantages(values, given, groups, counts, std_threshold=self.std_threshold)
        mixed = torch.where(counts, (1 - self.mix) * given.double() + self.mix * own, given.double()).to(given.dtype)
        result = credit.with_values(mixed[:, None])
        used = counts & (own != given.double())
        share = float(used.sum() / counts.sum().clamp(min=1))
        return scores.with_source(self.name, result, drop=[self.by]).with_metrics(**{f"{self.by}/mixed": share})
