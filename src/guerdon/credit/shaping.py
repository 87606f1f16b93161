"""Reward shaping: pure functions from scores to scores, each on [B, S] values with the mask of cells that apply.

Masked cells come out 0 and never change another cell. NaN stays NaN and spreads at most over its own row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

from guerdon.errors import ConfigError


def _only(mask: Tensor, values: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values))


def clip_scores(values: Tensor, mask: Tensor, eta: float) -> Tensor:
    """min(r - eta, 0): good enough is 0, only low scores are punished (Clip, arXiv 2410.15115).

    Args:
        values: [B, S] scores in [0, 1].
        mask: [B, S] bool.
        eta: threshold in the scores' unit.
    """
    return _only(mask, torch.clamp(values - eta, max=0.0))


def delta_scores(values: Tensor, mask: Tensor) -> Tensor:
    """Current minus NEXT; the last but one keeps its score, the last gets 0 (Delta, arXiv 2410.15115).

    d_k = r_k - r_{k+1} (k < K-1),  d_{K-1} = r_{K-1},  d_K = 0.    Hence sum_{j >= k} d_j = r_k for k < K and sum_k d_k = r_1.

    Args:
        values: [B, S].
        mask: [B, S] bool; the spans of a row in order, possibly with holes. Zero or one span gives 0.
    """
    if not values.shape[1]:
        return values
    mask = mask.bool()
    filled = _only(mask, values)
    width = values.shape[1]
    index = torch.arange(width, device=values.device).expand(mask.shape)
    # next valid position of each cell, `width` where there is none; then the same once more
    later = torch.where(mask, index, width).flip(1).cummin(1).values.flip(1)
    nearest = torch.cat([later[:, 1:], torch.full_like(later[:, :1], width)], 1)
    padded = torch.cat([filled, torch.zeros_like(filled[:, :1])], 1)
    after = torch.cat([nearest, torch.full_like(nearest[:, :1], width)], 1).gather(1, nearest)
    has_next, next_is_last = nearest < width, after == width
    # the last score is dropped on purpose: a NaN there must not reach the step before
    following = torch.where(next_is_last, torch.zeros_like(filled), padded.gather(1, nearest))
    return _only(mask & has_next, filled - following)


def min_form(values: Tensor, mask: Tensor, temperature: float = 0.1, *, weighted: bool = True) -> Tensor:
    """Min-form transform: r*_t = softmax_t(-r_t / T) r_t over the spans of one row (PURE, arXiv 2504.15275).

    sum_t r*_t -> min_t r_t as T -> 0, so an ordinary suffix sum of r* pays a row for its worst span only.

    Args:
        values: [B, S] span scores.
        mask: [B, S] bool. A row without spans comes out as zeros.
        temperature: T > 0.
        weighted: False replaces the weights by 1/n (the official code's "no transform" switch).
    """
    if temperature <= 0:
        raise ConfigError(
            f"min-form needs a temperature above 0, got {temperature}; for the strict minimum use MinReturn"
        )
    if weighted:
        logits = torch.where(mask, -values / temperature, float("-inf"))
        top = logits.max(1, keepdim=True).values if values.shape[1] else logits
        weights = torch.exp(logits - torch.where(torch.isneginf(top), 0.0, top))
        weights = weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    else:
        weights = mask.to(values.dtype) / mask.sum(1, keepdim=True).clamp(min=1)
    return _only(mask, weights * values)


def squash(values: Tensor, mask: Tensor, kind: str = "sigmoid", k: float = 1.0, centre: float = 0.0) -> Tensor:
    """sigma(k (r - c)) or tanh(k (r - c)): bounded, fast at first, then level.

    Args:
        values: [B, S].
        mask: [B, S] bool.
        kind: "sigmoid", "tanh" or "logsigmoid".
        k: slope.
        centre: c.
    """
    functions = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "logsigmoid": torch.nn.functional.logsigmoid}
    if kind not in functions:
        raise ConfigError(f"squash kind {kind!r}: use one of {sorted(functions)}")
    return _only(mask, functions[kind](k * (values - centre)))


_NUMBER = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"
_COMPOSED = re.compile(rf"comp_threshold_{_NUMBER}_(sigmoid|sigmoidv2|sigmoidv2fixed|sigmoidv3|tanh)_{_NUMBER}")
_SIMPLE = re.compile(rf"(threshold|sigmoid|leaky)_{_NUMBER}")


def _composed(kind: str, t: float, k: float) -> Callable[[Tensor], Tensor]:
    def sigmoid(x: Tensor) -> Tensor:
        return _sigmoid_k(x, k)

    def on_value(score: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def shaped(x: Tensor) -> Tensor:
            value = score(x)
            return torch.where(value < t, torch.zeros_like(value), value)

        return shaped

    def on_input(score: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.where(x < t, torch.zeros_like(x), score(x))

    return {
        "sigmoid": on_value(sigmoid),
        "tanh": on_value(lambda x: (torch.tanh(k * x - k / 2) + 1) / 2),
        "sigmoidv2": on_input(lambda x: torch.sigmoid(k * (x - t))),
        "sigmoidv2fixed": on_input(lambda x: torch.sigmoid(k * (x - t)) * ((1 - t) / 0.5) - ((1 - t) - t)),
        "sigmoidv3": on_input(lambda x: torch.sigmoid(k * (x - 1)) + 0.5),
    }[kind]


def _sigmoid_k(x: Tensor, k: float) -> Tensor:
    return torch.sigmoid(x if k == 0 else k * (2 * x - 1))


def shaping_function(name: str) -> Callable[[Tensor], Tensor]:
    """A shaping by its name in RLPR's family (arXiv 2506.18254), x = the debiased score.

    `identity` x; `one_minus` 1-x; `threshold_t` 0 if x < t else x; `leaky_t` 0.01 x if x < t else x;
    `sigmoid_k` sigma(k(2x-1)), k = 0 meaning sigma(x); `comp_threshold_t_sigmoid_k` and `comp_threshold_t_tanh_k`
    [v = (tanh(kx - k/2)+1)/2]: the value, zeroed where that VALUE < t; `comp_threshold_t_sigmoidv2_k` 0 if x < t else sigma(k(x-t));
    `..._sigmoidv2fixed_k` 0 if x < t else sigma(k(x-t)) (1-t)/0.5 - ((1-t)-t); `..._sigmoidv3_k` 0 if x < t else sigma(k(x-1)) + 0.5.

    Returns:
        An elementwise function of a float tensor of any shape. NaN stays NaN.

    Raises:
        ConfigError: no such name.
    """
    if name == "identity":
        return lambda x: x
    if name == "one_minus":
        return lambda x: 1 - x
    if match := _SIMPLE.fullmatch(name):
        kind, number = match[1], float(match[2])
        if not math.isfinite(number):
            raise ConfigError(f"shaping {name!r}: the parameter is not finite")
        return {
            "threshold": lambda x: torch.where(x < number, torch.zeros_like(x), x),
            "leaky": lambda x: torch.where(x < number, 0.01 * x, x),
            "sigmoid": lambda x: _sigmoid_k(x, number),
        }[kind]
    if match := _COMPOSED.fullmatch(name):
        return _composed(match[2], float(match[1]), float(match[3]))
    raise ConfigError(
        f"no shaping named {name!r}: identity, one_minus, threshold_T, leaky_T, sigmoid_K or comp_threshold_T_<sigmoid|sigmoidv2|sigmoidv2fixed|sigmoidv3|tanh>_K"
    )
