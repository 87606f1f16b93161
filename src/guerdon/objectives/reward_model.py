"""Losses that train scalar reward models from preference pairs: Bradley-Terry, its regularised form, pointwise, and ODIN's.

Pure functions on tensors; models and loops are in `guerdon.signals.learned.train_rm`.

Source: PAR (arXiv 2502.18770), trainers/paired_trainer.py for the forms and constants; ODIN (arXiv 2402.07319) for the idea
of giving length its own head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, reg: float = 0.0) -> Tensor:
    """-log sigmoid(r_c - r_j) + reg (r_c^2 + r_j^2), per pair.

    chosen, rejected: [N] scores, unbounded. reg: weight of the squared scores, which keep the scale of the model small
    (PAR's "Reg" baseline: 0.005). Returns [N]; take the mean to train.
    """
    _same_length("chosen", chosen, "rejected", rejected)
    losses = -logsigmoid(chosen - rejected)
    return losses + reg * (chosen.square() + rejected.square()) if reg else losses


def pointwise_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """(s - y)^2: each response on its own, y = 1 for the more helpful one of a pair and 0 for the other (arXiv 2505.22653).

    scores, labels: [N]. Returns [N]; take the mean to train. Its scores lie about [0, 1], and cluster at 1/2 while it is weak.
    """
    _same_length("scores", scores, "labels", labels)
    return (scores - labels.to(scores)).square()


class OdinLosses(NamedTuple):
    """The three terms of ODIN's loss; it trains on ranking.mean() + L * length + O * orthogonal, L = O = 1."""

    ranking: Tensor
    length: Tensor
    orthogonal: Tensor


def odin_losses(
    quality: Tensor, length_reward: Tensor, lengths: Tensor, quality_head: Tensor, length_head: Tensor
) -> OdinLosses:
    """Losses of a reward model with a quality head q and a length head l on one hidden state.

    quality, length_reward: [2N] the heads' scores; the first N rows are the chosen ones, the last N their rejected
        partners. lengths: [2N] response lengths in tokens.
    quality_head, length_head: [1, H] the heads' weights.

    ranking [N] = -log sigmoid((q + l)_chosen - (q + l)_rejected);
    length [] = |pearson(q, len)| - pearson(l, len) over all 2N rows: push length out of q and into l;
    orthogonal [] = ||W_q W_l^T||_F / (||W_q||_F ||W_l||_F + 1e-6).

    A correlation with something constant is undefined and comes out as NaN: do not train on such a batch.
    """
    _same_length("quality", quality, "length_reward", length_reward)
    _same_length("quality", quality, "lengths", lengths)
    if len(quality) % 2:
        raise ValueError(f"{len(quality)} rows cannot be chosen and rejected halves")
    chosen, rejected = (quality + length_reward).chunk(2)
    sizes = lengths.to(quality)
    length = pearson(quality, sizes).abs() - pearson(length_reward, sizes)
    overlap = torch.linalg.norm(quality_head @ length_head.T)
    scale = torch.linalg.norm(quality_head) * torch.linalg.norm(length_head) + 1e-6
    return OdinLosses(bradley_terry_loss(chosen, rejected), length, overlap / scale)


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Pearson correlation of two [N] tensors, a 0-d tensor; NaN if either is constant."""
    dx, dy = x - x.mean(), y - y.mean()
    return (dx * dy).sum() / (dx.norm() * dy.norm())


def _same_length(name: str, a: Tensor, other: str, b: Tensor) -> None:
    if a.shape != b.shape or a.dim() != 1:
        raise ValueError(f"{name} {tuple(a.shape)} and {other} {tuple(b.shape)} must both be [N]")
