"""Choosing one of several solutions of a prompt: majority vote, votes weighted by a score, the best-scored one. Test-time, no verifier."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from guerdon.errors import ShapeError
from guerdon.rewards import Rewards
from guerdon.rollouts import Rollouts


class Choice(NamedTuple):
    """winner: the answer with the largest total, None where nobody answered. totals: {answer: sum of its weights}, first seen first."""

    winner: Any
    totals: dict[Any, float]


def weighted_vote(answers: Sequence[Hashable | None], weights: Sequence[float | None] | None = None) -> Choice:
    """Each answer gets the sum of its voters' weights; the answer seen first wins a tie.

    Args:
        answers: N extracted answers; None = no answer, and no vote. Equal ones are one answer: canonicalise them first.
        weights: N numbers, such as self-rewarding scores; None or NaN among them = no score, and no vote. None = one vote each, the
            plain majority.
    """
    given = [1.0] * len(answers) if weights is None else list(weights)
    if len(given) != len(answers):
        raise ShapeError(f"{len(given)} weights for {len(answers)} answers")
    totals: dict[Any, float] = {}
    for answer, weight in zip(answers, given, strict=True):
        if answer is not None and weight is not None and weight == weight:
            totals[answer] = totals.get(answer, 0.0) + float(weight)
    return Choice(max(totals, key=lambda answer: totals[answer]) if totals else None, totals)


def best_of(weights: Sequence[float | None]) -> int | None:
    """Index of the largest weight, the first of equals; None where there is none."""
    scored = [i for i, weight in enumerate(weights) if weight is not None and weight == weight]
    return max(scored, key=lambda i: (float(weights[i] or 0.0), -i)) if scored else None


def vote_in_groups(
    rollouts: Rollouts, extract: Callable[[str], Hashable | None], weights: Rewards | None = None
) -> dict[int, Choice]:
    """{group id: its vote} over the rollouts of each prompt.

    Args:
        extract: from a completion to its answer, None where there is none.
        weights: one value a row; NaN and masked rows have no vote. None = the plain majority.
    """
    column: list[float | None] = [1.0] * len(rollouts)
    if weights is not None:
        usable = weights.usable.any(1).tolist()
        column = [v if fine else None for v, fine in zip(weights.row_total().tolist(), usable, strict=True)]
    rows: dict[int, list[int]] = {}
    for row, group in enumerate(rollouts.groups.tolist()):
        rows.setdefault(group, []).append(row)
    answers = [extract(text) for text in rollouts.last_turns]
    return {
        group: weighted_vote([answers[row] for row in members], [column[row] for row in members])
        for group, members in rows.items()
    }
