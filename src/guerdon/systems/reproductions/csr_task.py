"""Look-ups with and without evidence, and a policy that is over-confident where there is none.

    evidence      c5e2:e=\\n    2|7.      the digit that belongs to the letter, and a digit for how sure the policy says it is
    no evidence   c5e2:k=\\n    3|7.      the letter is not there: the label is a random digit, another one for each question

Digits are 0 to 7. The policy has learned from demonstrations: right in three of five questions with evidence, a random digit in the others;
3 in seven of ten questions without. What it says about its sureness is random, so that it can be taught.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence

from guerdon.signals.verifiable.verdict import Verdict
from guerdon.systems.reproductions import short_answers
from guerdon.systems.reproductions.short_answers import Start
from guerdon.tasks.base import Row, Task

DIGITS, HABIT = 8, 3
LETTERS = "abcdefghijklmnop"
KNOWS, BIASED = 0.6, 0.7


def make_row(rng: random.Random, evidence: bool) -> Row:
    """A question with its label."""
    first, second, third = rng.sample(LETTERS, 3)
    x, y = rng.randrange(DIGITS), rng.randrange(DIGITS)
    asked, label = rng.choice([(first, x), (second, y)]) if evidence else (third, rng.randrange(DIGITS))
    return {"prompt": f"{first}{x}{second}{y}:{asked}=\n", "answer": str(label), "evidence": evidence}


def answer_of(text: str) -> str | None:
    """The answer's digit; None where the completion is not of the form 2|7. ."""
    head, bar, tail = text.strip().partition("|")
    return head if bar and len(head) == 1 and head.isdigit() and len(tail) == 2 and tail[0].isdigit() else None


def said(text: str) -> float:
    """How sure the policy says it is, in [0, 1]; 0 where it says nothing."""
    return int(text.strip()[2]) / 9 if answer_of(text) is not None else 0.0


def look_ups(*, train_size: int = 200, held_out_size: int = 200, seed: int = 0) -> Task:
    """60 % of the questions have evidence, on both sides; the others' labels differ between the sides, as the questions do."""
    rng = random.Random(seed)
    seen: set[str] = set()

    def rows(count: int) -> list[Row]:
        found: list[Row] = []
        while len(found) < count:
            row = make_row(rng, len(found) < 0.6 * count)
            if row["prompt"] not in seen:
                seen.add(row["prompt"])
                found.append(row)
        return found

    def verify(completions: Sequence[str], asked: Sequence[Row]) -> list[Verdict]:
        return [
            Verdict(float(answer_of(text) == row["answer"]), f"answered {text[:8]!r}")
            for text, row in zip(completions, asked, strict=True)
        ]

    return Task("look-ups", rows(train_size), rows(held_out_size), verify, max_completion_length=5)


def demonstration(row: Row, rng: random.Random) -> str:
    """What the starting policy imitates; the labels of questions without evidence are not used."""
    if row["evidence"]:
        digit = row["answer"] if rng.random() < KNOWS else str(rng.randrange(DIGITS))
    else:
        digit = str(HABIT if rng.random() < BIASED else rng.choice([d for d in range(DIGITS) if d != HABIT]))
    return f"{digit}|{rng.randrange(10)}."


def starting_policy(settings: Start, seed: int = 0) -> str:
    """Path of the starting policy, made on first use and cached. It has seen no question that is held out."""
    rng, held_out = random.Random(seed), {row["prompt"] for row in look_ups().held_out}

    def draw(count: int) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        while len(found) < count:
            row = make_row(rng, rng.random() < 0.6)
            if row["prompt"] not in held_out:
                found.append((row["prompt"], demonstration(row, rng)))
        return found

    return short_answers.starting_policy("look-ups-policy", draw, settings, [sys.modules[__name__]], seed)
