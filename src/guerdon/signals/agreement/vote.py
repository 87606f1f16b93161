"""Choosing one of several solutions of a prompt: majority vote, votes weighted by a score, the best-scored one. Test-time, no verifier."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from guerdon.errors import ShapeError
from guerdon.rewards import Rewards
from guerdon.rollouts import Rollouts


class Vote(NamedTuple):
    """winner: the answer with the largest total, None where nobody answered. totals: {answer: sum of its weights}, first seen first."""

    winner: Any
    totals: dict[Any, float]


def weighted_vote(answers: Sequence[Hashable | None], weights: Sequence[float | None] | None = None) -> Vote:
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
    return Vote(max(totals, key=lambda answer: totals[answer]) if totals else None, totals)


def best_of(weights: Sequence[float | None]) -> int | None:
    """Index of the largest weight, the first of equals; None where there is none."""
    scored = [i for i, weight in enumerate(weights) if weight is not None and weight == weight]
    return max(scored, key=lambda i: (float(weights[i] or 0.0), -i)) if scored else None


def vote_in_groups(
    rollouts: Rollouts, extract: Callable[[str], Hashable | None], weights: Rewards | None = None
) -> dict[int, Vote]:
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
    answers = [extract(text) for text in rollouts.completions]
    return {
        group: weighted_vote([answers[row] for row in members], [column[row] for row in members])
        for group, members in rows.items()
    }


class VerificationMetrics(NamedTuple):
    """How well scores tell right from wrong at a threshold; shares of an empty class are 0."""

    accuracy_on_correct: float
    accuracy_on_incorrect: float
    accuracy: float
    f1: float


def verification_metrics(
    scores: Sequence[float | None], correct: Sequence[float | bool], threshold: float = 0.5
) -> VerificationMetrics:
    """Right is predicted iff score > threshold; f1 is the harmonic mean of the accuracies on right and on wrong solutions (LaSeR's script).

    A missing score (None, NaN) predicts wrong.
    """
    if len(scores) != len(correct):
        raise ShapeError(f"{len(scores)} scores for {len(correct)} solutions")
    called = [score is not None and score > threshold for score in scores]
    truth = [float(one) > 0.5 for one in correct]

    def share(of: list[bool]) -> float:
        return sum(of) / len(of) if of else 0.0

    right = share([c for c, t in zip(called, truth, strict=True) if t])
    wrong = share([not c for c, t in zip(called, truth, strict=True) if not t])
    both = share([c == t for c, t in zip(called, truth, strict=True)])
    return VerificationMetrics(right, wrong, both, 2 * right * wrong / (right + wrong) if right + wrong else 0.0)


def auroc(scores: Sequence[float], correct: Sequence[float | bool]) -> float:
    """P(a right solution scores above a wrong one), ties counted half; NaN where either class is empty."""
    right = [s for s, c in zip(scores, correct, strict=True) if float(c) > 0.5]
    wrong = [s for s, c in zip(scores, correct, strict=True) if float(c) <= 0.5]
    if not right or not wrong:
        return float("nan")
    import bisect

    ordered = sorted(wrong)
    below = sum(bisect.bisect_left(ordered, s) + bisect.bisect_right(ordered, s) for s in right)
    return below / (2 * len(right) * len(wrong))
