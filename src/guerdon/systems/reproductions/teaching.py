"""Which groups of rollouts teach something, by what their rewards say and not by whether an advantage is exactly zero.

Under a language model no two confidences are equal to the last bit, so a z-score of gains is never zero and every group would count. A group
counts here if its outcomes differ, or if its gains differ by more than a floor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from guerdon.rewards import Rewards, Scores

FLOOR = 0.05  # of the std of a group's gains, which are differences of probabilities


def teaching_groups(scores: Scores, groups: Tensor, floor: float = FLOOR) -> list[bool]:
    """For each group, in order of its id: whether its outcomes "f1" differ, or its gains have a std of at least `floor`.

    Args:
        scores: of a batch under `igpo` or an ablation of it; the raw rewards are read.
        groups: [B] group ids.
        floor: in the unit of the gains.
    """
    raw = scores.raw
    outcome, gains = raw.get("f1"), raw.get("gain.gain", raw.get("gain"))

    def spread(rewards: Rewards | None, rows: Tensor) -> float:
        values = rewards.values[rows][rewards.usable[rows]] if rewards is not None else torch.zeros(0)
        return float(values.double().std()) if len(values) > 1 else 0.0

    members = [groups == group for group in groups.unique()]
    return [spread(outcome, rows) > 1e-6 or spread(gains, rows) >= floor for rows in members]
