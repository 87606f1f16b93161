"""Leave-one-out baselines: RLOO, and the three estimators of PURE's two code branches.

mean           b_i = mean_{j != i} x_j                                     RLOO, arXiv 2402.14740
padded_tokens  b_i = sum_{j != i} sum_t G_jt / ((K-1) L)                   PURE, verl branch; L = padded length
per_token      b_i = sum_{j != i} O_j / sum_{j != i} len_j, times n_ik     PURE, OpenRLHF branch; O = row total
per_step       b_i = mean_{j != i} O_j / steps_j                           PURE, OpenRLHF branch, older
per_index      b_it = mean over the j != i that have a span t of x_jt      returns of turns, where the policy decides when to stop
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from guerdon.credit.groups import group_stats, group_sum, leave_one_out_mean
from guerdon.credit.link import Levels, LinkBase, Singleton, countable, planned_name, require_level, source_of
from guerdon.errors import ChainError, ConfigError
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.spans import Spans

Baseline = Literal["mean", "padded_tokens", "per_token", "per_step", "per_index"]


def padded_token_baseline(
    returns: Tensor,
    mask: Tensor,
    group_ids: Tensor,
    padded_length: int | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """b_i = ( sum_{j in group} S_j - S_i ) / ((K-1) L), S_i = sum_t returns[i, t] (PURE, verl branch).

    Args:
        returns: [B, T].
        mask: [B, T] bool, tokens that count.
        group_ids: [B].
        padded_length: L; None = T, which makes the result depend on the batch's padding, as in the official code.
        rows: [B] bool, rows that count in their group; None = all. An empty completion is a sample whose return is 0.

    Returns:
        [B] float64; 0 for a group of one.
    """
    total = torch.where(mask, returns, 0.0).double().sum(1)
    others = leave_one_out_mean(total, group_ids, rows)
    return torch.nan_to_num(others, nan=0.0) / max(padded_length or returns.shape[1], 1)


def per_token_baseline(totals: Tensor, lengths: Tensor, group_ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """b_i = sum_{j != i} O_j / sum_{j != i} len_j (PURE, OpenRLHF branch). [B] float64; 0 for a group of one."""
    counts = torch.ones_like(group_ids, dtype=torch.bool) if mask is None else mask
    own = torch.where(counts, totals, 0.0).double()
    size = torch.where(counts, lengths, 0).double()
    others = group_sum(own, group_ids) - own
    tokens = group_sum(size, group_ids) - size
    return torch.where(tokens > 0, others / tokens.clamp(min=1), 0.0)


def per_step_baseline(totals: Tensor, steps: Tensor, group_ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """b_i = mean_{j != i} O_j / steps_j (PURE, OpenRLHF branch). [B] float64; 0 for a group of one. No steps count as 0."""
    mean_step = totals.double() / steps.clamp(min=1)
    return torch.nan_to_num(leave_one_out_mean(mean_step, group_ids, mask), nan=0.0)


def per_index_baseline(
    values: Tensor, group_ids: Tensor, mask: Tensor | None = None, sample_ids: Tensor | None = None
) -> Tensor:
    """b_it = mean of x_jt over the other rows of the group that have a t-th span.

    It says what others got from their t-th span on and nothing of what row i does there, so subtracting it from returns changes no expected
    gradient; neither does dropping rows that ended before.

    Args:
        values: [B, S], returns of spans.
        group_ids: [B].
        mask: [B, S] bool, cells that count; None = all.
        sample_ids: [B]; rows of one sample count once, with their mean.

    Returns:
        [B, S] float64; NaN where no other row has that span.
    """
    width = values.shape[1]
    index = torch.arange(width, device=values.device)

    def cells(ids: Tensor) -> Tensor:
        return (ids.to(values.device)[:, None] * max(width, 1) + index).reshape(-1)

    others = leave_one_out_mean(
        values.reshape(-1),
        cells(group_ids),
        None if mask is None else mask.reshape(-1),
        sample_ids=None if sample_ids is None else cells(sample_ids),
        resolution=values.dtype,
    )
    return others.view(values.shape)


def step_lengths(spans: Spans, delimiter_tokens: int = 1) -> Tensor:
    """[B, S] int64: tokens of each span without its closing delimiter (or EOS)."""
    return (spans.lengths - delimiter_tokens).clamp(min=0) * spans.mask


@dataclass(frozen=True, repr=False)
class LeaveOneOut(LinkBase):
    """Subtract a baseline made of the OTHER rows of the group.

    Attributes:
        name: the source; None = the only one.
        baseline: see the head of this file. "mean" takes each row's mean over its cells (for one value a row: the value);
            "padded_tokens" wants token-level returns; "per_token" and "per_step" want step-level rewards in token spans; "per_index"
            wants returns of spans, and is alone where no other row of the group has a span of that number.
        padded_length: L of "padded_tokens"; None = the width of the batch (official, and dependent on padding).
        delimiter_tokens: tokens at a step's end that "per_token" does not charge for.
        singleton: a row without others: "zero" -> 0, "raw" -> baseline 0, "drop" -> not trained on.
    """

    name: str | None = None
    baseline: Baseline = "mean"
    padded_length: int | None = None
    delimiter_tokens: int = 1
    singleton: Singleton = "zero"

    scope: ClassVar[Literal["row", "group", "batch"]] = "group"
    centres: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.baseline not in get_args(Baseline):
            raise ConfigError(f"baseline={self.baseline!r}: use one of {', '.join(get_args(Baseline))}")

    def plan(self, levels: Levels) -> Levels:
        name = planned_name(self.name, levels)
        if self.baseline == "padded_tokens":
            require_level(name, levels, "token", f"the padded-token baseline works on tokens: ToTokens({name!r}) first")
        elif self.baseline != "mean" and levels[name] == "token":
            raise ChainError(f"the {self.baseline} baseline works on steps: put it before ToTokens({name!r})")
        return levels

    def _baselines(self, rewards: Rewards, rollouts: Rollouts, counts: Tensor, rows: Tensor) -> Tensor:
        """[B, S] float64, what each cell pays."""
        device = rewards.values.device
        groups = rollouts.groups.to(device)
        if self.baseline == "padded_tokens":
            return padded_token_baseline(rewards.values, counts, groups, self.padded_length, rows)[:, None]
        if self.baseline == "per_index":
            return per_index_baseline(rewards.values, groups, counts, rollouts.sample_ids)
        totals = torch.where(counts, rewards.values, 0.0).double().sum(1)
        if self.baseline == "mean":
            samples = None if rollouts.sample_ids is None else rollouts.sample_ids.to(device)
            means = totals / counts.sum(1).clamp(min=1)
            others = leave_one_out_mean(means, groups, rows, sample_ids=samples, resolution=rewards.values.dtype)
            return torch.nan_to_num(others, nan=0.0)[:, None]
        if self.baseline == "per_step":
            return per_step_baseline(totals, counts.sum(1), groups, rows)[:, None]
        if rewards.spans.unit != "token":
            raise ChainError("the per_token baseline charges tokens, and these spans count characters")
        rate = per_token_baseline(totals, rollouts.lengths.to(device), groups, rows)
        return rate[:, None] * step_lengths(rewards.spans, self.delimiter_tokens)

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        name = source_of(self.name, scores)
        rewards = scores[name]
        counts = countable(scores, rewards, rollouts)
        # A kept row without cells (no steps, no tokens) is a sample worth 0, except where a mean over its cells is asked for.
        whole = scores.keep.to(counts.device) & ~(rewards.mask & ~torch.isfinite(rewards.values)).any(1)
        rows = counts.any(1) if self.baseline == "mean" else whole
        paid = self._baselines(rewards, rollouts, counts, rows)
        values = (rewards.values.double() - paid.nan_to_num(nan=0.0)).to(rewards.values.dtype)
        samples = None if rollouts.sample_ids is None else rollouts.sample_ids.to(values.device)
        alone = group_stats(rows.double(), rollouts.groups.to(values.device), rows, sample_ids=samples).size <= 1
        if self.singleton == "zero":
            lonely = alone[:, None] | paid.isnan()
            values = torch.where(lonely, torch.zeros_like(values), values)
        elif self.singleton == "drop":
            scores = scores.dropping(alone & rows, f"{name}: the only scored row of its group")
        values = torch.where(rewards.failed, rewards.values, torch.where(counts, values, torch.zeros_like(values)))
        return scores.with_source(name, rewards.with_values(values, "advantage"))
