"""Reward models learn that longer is better when their pairs say so: one head against ODIN's two, on synthetic pairs.

A response is a vector of features and a length. What people prefer is quality(features) + bias x length; the reward model
sees both and shall give quality. Two small networks with the same trunk are trained on the same pairs with the library's
losses: one head with Bradley-Terry, and a quality and a length head with `odin_losses`, of which only quality is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from guerdon.objectives.reward_model import bradley_terry_loss, odin_losses, pearson


class Pairs(NamedTuple):
    """Chosen and rejected: features [N, D + 1] (the last one is the scaled length), lengths [N] tokens, quality [N]."""

    chosen: Tensor
    rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor
    chosen_quality: Tensor
    rejected_quality: Tensor


class HeadScores(NamedTuple):
    """length_correlation: |pearson(score, length)| on held-out responses. quality_accuracy: share of held-out pairs whose
    better response, lengths apart, scores higher."""

    length_correlation: float
    quality_accuracy: float


def length_biased_pairs(count: int, generator: torch.Generator, bias: float = 1.0, features: int = 8) -> Pairs:
    """Preferences drawn from sigmoid(difference of quality + bias x standardised length). Quality and length are independent."""
    x = torch.randn(2, count, features, generator=generator)
    lengths = torch.randint(20, 401, (2, count), generator=generator)
    scaled = (lengths - 210) / 110.0
    # tanh makes quality something a linear head cannot read off its inputs: the trunk has to be of use
    quality = 2 * torch.tanh(x[..., 0] + x[..., 1]) + x[..., 2]
    worth = quality + bias * scaled
    first = torch.rand(count, generator=generator) < torch.sigmoid(worth[0] - worth[1])
    inputs = torch.cat([x, scaled[..., None]], -1)
    keep, rows = torch.where(first, 0, 1), torch.arange(count)
    better, worse = (keep, rows), (1 - keep, rows)
    return Pairs(inputs[better], inputs[worse], lengths[better], lengths[worse], quality[better], quality[worse])


class TwoHeads(nn.Module):
    """A trunk with bias-free linear heads on its last hidden state, quality and length; a single-head model uses one."""

    def __init__(self, inputs: int, width: int = 32) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.quality = nn.Linear(width, 1, bias=False)
        self.length = nn.Linear(width, 1, bias=False)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(inputs)
        return self.quality(hidden)[:, 0], self.length(hidden)[:, 0]


def fit(pairs: Pairs, *, odin: bool, steps: int, seed: int, batch: int = 256, lr: float = 3e-3) -> TwoHeads:
    """Train on random batches of the pairs, ODIN with L = O = 1, the single head with Bradley-Terry alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TwoHeads(pairs.chosen.shape[1])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        rows = torch.randint(len(pairs.chosen), (batch,), generator=generator)
        quality, length = model(torch.cat([pairs.chosen[rows], pairs.rejected[rows]]))
        if odin:
            lengths = torch.cat([pairs.chosen_length[rows], pairs.rejected_length[rows]])
            terms = odin_losses(quality, length, lengths, model.quality.weight, model.length.weight)
            loss = terms.ranking.mean() + terms.length + terms.orthogonal
        else:
            loss = bradley_terry_loss(*quality.chunk(2)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def measure(model: TwoHeads, pairs: Pairs) -> HeadScores:
    """The quality head on pairs it has not seen."""
    better, worse = model(pairs.chosen)[0], model(pairs.rejected)[0]
    lengths = torch.cat([pairs.chosen_length, pairs.rejected_length]).float()
    correlation = float(pearson(torch.cat([better, worse]), lengths).abs())
    agrees = (better > worse) == (pairs.chosen_quality > pairs.rejected_quality)
    return HeadScores(correlation, float(agrees.float().mean()))


def single_head_and_odin(seed: int, steps: int, count: int = 4000) -> tuple[HeadScores, HeadScores]:
    """(single head, ODIN's quality head), trained on the same pairs and measured on the same held-out ones."""
    generator = torch.Generator().manual_seed(seed)
    train, held_out = length_biased_pairs(count, generator), length_biased_pairs(2000, generator)
    models = [fit(train, odin=odin, steps=steps, seed=seed) for odin in (False, True)]
    return measure(models[0], held_out), measure(models[1], held_out)
