r"""Numbers written in digits, exactly: integers, decimals, fractions, mixed numbers, powers of ten. No sympy.

Input is the output of `notation`, without units.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import NamedTuple

MAX_DIGITS = 4000
MAX_EXPONENT = 9999  # of 1e5 and its like
SURE_DIGITS = 6  # a decimal with at least as many significant digits may stand for a value that has no end

_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_FRAC = r"\\frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(-?\d+)\s*\}|(\d))"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:(?P<mixed>\d+)?\s*{_FRAC}|(?P<top>\d+)\s*/\s*(?P<bottom>\d+)|(?P<decimal>{_UNSIGNED})"
    r"(?:\s*(?:\\times|\\cdot)\s*10\s*\^\s*(?:\{\s*(?P<e1>[-+]?\d+)\s*\}|(?P<e2>\d)))?)"
)


class PlainNumber(NamedTuple):
    """A number as it is written.

    Attributes:
        value: exactly.
        digits: significant digits of a decimal; 0 where it is written exactly (an integer, a fraction).
        step: what one more in the last written place is worth; 0 where it is written exactly.
    """

    value: Fraction
    digits: int = 0
    step: Fraction = Fraction(0)


@functools.lru_cache(maxsize=8192)
def plain_number(text: str) -> PlainNumber | None:
    """The number a text is; None where it is none, or too long to be taken exactly."""
    text = text.strip()
    while len(text) > 2 and text[0] in "({" and text[-1] in ")}" and not re.search(r"[(){}]", text[1:-1]):
        text = text[1:-1].strip()
    if len(text) > MAX_DIGITS:
        return None
    found = _NUMBER.fullmatch(text)
    if not found:
        return None
    sign = -1 if found["sign"] == "-" else 1
    if found["decimal"]:
        digits = found["decimal"].replace(",", "")
        exponent = int(found["e1"] or found["e2"] or 0)
        if abs(exponent) > MAX_EXPONENT:
            return None
        whole, point, places = digits.partition(".")
        scale = Fraction(10) ** exponent
        value = sign * Fraction(digits if whole else f"0{digits}") * scale
        if not point or not places:
            return PlainNumber(value)
        return PlainNumber(value, len((whole + places).lstrip("0")), scale / Fraction(10) ** len(places))
    top, bottom = found["top"] or found[3] or found[4], found["bottom"] or found[5] or found[6]
    if int(bottom) == 0:
        return None
    fraction = Fraction(int(top), int(bottom))
    if found["mixed"]:
        if fraction < 0:
            return None
        fraction += int(found["mixed"])
    return PlainNumber(sign * fraction)


def same_number(first: PlainNumber, second: PlainNumber) -> bool:
    """Exactly equal, or one is the other cut or rounded to at least `SURE_DIGITS` digits where that one has no end or as many digits."""
    if first.value == second.value:
        return True
    for short, full in ((first, second), (second, first)):
        endless = not full.digits and not _ends(full.value)
        sure = short.digits >= SURE_DIGITS and (endless or full.digits > short.digits)
        if sure and abs(short.value - full.value) < short.step and (short.value < 0) == (full.value < 0):
            return True
    return False


def _ends(value: Fraction) -> bool:
    """Whether a value's decimal expansion ends."""
    bottom = value.denominator
    for prime in (2, 5):
        while bottom % prime == 0:
            bottom //= prime
    return bottom == 1


__all__ = ["MAX_EXPONENT", "SURE_DIGITS", "PlainNumber", "plain_number", "same_number"]
