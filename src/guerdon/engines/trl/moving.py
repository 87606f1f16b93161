"""Models that follow the policy during training (`Model.refresh` "ema" or "every:N"): moved once before each training generation.

They are averages of weights, so they are copies of the policy, and every rank keeps its own. Where a moving model has lower
precision than float32 a float32 average stands beside it: a rate of 1e-5 would be lost to rounding.

The weights of a moving model are part of a checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from guerdon.errors import ConfigError
from guerdon.lm.ema import ema_update_
from guerdon.system import Model


class Moving:
    """One model by its role.

    Args:
        role: shown in errors and in the log.
        model: how it moves.
        module: the moving model itself.
        policy: what it follows.

    Raises:
        ConfigError: the two have different parameters.
    """

    def __init__(self, role: str, model: Model, module: nn.Module, policy: nn.Module) -> None:
        self.role, self.model, self.step = role, model, 0
        self.slow, self.fast = dict(module.named_parameters()), dict(policy.named_parameters())
        shapes = [{name: tuple(p.shape) for name, p in side.items()} for side in (self.slow, self.fast)]
        if shapes[0] != shapes[1]:
            odd = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))[0][0]
            raise ConfigError(
                f"models[{role!r}] has refresh={model.refresh!r} and other parameters than the policy ({odd!r}): only a copy can follow it, Model('policy', {model.refresh!r})"
            )
        self.average: dict[str, Tensor] = {
            name: p.detach().float().clone() for name, p in self.slow.items() if p.dtype != torch.float32
        }

    def move(self, step: int, total: int | None) -> float | None:
        """Move it before the generation of optimiser step `step` (from 1), once; returns the policy's weight."""
        if step <= self.step:
            return None
        rate, self.step = self.model.rate_at(step, total), step
        if rate:
            names = list(self.slow)
            ema_update_(
                (self.average.get(name, self.slow[name].data) for name in names),
                (self.fast[name].data for name in names),
                rate,
            )
            for name, average in self.average.items():
                self.slow[name].data.copy_(average)
        return rate

    def state_dict(self) -> dict[str, Any]:
        weights = {name: self.average.get(name, p.data).detach().cpu().clone() for name, p in self.slow.items()}
        return {"step": self.step, "weights": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = int(state["step"])
        for name, p in self.slow.items():
            p.data.copy_(state["weights"][name])
            if name in self.average:
                self.average[name].copy_(state["weights"][name])
