"""The process that runs math-verify. Started as a script: imports nothing of Guerdon, so no torch and no user code.

Protocol, one JSON object a line: in, first {"path": sys.path, "memory_mb": n, "alarm_s": n}, then tasks {"answer",
"reference", "bare"}; out, first {"ready": true}, then for each task {"value": 0 or 1, "reason"} or {"failed": reason, "recycle": replace me}.
math-verify's own time-outs are off: they raise out of a SIGALRM handler, which long C calls and `except Exception` defeat,
and work in a main thread only. The parent kills this process instead; should the parent itself be gone, the kernel does
(an alarm without a handler).

What is added to math-verify's `parse` and `verify`:
- a boxed answer is final: if it cannot be parsed nothing else in the text is tried;
- a number cut out of a longer expression is no answer: math-verify reads "1e3" and "x^2 + 1" as 1;
- numbers side by side are not added: latex2sympy reads `2 3` as 5 and `1 1/2` as (1 + 1)/2; here the first is no answer,
  the second a mixed number, and "12 345" a thousand separator;
- a full stop after a number ends a sentence: math-verify reads "is 3/7." as the float 3/7.0;
- a text that is one bare expression is read as a whole, as if in dollars;
- brackets nested deeper than MAX_DEPTH are no answer;
- an exception while comparing is reported, where `verify` would call the answer wrong.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sys
from itertools import groupby, product
from typing import Any

MAX_DEPTH = 16
MAX_BARE_CHARS = 256  # a longer text is not read as one expression
MAX_EXPONENT = 9999  # of 1e5 and its like
SCIENTIFIC = re.compile(r"([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d+)")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,/^_ ])[1-9]\d{0,2}(?: \d{3})+(?![\d/])")
_MIXED = re.compile(r"(?<![\d.,/^_])(\d+)\s+(\d+)/(\d+)(?![\d/.^])")
_SIDE_BY_SIDE = re.compile(r"[\d}]\s+\d")
_DELIMITED_SCIENTIFIC = re.compile(rf"(\\boxed\{{|\$)\s*{SCIENTIFIC.pattern}\s*(\}}|\$)")
_DELIMITERS = ("$", "\\boxed", "\\fbox", "\\(", "\\[")
_PROSE = re.compile(r"[A-Za-z]{2,}\s+[A-Za-z]{2,}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}|[$€£¥₹₽₩฿₿:#*]{1}\s*\d")
_LEADING_ZEROS = re.compile(r"(?<![\w.,])-0+(?=\d)")  # sympy refuses "-05"
_DOUBLE_BRACES = re.compile(r"\{\{([^{}]*)\}\}")
_SENTENCE_END = re.compile(r"(?<=\d)\.(?=\s|$)")
# What shows that a matched number was only a piece: another operand before it, or the expression going on after it.
_GOES_ON = re.compile(
    r"[eE][-+]?\d|[.,]?\d|[A-Za-z]\s*(?:[\^+*/=-]|$|[.,;:!?\s)])|\s*(?:[\^/*×÷!(\\]|[+-]\s*[\w\\(])|\s\d"
)
_STARTED_BEFORE = re.compile(r"(?:[\w)\]}]\s*[-+*/^×÷]|[\^/*×÷+(])\s*$")


def as_math(text: str) -> str:
    """A bare answer or reference as math-verify should read it: on one line, in dollars."""
    return f"${' '.join(text.split())}$"


def _spell_out(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2].lstrip('+')} \\times 10^{{{int(found[3])}}}{found[4]}"


def _join_numbers(text: str) -> str:
    """Mixed numbers, scientific notation and spaced thousands, written so that latex2sympy reads them as people do."""
    delimited = any(mark in text for mark in _DELIMITERS)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}" if delimited else r"$\1\\frac{\2}{\3}$", text)
    text = _DELIMITED_SCIENTIFIC.sub(_spell_out, text)
    return _SPACED_THOUSANDS.sub(lambda found: found[0].replace(" ", ""), text)


def is_bare(text: str) -> bool:
    """True where a text is one expression, without math delimiters and without prose around it."""
    return not any(mark in text for mark in _DELIMITERS) and not _PROSE.search(text)


def _is_piece(match: Any, text: str) -> bool:
    """True where a plain number that math-verify matched is a piece of a longer expression."""
    groups = match.groupdict()
    name = next((n for n, v in groups.items() if v and (n.startswith("integer") or n.startswith("decimal"))), None)
    if groups.get("expr") or name is None:
        return bool(groups.get("expr")) and bool(re.match(r"[\w\\^(]", text[match.end("expr") :]))
    if groups.get("percent"):
        return False
    return bool(_GOES_ON.match(text, match.end())) or bool(
        _STARTED_BEFORE.search(text[max(0, match.start(name) - 20) : match.start(name)])
    )


def _parsed(extract_match: Any, match: Any, target: Any) -> tuple[Any, str]:
    """math-verify's value and text of a match; None where it raises, because what cannot be parsed is the writer's doing."""
    try:
        value, string = extract_match(match, target)
        return value, string
    except MemoryError:
        raise
    except Exception:
        return None, ""


def extract(text: str) -> tuple[list[Any], str | None]:
    """What math-verify finds in a text: its candidates (parsed value, then text), and why there are none.

    Follows `math_verify.parser.extract_target_from_pred` (priorities, rightmost match first), with the rules of the header.
    """
    from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig, extract_match, get_extraction_regexes

    boxed = "\\boxed" in text or "\\fbox" in text
    targets = (
        [LatexExtractionConfig(boxed_match_priority=0)] if boxed else [LatexExtractionConfig(), ExprExtractionConfig()]
    )
    patterns = [
        (pattern, target, priority) for group, target in get_extraction_regexes(targets) for pattern, priority in group
    ]
    patterns.sort(key=lambda entry: entry[2])
    first_text = ""
    for _, group in groupby(patterns, key=lambda entry: entry[2]):
        found = [(m, target) for pattern, target, _ in group for m in pattern.finditer(text)]
        for match, target in sorted(found, key=lambda entry: (entry[0].end(), -entry[0].start()), reverse=True):
            value, string = _parsed(extract_match, match, target)
            if isinstance(target, ExprExtractionConfig) and value is not None and _is_piece(match, text):
                return [], f"only {string[:40]!r} could be read, a piece of a longer expression outside math delimiters"
            if isinstance(target, LatexExtractionConfig) and _SIDE_BY_SIDE.search(string):
                value = None
            first_text = first_text or string
            if value is not None:
                return [value, *([first_text] if first_text else [])], None
        if boxed:
            break
    if boxed:
        return [], "the boxed answer cannot be parsed"
    return [], "no answer found"


def _depth(text: str) -> int:
    """How deep brackets and braces nest, unclosed ones included."""
    deepest = depth = 0
    for char in text:
        if char in "({[":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")}]" and depth:
            depth -= 1
    return deepest


def read(text: str, bare: bool) -> tuple[list[Any], str | None]:
    """`extract` after the rewritings of the header. `bare`: units and words belong to the answer, it was cut out already."""
    if _depth(text) > MAX_DEPTH:  # the parser needs minutes to refuse such a text, and its writer is no instrument
        return [], f"brackets nest deeper than {MAX_DEPTH}"
    text = _LEADING_ZEROS.sub("-", _SENTENCE_END.sub("", text.replace("\u2212", "-")))
    while (flatter := _DOUBLE_BRACES.sub(r"{\1}", text)) != text:  # each redundant pair doubles the parser's time
        text = flatter
    whole = text.strip()
    exponents = [
        found[3] for found in _DELIMITED_SCIENTIFIC.finditer(f"${whole}$" if SCIENTIFIC.fullmatch(whole) else text)
    ]
    if any(len(exponent.lstrip("+-0")) > 4 for exponent in exponents):
        return [], f"an exponent beyond {MAX_EXPONENT}"
    if (
        len(whole) <= MAX_BARE_CHARS
        and "\n" not in whole
        and is_bare(whole)
        and (bare or not _WORD.search(whole) or SCIENTIFIC.fullmatch(whole))
    ):
        found, missing = extract(_join_numbers(as_math(whole)))
        if found:
            return found, missing
    return extract(_join_numbers(text))


@functools.lru_cache(maxsize=256)
def parse_reference(reference: str) -> tuple[Any, ...]:
    """A reference's candidates; empty where no mathematical value can be parsed out of it."""
    found, _ = read(reference, bare=True)
    return tuple(found) if any(not isinstance(part, str) for part in found) else ()


