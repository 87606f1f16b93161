"""Rewards relative to reference answers, and the other shapings PAR is compared with (arXiv 2502.18770).

References are scores of a few answers to the same prompt, made once by the SFT model and scored by the SAME reward model: a ragged
list per row, in a data column. Running statistics are in `running`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from guerdon.errors import ConfigError, DataError
from guerdon.options import checked
from guerdon.rewards import Rewards
from guerdon.rollouts import Rollouts

Relative = Literal["sigmoid", "tanh", "poly", "centred", "logsigmoid"]
_Q85 = 1.0364333894937898  # 0.85-quantile of the standard normal


def pad_references(references: Sequence[Sequence[float]], max_ref: int | None = None) -> tuple[Tensor, Tensor]:
    """Ragged reference scores as [B, M] float64 and their mask [B, M]; the first `max_ref` of each row.

    Raises:
        DataError: a row has no reference (undefined: a mean over nothing).
    """
    rows = [list(row)[:max_ref] for row in references]
    empty = [index for index, row in enumerate(rows) if not row]
    if empty:
        raise DataError(f"rows {empty[:5]} have no reference score: score at least one reference answer per prompt")
    width = max((len(row) for row in rows), default=0)
    values = torch.zeros(len(rows), width, dtype=torch.float64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        values[index, : len(row)] = torch.tensor(row, dtype=torch.float64)
        mask[index, : len(row)] = True
    return values, mask


@cache
def _sigmoid_polynomial() -> np.ndarray:
    """Coefficients, highest power first, of the degree-5 least-squares fit of sigma on 100 equispaced points of [-5, 5]."""
    x = np.linspace(-5, 5, 100)
    return np.polyfit(x, 1 / (1 + np.exp(-x)), 5)


def fitted_polynomial(x: Tensor) -> Tensor:
    """0 for x <= -5, 1 for x >= 5, else the degree-5 polynomial fitted to sigma."""
    inside = x.clamp(-5, 5)
    value = torch.zeros_like(inside)
    for coefficient in _sigmoid_polynomial().tolist():
        value = value * inside + coefficient
    return torch.where(x <= -5, torch.zeros_like(x), torch.where(x >= 5, torch.ones_like(x), value))


_SQUASH: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "poly": fitted_polynomial,
    "centred": lambda x: x,
}


@checked
def relative_reward(
    rewards: Tensor, references: Tensor, mask: Tensor, kind: Relative = "sigmoid", *, k: float = 1.0, shift: float = 0.0
) -> Tensor:
    """PAR and its relatives: 1/M sum_m f(k (r - shift - r_m)); with f = sigma, k = 1 the Bradley-Terry probability of beating them.

    Args:
        rewards: [B] raw scores.
        references: [B, M] scores of references from the same reward model.
        mask: [B, M] bool, at least one True a row.
        kind: f = "sigmoid" (PAR), "tanh", "poly", "centred" (identity).
        k: slope.
        shift: 3 is the slow-growth, fast-convergence ablation.

    Returns:
        [B] float64.
    """
    gaps = k * (rewards.double()[:, None] - shift - references)
    shaped = torch.where(mask, _SQUASH[kind](gaps), 0.0)
    return shaped.sum(1) / mask.sum(1)


def log_sigmoid_centred(rewards: Tensor, references: Tensor, mask: Tensor) -> Tensor:
    """LSC: log sigma(r - q), q the 0.85-quantile of Normal(mean(refs), sd + 1e-5), sd the sample std (0 for one reference).

    Args:
        rewards: [B]; references, mask: [B, M], ALL references (the official code ignores max_ref here).

    Returns:
        [B] float64, at most 0.
    """
    count = mask.sum(1)
    mean = torch.where(mask, references, 0.0).sum(1) / count
    spread = torch.where(mask, (references - mean[:, None]) ** 2, 0.0).sum(1)
    std = torch.sqrt(spread / (count - 1).clamp(min=1))
    quantile = mean + _Q85 * (std + 1e-5)
    return torch.nn.functional.logsigmoid(rewards.double() - quantile)


def length_penalised(rewards: Tensor, lengths: Tensor, valid_len: int, len_penalty: float) -> Tensor:
    """r - len_penalty * max(length - valid_len, 0). All [B]; lengths in tokens."""
    return rewards - len_penalty * (lengths - valid_len).clamp(min=0).to(rewards.dtype)


@checked
@dataclass(frozen=True)
class CenterOn:
    """`relative_reward` of one value a row, references from a data column; a transform for `On`.

    A row whose references are missing, empty or not finite becomes NaN with a reason: the instrument lacks what it measures against.

    Attributes:
        column: data column of lists of reference scores.
        kind, k, shift: see `relative_reward`; "logsigmoid" is LSC.
        max_ref: use the first so many (LSC: all).
    """

    column: str = "ref_rewards"
    kind: Relative = "sigmoid"
    k: float = 1.0
    shift: float = 0.0
    max_ref: int | None = 10

    def __post_init__(self) -> None:
        if self.kind not in (*_SQUASH, "logsigmoid"):
            raise ConfigError(f"kind={self.kind!r}: use one of {[*_SQUASH, 'logsigmoid']}")

    def __call__(self, rewards: Rewards, rollouts: Rollouts) -> Rewards:
        column = rollouts.column(self.column)
        usable = [bool(row) and all(math.isfinite(x) for x in row) for row in column]
        given = [row if ok else [float("nan")] for row, ok in zip(column, usable, strict=True)]
        references, mask = pad_references(given, None if self.kind == "logsigmoid" else self.max_ref)
        values = rewards.values.cpu()[:, 0]
        if self.kind == "logsigmoid":
            shaped = log_sigmoid_centred(values, references, mask)
        else:
            shaped = relative_reward(values, references, mask, self.kind, k=self.k, shift=self.shift)
        reasons = {(row, 0): f"no usable scores in column {self.column!r}" for row, ok in enumerate(usable) if not ok}
        return Rewards(
            shaped[:, None].to(rewards.values),
            rewards.spans,
            {**rewards.reasons, **reasons},
            rewards.kind,
            rewards.paid,
            rewards.applies,
        )


@dataclass(frozen=True)
class LengthPenalty:
    """r - len_penalty for every token beyond valid_len; a transform for `On` a sequence source."""

    valid_len: int = 300
    len_penalty: float = 0.01

    def __call__(self, rewards: Rewards, rollouts: Rollouts) -> Rewards:
        assert rollouts.policy_mask is not None
        lengths = rollouts.policy_mask.sum(1).to(rewards.values.device)
        values = length_penalised(rewards.values[:, 0], lengths, self.valid_len, self.len_penalty)
        return rewards.with_values(values[:, None])


@dataclass(frozen=True)
class Ceil:
    """min(r, at); a transform for `On`."""

    at: float

    def __call__(self, rewards: Rewards, rollouts: Rollouts) -> Rewards:
        return rewards.with_values(rewards.values.clamp(max=self.at))
