"""A confidence the policy writes beside its answer, and a proper score of it: RLCR, the baseline of calibration by agreement.

    reasoning</think> <answer>Paris</answer> <analysis>...</analysis> <confidence>0.9</confidence>

The layout has to hold to the end of the text. A text that breaks it gets 0 for everything, whatever its answer: that is the policy's doing.
All rules are linear in the length of the text.

Source: RLCR (arXiv 2507.16806), official code github.com/damanimehul/RLCR, reward_fns.py: format_reward, accuracy_reward (its rule for
HotpotQA) and brier_reward. Differs on purpose: a confidence of "nan" is not well-formed here (there it passes, and makes the reward NaN).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

from guerdon.errors import ConfigError
from guerdon.options import checked
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.verifiable.references import read_references
from guerdon.signals.verifiable.text_match import qa_exact_match
from guerdon.signals.verifiable.verdict import any_of

Pattern = Literal["ta", "tac", "tabc", "tbac"]
SOURCES = ("format", "accuracy", "brier")
_PARTS = {"a": "answer", "b": "analysis", "c": "confidence"}
PATTERNS: tuple[str, ...] = ("ta", "tac", "tabc", "tbac")


class SpokenRewards(NamedTuple):
    """format, accuracy, brier: each in [0, 1]. reason: what the layout lacks, or None."""

    format: float
    accuracy: float
    brier: float
    reason: str | None = None


def spoken_layout(text: str, pattern: Pattern = "tabc") -> bool:
    """Whether `</think>`, then the parts of the pattern follow each other with nothing but white space between, to the end of the text.

    Equal to a match of `.*?</think>\\s*<answer>.*?</answer>\\s*<confidence>.*?</confidence>\\s*\\Z` with dot matching newlines: a part's
    content may hold anything, other tags as well.

    Args:
        text: a completion; its prompt has opened <think>.
        pattern: the parts in order: t(hinking), a(nswer), b = analysis, c(onfidence).
    """
    names = ["think", *(_PARTS[part] for part in pattern[1:])]
    place = 0
    for before, after in pairwise(names):  # the earliest place of each border leaves most room for the next
        border = re.compile(rf"</{before}>\s*<{after}>").search(text, place)
        if border is None:
            return False
        place = border.end()
    return re.compile(rf"</{names[-1]}>\s*\Z").search(text, place) is not None


def spoken_confidence(text: str) -> float | None:
    """The number in the last <confidence>...</confidence>; None unless it is a number in [0, 1]."""
    content = last_between(text, "<confidence>", "</confidence>")
    try:
        number = float(content or "")
    except ValueError:
        return None
    return number if 0 <= number <= 1 else None  # NaN compares false


def last_between(text: str, opening: str, closing: str) -> str | None:
    """What the last of `re.findall(opening(.*?)closing)` holds: pairs are taken from the left and do not overlap."""
    found, place = None, text.find(opening)
    while place >= 0:
        start = place + len(opening)
        end = text.find(closing, start)
        if end < 0:
            break
        found, place = text[start:end], text.find(opening, end + len(closing))
    return found


def spoken_confidence_rewards(text: str, references: Sequence[Any], pattern: Pattern = "tabc") -> SpokenRewards:
    """format f, accuracy a and Brier reward 1 - (a - q)^2 of one completion; all 0 where f is 0.

    Args:
        text: the completion.
        references: acceptable answers; equal to one of them after SQuAD normalisation is accurate. A broken one makes accuracy NaN.
        pattern: see `spoken_layout`. "ta" has no confidence: its Brier reward is 0.
    """
    if not spoken_layout(text, pattern):
        return SpokenRewards(0.0, 0.0, 0.0, f"not the layout {pattern}")
    confidence = spoken_confidence(text) if "c" in pattern else None
    if "c" in pattern and confidence is None:
        return SpokenRewards(0.0, 0.0, 0.0, "the last confidence is no number in [0, 1]")
    answer = last_between(text, "<answer>", "</answer>") or ""
    accuracy = any_of([qa_exact_match(answer, str(item)) for item in references])
    brier = 0.0 if confidence is None else 1 - (accuracy.value - confidence) ** 2
    return SpokenRewards(1.0, accuracy.value, brier, accuracy.reason)


@checked
@dataclass(frozen=True)
class SpokenConfidence:
    """Signal: three rewards in [0, 1] a completion, "format", "accuracy" and "brier" (`spoken_confidence_rewards`).

    Attributes:
        reference: data column with the right answer, or a list of them. A row without one is NaN.
        pattern: the layout: "tabc" (answer, analysis, confidence), "tbac", "tac" or, without a confidence, "ta".
    """

    reference: str = "answer"
    pattern: Pattern = "tabc"
    scope: ClassVar[str] = "row"
    level: ClassVar[Mapping[str, str]] = dict.fromkeys(SOURCES, "sequence")
    columns: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ConfigError(f"pattern={self.pattern!r}: use one of {PATTERNS}")
        object.__setattr__(self, "columns", (self.reference,))

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> dict[str, Rewards]:
        rewards = [
            self._row(text, cell)
            for text, cell in zip(rollouts.completions, rollouts.column(self.reference), strict=True)
        ]
        reasons = [row.reason for row in rewards]
        return {name: Rewards.sequence([getattr(row, name) for row in rewards], rollouts, reasons) for name in SOURCES}

    def _row(self, text: str, cell: Any) -> SpokenRewards:
        references, problem = read_references(cell, "literal")  # the published rule compares texts as they are written
        if not references:
            return SpokenRewards(float(spoken_layout(text, self.pattern)), math.nan, math.nan, problem)
        return spoken_confidence_rewards(text, references, self.pattern)
