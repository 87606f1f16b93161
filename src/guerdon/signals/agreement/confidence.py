"""Agreement as confidence: clusters of answers that mean the same, the share of the largest one, semantic entropy.

The usual ones of the literature on semantic uncertainty. How good such confidences are: `guerdon.credit.confidence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.errors import ShapeError


class Confidence(NamedTuple):
    """What K sampled answers say together.

    Attributes:
        confidence: the share of the largest cluster, of several the one seen first; 0 without samples, which speak for no answer.
        representative: index of its first member; None without samples.
        entropy: of the clusters' shares, in nats.
    """

    confidence: float
    representative: int | None
    entropy: float


def cluster_by_equivalence(equivalent: Tensor) -> list[int]:
    """Greedy clusters: an answer joins the first cluster whose first member entails it and is entailed by it, else opens a new one.

    Args:
        equivalent: [G, G], not 0 where row entails column; both directions are needed. The diagonal is ignored.

    Returns:
        G labels from 0, in order of appearance.
    """
    directed = _square(equivalent) != 0
    mutual = (directed & directed.T).tolist()
    first: list[int] = []
    labels: list[int] = []
    for row in range(len(mutual)):
        label = next((k for k, member in enumerate(first) if mutual[row][member]), len(first))
        if label == len(first):
            first.append(row)
        labels.append(label)
    return labels


def semantic_confidence(clusters: Sequence[int]) -> Confidence:
    """Confidence, its answer and the semantic entropy from K cluster labels, whatever the labels are."""
    if not len(clusters):
        return Confidence(0.0, None, 0.0)
    counts: dict[int, int] = {}
    for label in clusters:
        counts[label] = counts.get(label, 0) + 1
    largest = max(counts, key=lambda label: counts[label])  # of several the first one seen
    shares = torch.tensor(list(counts.values()), dtype=torch.float64) / len(clusters)
    entropy = float(-(shares * shares.log()).sum())
    return Confidence(counts[largest] / len(clusters), list(clusters).index(largest), max(0.0, entropy))


def _square(matrix: Tensor) -> Tensor:
    table = torch.as_tensor(matrix)
    if table.numel() == 0:
        return table.reshape(0, 0)
    if table.dim() != 2 or table.shape[0] != table.shape[1]:
        raise ShapeError(f"a matrix of pairs is [G, G], not {tuple(table.shape)}")
    return table
