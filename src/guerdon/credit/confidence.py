"""How good confidences are: expected calibration error, AUROC, Brier score; and a link that logs them.

Confidences from K samples are multiples of 1/K, so the rule for bin edges matters: bins are (lo, hi], and 0 belongs to the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guerdon.credit.link import Levels, LinkBase, planned_name, row_totals
from guerdon.errors import ConfigError, ShapeError
from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts


def expected_calibration_error(confidences: Tensor, correct: Tensor, n_bins: int = 10) -> float:
    """ECE = sum_b n_b / n |mean confidence - accuracy| over `n_bins` bins of equal width, (lo, hi]; NaN for no answers.

    Args:
        confidences: [N] in [0, 1].
        correct: [N] 0 or 1.
    """
    if n_bins < 1:
        raise ConfigError(f"n_bins={n_bins} must be at least 1")
    confidences, correct = _pair(confidences, correct)
    if not len(confidences):
        return float("nan")
    edges = torch.arange(1, n_bins + 1, dtype=torch.float64, device=confidences.device) / n_bins
    place = torch.bucketize(confidences, edges).clamp(max=n_bins - 1)
    gap = torch.zeros_like(edges).index_add_(0, place, confidences - correct)
    return float(gap.abs().sum() / len(confidences))


def auroc(confidences: Tensor | Sequence[float], correct: Tensor | Sequence[float | bool]) -> float:
    """P(a right answer has more confidence than a wrong one), ties one half; NaN where one kind is missing.

    Args:
        confidences: [N] any finite scores.
        correct: [N], right above one half.
    """
    confidences, correct = _pair(confidences, correct)
    right, wrong = confidences[correct > 0.5], confidences[correct <= 0.5].sort().values
    if not len(right) or not len(wrong):
        return float("nan")
    below, up_to = torch.searchsorted(wrong, right), torch.searchsorted(wrong, right, right=True)
    return float((below + up_to).double().mean() / (2 * len(wrong)))


def brier_score(confidences: Tensor, correct: Tensor) -> float:
    """Mean of (confidence - correct)^2; NaN for no answers. Arguments as for ECE."""
    confidences, correct = _pair(confidences, correct)
    return float(((confidences - correct) ** 2).mean())


def _pair(confidences: Tensor | Sequence[float], correct: Tensor | Sequence[float | bool]) -> tuple[Tensor, Tensor]:
    first, second = torch.as_tensor(confidences).double().reshape(-1), torch.as_tensor(correct).double().reshape(-1)
    if first.shape != second.shape:
        raise ShapeError(f"{len(first)} confidences for {len(second)} answers")
    return first, second


@dataclass(frozen=True, repr=False)
class WatchCalibration(LinkBase):
    """For the log: a source in [0, 1] read as the confidence that the row is right. ECE, AUROC, Brier score.

    Attributes:
        name: the confidence, one value a row.
        by: correctness; right above one half.
        bins: of the ECE.
    """

    name: str
    by: str
    bins: int = 10

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.name, levels)
        planned_name(self.by, levels)
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        (confidence, live), (correct, known) = (row_totals(scores, scores[name]) for name in (self.name, self.by))
        rows = live & known
        confidence, right = confidence[rows], (correct[rows] > 0.5).double()
        found = {
            "ece": expected_calibration_error(confidence, right, self.bins),
            "auroc": auroc(confidence, right),
            "brier": brier_score(confidence, right),
        }
        return scores.with_metrics(**{f"{self.name}/{key}": value for key, value in found.items() if value == value})
