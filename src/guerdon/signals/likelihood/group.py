"""Signals that compare the likelihoods of a group's rollouts: softmax weights (JEPO), rank and efficiency (NOVER).

They read scores that are there already and run no model. Pure functions on [B] tensors, groups given by ids.

rank        valid rollouts sorted by perplexity, the r-th best (from 0) of n gets (n - r) / n; ties in the order of the rows
efficiency  share of the other valid rollouts that are both longer and of higher perplexity; 0 where fewer than 2 are valid

Source of the last two: NOVER (arXiv 2505.16022), official code `reasoning_reward`, `efficiency_reward`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guerdon.credit.likelihood import jensen_weights
from guerdon.credit.link import countable
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts


def rank_rewards(perplexity: Tensor, valid: Tensor, group_ids: Tensor) -> Tensor:
    """(n - r) / n by perplexity, lowest first, within each group.

    Args:
        perplexity: [B]; only its order matters. Infinite and NaN ones are not valid.
        valid: [B] bool.
        group_ids: [B] int64.

    Returns:
        [B] float64 in [0, 1], 0 where not valid.
    """
    live = valid.bool() & torch.isfinite(perplexity)
    _, group = torch.unique(group_ids.to(perplexity.device), return_inverse=True)
    order = torch.argsort(torch.where(live, perplexity.double(), float("inf")), stable=True)
    order = order[torch.argsort(group[order], stable=True)]  # by group, then the rows that count by perplexity
    order = order[live[order]]
    sizes = torch.bincount(group[live], minlength=int(group.max()) + 1 if len(group) else 0)
    begins = sizes.cumsum(0) - sizes
    rank = torch.arange(len(order), device=order.device) - begins[group[order]]
    size = sizes[group[order]].double()
    return torch.zeros_like(perplexity, dtype=torch.float64).index_put((order,), (size - rank) / size)


def efficiency_rewards(perplexity: Tensor, lengths: Tensor, valid: Tensor, group_ids: Tensor) -> Tensor:
    """Share of the group's other valid rollouts that are strictly longer AND of strictly higher perplexity.

    Args:
        perplexity, lengths: [B].
        valid: [B] bool.
        group_ids: [B] int64.

    Returns:
        [B] float64 in [0, 1], 0 where not valid or alone.
    """
    live = valid.bool() & ~perplexity.isnan()
    group_ids = group_ids.to(perplexity.device)
    rewards = torch.zeros_like(perplexity, dtype=torch.float64)
    for group in group_ids[
        live
    ].unique():  # pairs of one group at a time: memory is the square of a group, not of the batch
        rows = (live & (group_ids == group)).nonzero()[:, 0]
        longer = lengths[rows][:, None] < lengths[rows][None]
        worse = perplexity[rows][:, None] < perplexity[rows][None]
        rewards[rows] = (longer & worse).double().sum(1) / max(1, len(rows) - 1)
    return rewards


def normalised_perplexity(mean_nll: Tensor, reasoning_tokens: Tensor) -> Tensor:
    """exp(nll / N) with N = max(1, 1 + log10(tokens of reasoning)): long reasoning is forgiven some perplexity.

    Args:
        mean_nll: [B], mean negative log-probability of the target's tokens.
        reasoning_tokens: [B]; 0 counts as 1.
    """
    norm = (1 + reasoning_tokens.double().clamp(min=1).log10()).clamp(min=1)
    return (mean_nll.double() / norm).exp()


@dataclass(frozen=True)
class JensenWeights:
    """Signal: softmax of a log-probability within the group, over the rows whose `by` is not 0 (`jensen_weights`).

    Attributes:
        of: the source of log-probabilities.
        by: the source that is 0 in rows without one; they weigh 0.
    """

    of: str
    by: str
    scope: ClassVar[str] = "group"
    level: ClassVar[str] = "sequence"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        source = scores[self.of]
        live = countable(scores, source, rollouts)[:, 0] & (scores[self.by].values[:, 0] > 0)
        weights = jensen_weights(source.values[:, 0], rollouts.groups, live).float()
        return Rewards.sequence(torch.where(source.failed[:, 0], source.values[:, 0], weights), rollouts, _why(source))


@dataclass(frozen=True)
class RankInGroup:
    """Signal: NOVER's reasoning reward (`rank_rewards`).

    Attributes:
        of: the source that is ranked, lowest first.
        valid: rows compete where this source is not 0.
    """

    of: str
    valid: str
    scope: ClassVar[str] = "group"
    level: ClassVar[str] = "sequence"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        source = scores[self.of]
        live = countable(scores, source, rollouts)[:, 0] & (scores[self.valid].values[:, 0] > 0)
        rewards = rank_rewards(source.values[:, 0], live, rollouts.groups).float()
        return Rewards.sequence(torch.where(source.failed[:, 0], source.values[:, 0], rewards), rollouts, _why(source))


@dataclass(frozen=True)
class EfficiencyInGroup:
    """Signal: NOVER's efficiency reward (`efficiency_rewards`).

    Attributes:
        of: perplexities.
        lengths: tokens of reasoning.
        valid: rows compete where this source is not 0.
    """

    of: str
    lengths: str
    valid: str
    scope: ClassVar[str] = "group"
    level: ClassVar[str] = "sequence"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        source = scores[self.of]
        live = countable(scores, source, rollouts)[:, 0] & (scores[self.valid].values[:, 0] > 0)
        rewards = efficiency_rewards(
            source.values[:, 0], scores[self.lengths].values[:, 0], live, rollouts.groups
        ).float()
        return Rewards.sequence(torch.where(source.failed[:, 0], source.values[:, 0], rewards), rollouts, _why(source))


def _why(source: Rewards) -> dict[int, str]:
    return {row: why for (row, _), why in source.reasons.items() if bool(source.failed[row, 0])}
