r"""Are two MATH answers the same STRING after the usual tidying? The older rule, before answers were parsed.

`\frac12`, `\dfrac{1}{2}`, `1/2` and `0.5` are the same; `2x+1` and `1+2x` are not. Papers from before 2025 report with it; for
training, `Math` (math-verify) has far fewer false negatives.

Source: the normalisation of the MATH data set (Hendrycks et al. 2021, arXiv 2103.03874), as in the lm-evaluation-harness.
"""

from __future__ import annotations

import re

_REMOVED = ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$")


class _Untidy(Exception):
    """The text has a form the rules do not foresee; answers are then compared as they are."""


def same_math_string(first: str, second: str) -> bool:
    """True if the two are equal after `tidy_math`; as they are where either cannot be tidied."""
    try:
        return _tidy(first) == _tidy(second)
    except _Untidy:
        return first == second


def tidy_math(text: str) -> str:
    r"""One way of writing for many: no spaces, units, degree, dollar and percent signs; \frac and \sqrt with braces; a/b as \frac.

    Raises:
        ValueError: a form the rules do not foresee (two units, a command without its argument).
    """
    try:
        return _tidy(text)
    except _Untidy as error:
        raise ValueError(str(error)) from error


def _tidy(text: str) -> str:
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    for part in _REMOVED:
        text = text.replace(part, "")
    text = _without_unit(text).replace("\\%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text.startswith("."):
        text = "0" + text
    name, equals, value = text.partition("=")
    if equals and "=" not in value and len(name) <= 2:  # "x = 3" is 3
        text = value
    text = _with_braces(_roots(text).replace(" ", ""))
    if text == "0.5":
        return "\\frac{1}{2}"
    found = re.fullmatch(r"(-?[1-9]\d*|0)/(-?[1-9]\d*|0)", text, re.ASCII)
    return f"\\frac{{{found[1]}}}{{{found[2]}}}" if found else text


def _without_unit(text: str) -> str:
    r"""What stands before `\text{ `, which begins a unit."""
    value, *units = text.split("\\text{ ")
    if len(units) > 1:
        raise _Untidy("more than one unit")
    return value


def _roots(text: str) -> str:
    r"""`\sqrt3` -> `\sqrt{3}`."""
    if re.search(r"\\sqrt(?=\\sqrt|$)", text):
        raise _Untidy("\\sqrt without its argument")
    return re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text, flags=re.DOTALL)


def _with_braces(text: str) -> str:
    r"""`\frac12` -> `\frac{1}{2}`, `\frac1{72}` -> `\frac{1}{72}`; the text as it is where one digit is all that follows."""
    head, *rest = text.split("\\frac")
    parts = [head]
    for piece in rest:
        if not piece:
            raise _Untidy("\\frac without its arguments")
        if piece.startswith("{"):
            parts.append(piece)
        elif len(piece) < 2:
            return text
        else:
            below = piece[1:] if piece[1] == "{" else f"{{{piece[1]}}}{piece[2:]}"
            parts.append(f"{{{piece[0]}}}{below}")
    return "\\frac".join(parts)


def boxed_or_all(text: str) -> str:
    r"""Content of the last `\boxed{...}`, as it is; the whole text where there is none or it never closes."""
    start = text.rfind("\\boxed")
    depth, begin = 0, start + len("\\boxed")
    if not text.startswith("{", begin) or start < 0:
        return text
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin + 1 : place]
    return text
