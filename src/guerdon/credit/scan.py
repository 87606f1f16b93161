"""Suffix scans: returns, minima and generalised advantage estimates, without a loop over tokens.

A linear recurrence x_t = a_t x_{t+1} + b_t over T positions is solved in log2(T) doubling passes (Hillis and Steele 1986), exact
up to rounding for any coefficients. Masked positions are skipped, not discounted: a = 1, b = 0 there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from guerdon.errors import ConfigError, ShapeError
from guerdon.options import checked


def _same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
        raise ShapeError(f"expected tensors of one shape [B, T], got {shapes}")


def reverse_linear_scan(coefficients: Tensor, inputs: Tensor) -> Tensor:
    """x_t = a_t x_{t+1} + b_t with x_T = 0.

    Args:
        coefficients: [B, T] float64, a.
        inputs: [B, T] float64, b.

    Returns:
        [B, T] float64, x.
    """
    a, b = coefficients.clone(), inputs.clone()
    offset = 1
    while offset < b.shape[1]:
        b = torch.cat([b[:, :-offset] + a[:, :-offset] * b[:, offset:], b[:, -offset:]], 1)
        a = torch.cat([a[:, :-offset] * a[:, offset:], a[:, -offset:]], 1)
        offset *= 2
    return b


def _discounts(mask: Tensor, factor: float) -> Tensor:
    """[B, T] float64: `factor` at valid positions, 1 at masked ones."""
    return torch.ones_like(mask, dtype=torch.float64).masked_fill(mask, factor)


def suffix_sum(values: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Returns: the discounted sum of rewards from each position on.

    G_t = sum_{k >= t} gamma^(number of valid positions from t to k) r_k

    Args:
        values: [B, T] rewards.
        mask: [B, T] bool; masked positions give nothing, cost no discount and come out 0.
        gamma: discount per valid position, in [0, 1].

    Returns:
        [B, T] in the dtype of `values`, computed in float64.
    """
    _same_shape(values=values, mask=mask)
    rewards = torch.where(mask, values, 0.0).double()
    if gamma == 1.0:
        returns = rewards.flip(1).cumsum(1).flip(1)
    else:
        returns = reverse_linear_scan(_discounts(mask, gamma), rewards)
    return torch.where(mask, returns, 0.0).to(values.dtype)


def suffix_min(values: Tensor, mask: Tensor, *, padding: str = "ignore") -> Tensor:
    """Strict min-form returns: the smallest reward from each position on (PURE, arXiv 2504.15275).

    G_t = min_{k >= t} r_k

    Args:
        values: [B, T] rewards.
        mask: [B, T] bool; masked positions come out 0.
        padding: "ignore" leaves masked positions out; "zero" lets them take part as 0, as PURE's verl code does, so that rows
            shorter than the batch never get a positive return and results depend on the batch's width.

    Returns:
        [B, T] in the dtype of `values`.
    """
    _same_shape(values=values, mask=mask)
    filled = torch.where(mask, values, 0.0 if padding == "zero" else float("inf"))
    if not filled.shape[1]:
        return filled
    return torch.where(mask, filled.flip(1).cummin(1).values.flip(1), torch.zeros_like(values))


@checked
def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    *,
    holes: Literal["skipped", "zero"] = "skipped",
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2015, arXiv 1506.02438).

    delta_t = r_t + gamma V_{t+1} - V_t ;  A_t = delta_t + gamma lam A_{t+1}        (t+1: the next valid position; V = 0 at the end)

    Args:
        rewards: [B, T].
        values: [B, T], the critic's V_t.
        mask: [B, T] bool; masked positions come out 0.
        gamma, lam: in [0, 1].
        holes: a masked position between valid ones (a tool's words) is "skipped", as if it were not there; or it is a step with V = r = 0 like
            any other, "zero", as in PAR's code: the token before it then looks forward to a value of 0.

    Returns:
        advantages [B, T] (not whitened) and rewards-to-go [B, T] (sum of discounted rewards; a critic's target in PAR's code,
        where TRL and verl use advantages + values).
    """
    _same_shape(rewards=rewards, values=values, mask=mask)
    if holes not in ("skipped", "zero"):
        raise ConfigError(f"holes={holes!r}: use 'skipped' or 'zero'")
    reward, value = torch.where(mask, rewards, 0.0).double(), torch.where(mask, values, 0.0).double()
    if holes == "zero":
        advantages, returns = gae(reward, value, torch.ones_like(mask), gamma, lam)
        return torch.where(mask, advantages, 0.0).to(rewards.dtype), torch.where(mask, returns, 0.0).to(rewards.dtype)
    held = reverse_linear_scan((~mask).double(), value)  # V at this position, or at the next valid one
    following = torch.cat([held[:, 1:], held.new_zeros(len(held), min(1, held.shape[1]))], 1)
    delta = torch.where(mask, reward + gamma * following - value, 0.0)
    advantages = reverse_linear_scan(_discounts(mask, gamma * lam), delta)
    advantages = torch.where(mask, advantages, 0.0).to(rewards.dtype)
    return advantages, suffix_sum(rewards, mask, gamma)
