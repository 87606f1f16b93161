"""Answers of search agents: balanced tags, and the overlap of the answer's words with a reference (IGPO, arXiv 2510.14967).

The F1 here is not SQuAD's: words are SETS (a repeated word counts once), articles stay, punctuation becomes a blank. What fails the
format is not 0 but a stated penalty, so that a policy learns to close its tags before it learns to answer.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from guerdon.options import checked
from guerdon.signals.text import TextSignal
from guerdon.signals.verifiable.references import reference_values
from guerdon.signals.verifiable.verdict import Verdict, instrument_failure, shown

Kind = Literal["f1", "em", "noformatf1"]
KINDS = ("f1", "em", "noformatf1")
TAGS = ("code", "tool_call", "think", "answer")
SPLIT = "<|answer_split|>"  # between alternative references in one text
_TO_BLANK = str.maketrans(dict.fromkeys(string.punctuation, " "))


def tags_balanced(text: str, tags: Sequence[str] = TAGS) -> bool:
    """Whether every tag is opened as often as it is closed, and after each opening tag there is a closing one.

    Read left to right, as the official code does: an opening tag is closed by the next closing one, and what stands between them is
    skipped, so tags nested in their like are allowed.
    """
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if text.count(opening) != text.count(closing):
            return False
        at = text.find(opening)
        while at >= 0:
            at = text.find(closing, at)
            if at < 0:
                return False
            at = text.find(opening, at)
    return True


def answer_words(text: str) -> list[str]:
    """Lower-case words, ASCII punctuation taken for blanks."""
    return text.lower().translate(_TO_BLANK).split()


def word_set_f1(answer: str, reference: str) -> float:
    """F1 in [0, 1] of two sets of words; 0 where either has none."""
    given, expected = set(answer_words(answer)), set(answer_words(reference))
    common = len(given & expected)
    return 2 * common / (len(given) + len(expected)) if common else 0.0


def alternatives(cell: Any) -> list[str]:
    """The acceptable answers of a data cell: a text, a text with `SPLIT` between answers, or a list; none for a missing one."""
    return [part for value in reference_values(cell) for part in str(value).split(SPLIT) if part.strip()]


def tagged_answer_reward(
    response: str, references: Sequence[str], kind: Kind = "f1", format_penalty: float = -2.0
) -> Verdict:
    """The reward of one response: how well its FIRST <answer> agrees with the best reference.

    Args:
        response: the whole rollout, tool output included. Case does not matter, in tags neither.
        references: acceptable answers.
        kind: "f1" word sets; "em" 1.0 if the words are the same in the same order, else 0.0; "noformatf1" f1 without the penalty (0).
        format_penalty: what "f1" and "em" give where tags are unbalanced or there is no answer.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: use one of {', '.join(KINDS)}")
    lower = response.lower()
    failing = 0.0 if kind == "noformatf1" else format_penalty
    if not tags_balanced(lower):
        return Verdict(failing, f"one of the tags {', '.join(TAGS)} is not opened and closed in turn")
    found = re.search(r"<answer>(.*?)</answer>", lower, re.DOTALL)
    if found is None:
        return Verdict(failing, "no <answer>...</answer>")
    if kind == "em":
        value = float(any(answer_words(found[1]) == answer_words(reference) for reference in references))
    else:
        value = max((word_set_f1(found[1], reference) for reference in references), default=0.0)
    return Verdict(value, None if value == 1.0 else f"answered {shown(found[1].strip())}")


@checked
def TaggedAnswer(*, reference: str = "answer", kind: Kind = "f1", format_penalty: float = -2.0) -> TextSignal:
    """`tagged_answer_reward` as a signal. A row without a reference is NaN.

    Args:
        reference: the data column: a text, a text with `<|answer_split|>` between alternatives, or a list of alternatives.
        kind, format_penalty: see `tagged_answer_reward`.
    """
    tagged_answer_reward("", [], kind)  # refuses an unknown kind here

    def check(texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Verdict]:
        return [one(text, cell) for text, cell in zip(texts, columns[reference], strict=True)]

    def one(text: str, cell: Any) -> Verdict:
        references = alternatives(cell)
        if not references:
            return instrument_failure(f"no usable reference in this row: {shown(cell)}")
        return tagged_answer_reward(text, references, kind, format_penalty)

    settings = f"reference={reference!r}, kind={kind!r}, format_penalty={format_penalty}"
    return TextSignal(check, (reference,), "tagged_answer", settings)
