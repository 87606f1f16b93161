"""Rewards for being short, relative to the other rollouts of the prompt: what efficiency rewards are compared with.

All of them count tokens and nothing else. Each is a pure function on [B] tensors; `LengthReward` puts one into a chain as a
source of its own, and `WatchLength` logs what gives length collapse away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guerdon.credit.groups import group_stats
from guerdon.credit.link import Levels, LinkBase, countable, planned_name, require_level
from guerdon.errors import CapabilityError, ChainError, ConfigError
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts

LengthRule = Literal["o1_pruner", "efficient_reasoner", "kimi", "cosine"]
LENGTH_RULES = ("o1_pruner", "efficient_reasoner", "kimi", "cosine")


def o1_pruner_reward(lengths: Tensor, mean_length: Tensor) -> Tensor:
    """-clip((len - mean) / len, -1, 1), O1-Pruner's penalty as SAR's code has it (arXiv 2501.12570, 2509.05489).

    Args:
        lengths: [B] tokens. An empty completion gets the limit, 1 (0 where all of its group are empty).
        mean_length: [B] mean over the rollouts of the prompt.

    Returns:
        [B] float64 in [-1, 1].
    """
    sizes, mean = lengths.double(), mean_length.double()
    share = (sizes - mean) / torch.where(sizes > 0, sizes, 1.0)
    empty = torch.where(mean > 0, -1.0, torch.zeros_like(mean))
    return -torch.where(sizes > 0, share, empty).clamp(-1.0, 1.0)


def efficient_reasoner_reward(
    lengths: Tensor, correctness: Tensor, mean_length: Tensor, std_length: Tensor, number: Tensor
) -> Tensor:
    """-c (2 sigma((len - mean) / (std + 1e-5)) - 1); 0 where wrong or where fewer than two of the group are right.

    After arXiv 2502.04463, as SAR's code has it.

    Args:
        lengths: [B] tokens. correctness: [B] c in [0, 1].
        mean_length, std_length: [B] over the CORRECT rollouts of the prompt, population std.
        number: [B] how many they are.

    Returns:
        [B] float64 in (-1, 1).
    """
    right = correctness.double()
    excess = (lengths.double() - mean_length.double()) / (std_length.double() + 1e-5)
    penalty = -right * (2.0 * torch.sigmoid(excess) - 1.0)
    return torch.where((right >= 1e-5) & (number > 1), penalty, torch.zeros_like(penalty))


def kimi_length_reward(outcomes: Tensor, lengths: Tensor, shortest: Tensor, longest: Tensor) -> Tensor:
    """lambda = 1/2 - (len - min) / (max - min), 0 where all are equal; right gets lambda, wrong min(0, lambda) (arXiv 2501.12599).

    Args:
        outcomes: [B], right where above 0. lengths: [B] tokens.
        shortest, longest: [B] over the rollouts of the prompt.

    Returns:
        [B] float64 in [-1/2, 1/2].
    """
    width = (longest - shortest).double()
    share = (lengths - shortest).double() / torch.where(width > 0, width, 1.0)
    value = torch.where(width > 0, 0.5 - share, torch.zeros_like(width))
    return torch.where(outcomes > 0, value, value.clamp(max=0.0))


def cosine_length_reward(
    outcomes: Tensor,
    lengths: Tensor,
    max_length: int,
    *,
    right: tuple[float, float] = (2.0, 1.0),
    wrong: tuple[float, float] = (-10.0, 0.0),
    exceed: float = -10.0,
) -> Tensor:
    """b + (a - b)/2 (1 + cos(pi len / max)), from a when short to b when long; `exceed` where len >= max (arXiv 2502.03373).

    It replaces the outcome reward rather than adding to it.

    Args:
        outcomes: [B], right where above 0. lengths: [B] tokens. max_length: the cap in tokens.
        right, wrong: (a, b) of right and wrong completions.

    Returns:
        [B] float64.
    """
    is_right = outcomes > 0
    short = torch.where(is_right, right[0], wrong[0]).double()
    long = torch.where(is_right, right[1], wrong[1]).double()
    sizes = lengths.double()
    value = long + 0.5 * (short - long) * (1.0 + torch.cos(math.pi * sizes / max(max_length, 1)))
    return torch.where(sizes >= max_length, torch.full_like(value, exceed), value)


def group_extremes(values: Tensor, group_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """[B], [B]: smallest and largest value of each row's group over the rows of the mask; 0 where the mask has none."""
    _, group = torch.unique(group_ids, return_inverse=True)
    number = int(group.max()) + 1 if len(group) else 0
    exact = values.double()
    found = []
    for how, worst in (("amin", math.inf), ("amax", -math.inf)):
        start = exact.new_full((number,), worst)
        best = start.scatter_reduce(0, group, torch.where(mask, exact, worst), how)  # type: ignore[arg-type]
        found.append(torch.where(torch.isfinite(best), best, 0.0)[group])
    return found[0], found[1]


