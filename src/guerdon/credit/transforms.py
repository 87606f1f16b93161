"""`On(name, transform)`: a per-source function in a chain. Transforms are configuration around the functions of `shaping`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from guerdon.credit.link import Levels, LinkBase, planned_name
from guerdon.credit.shaping import clip_scores, delta_scores, min_form, shaping_function, squash
from guerdon.errors import ChainError, ConfigError
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts


class Transform(Protocol):
    """A function of one source that keeps its spans."""

    def __call__(self, rewards: Rewards, rollouts: Rollouts) -> Rewards: ...


@dataclass(frozen=True, repr=False)
class On(LinkBase):
    """Apply a transform to one source and leave the others alone.

    Attributes:
        name: the source.
        transform: Clip(...), Delta(), MinForm(...), ... or any callable (Rewards, Rollouts) -> Rewards.
    """

    name: str
    transform: Transform

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or isinstance(self.transform, type) or not callable(self.transform):
            raise ChainError(
                f"On takes a source's name and a transform, such as On('steps', Clip(0.0)); got {self.name!r} and {self.transform!r}"
            )

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.name, levels)
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        return scores.with_source(self.name, self.transform(scores[self.name], rollouts))


@dataclass(frozen=True)
class Clip:
    """min(r - eta, 0). See `shaping.clip_scores`."""

    eta: float = 0.0

    def __call__(self, rewards: Rewards, rollouts: Rollouts) -> Rewards:
        return rewards.with_values(clip_scores(rewards.values, rewards.mask, self.eta))


@dataclass(frozen=True)
class Delta:
    """Current minus next, the last dropped. See `shaping.delta_scores`."""

    def __call__(self, rewards: Rewards, rollouts: Rollouts) -> Rewards:
        return rewards.with_values(delta_scores(rewards.values, rewards.mask))


@dataclass(frozen=True)
class MinForm:
    """PURE's transform, whose suffix sums are minima. See `shaping.min_form`."""

    temperature: float = 0.1
    weighted: bool = True

    def __call__(self, rewards: Rewards, rollouts: Rollouts) -> Rewards:
        values = min_form(rewards.values, rewards.mask, self.temperature, weighted=self.weighted)
        return rewards.with_values(values)


@dataclass(frozen=True)
class Scale:
    """factor * r + offset."""

    factor: float = 1.0
    offset: float = 0.0

    def __call__(self, rewards: Rewards, rollouts: Rollouts) -> Rewards:
        values = self.factor * rewards.values + self.offset
        scaled = rewards.with_values(torch.where(rewards.mask, values, torch.zeros_like(values)))
        # A weight on an advantage weighs the reward behind it; an offset there has no counterpart.
        return scaled if rewards.paid is None else replace(scaled, paid=self.factor * rewards.paid)


@dataclass(frozen=True)
class Clamp:
    """Bounded from both sides: min(max(r, low), high)."""

    low: float
    high: float

    def __call__(self, rewards: Rewards, rollouts: Rollouts) -> Rewards:
        return rewards.with_values(rewards.values.clamp(self.low, self.high))


@dataclass(frozen=True)
class Round:
    """Rounded to multiples of 1 / bins, halves to even (RLPR's discretisation)."""

    bins: int

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ConfigError(f"bins={self.bins} must be at least 1")

    def __call__(self, rewards: Rewards, rollouts: Rollouts) -> Rewards:
        return rewards.with_values(torch.round(rewards.values * self.bins) / self.bins)


@dataclass(frozen=True)
class Squash:
    """sigma or tanh of k (r - centre). See `shaping.squash`."""

    kind: str = "sigmoid"
    k: float = 1.0
    centre: float = 0.0

    def __call__(self, rewards: Rewards, rollouts: Rollouts) -> Rewards:
        return rewards.with_values(squash(rewards.values, rewards.mask, self.kind, self.k, self.centre))


@dataclass(frozen=True)
class Shape:
    """An elementwise function: a name of RLPR's family (`shaping.shaping_function`) or a callable on tensors."""

    function: str | Callable[[Tensor], Tensor]
    _apply: Callable[[Tensor], Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        function = self.function
        object.__setattr__(self, "_apply", shaping_function(function) if isinstance(function, str) else function)

    def __repr__(self) -> str:  # an address in the text would make every checkpoint look like another chain's
        name = self.function if isinstance(self.function, str) else getattr(self.function, "__qualname__", "callable")
        return f"Shape({name!r})"

    def __call__(self, rewards: Rewards, rollouts: Rollouts) -> Rewards:
        values = self._apply(rewards.values)
        return rewards.with_values(torch.where(rewards.mask, values, torch.zeros_like(values)))


@dataclass(frozen=True)
class Minus:
    """Subtract a constant per row that the data brings (a cached baseline): r - column.

    Attributes:
        column: name of a data column of numbers; None or NaN there makes the cell NaN with a reason.
    """

    column: str

    def __call__(self, rewards: Rewards, rollouts: Rollouts) -> Rewards:
        column = rollouts.column(self.column)
        missing = [row for row, value in enumerate(column) if value is None or value != value]
        numbers = [float("nan") if value is None else float(value) for value in column]
        baseline = torch.tensor(numbers, dtype=rewards.values.dtype, device=rewards.values.device)
        reasons = {(row, 0): f"no {self.column} for this row" for row in missing}
        values = torch.where(rewards.mask, rewards.values - baseline[:, None], torch.zeros_like(rewards.values))
        return Rewards(
            values, rewards.spans, {**rewards.reasons, **reasons}, rewards.kind, rewards.paid, rewards.applies
        )
