"""What a source is worth depends on whether the row is right: agreement is rewarded among right rollouts, discouraged among wrong ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from guerdon.credit.link import Levels, LinkBase, planned_name
from guerdon.errors import ChainError, ConfigError
from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts

Form = Literal["signed", "brier"]


def signed_by_outcome(values: Tensor, correct: Tensor) -> Tensor:
    """(2c - 1) a: + a where right, - a where wrong. values, correct: [...], correct in [0, 1]."""
    return (2 * correct - 1) * values


def brier_by_outcome(values: Tensor, correct: Tensor) -> Tensor:
    """-(a - c)^2: a proper score of the confidence a."""
    return -((values - correct) ** 2)


@dataclass(frozen=True, repr=False)
class ByOutcome(LinkBase):
    """Replace a source by a function of it and of correctness. The other source stays in the chain.

    Attributes:
        name: one value a row, in [0, 1].
        by: correctness, one value a row.
        form: "signed" (`signed_by_outcome`) or "brier" (`brier_by_outcome`).
    """

    name: str
    by: str
    form: Form = "signed"

    def __post_init__(self) -> None:
        if self.form not in ("signed", "brier"):
            raise ConfigError(f"form={self.form!r}: use 'signed' or 'brier'")

    def plan(self, levels: Levels) -> Levels:
        for name in (self.name, self.by):
            if levels[planned_name(name, levels)] != "sequence":
                raise ChainError(f"ByOutcome reads one value a row, and {name!r} is at {levels[name]!r} level")
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        source, outcome = scores[self.name], scores[self.by]
        form = signed_by_outcome if self.form == "signed" else brier_by_outcome
        reasons = {
            **source.reasons,
            **{cell: why for cell, why in outcome.reasons.items() if bool(outcome.failed[cell])},
        }
        changed = replace(source, values=form(source.values, outcome.values.to(source.values.dtype)), reasons=reasons)
        return scores.with_source(self.name, changed)
