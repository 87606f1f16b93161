"""Turns of an agent: the outcome goes on the last turn, and the estimators of IGPO's first published code (arXiv 2510.14967).

The published chain needs nothing but `OnLastSpan` from here: gains stand on the tool turns, the outcome on the last one, then
GroupNorm, Fuse, Accumulate over turns and ToTokens("whole"). `BlockedReturns` is the early code, kept for comparison; its author
replaced it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guerdon.credit.accumulate import _check_discount
from guerdon.credit.groups import group_stats
from guerdon.credit.link import Levels, LinkBase, planned_name, require_level, source_of
from guerdon.credit.scan import reverse_linear_scan
from guerdon.errors import ConfigError
from guerdon.options import checked
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.segment.placement import last_valid


def on_last_span(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """One value a row moved to the last span of the row.

    Args:
        values: [B].
        mask: [B, S] bool, the spans there are.

    Returns:
        values [B, S], 0 elsewhere, and the last span [B, S] bool; a row without spans has no True.
    """
    last = last_valid(mask)
    return torch.where(last, values[:, None], torch.zeros_like(values[:, None])), last


@dataclass(frozen=True, repr=False)
class OnLastSpan(LinkBase):
    """Move a sequence source onto the last span of a segmentation: the outcome is earned where it was decided, the others earn 0.

    The row's sum is unchanged. Statistics of outcomes are taken before (afterwards the zeros count). A row without spans loses the
    source: it has no token to train either.

    Attributes:
        name: the sequence source.
        segment: the segmentation, which becomes its level.
    """

    name: str
    segment: str = "turns"

    def plan(self, levels: Levels) -> Levels:
        name = planned_name(self.name, levels)
        require_level(name, levels, "sequence", "OnLastSpan takes one value a row")
        return {**levels, name: self.segment}

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        rewards, spans = scores[self.name], rollouts.segment(self.segment)
        values, last = on_last_span(rewards.values[:, 0], spans.mask.to(rewards.values.device))
        # A source that does not apply to a row (masked) does not apply to its spans either.
        applies = spans.mask.to(rewards.mask.device) & rewards.mask
        end = last.int().argmax(1).tolist() if last.shape[1] else []
        reasons = {(row, end[row]): text for (row, _), text in rewards.reasons.items() if bool(applies[row].any())}
        moved = Rewards(
            values,
            replace(spans, mask=applies, name=self.segment),
            reasons,
            rewards.kind,
            rewards.paid,
            rewards.row_applies,
        )
        return scores.with_source(self.name, moved)


# --- the estimators of the early code ------------------------------------------------------------------------------------


def blocked_returns(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Returns whose carry stops at every masked token (the early code): x_t = r_t + gamma m_{t+1} x_{t+1}.

    With tool output masked, nothing that is earned after a tool call reaches the tokens before it.

    Args:
        rewards: [B, T].
        mask: [B, T] bool.
        gamma: discount per token.

    Returns:
        [B, T] float64, unmasked: what stands at a masked token never left it, but is in the baseline of its position.
    """
    carried = torch.nn.functional.pad(mask.double()[:, 1:], (0, 1)) if mask.shape[1] else mask.double()
    return reverse_linear_scan(gamma * carried, rewards.double())


def position_baseline(returns: Tensor, group_ids: Tensor, rows: Tensor | None = None) -> Tensor:
    """The group's mean return at the SAME token position, padding of short rows included (the early code's default).

    Args:
        returns: [B, T], unmasked.
        group_ids: [B].
        rows: [B] bool, rows that count; None = all.

    Returns:
        [B, T] float64; a group of one is its own baseline.
    """
    size, width = returns.shape
    position = torch.arange(width, device=returns.device)
    names = torch.unique(group_ids, return_inverse=True)[1].to(returns.device)
    cells = (names[:, None] * max(width, 1) + position).reshape(-1)
    counts = None if rows is None else rows.to(returns.device)[:, None].expand(size, width).reshape(-1)
    mean = group_stats(returns.reshape(-1), cells, counts).mean
    return torch.nan_to_num(mean, nan=0.0).view(size, width)


def start_baseline(returns: Tensor, group_ids: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and sample std over the group of the return at the first token (the early code's alternative).

    Returns:
        [B] and [B] float64; a group of one: its own return, and std 1.
    """
    start = returns[:, 0] if returns.shape[1] else returns.new_zeros(len(returns))
    stats = group_stats(start, group_ids, rows)
    return torch.nan_to_num(stats.mean, nan=0.0), torch.where(stats.size <= 1, 1.0, stats.std)


@dataclass(frozen=True, repr=False)
class BlockedReturns(LinkBase):
    """The early IGPO code on token-level rewards: `blocked_returns` minus one of its two baselines.

    Attributes:
        name: a token-level source of rewards, placed at turn ends.
        gamma: discount per token (early code: 1 with "position", 0.5 with "start").
        baseline: "position" (`position_baseline`, no std) or "start" (`start_baseline`).
        scale: "start" only: divide by the std + eps.
        eps: added to the std.
        blocked: False carries returns across tool output, as the paper's sums do.
    """

    name: str | None = None
    gamma: float = 1.0
    baseline: Literal["position", "start"] = "position"
    scale: bool = True
    eps: float = 1e-6
    blocked: bool = True

    scope: ClassVar[Literal["row", "group", "batch"]] = "group"
    centres: ClassVar[bool] = True
    accumulates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_discount(gamma=self.gamma)
        if self.baseline not in ("position", "start"):
            raise ConfigError(f"baseline={self.baseline!r}: use 'position' or 'start'")

    def plan(self, levels: Levels) -> Levels:
        name = planned_name(self.name, levels)
        require_level(name, levels, "token", f"BlockedReturns works on tokens: ToTokens({name!r}) first")
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        name = source_of(self.name, scores)
        rewards = scores[name]
        trained = rewards.mask
        if rollouts.policy_mask is not None and rollouts.policy_mask.shape == trained.shape:
            trained = trained & rollouts.policy_mask.to(trained.device)
        rows = scores.keep.to(trained.device) & ~rewards.failed.any(1)
        filled = rewards.filled()
        returns = blocked_returns(filled, trained if self.blocked else rewards.mask, self.gamma)
        advantages = early_advantages(
            returns, rollouts.groups, self.baseline, scale=self.scale, eps=self.eps, rows=rows
        )
        advantages = torch.where(trained & rows[:, None], advantages, 0.0).to(rewards.values.dtype)
        advantages = torch.where(rewards.failed, rewards.values, advantages)
        return scores.with_source(name, rewards.with_values(advantages, "advantage"))


@checked
def early_advantages(
    returns: Tensor,
    group_ids: Tensor,
    baseline: Literal["position", "start"] = "position",
    *,
    scale: bool = True,
    eps: float = 1e-6,
    rows: Tensor | None = None,
) -> Tensor:
    """[B, T] float64, unmasked: returns minus the named baseline; "start" with `scale` divides by its std + eps."""
    if baseline == "position":
        return returns - position_baseline(returns, group_ids, rows)
    mean, std = start_baseline(returns, group_ids, rows)
    centred = returns - mean[:, None]
    return centred / (std + eps)[:, None] if scale else centred
