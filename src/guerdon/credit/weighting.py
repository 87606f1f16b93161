"""Group advantages per reward, then their weighted sum: SAR's switch `advantage_weighting_in_grpo`, GDPO without its last z-score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from guerdon.credit.fuse import weighted_sum
from guerdon.credit.link import Levels, LinkBase, Singleton, StdKind, planned_name, require_level
from guerdon.credit.normalise import GroupNorm
from guerdon.errors import ConfigError
from guerdon.rewards import Rewards, Scores, total_reward
from guerdon.rollouts import Rollouts


@dataclass(frozen=True, repr=False)
class WeightedAdvantages(LinkBase):
    """A_i = sum_k w_k (r_ik - mean_gk) / (std_gk + eps). Without the division this is the advantage of sum_k w_k r_k.

    The optimised reward is reported as sum_k w_k r_k.

    Attributes:
        names: two or more sequence sources.
        weights: one each.
        into: name of the result.
        std, eps, singleton: see `GroupNorm`.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    into: str = "credit"
    std: StdKind | None = "sample"
    eps: float = 1e-6
    singleton: Singleton = "raw"

    scope: ClassVar[Literal["row", "group", "batch"]] = "group"
    centres: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "weights", tuple(self.weights))
        if len(self.names) < 2 or len(self.weights) != len(self.names):
            raise ConfigError(f"{len(self.weights)} weights for the sources {self.names}; there must be two or more")

    def plan(self, levels: Levels) -> Levels:
        for name in self.names:
            planned_name(name, levels)
            require_level(name, levels, "sequence", "WeightedAdvantages takes one value a row")
        return {**{name: level for name, level in levels.items() if name not in self.names}, self.into: "sequence"}

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        sources = [scores[name] for name in self.names]
        _, mask = weighted_sum(sources, list(self.weights))
        spans = replace(sources[0].spans, mask=mask)
        paid = total_reward(sources, self.weights)
        for name in self.names:
            norm = GroupNorm(name, std=self.std, eps=self.eps, singleton=self.singleton)
            scores = norm(scores, rollouts)
        values, _ = weighted_sum([scores[name] for name in self.names], list(self.weights))
        reasons = {cell: text for rewards in sources for cell, text in rewards.reasons.items()}
        result = Rewards(torch.where(mask, values, 0.0), spans, reasons, "advantage", paid)
        return scores.with_source(self.into, result, drop=self.names)
