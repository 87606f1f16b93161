"""Filters: links that clear `keep`. A row that is not kept leaves group statistics and loss denominators.

`OnFailure` is the stated answer to "the instrument failed"; a System without one drops the row. The others are policies of papers:
uniform groups carry no signal, truncated completions are not judged, RLPR's threshold follows an average.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from guerdon.credit.groups import group_stats
from guerdon.credit.link import Levels, LinkBase, planned_name, row_totals, source_of
from guerdon.errors import CapabilityError, ConfigError
from guerdon.options import require_range
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts


def _without(rewards: Rewards, rows: Tensor) -> Rewards:
    """The source, masked in some rows."""
    return replace(rewards, spans=replace(rewards.spans, mask=rewards.mask & ~rows[:, None]))


def _with_group(rows: Tensor, group_ids: Tensor) -> Tensor:
    """[B] bool: the rows whose group holds one of `rows`."""
    groups = group_ids.to(rows.device)
    return torch.isin(groups, groups[rows])


@dataclass(frozen=True, repr=False)
class OnFailure(LinkBase):
    """What happens where the instrument failed (NaN, or a number that is not finite).

    Attributes:
        action: "row" drops the row; "group" drops the row's whole group; "source" masks the failed source in that row (all of its
            spans: half a row of step scores is another reward) and trains on the other sources. A row that no source
            scores any more is dropped.
        sources: only these; empty = all. A chain may treat its sources differently, one OnFailure after another.
    """

    action: Literal["row", "group", "source"] = "row"
    sources: tuple[str, ...] = ()

    handles_failure: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.action not in ("row", "group", "source"):
            raise ConfigError(f"OnFailure({self.action!r}): use 'row', 'group' or 'source'")
        object.__setattr__(self, "sources", (self.sources,) if isinstance(self.sources, str) else tuple(self.sources))
        if self.action == "group":
            object.__setattr__(self, "scope", "group")

    def plan(self, levels: Levels) -> Levels:
        for name in self.sources:
            planned_name(name, levels)
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        sources = dict(scores.sources)
        dropped = torch.zeros_like(scores.keep)
        why: dict[int, str] = {}
        metrics: dict[str, float] = {}
        for name, rewards in scores.sources.items():
            if self.sources and name not in self.sources:
                continue
            bad = (rewards.mask & ~torch.isfinite(rewards.values)).any(1).to(scores.keep.device)
            metrics[f"failed/{name}"] = float((bad & scores.keep).sum())
            for row in (bad & scores.keep).nonzero()[:, 0].tolist():
                said = [text for (at, _), text in rewards.reasons.items() if at == row]
                why.setdefault(row, f"{name}: {said[0] if said else 'a number that is not finite'}")
            if self.action == "source":
                sources[name] = _without(rewards, bad.to(rewards.mask.device))
            else:
                dropped |= bad
        if self.action == "source":
            scored = torch.stack([rewards.usable.any(1).to(dropped.device) for rewards in sources.values()]).any(0)
            failed_rows = torch.zeros_like(dropped)
            failed_rows[list(why)] = True
            dropped = failed_rows & ~scored
        elif self.action == "group" and bool(dropped.any()):
            dropped = _with_group(dropped & scores.keep, rollouts.groups)
        scores = replace(scores, sources=sources).with_metrics(**metrics)
        if not bool(dropped.any()):
            return scores
        scores = scores.dropping(dropped, "a reward of its group failed")
        notes = {row: why.get(row, text) for row, text in scores.notes["dropped"].items()}
        return replace(scores, notes={**scores.notes, "dropped": notes})


@dataclass(frozen=True, repr=False)
class DropUniformGroups(LinkBase):
    """Drop groups whose rewards are all alike: they carry no group-relative signal (DAPO's dynamic sampling, without resampling).

    Attributes:
        name: the source whose row totals are compared; None = the only one.
        std_at_most: drop where the group's population std is at most this.
        singleton: a group of one is always uniform; "drop" or "keep" it.
    """

    name: str | None = None
    std_at_most: float = 0.0
    singleton: Literal["drop", "keep"] = "drop"

    scope: ClassVar[Literal["row", "group", "batch"]] = "group"

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.name, levels)
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        name = source_of(self.name, scores)
        totals, live = row_totals(scores, scores[name])
        stats = group_stats(totals, rollouts.groups, live, sample_ids=rollouts.sample_ids, std="population")
        uniform = live & (stats.std <= self.std_at_most)
        if self.singleton == "keep":
            uniform &= stats.size > 1
        kept = int(scores.keep.sum())
        scores = scores.dropping(uniform, f"{name}: the same reward in the whole group")
        return scores.with_metrics(**{"dropped/uniform": float(int(uniform.sum()) / max(kept, 1))})


@dataclass(frozen=True, repr=False)
class DropTruncated(LinkBase):
    """Drop completions that were cut at the length cap (TRL's mask_truncated_completions, but out of the statistics too)."""

    def plan(self, levels: Levels) -> Levels:
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        if rollouts.finished is None:
            raise CapabilityError("DropTruncated needs rollouts.finished, and these rollouts do not say")
        cut = ~rollouts.finished.bool().to(scores.keep.device)
        share = float((cut & scores.keep).sum() / scores.keep.sum().clamp(min=1))
        return scores.dropping(cut, "cut at the length cap").with_metrics(**{"dropped/truncated": share})


def std_threshold(
    state: dict[str, Any], batch_mean: float, *, start: int, filter_from: int, ratio: float, beta: float
) -> tuple[float, dict[str, Any]]:
    """One step of RLPR's moving threshold (arXiv 2506.18254): beta * EMA of the group std, delayed by one step.

    Steps are counted from 1. From `start` on, each step's mean group std s_t is recorded (before filtering; a non-finite one is
    skipped). At step `filter_from` the EMA is the plain mean of what was recorded; at each later step
    ema <- ratio ema + (1-ratio) s_{t-1}. The threshold is 0 before.

    Args:
        state: {"step": steps seen, "recorded": list, "ema": float or None, "previous": float or None}.
        batch_mean: s_t, NaN where no group has a finite std.

    Returns:
        threshold for this step, and the next state.
    """
    step = state["step"] + 1
    recorded, ema, previous = list(state["recorded"]), state["ema"], state["previous"]
    if step >= filter_from:
        if ema is None:
            ema = sum(recorded) / len(recorded) if recorded else None
        elif previous is not None:
            ema = ratio * ema + (1 - ratio) * previous
    threshold = beta * ema if step >= filter_from and ema is not None else 0.0
    finite = batch_mean == batch_mean and abs(batch_mean) != float("inf")
    if step >= start and finite and ema is None:
        recorded.append(batch_mean)
    return threshold, {"step": step, "recorded": recorded, "ema": ema, "previous": batch_mean if finite else None}


def passes_std(std: Tensor, threshold: float, ceiling: float = 1e6) -> Tensor:
    """[...] bool: finite, at least the threshold and at most the ceiling (RLPR's rule)."""
    return torch.isfinite(std) & (std >= threshold) & (std <= ceiling)


@dataclass(frozen=True, repr=False)
class StdEMAFilter(LinkBase):
    """Keep prompts whose group std reaches a moving threshold (RLPR, arXiv 2506.18254). Stateful, see `std_threshold`.

    Filtered rows are masked; the paper draws more prompts instead. A group of one has no std and is dropped once the filter is on
    (the official code reports 1 for it, which passes any filter).

    Attributes:
        name: the source whose row totals are compared; None = the only one.
        beta: threshold / EMA (0.5 for Qwen, 0.9 Llama, 1.0 Gemma).
        ratio: of the EMA.
        start: first step that is recorded (from 1).
        filter_from: first step that filters.
    """

    name: str | None = None
    beta: float = 0.5
    ratio: float = 0.99
    start: int = 6
    filter_from: int = 11

    scope: ClassVar[Literal["row", "group", "batch"]] = "batch"

    def __post_init__(self) -> None:
        require_range(0, std_beta=self.beta, std_start=self.start, filter_start=self.filter_from)
        require_range(0, 1, std_ratio=self.ratio)

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.name, levels)
        return levels

    def init_state(self) -> dict[str, Any]:
        return {"step": 0, "recorded": [], "ema": None, "previous": None}

    def __call__(self, scores: Scores, rollouts: Rollouts, state: dict[str, Any]) -> tuple[Scores, dict[str, Any]]:
        name = source_of(self.name, scores)
        totals, live = row_totals(scores, scores[name])
        std = group_stats(totals, rollouts.groups, live, sample_ids=rollouts.sample_ids, singleton="nan").std
        known = live & torch.isfinite(std)
        mean = float(std[known].mean()) if bool(known.any()) else float("nan")
        threshold, following = std_threshold(
            state, mean, start=self.start, filter_from=self.filter_from, ratio=self.ratio, beta=self.beta
        )
        filtering = following["step"] >= self.filter_from
        out = live & ~passes_std(std, threshold) if filtering else torch.zeros_like(live)
        kept = float((live & ~out).sum() / live.sum().clamp(min=1))
        scores = scores.dropping(out.to(scores.keep.device), f"{name}: group std below {threshold:.4g}")
        metrics = {"std_filter/threshold": threshold, "std_filter/kept": kept}
        if mean == mean:
            metrics["std_filter/std"] = mean
        return scores.with_metrics(**metrics), following
