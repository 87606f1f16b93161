"""Finding the answer in a completion, by stated rules and in linear time whatever the text.

Nothing here parses mathematics: a rule returns the answer's text, or None where the policy wrote none.
"""

from __future__ import annotations

import re
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

Extract = Literal["boxed", "tag", "last_number", "final"] | str | Callable[[str], str | None]

# A number as people write it: thousands separators only in complete groups of three, so "1,2" is two numbers; fractions, mixed
# numbers, powers, powers of ten and a percent sign belong to it.
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_NUMBER = re.compile(
    rf"(?<![\d.])(?:[-+\u2212\u2013]\s?)?(?:\\frac\s*\{{\s*-?\d+\s*\}}\s*\{{\s*\d+\s*\}}|\d+\s+\d+\s*/\s*\d+|\d+\s*/\s*\d+(?!\s*/)|"
    rf"{_DIGITS}(?:[eE][-+]?\d+|\s*(?:[x\u00d7*]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*\{{?\s*[-\u2212]?\d+\s*\}}?|\s*[x\u00d7*]\s*10[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+|\s?\^\s*\{{?\s*-?\d+\s*\}}?|"
    rf"[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)?|\.\d+)(?:\s?\\?%)?"
)
_GLUED_BEFORE = re.compile(
    r"(?:[A-Za-z_^\\]|[A-Za-z]-|[\w)\]}]\s*[*/+^\u00d7\u00f7\u00b7]\s*|[\w)\]}]\s+[-\u2212]\s+|[A-Za-z)\]}][-\u2212]\s*|\d:)\Z"
)
_GLUED_AFTER = re.compile(
    r"(?!(?:km|cm|mm|kg|mg|ml|ft|in|lb|oz|hr|min|mph|th|st|nd|rd|[mgshkL]|USD|EUR|cents?|dollars?|euros?|hours?|minutes?|seconds?|percent|pct)[23]?(?![A-Za-z0-9]))"
    r"[A-Za-z]\w*|[_^]|\s*[*\u00d7\u00f7^]\s*[\w(\\]|\s*[-+/]\s*[\d(\\]|:\d|\s+[-+]\s+[\w(\\]|!(?=\s*[-+*/=])"
)
_RUN_ON = re.compile(r"\n\s*(?:question|q|problem|human|user)\s*\d*\s*:", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_ANCHOR = re.compile(r"answer|<answer>|####|\u7b54\u6848", re.IGNORECASE)
_ANCHORED_CHARS = 400
_ANSWER_OPEN, _ANSWER_CLOSE = "<answer>", "</answer>"


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def answer_window(text: str, max_chars: int) -> str:
    """The part of a long text in which an answer is looked for.

    The last `max_chars` characters, whole words. Where they hold no `\\boxed` and the text does, `max_chars` characters from the last
    one on; where they hold neither a box nor an answer tag nor the word "answer", what follows the last tag or the last two "answer"
    before them is put in front.
    """
    if len(text) <= max_chars:
        return text
    tail = text[-max_chars:]
    if "\\boxed" in tail:
        return tail
    start = text.rfind("\\boxed")
    if start >= 0:
        return text[start : start + max_chars]
    tail = tail[tail.find(" ") + 1 :] if text[-max_chars - 1].isalnum() and " " in tail[:80] else tail
    if _ANCHOR.search(tail):
        return tail
    before = [found.start() for found in _ANCHOR.finditer(text)][-2:]
    parts = [text[place : place + _ANCHORED_CHARS] for place in before]
    return "\n\n".join([*parts, tail])[-max_chars - 2 * _ANCHORED_CHARS :] if parts else tail


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` (or `\fbox{...}`) with balanced braces; None where there is none or it never closes.

    `\{` and `\}` are signs of a set or a system, no braces.
    """
    opening = _last(_BOX, text)
    if opening is None:
        return None
    depth, place = 1, opening.end()
    while place < len(text):
        if text[place] == "\\":
            place += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[opening.end() : place].strip()
        place += 1
    return None


def last_tag(text: str) -> str | None:
    """Text of the last `<answer>...</answer>`; None where the pair is missing."""
    end = text.rfind(_ANSWER_CLOSE)
    start = text.rfind(_ANSWER_OPEN, 0, end) if end >= 0 else -1
    return text[start + len(_ANSWER_OPEN) : end].strip() if start >= 0 else None


def tagged_or_all(text: str) -> str:
    """What the last `<answer>...</answer>` holds; the whole text where the pair is missing."""
    tagged = last_tag(text)
    return text if tagged is None else tagged


def last_number(text: str, max_chars: int = 4096) -> str | None:
    """The last number written in digits within the last `max_chars` characters, its thousands separators removed.

    None where it is a piece of something longer: "x^2", "3 + 4", "COVID-19".
    """
    window = text[-max_chars:]
    found = _last(_NUMBER, window)
    if found is None:
        return None
    start, number = found.start(), found.group()
    before = window[max(0, start - 12) : start]
    if number[0] in "-+\u2212\u2013" and re.search(r"[\w)\]}]\Z|(?:[\d)\]}]|(?<![^\W\d_])[A-Za-z])\s+\Z", before):
        # Behind a digit it is no sign: "pages 10-15"; behind any other operand it makes a piece of it.
        if not re.search(r"(?:^|[^-\w*/+^=.])\d+\Z", before) or number[1:2] == " " or number[0] == "+":
            return None
        number, before = number[1:], ""
    if _GLUED_BEFORE.search(before) or _GLUED_AFTER.match(window, found.end()):
        return None
    tidy = number.replace(",", "").replace("\u2212", "-").replace("\u2013", "-").lstrip("+").strip()
    return re.sub(r"(?<=\d)[ \u00a0\u202f](?=\d{3}(?!\d|\s*/))", "", re.sub(r"^-\s+", "-", tidy))


def before_run_on(text: str, start: int = 0) -> str:
    """A text up to the next question that the policy asked itself after `start`."""
    found = _RUN_ON.search(text, start)
    return text[: found.start()] if found else text


def after_marker(text: str, marker: str) -> str | None:
    """The rest of the line after the last `marker` (GSM8K writes "#### 42"); None where it does not occur.

    What follows a next question ("Question: ...") behind the first marker is not looked at: the policy ran on.
    """
    first = text.find(marker)
    text = before_run_on(text, first) if first >= 0 else text
    start = text.rfind(marker)
    if start < 0:
        return None
    rest = text[start + len(marker) :].strip()
    return rest.splitlines()[0].strip() if rest else None


def extractor(how: Extract) -> Callable[[str], str | None]:
    """The rule named by an `extract` option.

    Args:
        how: "boxed", "tag", "last_number", "after:MARKER", "final" (whichever of these ways a completion uses, see `final_answer`), or a
            function of the completion returning text or None.

    Raises:
        ValueError: for any other name.
    """
    if callable(how):
        return how
    rules = {"boxed": last_boxed, "tag": last_tag, "last_number": last_number}
    if how in rules:
        return rules[how]
    if how == "final":
        from guerdon.signals.verifiable.final_answer import final_answer

        return final_answer
    if how.startswith("after:") and len(how) > len("after:"):
        marker = how.removeprefix("after:")
        return lambda text: after_marker(text, marker)
    raise ValueError(
        f"extract={how!r}: use one of {sorted([*rules, 'final'])}, 'after:MARKER', or a function of the completion"
    )


class AnswerWatch:
    """Says once, at the first batch, that a rule found no answer in any completion: an option then does nothing at all.

    rule: the value of the option. consequence: what does not happen. option: its name.
    """

    def __init__(self, rule: Any, consequence: str = "nothing is rewarded", *, option: str = "extract") -> None:
        self.rule, self.consequence, self.option, self._looked = rule, consequence, option, False

    def __call__(self, answers: Sequence[str | None], who: str) -> None:
        if self._looked or not answers:
            return
        self._looked = True
        if not any(answer and answer.strip() for answer in answers):
            warnings.warn(
                f"{who}: not one of the {len(answers)} completions of the first batch has an answer by {self.option}={self.rule!r}, so that "
                f"{self.consequence}; say how answers are marked: {self.option}='final', 'tag', 'after:MARKER' or a function",
                stacklevel=3,
            )
