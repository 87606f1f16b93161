"""Comparing numbers written in digits, exactly."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from guerdon.signals.verifiable.verdict import Verdict, instrument_failure, shown


def parse_number(text: str) -> Fraction | None:
    """A number in digits, exactly: sign, thousands separators, decimals, exponent (up to ±400), a/b, percent, one currency sign.

    None for anything else; never evaluates an expression, so it takes linear time.
    """
    text = text.strip().replace("\u2212", "-").strip("$€£¥ \t\n").rstrip(".")
    scale = Fraction(1)
    if text.endswith("%"):
        text, scale = text[:-1].rstrip("\\ "), Fraction(1, 100)
    if not text.isascii() or len(text) > 400:
        return None
    if found := re.fullmatch(r"([-+]?\d+)\s*/\s*(\d+)", text):
        return scale * Fraction(int(found[1]), int(found[2])) if int(found[2]) else None
    found = re.fullmatch(r"([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?)(?:[eE]([-+]?\d{1,3}))?\.?", text)
    if not found or not re.search(r"\d", found[1]) or abs(int(found[2] or 0)) > 400:
        return None
    return scale * Fraction(found[1].replace(",", "")) * Fraction(10) ** int(found[2] or 0)


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
