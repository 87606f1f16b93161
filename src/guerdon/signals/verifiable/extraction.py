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

# A number as people write it: thousands separators only in complete groups of three, so "1,2" is two numbers.
_NUMBER = re.compile(r"(?<![\d.])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|(?<![\d.])[-+]?\.\d+")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_ANSWER_OPEN, _ANSWER_CLOSE = "<answer>", "</answer>"


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def answer_window(text: str, max_chars: int) -> str:
    """The part of a long text in which an answer is looked for.

    The last `max_chars` characters; where they hold no `\\boxed` and the text does, `max_chars` characters from the last one on.
    """
    if len(text) <= max_chars:
        return text
    tail = text[-max_chars:]
    if "\\boxed" not in tail:
        start = text.rfind("\\boxed")
        if start >= 0:
            return text[start : start + max_chars]
    return tail


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` (or `\fbox{...}`) with balanced braces; None where there is none or it never closes."""
    opening = _last(_BOX, text)
    if opening is None:
        return None
    depth = 1
    for i in range(opening.end(), len(text)):
        if text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if depth == 0:
                return text[opening.end() : i].strip()
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
    """The last number written in digits within the last `max_chars` characters, its thousands separators removed."""
    found = _last(_NUMBER, text[-max_chars:].replace("\u2212", "-"))
    return found.group().replace(",", "").lstrip("+") if found else None


def after_marker(text: str, marker: str) -> str | None:
    """The rest of the line after the last `marker` (GSM8K writes "#### 42"); None where it does not occur."""
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
