"""Correcting one reward by another, row by row: confidence, a bonus for scores that may be false negatives, a fallback, a switch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guerdon.credit.link import Levels, LinkBase, planned_name
from guerdon.errors import CapabilityError, ChainError, ConfigError
from guerdon.rewards import Reasons, Rewards, Scores
from guerdon.rollouts import Rollouts


def shrink_scores(scores: Tensor, confidence: Tensor, towards: float = 0.5) -> Tensor:
    """towards + c (r - towards): what a verdict is worth that is a guess with probability 1 - c, and the guess worth `towards`.

    Args:
        scores, confidence: [...]; confidence is clipped to [0, 1].
    """
    return towards + confidence.clamp(0, 1) * (scores - towards)


def calibrate_scores(
    scores: Tensor, bonus: Tensor, threshold: float = 0.5, alpha: float = 0.1, cap: float = 1.0
) -> Tensor:
    """R + alpha b, at most `cap`, where R is strictly below the threshold; R unchanged elsewhere (arXiv 2505.22653).

    Low scores may be false negatives, high ones are trusted. Order inversion is possible and accepted: 0.499 + 0.1 > 0.51.

    Args:
        scores, bonus: [...].
    """
    return torch.where(scores < threshold, (scores + alpha * bonus).clamp(max=cap), scores)


@dataclass(frozen=True, repr=False)
class _Pair(LinkBase):
    """A source, and a second one of the same level that leaves the chain."""

    name: str
    by: str

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.name, levels)
        planned_name(self.by, levels)
        if self.name == self.by or levels[self.by] != levels[self.name]:
            raise ChainError(
                f"{type(self).__name__} takes two sources of one level, {self.name!r} and {self.by!r} are not"
            )
        return {name: level for name, level in levels.items() if name != self.by}

    def _both(self, scores: Scores) -> tuple[Rewards, Rewards]:
        first, second = scores[self.name], scores[self.by]
        if first.values.shape != second.values.shape:
            raise ChainError(
                f"{self.name!r} and {self.by!r} stand on different spans: {tuple(first.values.shape)}, {tuple(second.values.shape)}"
            )
        return first, second

    def _with(self, scores: Scores, first: Rewards, values: Tensor, second: Rewards) -> Scores:
        """The first source with new values, reasons of both, the second one gone."""
        reasons: Reasons = {**{cell: f"{self.by}: {why}" for cell, why in second.reasons.items()}, **first.reasons}
        kept = {cell: why for cell, why in reasons.items() if cell in first.reasons or bool(values[cell].isnan())}
        return scores.with_source(self.name, replace(first, values=values, reasons=kept), drop=[self.by])


@dataclass(frozen=True, repr=False)
class Shrink(_Pair):
    """`shrink_scores`: a verdict towards `towards`, by its confidence. A masked confidence is full confidence."""

    towards: float = 0.5

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        verdict, confidence = self._both(scores)
        sure = torch.where(confidence.mask, confidence.values, torch.ones_like(confidence.values))
        values = shrink_scores(verdict.values, sure, self.towards)
        return self._with(scores, verdict, torch.where(verdict.mask, values, 0.0), confidence)


@dataclass(frozen=True, repr=False)
class Calibrate(_Pair):
    """`calibrate_scores`: a small bonus from `by` for scores of `name` below the threshold.

    Attributes:
        threshold, alpha, cap: see `calibrate_scores`.
        training_only: leave evaluation batches (clock.training False) as they are, as the source does.
    """

    threshold: float = 0.5
    alpha: float = 0.1
    cap: float = 1.0
    training_only: bool = True

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        rewards, bonus = self._both(scores)
        if self.training_only and not rollouts.clock.training:
            return scores.with_source(self.name, rewards, drop=[self.by])
        values = calibrate_scores(rewards.values, bonus.values, self.threshold, self.alpha, self.cap)
        values = torch.where(bonus.mask, values, rewards.values)
        live = rewards.usable & scores.keep.to(rewards.values.device)[:, None]
        low = live & (rewards.values < self.threshold)
        share = float(low.sum() / live.sum().clamp(min=1))
        gain = float(torch.where(live & bonus.usable, values - rewards.values, 0.0).sum() / live.sum().clamp(min=1))
        scores = self._with(scores, rewards, torch.where(rewards.mask, values, 0.0), bonus)
        return scores.with_metrics(**{f"{self.name}/below_threshold": share, f"{self.name}/bonus": gain})


@dataclass(frozen=True, repr=False)
class Fallback(_Pair):
    """Where `name` is at most `at_most`, the value of `by` instead: something to climb where the first reward is flat.

    A cell where `by` does not apply keeps its value.
    """

    at_most: float = 0.0

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        first, second = self._both(scores)
        low = first.mask & second.mask & (first.values <= self.at_most)
        return self._with(scores, first, torch.where(low, second.values, first.values), second)


@dataclass(frozen=True, repr=False)
class SwitchAt(_Pair):
    """`by` in the steps before `step`, `name` from then on: a warm-up on another reward.

    Attributes:
        step: in optimiser steps (`rollouts.clock.step`).
        share: of the run instead, in [0, 1]; the run's length must then be known.
        evaluation: which one evaluation batches (clock.training False) see: "name", or "clock" for the same rule.
    """

    reads_length: ClassVar[bool] = True  # the same step of a longer run is another one

    step: int = 0
    evaluation: Literal["name", "clock"] = "name"
    share: float | None = None

    scope: ClassVar[Literal["row", "group", "batch"]] = "row"

    def __post_init__(self) -> None:
        if self.share is not None and not (0 <= self.share <= 1 and self.step == 0):
            raise ConfigError(f"share={self.share} is in [0, 1] and stands in the place of step={self.step}")
        if self.evaluation not in ("name", "clock"):
            raise ConfigError(f"evaluation={self.evaluation!r}: use 'name' or 'clock'")

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        first, second = self._both(scores)
        clock = rollouts.clock
        if self.share and clock.training and not clock.total:
            raise CapabilityError(
                f"a warm-up of {self.share} of the run needs to know how long the run is: set the number of steps (max_steps)"
            )
        before = clock.step < self.step if self.share is None else clock.progress < self.share
        early = before and (clock.training or self.evaluation == "clock")
        return scores.with_source(self.name, second if early else first, drop=[self.by])