def judge(answer: str, reference: str, bare: bool) -> dict[str, Any]:
    """Compare one answer with one reference. `bare`: the answer was extracted already and is to be read as a whole."""
    from math_verify import verify

    gold = parse_reference(reference)
    if not gold:
        return {"failed": f"the reference {reference[:60]!r} cannot be parsed as mathematics"}
    target, missing = read(answer, bare)
    if not target:
        return {"value": 0, "reason": missing}
    error = None
    for left, right in product(gold, target):
        try:
            if verify(left, right, timeout_seconds=None, raise_on_error=True):
                return {"value": 1, "reason": None}
        except Exception as problem:  # reported below: an instrument that raised has not said "wrong"
            error = type(problem).__name__
    if error:
        return {
            "failed": f"math-verify raised {error} while comparing",
            "recycle": error in ("MemoryError", "RecursionError"),
        }
    string = next((part for part in reversed(target) if isinstance(part, str)), "")
    return {"value": 0, "reason": f"read {string[:60]!r}, which is not {reference[:60]!r}"}


def _limit_memory(megabytes: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    except (ImportError, ValueError, OSError):  # not available on this system: the time-out still holds
        pass


def main() -> None:
    """Serve tasks from stdin until it closes."""
    # Whatever sympy or a parser prints must not get into the protocol: keep the real stdout, point fd 1 elsewhere.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    setup = json.loads(sys.stdin.readline())
    sys.path[:] = setup["path"]
    try:
        import logging

        import math_verify  # noqa: F401

        logging.disable(logging.CRITICAL)
        # Regular expressions, parser tables, and the parts of sympy that are imported late: before a clock runs.
        for warm_up in ("$x$", "\\boxed{\\sqrt{-1}}", "$2e^{5}$", "2^3", "$\\{1, \\frac{1}{2}\\}$", "$x < 1.5$"):
            judge(warm_up, "918273/645546", False)
    except Exception as error:
        reply({"ready": False, "error": f"{type(error).__name__}: {error}"})
        return
    _limit_memory(setup["memory_mb"])
    reply({"ready": True})
    for line in sys.stdin:
        task = json.loads(line)
        signal.alarm(setup["alarm_s"])
        try:
            reply(judge(task["answer"], task["reference"], task["bare"]))
        except Exception as error:
            # After a MemoryError or RecursionError the next task deserves a clean process.
            reply(
                {
                    "failed": f"math-verify raised {type(error).__name__}: {' '.join(str(error).split())[:120]}",
                    "recycle": True,
                }
            )
            return
        signal.alarm(0)


if __name__ == "__main__":
    main()
