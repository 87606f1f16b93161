"""Links for rewards that are log-probabilities of a reference: JEPO's advantages, a floor under rows without one, what to watch.

JEPO (arXiv 2503.19618) optimises a lower bound of log p(a*|q) that tightens with the number K of reasonings z_k, with S_k the
log-probability of the reference after z_k:

    L_K = E log( 1/K sum_k exp S_k )        LME_all = logsumexp(S) - log K,   LME_-k = the same without z_k
    A_k = LME_all - LME_-k                  (the baseline LME_-k does not depend on z_k)
    w   = softmax(S)                        weights of grad S_k, the supervised term

so that grad L_K = E sum_k ( A_k grad log p(z_k) + w_k grad S_k ). Everything is in logarithms: S = -2000 is a number like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guerdon.credit.groups import group_stats
from guerdon.credit.link import Levels, LinkBase, Singleton, countable, planned_name, require_level
from guerdon.errors import ChainError
from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts

NEVER = float("-inf")


def _table(values: Tensor, group_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows that count as a table [G, K] (-inf where a group has fewer), how many count [G], and each row's group and column."""
    _, group = torch.unique(group_ids, return_inverse=True)
    groups = int(group.max()) + 1 if len(group) else 0
    order = torch.argsort(group, stable=True)
    sizes = torch.bincount(group, minlength=groups)
    first = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    column = torch.zeros_like(group)
    column[order] = torch.arange(len(group), device=group.device) - first
    table = torch.full((groups, int(sizes.max()) if groups else 0), NEVER, dtype=torch.float64, device=values.device)
    table[group, column] = torch.where(mask, values.double(), NEVER)
    size = torch.zeros(groups, dtype=torch.long, device=values.device).index_add(0, group, mask.long())
    return table, size, group, column


