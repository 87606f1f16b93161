r"""The fast path for plain numbers and fractions: the verdict of `location` and `equality` without either, or "don't know".

`fast_verdict` answers only where those provably read one plain number on each side:

- the whole answer is a number, `$number$`, a simple fraction a/b, or \frac{a}{b} with integers;
- or the text has exactly one \boxed{...}, which holds such a number, no percent sign after it, and nothing ("hope", of
  "the final answer is ... I hope it is correct") that outranks a box;
- or the text has no box and ends "answer is 42." / "Answer: 42", with no earlier "answer" that could win or swallow it.

Everything else is left to the slow path: percent, signs written "+", other thousands separators, exponents, units, more than
15 digits, two values closer than six decimals. tests/signals/test_fast_path.py compares the two on thousands of generated pairs.
`quick_verdict` compares two expressions that were found already, where both are plain numbers.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction

from guerdon.signals.verifiable.equality import plain_item
from guerdon.signals.verifiable.plain_numbers import same_number

MAX_DIGITS = 15  # sympy's default float precision: beyond it equality depends on rounding
MAX_DENOMINATOR_DIGITS = 6  # keeps different fractions further apart than math-verify's 15-digit comparison can blur
_NEAR = Fraction(2, 10**6)  # math-verify rounds floats to 6 decimals: closer than this is not ours to decide

_INTEGER = r"-?(?:0|[1-9]\d*)"
_DECIMAL = rf"(?:-?[1-9]\d{{0,2}}(?:,\d{{3}})+|{_INTEGER})(?:\.\d+)?"
_SLASH = r"-?[1-9]\d*/[1-9]\d*"
_FRAC = r"-?\\frac\{-?[1-9]\d*\}\{[1-9]\d*\}"
_DTFRAC = r"-?\\[dt]?frac\{-?[1-9]\d*\}\{[1-9]\d*\}"
_DELIMITED = rf"(?:{_DECIMAL}|{_SLASH}|{_DTFRAC})"

_WHOLE = re.compile(rf"\s*(?:({_DECIMAL}|{_SLASH}|{_FRAC})|\$({_DELIMITED})\$\.?)\s*", re.ASCII)
_BOX_CONTENT = re.compile(rf"\\boxed\{{\s*({_DELIMITED})\s*\}}", re.ASCII)
_REFERENCE = re.compile(rf"\s*(?:({_DELIMITED})|\$({_DELIMITED})\$|\\boxed\{{({_DELIMITED})\}})\s*", re.ASCII)
_TAIL = re.compile(rf"answer(?: is)?(:?) (?:({_DECIMAL}|{_SLASH})|\$({_DELIMITED})\$)\.?\s*", re.ASCII | re.IGNORECASE)
_ANSWER = re.compile(
    "answer", re.IGNORECASE
)  # Unicode case folding on purpose: math-verify's patterns fold the same way
_HOPE = re.compile("hope", re.IGNORECASE)
_FINAL = re.compile("final answer", re.IGNORECASE)
_PERCENT = re.compile(r"%|percent|pct", re.IGNORECASE)


def plain_value(text: str) -> Fraction | None:
    r"""The exact value of one plain number, a/b or \frac{a}{b}; None where it is too long to compare safely."""
    sign, text = (-1, text[1:]) if text.startswith("-") else (1, text)
    if "frac" in text:
        top, bottom = text[text.index("{") + 1 : -1].split("}{")
    elif "/" in text:
        top, bottom = text.split("/")
    else:
        digits = text.replace(",", "")
        return sign * Fraction(digits) if len(digits) <= MAX_DIGITS else None
    if len(top) > MAX_DENOMINATOR_DIGITS or len(bottom) > MAX_DENOMINATOR_DIGITS:
        return None
    return Fraction(sign * int(top), int(bottom))


@functools.lru_cache(maxsize=8192)
def reference_value(reference: str) -> Fraction | None:
    """A plain reference's value; None for anything else."""
    found = _REFERENCE.fullmatch(reference)
    return plain_value(found[1] or found[2] or found[3]) if found else None


def answer_value(text: str) -> Fraction | None:
    """The value of the plain number that the slow path would read out of `text`; None = don't know."""
    if found := _WHOLE.fullmatch(text):
        return plain_value(found[1] or found[2])
    start = text.rfind("\\boxed")
    if start >= 0:
        found = _BOX_CONTENT.match(text, start)
        if (
            not found
            or text.find("\\boxed") != start
            or "\\fbox" in text
            or _HOPE.search(text)
            or _PERCENT.search(text, found.end())
        ):
            return None
        return plain_value(found[1])
    if "\\fbox" in text:
        return None
    return _tail_value(text)


def _tail_value(text: str) -> Fraction | None:
    """The number of a closing "answer is 42."; None = don't know."""
    starts = [found.start() for found in _ANSWER.finditer(text)]
    found = _TAIL.fullmatch(text, starts[-1]) if starts else None
    if not found or _FINAL.search(text):
        return None
    if len(starts) > 1:
        # A match that starts at an earlier "answer" reaches over this one only within its own line, and outranks it only with a colon.
        if "\n" not in text[starts[-2] : starts[-1]]:
            return None
        if found[3] and any(mark in text[starts[-2] : starts[-1]] for mark in "$\\["):
            return None  # LaTeX patterns do cross lines
        if not found[1] and any(text[start + 6 : start + 7] == ":" for start in starts[:-1]):
            return None
    return plain_value(found[2] or found[3])


def fast_verdict(answer: str, reference: str) -> bool | None:
    """Whether `answer` is right, as the slow path would say; None = don't know, ask the slow path.

    Args:
        answer: a completion, or the part of it that was extracted.
        reference: the reference answer.
    """
    expected = reference_value(reference)
    if expected is None:
        return None
    given = answer_value(answer)
    if given is None:
        return None
    if given == expected:
        return True
    return None if abs(given - expected) < _NEAR else False


def quick_verdict(answer: str, reference: str) -> bool | None:
    """Whether one expression is another, where both are plain numbers without units; None = ask a worker."""
    expected = plain_item(reference)
    if expected is None:
        return None
    given = plain_item(answer)
    return None if given is None else same_number(expected, given)
