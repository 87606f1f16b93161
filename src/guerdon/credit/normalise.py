"""Centring and scaling: group normalisation (GRPO and its relatives), whitening over the batch, normalise-then-sum (GDPO).

Every choice that papers differ in is an argument: std kind, epsilon and where it stands, what the std is taken over, what a group of
one gets. Rows that are not kept and cells without a finite number are in no statistic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guerdon.credit.groups import SingletonStats, flat_cells, group_stats, rounding
from guerdon.credit.link import Levels, LinkBase, Singleton, StdKind, countable, planned_name, require_level, source_of
from guerdon.errors import ChainError, ConfigError
from guerdon.options import checked, require_range
from guerdon.rewards import Rewards, Scores, total_reward
from guerdon.rollouts import Rollouts


def _centred(values: Tensor, applies: Tensor, counts: Tensor, result: Tensor) -> Tensor:
    """`result` where a cell counted, NaN where the instrument failed, 0 elsewhere."""
    failed = torch.where(applies & values.isnan(), values, torch.zeros_like(values))
    return torch.where(counts, result.to(values.dtype), failed)


@checked
def group_normalise(
    values: Tensor,
    group_ids: Tensor,
    mask: Tensor | None = None,
    *,
    sample_ids: Tensor | None = None,
    std: StdKind | None = "sample",
    std_over: Literal["group", "batch"] = "group",
    eps: float = 1e-4,
    flat_below: float = 0.0,
    singleton: SingletonStats = "zero",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A_i = (r_i - mean_g) / (std + eps): GRPO (arXiv 2402.03300); without the division Dr. GRPO (arXiv 2503.20783).

    Args:
        values: [B] rewards.
        group_ids: [B] int64.
        mask: [B] bool, rows that count; others come out 0.
        sample_ids: [B] int64, rows that are one sample count once.
        std: "sample", "population", or None for no division.
        std_over: the group's own std, or one std over the whole batch (TRL's scale_rewards="batch").
        eps: added to the std.
        flat_below: groups whose std is below this get exactly 0 (verl forks: 1e-6).
        singleton: a group of one: "zero" -> 0, "raw" -> its value / (1 + eps).
        dtype: float32 and equal group sizes give TRL's numbers to the last bit; float64 otherwise.

    Returns:
        [B] in the dtype of `values`; exactly 0 in a group whose rewards are equal (up to rounding, `credit.groups`), whatever
        `eps`; NaN where the value was NaN and counted in nothing.
    """
    applies = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
    stats = group_stats(
        values, group_ids, applies, sample_ids=sample_ids, std=std or "sample", singleton=singleton, dtype=dtype
    )
    deviation = stats.std
    if std_over == "batch":
        whole = torch.zeros_like(group_ids)
        deviation = group_stats(values, whole, applies, sample_ids=sample_ids, std=std or "sample", dtype=dtype).std
    centred = torch.where(stats.std == 0, 0.0, values.to(dtype) - stats.mean)  # a flat group, a group of one sample
    if std is not None:
        scale = deviation + eps
        centred = torch.where(scale > 0, centred / torch.where(scale > 0, scale, 1.0), torch.zeros_like(centred))
    if flat_below > 0:
        centred = torch.where(stats.std < flat_below, torch.zeros_like(centred), centred)
    return _centred(values, applies, applies & torch.isfinite(values), centred)


