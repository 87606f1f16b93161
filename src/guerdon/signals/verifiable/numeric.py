"""Comparing numbers written in digits, exactly."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from guerdon.signals.verifiable import structure
from guerdon.signals.verifiable.equality import canonical
from guerdon.signals.verifiable.plain_numbers import plain_number
from guerdon.signals.verifiable.quantities import quantity
from guerdon.signals.verifiable.verdict import Verdict, instrument_failure, shown

MAX_CHARS = 400
_POWER = re.compile(r"(-?\d+(?:\.\d+)?)\s*\^\s*\{?\s*(-?\d{1,3})\s*\}?")


def parse_number(text: str) -> Fraction | None:
    """A number in digits, exactly: sign, thousands separators, decimals, a/b, mixed, powers, exponents (up to ±400), percent.

    A name before it ("x = 42"), a currency sign and a unit after it ("1,370 apples") are left out. None for anything else; never
    evaluates an expression.
    """
    if len(text) > MAX_CHARS:
        return None
    item = structure.read(canonical(text.strip().strip("*_`\"'").rstrip(". ")))
    if isinstance(item, structure.Group) and len(item.items) == 1 and item.brackets == "":
        item = item.items[0]
    if not isinstance(item, structure.Item) or item.relation:
        return None
    measured = quantity(item.value)
    number = plain_number(measured.value)
    value = number.value if number is not None else _power(measured.value)
    if value is None or max(abs(value.numerator), value.denominator) >= 10 ** (MAX_CHARS + 1):
        return None
    return value / 100 if measured.percent else value


def _power(text: str) -> Fraction | None:
    """10^6, with an exponent up to 400."""
    found = _POWER.fullmatch(text.strip())
    if not found or abs(int(found[2])) > MAX_CHARS or len(found[1]) > 6:
        return None
    base = Fraction(found[1].lstrip("-"))
    if base == 0 and int(found[2]) < 0:
        return None
    return base ** int(found[2]) * (-1 if found[1].startswith("-") else 1)


def numeric_match(answer: str, reference: str | float, *, rtol: float = 0.0, atol: float = 1e-6) -> Verdict:
    """1.0 if |answer - reference| <= atol + rtol * |reference|, in exact arithmetic on what was written.

    An answer that is no number is 0.0; a reference that is no finite number is NaN.
    """
    if rtol < 0 or atol < 0 or not math.isfinite(rtol + atol):
        raise ValueError(f"rtol={rtol} and atol={atol} must be finite and not negative")
    expected = parse_number(str(reference))
    if expected is None:
        return instrument_failure(f"the reference {shown(reference)} is not a number")
    given = parse_number(answer)
    if given is None:
        return Verdict(0.0, f"{shown(answer)} is not a number")
    if abs(given - expected) <= Fraction(atol) + Fraction(rtol) * abs(expected):
        return Verdict(1.0)
    return Verdict(0.0, f"{shown(answer)} is not within tolerance of {shown(reference)}")


__all__ = ["numeric_match", "parse_number"]
