"""Small helpers of the reproductions' tables: numbers over seeds in words."""

from __future__ import annotations

import math
from collections.abc import Sequence


def over_seeds(values: Sequence[float | None], digits: int = 2) -> str:
    """`mean [least, greatest]`; None (it never happened) is counted, not averaged."""
    numbers = [value for value in values if value is not None]
    missing = len(values) - len(numbers)
    if not numbers:
        return f"never ({missing} of {missing} seeds)"
    mean = sum(numbers) / len(numbers)
    text = f"{mean:.{digits}f} [{min(numbers):.{digits}f}, {max(numbers):.{digits}f}]"
    return text + (f", never in {missing}" if missing else "")


def held_in(passed: Sequence[bool]) -> str:
    """`4 of 5 seeds`."""
    return f"{sum(passed)} of {len(passed)} seeds"


def enough(passed: Sequence[bool]) -> bool:
    """At least four seeds in five."""
    return sum(passed) >= 0.8 * len(passed)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean over seeds (Student's t); NaN for fewer than two."""
    from guerdon.report.verdict import Measurement, combine

    if len(values) < 2:
        return math.nan, math.nan
    found = combine([Measurement(value, math.nan, 1) for value in values])
    return found.low, found.high
