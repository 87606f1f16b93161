"""A batch of four rollouts in two groups, and scores for it."""

from __future__ import annotations

import torch

from guerdon import Rewards, Rollouts, Scores, Spans

NAN = float("nan")
LENGTHS = [4, 2, 3, 0]
STEPS = [[(0, 1), (2, 3)], [(0, 1)], [(0, 0), (1, 2)], []]


class Given:
    """A signal with given values, at the level of its spans."""

    def __init__(self, values, level="sequence"):
        self.values, self.level = torch.tensor(values), level

    def __call__(self, rollouts, scores):
        if self.level == "sequence":
            return Rewards.sequence(self.values, rollouts)
        return Rewards(self.values, rollouts.segment(self.level))

    def __repr__(self):
        return "Given()"


def batch(lengths=LENGTHS, groups=(0, 0, 1, 1), steps=STEPS, **more):
    width = max(lengths)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    size = len(lengths)
    return Rollouts(
        ["p"] * size,
        ["x" * n for n in lengths],
        completion_ids=torch.ones(size, width, dtype=torch.long),
        completion_mask=mask,
        group_ids=torch.tensor(groups),
        spans={"steps": Spans.from_lists(steps, unit="token", name="steps")} if steps else {},
        **more,
    )


def scored(rollouts, **sources):
    named = {}
    for name, values in sources.items():
        tensor = torch.tensor(values)
        named[name] = (
            Rewards.sequence(tensor, rollouts) if tensor.dim() == 1 else Rewards(tensor, rollouts.segment("steps"))
        )
    return Scores(named, torch.ones(len(rollouts), dtype=torch.bool), raw=named)


STEP_VALUES = [[0.5, -1.0], [2.0, 9.0], [0.25, 0.75], [9.0, 9.0]]  # 9 stands under padding and must never show