def jensen_advantages(values: Tensor, group_ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A_k = logmeanexp of the group minus logmeanexp of its others, and the former.

    Args:
        values: [B] S_k, finite (a row without one needs a floor first).
        group_ids: [B] int64.
        mask: [B] bool, rows that count; others come out 0.

    Returns:
        advantages [B] and objectives [B] (each row's LME_all), float64. A group of one has no baseline: A = S.
    """
    applies = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
    table, size, group, column = _table(values, group_ids, applies)
    whole = table.logsumexp(1) - size.double().clamp(min=1).log()
    # Leaving one out by subtraction would cancel where one sample has nearly all the mass, so the sums are made anew.
    itself = torch.eye(table.shape[1], dtype=torch.bool, device=table.device)
    others = table[:, None].expand(-1, table.shape[1], -1).masked_fill(itself, NEVER).logsumexp(2)
    others = others - (size[:, None].double() - 1).clamp(min=1).log()
    baseline = torch.where(size[:, None] > 1, others, 0.0)
    advantages = (whole[:, None] - baseline)[group, column]
    stats = group_stats(values, group_ids, applies)
    advantages = torch.where((stats.std == 0) & (stats.size > 1), 0.0, advantages)  # equal values gain nothing
    return torch.where(applies, advantages, 0.0), whole[group]


def jensen_weights(values: Tensor, group_ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B] float64: softmax of the S_k within each group over the rows that count; 0 for the others."""
    applies = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
    table, _, group, column = _table(values, group_ids, applies)
    return torch.where(applies, table.softmax(1)[group, column], 0.0)


@dataclass(frozen=True, repr=False)
class JensenAdvantage(LinkBase):
    """JEPO's multi-sample advantages (`jensen_advantages`) of a source with one log-probability a row.

    Attributes:
        name: the source.
        singleton: a group in which one row counts: "raw" -> its value (no baseline), "zero", or "drop" -> not trained on.
    """

    name: str
    singleton: Singleton = "raw"

    scope: ClassVar[Literal["row", "group", "batch"]] = "group"
    centres: ClassVar[bool] = True

    def plan(self, levels: Levels) -> Levels:
        require_level(planned_name(self.name, levels), levels, "sequence", "JensenAdvantage takes one value a row")
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        rewards = scores[self.name]
        counts = countable(scores, rewards, rollouts)[:, 0]
        groups = rollouts.groups.to(counts.device)
        values, objective = jensen_advantages(rewards.values[:, 0], groups, counts)
        alone = counts & (group_stats(counts.double(), groups, counts).size <= 1)
        if self.singleton == "zero":
            values = torch.where(alone, 0.0, values)
        elif self.singleton == "drop":
            scores = scores.dropping(alone, f"{self.name}: the only scored row of its group")
        values = torch.where(rewards.failed[:, 0], rewards.values[:, 0], values.to(rewards.values.dtype))
        if bool(counts.any()):
            scores = scores.with_metrics(jensen_objective=float(objective[counts].mean()))
        return scores.with_source(self.name, rewards.with_values(values[:, None], "advantage"))


@dataclass(frozen=True, repr=False)
class FloorAtGroupMin(LinkBase):
    """Rows without a value get the least value of their group's other rows, minus a margin.

    The log-probability of a reference that could not be placed is -inf, which would make every mean of its group -inf. A constant
    would be above the bad rows of one prompt and far below those of another; the group's own least value is neither.

    Attributes:
        name: the source, one value a row.
        by: the source that is 0 in rows without a value.
        margin: how far below the least one, in the unit of `name`. A group in which no row has a value stays as it is.
    """

    name: str
    by: str
    margin: float = 1.0

    scope: ClassVar[Literal["row", "group", "batch"]] = "group"

    def plan(self, levels: Levels) -> Levels:
        for name in (self.name, self.by):
            require_level(planned_name(name, levels), levels, "sequence", "FloorAtGroupMin takes one value a row")
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        rewards, has = scores[self.name], scores[self.by].values[:, 0] != 0
        values = rewards.values[:, 0]
        known = countable(scores, rewards, rollouts)[:, 0] & has
        _, group = torch.unique(rollouts.groups.to(values.device), return_inverse=True)
        highest = torch.full((int(group.max()) + 1 if len(group) else 0,), float("inf"), dtype=values.dtype)
        least = highest.to(values.device).scatter_reduce(0, group[known], values[known], "amin")[group]
        floor = torch.isfinite(least) & ~has & ~rewards.failed[:, 0]
        floored = torch.where(floor, least - self.margin, values)
        return scores.with_source(self.name, rewards.with_values(floored[:, None]))


@dataclass(frozen=True, repr=False)
class WatchLikelihood(LinkBase):
    """What to look at in a run with a likelihood reward; changes nothing.

    Metrics, over rows that are kept: `answered` (share with a place for the reference), `logprob` and `mean_logprob` (of the
    reference, per sequence and per token), `perplexity` = exp( -1/n log 1/K sum_k exp S_k ), averaged over prompts in the logarithm
    (a reasoning without a place for the reference counts as probability 0), `reasoning_tokens`, `baseline` (the groups' mean
    reward), `flat_groups` (share of groups whose rewards are all the same in float32: nothing to learn from, the fate of plain
    probabilities of long references).

    Attributes:
        name: the signal with the sources score, logprob, tokens, reasoning and answered.
    """

    name: str

    scope: ClassVar[Literal["row", "group", "batch"]] = "group"

    def plan(self, levels: Levels) -> Levels:
        missing = [
            s for s in ("score", "logprob", "tokens", "reasoning", "answered") if f"{self.name}.{s}" not in levels
        ]
        if missing:
            raise ChainError(f"the signal {self.name!r} gives no {', '.join(missing)}")
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        def column(sub: str) -> Tensor:
            return scores[f"{self.name}.{sub}"].values[:, 0].double()

        live = countable(scores, scores[f"{self.name}.score"], rollouts)[:, 0]
        if not bool(live.any()):
            return scores
        groups = rollouts.groups.to(live.device)
        answered = live & (column("answered") > 0)
        stats = group_stats(column("score").float().double(), groups, live)
        high, _, group, _ = _table(column("score").float(), groups, live)
        low = -_table(-column("score").float(), groups, live)[0].amax(1)
        flat = (high.amax(1) == low)[group]
        found = {
            "answered": float(answered[live].double().mean()),
            "reasoning_tokens": float(column("reasoning")[live].mean()),
            "baseline": float(stats.mean[live].mean()),
            "flat_groups": float((flat[live] / stats.size[live]).sum() / (1 / stats.size[live]).sum()),
        }
        if bool(answered.any()):
            found |= self._reference(column("logprob"), column("tokens"), groups, live, answered)
        return scores.with_metrics(**{f"{self.name}/{key}": value for key, value in found.items()})

    @staticmethod
    def _reference(logprob: Tensor, tokens: Tensor, groups: Tensor, live: Tensor, answered: Tensor) -> dict[str, float]:
        per_token = logprob[answered] / tokens[answered].clamp(min=1)
        table, _, group, _ = _table(logprob, groups, answered)
        samples = torch.bincount(group[live], minlength=len(table)).double().clamp(min=1)
        length = group_stats(tokens, groups, answered)
        scored = torch.isfinite(table).any(1)
        nll = -(table.logsumexp(1) - samples.log())[scored]
        tokens_of = torch.zeros(len(table), dtype=torch.float64, device=table.device).index_put(
            (group[answered],), length.mean[answered]
        )
        return {
            "logprob": float(logprob[answered].mean()),
            "mean_logprob": float(per_token.mean()),
            "perplexity": float((nll / tokens_of[scored].clamp(min=1)).mean().exp()),
        }