@checked
def whiten(
    values: Tensor,
    mask: Tensor,
    *,
    std: StdKind = "sample",
    eps: float = 1e-8,
    eps_at: Literal["variance", "std"] = "variance",
    centre: bool = True,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) over every cell of the mask (REINFORCE++, arXiv 2501.03262; verl's masked_whiten).

    Args:
        values: [B, S] float.
        mask: [B, S] bool, cells that count; others come out 0 (NaN where they hold NaN).
        std: "sample" uses Bessel's correction (verl), "population" does not (PAR's code).
        eps: under the root, or added to the std (`eps_at`).
        centre: False only scales.

    Returns:
        [B, S] in the dtype of `values`, computed in float64. One cell alone comes out 0, and so do cells that are all equal.
    """
    counts = mask.bool() & torch.isfinite(values)
    number = int(counts.sum())
    exact = torch.where(counts, values, 0.0).double()
    mean = exact.sum() / max(number, 1)
    variance = torch.where(counts, (exact - mean) ** 2, 0.0).sum() / max(number - (std == "sample"), 1)
    if flat_cells(values, counts):
        mean, variance = exact, torch.zeros_like(variance)
    scale = torch.sqrt(variance + eps) if eps_at == "variance" else torch.sqrt(variance) + eps
    shifted = exact - mean if centre else exact
    result = shifted / scale if float(scale) > 0 else torch.zeros_like(shifted)
    return _centred(values, mask.bool(), counts, result)


@checked
def normalise_then_sum(
    sources: list[Tensor],
    weights: list[float],
    group_ids: Tensor,
    masks: list[Tensor],
    *,
    sample_ids: Tensor | None = None,
    std: StdKind = "sample",
    eps: float = 1e-4,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """GDPO (arXiv 2601.05242): each reward normalised in its group, then the weighted sum, then one z-score over the batch.

    A_i = z( sum_k w_k (r_ik - mean_gk) / (std_gk + eps) ),   z(x) = (x - mean) / (std + eps) over the batch

    Args:
        sources: K tensors [B].
        weights: K numbers.
        group_ids: [B].
        masks: K masks [B] bool; a source that does not apply in a row adds 0 there, a row where none applies comes out 0.

    Returns:
        [B]. Sources that cancel leave 0, not their rounding.
    """
    normed = [
        group_normalise(value, group_ids, mask, sample_ids=sample_ids, std=std, eps=eps, dtype=dtype)
        for value, mask in zip(sources, masks, strict=True)
    ]
    terms = [w * value for w, value in zip(weights, normed, strict=True)]
    combined, size = sum(terms, torch.zeros_like(normed[0])), sum((t.abs() for t in terms), torch.zeros_like(normed[0]))
    combined = torch.where(combined.abs() <= rounding(size, dtype), 0.0, combined)
    live = torch.stack(masks).any(0)
    return group_normalise(
        combined, torch.zeros_like(group_ids), live, sample_ids=sample_ids, std=std, eps=eps, dtype=dtype
    )


def _flat_ids(rewards: Rewards, rollouts: Rollouts) -> tuple[Tensor, Tensor | None]:
    """Group and sample ids of the cells of a source, flattened: for one value a row these are the rows' own."""
    device, width = rewards.values.device, rewards.values.shape[1]
    groups = rollouts.groups.to(device)[:, None].expand(rewards.values.shape).reshape(-1)
    if rollouts.sample_ids is None:
        return groups, None
    position = torch.arange(width, device=device)
    return groups, (rollouts.sample_ids.to(device)[:, None] * max(width, 1) + position).reshape(-1)


@dataclass(frozen=True, repr=False)
class GroupNorm(LinkBase):
    """Group normalisation; the defaults are TRL's GRPO, to the last bit.

    With several spans a row (step rewards) all cells of a group are normalised together, as GRPO's process supervision does.

    Attributes:
        name: the source; None = the only one.
        std: "sample", "population", or None (Dr. GRPO).
        eps: added to the std (TRL 1e-4, verl and RLPR 1e-6).
        std_over: "group" or "batch".
        flat_below: groups with a smaller std get 0.
        singleton: a group in which one row counts: "zero" -> advantage 0, "raw" -> the reward itself, "drop" -> not trained on.
        dtype: "float32" agrees bitwise with TRL for equal group sizes; "float64" is exact.
    """

    name: str | None = None
    std: StdKind | None = "sample"
    eps: float = 1e-4
    std_over: Literal["group", "batch"] = "group"
    flat_below: float = 0.0
    singleton: Singleton = "zero"
    dtype: Literal["float32", "float64"] = "float32"

    scope: ClassVar[Literal["row", "group", "batch"]] = "group"
    centres: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_range(0, eps=self.eps, flat_below=self.flat_below)
        if self.std_over == "batch":
            object.__setattr__(self, "scope", "batch")

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.name, levels)
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        name = source_of(self.name, scores)
        rewards = scores[name]
        counts = countable(scores, rewards, rollouts)
        groups, samples = _flat_ids(rewards, rollouts)
        normed = group_normalise(
            rewards.values.reshape(-1),
            groups,
            counts.reshape(-1),
            sample_ids=samples,
            std=self.std,
            std_over=self.std_over,
            eps=self.eps,
            flat_below=self.flat_below,
            singleton="raw" if self.singleton == "raw" else "zero",
            dtype=getattr(torch, self.dtype),
        ).view(rewards.values.shape)
        normed = torch.where(rewards.failed, rewards.values, normed)
        if self.singleton == "drop":
            stats = group_stats(rewards.values.reshape(-1), groups, counts.reshape(-1), sample_ids=samples)
            lonely = ((stats.size == 1).view(counts.shape) & counts).any(1)
            scores = scores.dropping(lonely, f"{name}: the only scored row of its group")
        return scores.with_source(name, rewards.with_values(normed, "advantage"))


