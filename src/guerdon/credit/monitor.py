"""Links that only watch: numbers for the log that give reward hacking away. They change nothing."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from guerdon.credit.link import Levels, LinkBase, planned_name, row_totals
from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson correlation of two [N] tensors; NaN where either is constant or N < 2."""
    dx, dy = x.double() - x.double().mean(), y.double() - y.double().mean()
    scale = float(dx.norm() * dy.norm())
    return float((dx * dy).sum()) / scale if scale > 0 else float("nan")


@dataclass(frozen=True, repr=False)
class WatchSteps(LinkBase):
    """Steps per row, and the correlation of a row's reward with its number of steps: the sign that filler pays.

    Attributes:
        name: the step-level source.
        warn_single: warn where the median row is a single step, because transforms across steps then do nothing (Delta) or
            leave nothing to choose (min-form): usually a delimiter that never occurs.
    """

    name: str
    warn_single: bool = True

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.name, levels)
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        rewards = scores[self.name]
        totals, live = row_totals(scores, rewards)
        counts = rewards.spans.counts[live].double()
        if not len(counts):
            return scores
        median = float(counts.quantile(0.5))
        if self.warn_single and median <= 1 and len(counts) > 1:
            warnings.warn(
                f"the median completion has one span in {self.name!r}: is the step delimiter right? Credit across steps has nothing to act on",
                stacklevel=2,
            )
        metrics = {f"{self.name}/steps_mean": float(counts.mean()), f"{self.name}/steps_median": median}
        slope = correlation(counts, totals[live])
        if not torch.isnan(torch.tensor(slope)):
            metrics[f"{self.name}/reward_step_correlation"] = slope
        return scores.with_metrics(**metrics)


@dataclass(frozen=True, repr=False)
class Watch(LinkBase):
    """What stands in a source at this point of the chain: a shaped reward, which no signal gave and no log would hold.

    Metrics over rows that count: `<label>/mean` and `<label>/zero`, the share of rows at exactly 0 (under a threshold). Changes
    nothing.

    Attributes:
        name: the source; its row totals are read.
        label: of the metrics.
    """

    name: str
    label: str

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.name, levels)
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        totals, live = row_totals(scores, scores[self.name])
        if not bool(live.any()):
            return scores
        seen = totals[live].double()
        metrics = {f"{self.label}/mean": float(seen.mean()), f"{self.label}/zero": float((seen == 0).double().mean())}
        return scores.with_metrics(**metrics)
