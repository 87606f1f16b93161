"""Links across sources: weighted sums, gates, and leaving a source out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from guerdon.credit.link import Levels, LinkBase, planned_name
from guerdon.credit.placement import to_tokens
from guerdon.errors import ChainError, ConfigError
from guerdon.rewards import Kind, Reasons, Rewards, Scores, total_reward
from guerdon.rollouts import Rollouts


def _fused_kind(sources: dict[str, Rewards]) -> Kind:
    """Advantages absorb anything (both are already on the policy's scale); rewards and returns do not mix."""
    kinds = {rewards.kind for rewards in sources.values()}
    if "advantage" in kinds:
        return "advantage"
    if kinds == {"reward", "return"}:
        listing = ", ".join(f"{name}: {rewards.kind}" for name, rewards in sources.items())
        raise ChainError(f"rewards and returns do not add ({listing}); accumulate after fusing, or accumulate both")
    return kinds.pop()


def weighted_sum(sources: list[Rewards], weights: list[float]) -> tuple[Tensor, Tensor]:
    """sum_k w_k r_k cell by cell; a source that does not apply in a cell adds nothing there (weights are not renormalised).

    Returns:
        values [B, S] (NaN where any source that applies is NaN) and mask [B, S] (where at least one applies).
    """
    total = torch.zeros_like(sources[0].values)
    for rewards, weight in zip(sources, weights, strict=True):
        total = total + torch.where(rewards.mask, weight * rewards.values, torch.zeros_like(total))
    return total, torch.stack([rewards.mask for rewards in sources]).any(0)


@dataclass(frozen=True, init=False, repr=False)
class Fuse(LinkBase):
    """Weighted sum of sources.

    Sources of one level add cell by cell. A sequence source fused with token-level ones is spread over all valid tokens where those
    hold returns or advantages, and put on the last valid token where they hold rewards (the same thing once accumulated).

    Attributes:
        names: two or more sources.
        weights: one each; None = 1.
        into: name of the result; None = the first name.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...] | None
    into: str

    def __init__(
        self, *names: str, weights: tuple[float, ...] | list[float] | None = None, into: str | None = None
    ) -> None:
        if len(names) < 2 or len(set(names)) != len(names):
            raise ConfigError(f"Fuse takes two or more different sources, got {names}")
        if weights is not None and len(weights) != len(names):
            raise ConfigError(f"Fuse: {len(weights)} weights for {len(names)} sources")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "weights", None if weights is None else tuple(weights))
        object.__setattr__(self, "into", into or names[0])

    def plan(self, levels: Levels) -> Levels:
        found = {levels[planned_name(name, levels)] for name in self.names}
        if len(found) > 1 and found != {"sequence", "token"}:
            raise ChainError(
                f"cannot fuse levels { {name: levels[name] for name in self.names} }: place with ToTokens(...) first"
            )
        level = "token" if "token" in found else found.pop()
        return {**{name: lvl for name, lvl in levels.items() if name not in self.names}, self.into: level}

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        sources = {name: scores[name] for name in self.names}
        tokens = {name: rewards for name, rewards in sources.items() if rewards.level == "token"}
        if tokens and len(tokens) < len(sources):
            accumulated = _fused_kind(tokens) != "reward"
            for name, rewards in sources.items():
                if rewards.level != "token":
                    placement: Literal["end", "whole"] = "whole" if accumulated else "end"
                    if placement == "end" and rewards.kind != "reward":
                        raise ChainError(
                            f"{name!r} holds {rewards.kind}s and the token-level sources hold rewards: accumulate them before fusing"
                        )
                    sources[name] = to_tokens(rewards, rollouts, placement)
        parts = list(sources.values())
        if len({rewards.values.shape for rewards in parts}) > 1:
            raise ChainError(
                f"sources {self.names} stand on different spans: { {n: tuple(r.values.shape) for n, r in sources.items()} }"
            )
        weights = list(self.weights or [1.0] * len(parts))
        values, mask = weighted_sum(parts, weights)
        reasons: Reasons = {cell: text for rewards in parts for cell, text in rewards.reasons.items()}
        spans = parts[0].spans
        spans = type(spans)(spans.start, spans.end, mask, spans.unit, spans.name)
        remembered = any(rewards.paid is not None for rewards in parts)
        paid = total_reward(parts, weights) if remembered else None
        applies = torch.stack([rewards.row_applies for rewards in parts]).any(0)
        fused = Rewards(values, spans, reasons, _fused_kind(sources), paid, applies)
        return scores.with_source(self.into, fused, drop=self.names)


@dataclass(frozen=True, repr=False)
class Gate(LinkBase):
    """Keep a source only where another one allows it: r if g > threshold else `otherwise`.

    Attributes:
        name: the source that is gated.
        by: the gate, one value a row, or at the level of `name`.
        threshold: in the unit of the gate.
        when: "above" (>), "at_least" (>=), "below" (<) or "at_most" (<=).
        otherwise: the value where the gate is shut; None masks the cells (they then count nowhere).
        drop: leave the gate out of the chain afterwards. A gate that stays live still counts in the row's reward.
    """

    name: str
    by: str
    threshold: float = 0.0
    when: Literal["above", "at_least", "below", "at_most"] = "above"
    otherwise: float | None = 0.0
    drop: bool = False

    def __post_init__(self) -> None:
        if self.when not in ("above", "at_least", "below", "at_most"):
            raise ConfigError(f"when={self.when!r}: use above, at_least, below or at_most")

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.name, levels)
        planned_name(self.by, levels)
        if levels[self.by] not in ("sequence", levels[self.name]):
            raise ChainError(
                f"gate {self.by!r} is at {levels[self.by]!r} level, {self.name!r} at {levels[self.name]!r}"
            )
        return {name: level for name, level in levels.items() if not (self.drop and name == self.by)}

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        rewards, gate = scores[self.name], scores[self.by]
        compare = {"above": torch.gt, "at_least": torch.ge, "below": torch.lt, "at_most": torch.le}[self.when]
        gate_open = compare(gate.values, self.threshold)
        unknown = (gate.failed).expand(rewards.values.shape)
        # A gate that does not apply (masked) does not shut.
        shut = (~gate_open & gate.mask).expand(rewards.values.shape) & ~unknown & rewards.mask
        fill = 0.0 if self.otherwise is None else self.otherwise
        values = torch.where(shut, torch.full_like(rewards.values, fill), rewards.values)
        values = torch.where(unknown & rewards.mask, torch.full_like(values, float("nan")), values)
        mask = rewards.mask & ~shut if self.otherwise is None else rewards.mask
        spans = type(rewards.spans)(
            rewards.spans.start, rewards.spans.end, mask, rewards.spans.unit, rewards.spans.name
        )
        gated = Rewards(values, spans, rewards.reasons, rewards.kind, rewards.paid, rewards.applies)
        return scores.with_source(self.name, gated, drop=[self.by] if self.drop else [])


@dataclass(frozen=True, init=False, repr=False)
class Drop(LinkBase):
    """Leave sources out of the chain from here on. What the signals gave stays in `scores.raw` for the log."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)

    def plan(self, levels: Levels) -> Levels:
        for name in self.names:
            planned_name(name, levels)
        return {name: level for name, level in levels.items() if name not in self.names}

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        left = {name: rewards for name, rewards in scores.sources.items() if name not in self.names}
        return type(scores)(**{**scores.__dict__, "sources": left})
