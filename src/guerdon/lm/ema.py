"""A model that follows another one slowly: theta <- (1 - a) theta + a theta_policy, with a weight that may change over the run.

Papers give either the policy's weight `a` or the teacher's, 1 - a; here it is always the policy's.

Source: mean teachers (arXiv 1703.01780); the cosine schedule is Co-rewarding-II's (arXiv 2508.00410, official code `update_alpha`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from guerdon.errors import ConfigError, ShapeError


def cosine_rate(step: int, total_steps: int, start: float, end: float) -> float:
    """a = end + (start - end) / 2 * (1 + cos(pi t / T)), t = step - 1 cut to [0, T].

    Args:
        step: from 1 on.
        total_steps: T; 0 or less is a run that is over: `end`.
        start, end: the policy's weight at the first step and at the last.
    """
    if total_steps <= 0:
        return float(end)
    done = min(max(step - 1, 0), total_steps) / total_steps
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class CosineRate:
    """`cosine_rate` as the rate of a moving model.

    Attributes:
        start, end: the policy's weight, in [0, 1].
    """

    start: float = 0.01
    end: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"CosineRate({name}={getattr(self, name)}): the policy's weight is in [0, 1]")

    def __call__(self, step: int, total: int | None) -> float:
        """The weight at `step` (from 1) of `total`. Raises ConfigError where the length of the run is not known."""
        if total is None:
            raise ConfigError("a cosine rate needs a run of known length (max_steps); or give a constant rate")
        return cosine_rate(step, total, self.start, self.end)


@torch.no_grad()
def ema_update_(teacher: Iterable[Tensor], policy: Iterable[Tensor], rate: float) -> None:
    """teacher <- (1 - rate) teacher + rate policy, in place; rate 0 changes nothing, rate 1 copies.

    In half precision a small rate is lost to rounding: keep the teacher in float32.

    Raises:
        ConfigError: a rate outside [0, 1]. ShapeError: tensors that do not pair up.
    """
    if not 0 <= rate <= 1:
        raise ConfigError(f"rate={rate}: the policy's weight is in [0, 1]")
    for slow, fast in zip(teacher, policy, strict=True):
        if slow.shape != fast.shape:
            raise ShapeError(f"the two models differ in shape: {tuple(slow.shape)} and {tuple(fast.shape)}")
        slow.lerp_(fast.to(slow.device, slow.dtype), rate)