@dataclass(frozen=True, repr=False)
class Whiten(LinkBase):
    """Whitening over all counted cells of the batch (`whiten`).

    Attributes:
        name: the source; None = the only one.
        std, eps, eps_at, centre: see `whiten`.
    """

    name: str | None = None
    std: StdKind = "sample"
    eps: float = 1e-8
    eps_at: Literal["variance", "std"] = "variance"
    centre: bool = True

    scope: ClassVar[Literal["row", "group", "batch"]] = "batch"
    centres: ClassVar[bool] = True

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.name, levels)
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        name = source_of(self.name, scores)
        rewards = scores[name]
        counts = countable(scores, rewards, rollouts)
        values = whiten(rewards.values, counts, std=self.std, eps=self.eps, eps_at=self.eps_at, centre=self.centre)
        return scores.with_source(
            name, rewards.with_values(torch.where(rewards.failed, rewards.values, values), "advantage")
        )


@dataclass(frozen=True, repr=False)
class PerRewardNorm(LinkBase):
    """GDPO as one link: sequence sources in, one sequence advantage out (`normalise_then_sum`).

    Attributes:
        names: the sources; empty = all.
        weights: one each; None = 1.
        into: name of the result.
        std, eps: of both normalisations (TRL: sample, 1e-4).
    """

    names: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    into: str = "credit"
    std: StdKind = "sample"
    eps: float = 1e-4

    scope: ClassVar[Literal["row", "group", "batch"]] = "batch"
    centres: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", (self.names,) if isinstance(self.names, str) else tuple(self.names))
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(self.weights))
            if self.names and len(self.weights) != len(self.names):
                raise ConfigError(f"{len(self.weights)} weights for {len(self.names)} sources")

    def _chosen(self, live: list[str]) -> list[str]:
        names = list(self.names) or live
        if self.weights is not None and len(self.weights) != len(names):
            raise ChainError(f"{len(self.weights)} weights for the sources {names}")
        return names

    def plan(self, levels: Levels) -> Levels:
        names = self._chosen(list(levels))
        for name in names:
            planned_name(name, levels)
            require_level(name, levels, "sequence", "PerRewardNorm takes one value a row")
        return {**{name: level for name, level in levels.items() if name not in names}, self.into: "sequence"}

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        names = self._chosen(list(scores.sources))
        sources = [scores[name] for name in names]
        masks = [countable(scores, rewards, rollouts)[:, 0] for rewards in sources]
        device = sources[0].values.device
        values = normalise_then_sum(
            [rewards.values[:, 0] for rewards in sources],
            list(self.weights or [1.0] * len(names)),
            rollouts.groups.to(device),
            masks,
            sample_ids=None if rollouts.sample_ids is None else rollouts.sample_ids.to(device),
            std=self.std,
            eps=self.eps,
        )
        failed = torch.stack([rewards.failed[:, 0] for rewards in sources]).any(0)
        values = torch.where(failed, torch.full_like(values, float("nan")), values)
        paid = total_reward(sources, self.weights)
        spans = replace(sources[0].spans, mask=torch.stack([rewards.mask for rewards in sources]).any(0))
        result = Rewards(values[:, None], spans, kind="advantage", paid=paid)
        return scores.with_source(self.into, result, drop=names)
