"""Coefficients that change over a run: pure functions of the progress u in [0, 1], and a transform that multiplies a source by one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from guerdon.errors import CapabilityError, ConfigError
from guerdon.options import checked, require_range
from guerdon.rewards import Rewards
from guerdon.rollouts import Clock, Rollouts

AnnealingKind = Literal["constant", "linear", "cosine", "peak"]
_KINDS = ("constant", "linear", "cosine", "peak")


def annealing(progress: float, kind: str = "linear", *, reverse: bool = False) -> float:
    """From 1 at the start to 0 at the end: linear 1 - u, cosine (1 + cos(pi u)) / 2, constant 1.

    Args:
        progress: u, the fraction of the run that is done; clipped to [0, 1].
        kind: "linear", "cosine" or "constant".
        reverse: from 0 to 1 instead.
    """
    u = min(1.0, max(0.0, progress))
    u = 1.0 - u if reverse else u
    if kind == "constant":
        return 1.0
    if kind == "linear":
        return 1.0 - u
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * u))
    raise ConfigError(f"schedule={kind!r}: use constant, linear or cosine")


def peak_schedule(
    progress: float, *, peak: float = 0.5, bottom: float = 0.0, increase: bool = False, decrease: bool = False
) -> float:
    """A tent with its top, 1, at `peak`; either slope can be left out (the scheduler of SAR's code, arXiv 2509.05489).

    u <= p:  b + (1 - b) u / p if increase else 1;     u > p:  1 - (1 - b)(u - p) / (1 - p) if decrease else 1

    Args:
        progress: u in [0, 1], clipped.
        peak: p in [0, 1]. At u = p = 0 the value is 1 (the official code divides by zero).
        bottom: b, the value at the far end of a slope.
    """
    u = min(1.0, max(0.0, progress))
    if u <= peak:
        return bottom + (1.0 - bottom) * (u / peak) if increase and peak > 0 else 1.0
    return 1.0 - (1.0 - bottom) * ((u - peak) / (1.0 - peak)) if decrease else 1.0


@checked
@dataclass(frozen=True)
class Annealing:
    """A coefficient as a function of the run's clock.

    Attributes:
        kind: "constant" 1; "linear" and "cosine", see `annealing`; "peak", see `peak_schedule`.
        reverse: of `annealing`.
        peak, bottom, increase, decrease: of `peak_schedule`.
    """

    reads_length: ClassVar[bool] = True  # the same step of a longer run is another one

    kind: AnnealingKind = "constant"
    reverse: bool = False
    peak: float = 0.5
    bottom: float = 0.0
    increase: bool = False
    decrease: bool = False

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ConfigError(f"schedule {self.kind!r}: use one of {_KINDS}")
        require_range(0, 1, peak=self.peak, bottom=self.bottom)

    def at(self, progress: float) -> float:
        """The coefficient when a fraction `progress` of the run is done."""
        if self.kind == "peak":
            return peak_schedule(
                progress, peak=self.peak, bottom=self.bottom, increase=self.increase, decrease=self.decrease
            )
        return annealing(progress, self.kind, reverse=self.reverse)

    def now(self, clock: Clock) -> float:
        """The coefficient of a batch.

        Raises:
            CapabilityError: in training with an unknown number of steps, where the coefficient would never move.
        """
        if self.kind != "constant" and clock.training and not clock.total:
            raise CapabilityError(
                f"the schedule {self.kind!r} needs to know how long the run is: set the number of steps (max_steps), or use 'constant'"
            )
        return self.at(clock.progress)


@dataclass(frozen=True)
class Anneal:
    """s r, where s follows the run's clock; a transform for `On`."""

    reads_length: ClassVar[bool] = True  # the same step of a longer run is another one

    schedule: Annealing = field(default_factory=Annealing)

    def __call__(self, rewards: Rewards, rollouts: Rollouts) -> Rewards:
        values = self.schedule.now(rollouts.clock) * rewards.values
        return rewards.with_values(torch.where(rewards.mask, values, torch.zeros_like(values)))


@dataclass(frozen=True)
class Onset:
    """From which optimiser step on a part takes part.

    Attributes:
        steps: a number of steps. None = `usual`, or `share` of the run where that is less: a published number of steps says nothing
            about a run of sixty.
        usual: the published number.
        share: in [0, 1], of a run of known length.
        after: another onset that this one is counted from.
    """

    reads_length: ClassVar[bool] = True  # the same step of a longer run is another one

    steps: int | None = 0
    usual: int = 0
    share: float = 1.0
    after: Onset | None = None

    def __post_init__(self) -> None:
        require_range(0, steps=self.steps, usual=self.usual)
        require_range(0, 1, share=self.share)

    def at(self, clock: Clock) -> int:
        """The step, in the run of this clock."""
        own = self.usual if self.steps is None else self.steps
        if self.steps is None and clock.total:
            own = min(own, int(self.share * clock.total))
        return own + (self.after.at(clock) if self.after is not None else 0)

    def reached(self, clock: Clock) -> bool:
        return clock.step >= self.at(clock)