@dataclass(frozen=True, repr=False)
class LengthReward(LinkBase):
    """A reward for being short, as one more source of the chain.

    Rows that are not kept, and rows whose outcome is unknown, are in no group statistic.

    Attributes:
        rule: "o1_pruner", "efficient_reasoner", "kimi" or "cosine".
        by: the outcome source (sequence level), right where above 0.
        into: name of the result.
        max_length: for "cosine", the cap in tokens.
    """

    rule: LengthRule
    by: str = "answer"
    into: str = "length"
    max_length: int | None = None

    scope: ClassVar[Literal["row", "group", "batch"]] = "group"

    def __post_init__(self) -> None:
        if self.rule not in LENGTH_RULES:
            raise ConfigError(f"length rule {self.rule!r}: use one of {LENGTH_RULES}")
        if (self.rule == "cosine") != (self.max_length is not None):
            raise ConfigError("max_length belongs to the rule 'cosine', which needs it")

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.by, levels)
        require_level(self.by, levels, "sequence", "and a reward for length reads one outcome a row")
        if self.into in levels:
            raise ChainError(f"there is a source {self.into!r} already")
        return {**levels, self.into: "sequence"}

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        if not rollouts.has_tokens:
            raise CapabilityError(f"{self!r} counts tokens, and these rollouts are texts only")
        outcome = scores[self.by]
        right = outcome.filled()[:, 0].cpu()
        counts = countable(scores, outcome, rollouts)[:, 0].cpu()
        lengths, groups = _sampled_tokens(rollouts), rollouts.groups.cpu()
        if self.rule == "o1_pruner":
            values = o1_pruner_reward(lengths, group_stats(lengths.double(), groups, counts).mean)
        elif self.rule == "efficient_reasoner":
            stats = group_stats(lengths.double(), groups, counts & (right > 0), std="population")
            values = efficient_reasoner_reward(lengths, right, stats.mean, stats.std, stats.size)
        elif self.rule == "kimi":
            values = kimi_length_reward(right, lengths, *group_extremes(lengths, groups, counts))
        else:
            assert self.max_length is not None
            values = cosine_length_reward(right, lengths, self.max_length)
        values = torch.where(counts, values, 0.0).to(outcome.values)
        return scores.with_source(self.into, Rewards.sequence(values, rollouts))


@dataclass(frozen=True, repr=False)
class WatchLength(LinkBase):
    """Log mean length, mean length of right completions, and the share of right ones that are suspiciously short.

    A policy that is paid for being short and stops reasoning shows here first. Changes nothing.

    Attributes:
        by: the outcome source, right where above 0.
        short: right completions with fewer tokens than this are counted as short.
    """

    by: str = "answer"
    short: int = 4

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.by, levels)
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        outcome = scores[self.by]
        live = countable(scores, outcome, rollouts).any(1).cpu()
        if not rollouts.has_tokens or not bool(live.any()):
            return scores
        lengths = _sampled_tokens(rollouts).double()
        right = live & (outcome.filled().sum(1).cpu() > 0)
        metrics = {"length/mean": float(lengths[live].mean())}
        if bool(right.any()):
            metrics["length/right"] = float(lengths[right].mean())
            metrics["length/right_and_short"] = float((lengths[right] < self.short).double().mean())
        return scores.with_metrics(**metrics)


def _sampled_tokens(rollouts: Rollouts) -> Tensor:
    """[B] int64: tokens of each completion that the policy sampled (no tool output)."""
    assert rollouts.policy_mask is not None
    return rollouts.policy_mask.sum(1).cpu()
