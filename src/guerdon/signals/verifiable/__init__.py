"""Rewards that can be checked: mathematics, text and number matching, multiple choice, tag layouts, length, repetition."""

from guerdon.signals.verifiable.mathematics import MathOptions, check_math, verify_math
from guerdon.signals.verifiable.signals import (
    QA,
    AnswerTag,
    Exact,
    Length,
    Math,
    MultipleChoice,
    Numeric,
    Repetition,
    ThinkFormat,
)
from guerdon.signals.verifiable.tagged_answer import TaggedAnswer
from guerdon.signals.verifiable.verdict import Verdict

__all__ = [
    "QA",
    "AnswerTag",
    "Exact",
    "Length",
    "Math",
    "MathOptions",
    "MultipleChoice",
    "Numeric",
    "Repetition",
    "TaggedAnswer",
    "ThinkFormat",
    "Verdict",
    "check_math",
    "verify_math",
]
