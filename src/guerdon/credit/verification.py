"""How well a score tells right rows from wrong ones: numbers for the log and for reproductions, and which source is the reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from guerdon.credit.confidence import auroc
from guerdon.credit.link import Levels, LinkBase, countable, planned_name, require_level
from guerdon.errors import ShapeError
from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts


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


@dataclass(frozen=True, repr=False)
class WatchVerification(LinkBase):
    """Area under the ROC curve and f1 of a score against a verifier's reward, for the log. Changes nothing.

    Attributes:
        name: the score, one a row.
        by: the verifier's reward, right where above 1/2.
        threshold: of the score, for f1.
    """

    name: str
    by: str
    threshold: float = 0.5

    def plan(self, levels: Levels) -> Levels:
        for name in (self.name, self.by):
            require_level(planned_name(name, levels), levels, "sequence", "WatchVerification takes one value a row")
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        score, truth = scores[self.name], scores[self.by]
        both = (countable(scores, score, rollouts) & countable(scores, truth, rollouts))[:, 0]
        values, right = score.values[both, 0].tolist(), truth.values[both, 0].tolist()
        found = {f"{self.name}/f1": verification_metrics(values, right, self.threshold).f1}
        area = auroc(values, right)
        return scores.with_metrics(**(found | ({f"{self.name}/auroc": area} if area == area else {})))


@dataclass(frozen=True, repr=False)
class RewardIs(LinkBase):
    """This source alone is what is reported as the optimised reward; others that are live feed advantages only.

    Attributes:
        name: a source of rewards.
    """

    name: str

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.name, levels)
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        return replace(scores, reward=scores[self.name].row_reward())
