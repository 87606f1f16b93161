"""How good confidences are: expected calibration error, AUROC, Brier score; and a link that logs them.

Confidences from K samples are multiples of 1/K, and with K = bins = 10 every one of them lies on a bin's edge. The rule for edges then decides
the error. It is an argument, and it is applied to the k/K that is meant, not to the float next to it: 0.2 in float32 is above 0.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from guerdon.credit.link import Levels, LinkBase, planned_name, row_totals
from guerdon.errors import ConfigError, ShapeError
from guerdon.options import checked
from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts

Edges = Literal["upper", "lower"]


@checked
def confidence_bins(confidences: Tensor, n_bins: int = 10, edges: Edges = "upper") -> Tensor:
    """[N] int64, the bin of each confidence among `n_bins` of equal width on [0, 1]: the same in every floating-point precision.

    A confidence within the rounding error of an edge is taken to be on it. The edge belongs to the bin below ("upper", (lo, hi], and 0 to
    the first bin) or to the bin above ("lower", [lo, hi), and 1 to the last bin).

    Args:
        confidences: [N] float in [0, 1].
        n_bins: at least 1.
        edges: which bin an edge belongs to.
    """
    if n_bins < 1:
        raise ConfigError(f"n_bins={n_bins} must be at least 1")
    if edges not in ("upper", "lower"):
        raise ConfigError(f"edges={edges!r}: use 'upper' for (lo, hi] or 'lower' for [lo, hi)")
    # A millionth is the error of a share that was counted up in float32, whatever type it has now; half precision is coarser than that.
    rounding = n_bins * max(torch.finfo(confidences.dtype).eps, 1e-6)
    scaled = confidences.double() * n_bins
    scaled = torch.where((scaled - scaled.round()).abs() <= rounding, scaled.round(), scaled)
    place = scaled.ceil() - 1 if edges == "upper" else scaled.floor()
    return place.clamp(0, n_bins - 1).long()


@checked
def expected_calibration_error(
    confidences: Tensor | Sequence[float],
    correct: Tensor | Sequence[float | bool],
    n_bins: int = 10,
    edges: Edges = "upper",
) -> float:
    """ECE = sum_b n_b / n |mean confidence - accuracy| over `n_bins` bins of equal width; NaN for no answers.

    Args:
        confidences: [N] in [0, 1], in any floating-point precision.
        correct: [N] 0 or 1.
        n_bins, edges: see `confidence_bins`. "lower" is the rule of RLCR's evaluation (arXiv 2507.16806).
    """
    place = confidence_bins(_floats(confidences), n_bins, edges)
    confidences, correct = _pair(confidences, correct)
    if not len(confidences):
        return float("nan")
    gap = torch.zeros(n_bins, dtype=torch.float64, device=place.device).index_add_(0, place, confidences - correct)
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


def _floats(confidences: Tensor | Sequence[float]) -> Tensor:
    """[N], in the precision it was computed in; Python numbers in double."""
    if not isinstance(confidences, Tensor):
        confidences = torch.tensor([float(value) for value in confidences], dtype=torch.float64)
    return (confidences if confidences.is_floating_point() else confidences.double()).reshape(-1)


def _pair(confidences: Tensor | Sequence[float], correct: Tensor | Sequence[float | bool]) -> tuple[Tensor, Tensor]:
    first, second = _floats(confidences).double(), torch.as_tensor(correct).double().reshape(-1)
    if first.shape != second.shape:
        raise ShapeError(f"{len(first)} confidences for {len(second)} answers")
    return first, second


@dataclass(frozen=True, repr=False)
class WatchCalibration(LinkBase):
    """For the log: a source in [0, 1] read as the confidence that the row is right. ECE, AUROC, Brier score.

    Attributes:
        name: the confidence, one value a row.
        by: correctness; right above one half.
        bins, edges: of the ECE, see `confidence_bins`.
    """

    name: str
    by: str
    bins: int = 10
    edges: Edges = "upper"

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.name, levels)
        planned_name(self.by, levels)
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        (confidence, live), (correct, known) = (row_totals(scores, scores[name]) for name in (self.name, self.by))
        rows = live & known
        confidence, right = confidence[rows], (correct[rows] > 0.5).double()
        metrics = {
            "ece": expected_calibration_error(confidence, right, self.bins, self.edges),
            "auroc": auroc(confidence, right),
            "brier": brier_score(confidence, right),
        }
        return scores.with_metrics(**{f"{self.name}/{key}": value for key, value in metrics.items() if value == value})
