"""Verdict: what a text-level check says about one completion."""

from __future__ import annotations

import math
from typing import NamedTuple


class Verdict(NamedTuple):
    """A number and why.

    Attributes:
        value: the score. NaN = the INSTRUMENT failed (time-out, crash, broken or missing reference). What the policy did,
            gibberish included, is always a number.
        reason: always set for NaN; set for failing values where there is something to say.
    """

    value: float
    reason: str | None = None

    @property
    def failed(self) -> bool:
        """True when the instrument failed, so nothing is known about the completion."""
        return math.isnan(self.value)


def instrument_failure(reason: str) -> Verdict:
    """NaN with its reason."""
    return Verdict(math.nan, reason)


def shown(text: object, limit: int = 60) -> str:
    """A short, printable form of model output for reasons: control and direction characters escaped, long text cut."""
    string = str(text)
    cut = string if len(string) <= limit else string[: limit - 3] + "..."
    return repr(cut) if cut.isprintable() else ascii(cut)


def any_of(verdicts: list[Verdict]) -> Verdict:
    """Several acceptable references: right if any says so, unknown if none does and one could not be checked, else wrong.

    The highest number wins, so graded scores (F1) work too. Three-valued: NaN is only outvoted by a perfect score.
    """
    if not verdicts:
        return instrument_failure("the row has an empty list of references")
    numbers = [v for v in verdicts if not v.failed]
    best = max(numbers, key=lambda v: v.value, default=None)
    failed = next((v for v in verdicts if v.failed), None)
    if best is not None and (best.value >= 1.0 or failed is None):
        return best
    assert failed is not None
    return failed
