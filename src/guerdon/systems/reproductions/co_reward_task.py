"""Sums of two small numbers in two templates, and a policy that does not always know and then answers what the template suggests.

    view 0   7+12=\\n        #19
    view 1   l & g?\\n       #19          the same sum, its numbers as letters, the operands the other way round

Three tiers of difficulty, by the question alone: half of the questions are easy, a quarter middling, a quarter hard. The policy is made
by supervised learning of answers drawn from `TIERS`: right, the template's own answer (5 in view 0, 21 in view 1), or a near miss. In the
hard quarter the template's own answer is the more frequent one, so a vote within one view is usually wrong there.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence

from guerdon.signals.verifiable.verdict import Verdict
from guerdon.systems.reproductions import short_answers
from guerdon.systems.reproductions.short_answers import Start
from guerdon.tasks.base import Row, Task
from guerdon.tasks.views import Rewrite, paired_rows

LARGEST = 13
OWN_ANSWER = ("5", "21")  # of each template
TIERS = {
    "easy": (0.7, 0.1),
    "middling": (0.45, 0.3),
    "hard": (0.2, 0.45),
}  # right, the template's own; the rest near misses


def make_prompt(a: int, b: int, view: int) -> str:
    return f"{a}+{b}=\n" if view == 0 else f"{chr(97 + b)} & {chr(97 + a)}?\n"


def tier(a: int, b: int) -> str:
    """A property of the question, the same in both views."""
    return ("easy", "easy", "middling", "hard")[random.Random(100 * a + b).randrange(4)]


def two_templates() -> Task:
    """All 196 questions in both templates, to train on without their answers, and to measure on: nothing is learned from a label."""
    rows: list[Row] = []
    second: list[Rewrite] = []
    for a in range(LARGEST + 1):
        for b in range(LARGEST + 1):
            rows.append({"prompt": make_prompt(a, b, 0), "answer": str(a + b), "tier": tier(a, b)})
            second.append(Rewrite(make_prompt(a, b, 1)))

    def verify(completions: Sequence[str], asked: Sequence[Row]) -> list[Verdict]:
        return [
            Verdict(float(text.strip() == f"#{row['answer']}"), f"answered {text[:8]!r}")
            for text, row in zip(completions, asked, strict=True)
        ]

    # A task needs a held-out row; the measurements of this reproduction are on the training questions.
    held_out = [{"prompt": "0+0=?", "answer": "0"}]
    return Task("two-templates", paired_rows(rows, second), held_out, verify, max_completion_length=5, notes={"extract": "after:#"})  # fmt: skip


def draw_answer(row: Row, rng: random.Random) -> str:
    """What the policy is taught to answer, by tier and view."""
    right, own = TIERS[row["tier"]]
    luck, total = rng.random(), int(row["answer"])
    if luck < right:
        return f"#{total}"
    if luck < right + own:
        return f"#{OWN_ANSWER[row['view']]}"
    return f"#{max(0, total + rng.choice((-3, -2, -1, 1, 2, 3)))}"


def starting_policy(settings: Start, seed: int = 0) -> str:
    """Path of the starting policy, made on first use and cached."""
    rng, rows = random.Random(seed), two_templates().train

    def draw(count: int) -> list[tuple[str, str]]:
        return [(row["prompt"], draw_answer(row, rng)) for row in rng.choices(rows, k=count)]

    return short_answers.starting_policy("two-templates-policy", draw, settings, [sys.modules[__name__]], seed)
