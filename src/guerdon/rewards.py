"""Rewards and Scores: numbers over spans, with reasons. The second of the two data types.

Three kinds of cell, never confused:

- *masked* (`spans.mask` False): does not apply. Counts nowhere.
- *NaN*: the INSTRUMENT failed (a judge timed out, a reference is missing). Never trained on; `reasons` says why; what the
  chain does with it is a stated option (`guerdon.credit.OnFailure`).
- *a number*: everything the POLICY caused. No answer, a bad format or gibberish get the system's stated failing value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.errors import ChainError, ShapeError
from guerdon.rollouts import Rollouts
from guerdon.spans import Spans

Kind = Literal["reward", "return", "advantage"]
Reasons = dict[tuple[int, int], str]


@dataclass(frozen=True)
class Rewards:
    """One number per span.

    Attributes:
        values: [B, S] float32 or float64; NaN = the instrument failed.
        spans: where each value belongs; `spans.name` is the level ("sequence", "token", "steps", ...).
        reasons: {(row, span): text} for NaN cells (always) and for failing values where there is something to say.
        kind: what the numbers mean. "reward": summing over a row gives the row's reward. "return": already accumulated, the
            row's reward is the value at its first span. "advantage": centred, no row reward can be read off.
        paid: [B] the row's reward from before the values stopped saying it (centred, spread, a penalty taken off); NaN = could not
            be scored or does not apply. None = it is read off the values.
        applies: [B] bool, the rows it applies to, where the spans cannot say so: a completion of no tokens has no cell at token
            level, and its reward is a number. None = rows with a cell.
    """

    values: Tensor
    spans: Spans
    reasons: Reasons = field(default_factory=dict)
    kind: Kind = "reward"
    paid: Tensor | None = None
    applies: Tensor | None = None

    def __post_init__(self) -> None:
        if self.values.shape != self.spans.start.shape:
            raise ShapeError(
                f"rewards {tuple(self.values.shape)} do not fit spans {self.spans.name!r} {tuple(self.spans.start.shape)}"
            )
        if not self.values.is_floating_point():
            raise ShapeError(f"rewards must be floating point, got {self.values.dtype}")
        object.__setattr__(self, "spans", self.spans.to(self.values.device))  # a value and its span are read together
        for name in ("paid", "applies"):
            if (rows := getattr(self, name)) is not None and rows.device != self.values.device:
                object.__setattr__(self, name, rows.to(self.values.device))

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def level(self) -> str:
        return self.spans.name

    @property
    def mask(self) -> Tensor:
        """[B, S] bool: cells that apply (NaN cells included)."""
        return self.spans.mask

    @property
    def failed(self) -> Tensor:
        """[B, S] bool: cells that apply and that the instrument could not score."""
        return self.values.isnan() & self.mask

    @property
    def usable(self) -> Tensor:
        """[B, S] bool: cells with a number."""
        return self.mask & ~self.values.isnan()

    def filled(self) -> Tensor:
        """[B, S]: the values with 0 wherever there is no number, for sums. Never hand this out as a score."""
        return torch.where(self.usable, self.values, torch.zeros_like(self.values))

    def row_total(self) -> Tensor:
        """[B]: the row's reward under `kind`; NaN where any cell failed; 0 for a row without spans."""
        if self.kind == "advantage":
            raise ChainError("advantages have no row total; read the reward before the first centring link")
        failed = self.failed.any(1)
        if self.kind == "reward":
            total = self.filled().sum(1)
        else:
            first = self.mask.int().argmax(1, keepdim=True) if self.values.shape[1] else None
            total = self.values.new_zeros(len(self)) if first is None else self.filled().gather(1, first)[:, 0]
        return torch.where(failed, torch.full_like(total, float("nan")), total)

    def row_reward(self) -> Tensor:
        """[B]: the row's reward as a person means it: `paid`, else `row_total`; NaN where it failed and where nothing applies."""
        if self.paid is not None:
            return self.paid
        if self.kind == "advantage":
            return self.values.new_full((len(self),), float("nan"))
        return torch.where(self.row_applies, self.row_total(), float("nan"))

    @property
    def row_applies(self) -> Tensor:
        """[B] bool: rows in which it applies at all."""
        return self.mask.any(1) if self.applies is None else self.applies

    def remembering(self) -> Rewards:
        """The same, with the row's reward remembered: the values are about to stop saying it."""
        return self if self.paid is not None else replace(self, paid=self.row_reward())

    def with_values(self, values: Tensor, kind: Kind | None = None) -> Rewards:
        """Other values in the same cells. Where they become advantages, the row's reward is remembered."""
        before = self.remembering() if kind == "advantage" else self
        return replace(before, values=values, kind=kind or self.kind)

    def to(self, device: torch.device | str) -> Rewards:
        """The rewards on a device, spans with them; themselves where they are there already."""
        device = torch.device(device)
        spans = self.spans.to(device)
        if self.values.device == device and spans is self.spans:
            return self
        return replace(self, values=self.values.to(device), spans=spans)

    def select(self, rows: Tensor | Sequence[int]) -> Rewards:
        """Some rows, in the order given, reasons with them."""
        index = torch.as_tensor(rows, dtype=torch.long)
        reasons: Reasons = {}
        if self.reasons:
            by_row: dict[int, list[tuple[int, str]]] = {}
            for (row, span), text in self.reasons.items():
                by_row.setdefault(row, []).append((span, text))
            reasons = {
                (new, span): text for new, old in enumerate(index.tolist()) for span, text in by_row.get(old, [])
            }
        return replace(
            self,
            values=self.values[index.to(self.values.device)],
            spans=self.spans.select(index),
            reasons=reasons,
            paid=None if self.paid is None else self.paid[index.to(self.paid.device)],
            applies=None if self.applies is None else self.applies[index.to(self.applies.device)],
        )

    @staticmethod
    def sequence(
        values: Tensor | Sequence[float],
        rollouts: Rollouts,
        reasons: Sequence[str | None] | Mapping[int, str] | None = None,
    ) -> Rewards:
        """One value a row.

        Args:
            values: [B] floats; NaN = the instrument failed.
            rollouts: the batch the values belong to.
            reasons: B texts or None each, or {row: text}.
        """
        tensor = torch.as_tensor(values, dtype=torch.get_default_dtype()) if not isinstance(values, Tensor) else values
        if tensor.shape != (len(rollouts),):
            raise ShapeError(
                f"a sequence reward needs one value a row: got {tuple(tensor.shape)} for {len(rollouts)} rollouts"
            )
        if isinstance(reasons, Mapping):
            texts = {(row, 0): text for row, text in reasons.items()}
        else:
            texts = {(row, 0): text for row, text in enumerate(reasons or []) if text}
        return Rewards(tensor[:, None], Spans.sequence(rollouts.lengths.to(tensor.device)), texts)

    @staticmethod
    def tokens(values: Tensor, rollouts: Rollouts, kind: Kind = "reward") -> Rewards:
        """One value a token; `values`: [B, T]."""
        return Rewards(values, Spans.tokens(rollouts.mask), kind=kind)


def total_reward(sources: Sequence[Rewards], weights: Sequence[float] | None = None) -> Tensor:
    """[B]: sum_k w_k r_k over the sources that apply to a row; NaN where one of them failed, and where none applies.

    Args:
        sources: one or more, of the same B rows.
        weights: one each; None = 1.
    """
    total = torch.zeros_like(sources[0].row_reward())
    anywhere = torch.zeros_like(total, dtype=torch.bool)
    for rewards, weight in zip(sources, weights or [1.0] * len(sources), strict=True):
        applies = rewards.row_applies
        total = total + torch.where(applies, weight * rewards.row_reward(), 0.0).to(total)
        anywhere = anywhere | applies
    return torch.where(anywhere, total, float("nan"))


@dataclass(frozen=True)
class Scored:
    """What a signal may return in place of its rewards alone: with numbers for the log and texts for people to read.

    Attributes:
        rewards: one Rewards, or several by name.
        metrics: numbers of this batch, by the name they are logged under (costs, rates).
        texts: columns of B cells, by name (what a judge said of each row).
    """

    rewards: Rewards | Mapping[str, Rewards]
    metrics: dict[str, float] = field(default_factory=dict)
    texts: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """What stands at one point of a chain: the named sources, which rows are kept, and diagnostics.

    Attributes:
        sources: the live sources by name; links replace, fuse and drop them.
        keep: [B] bool; False rows leave group statistics AND loss denominators.
        raw: what the signals gave, untouched, for logs and reports.
        metrics: numbers for the log.
        reward: [B] the scalar the chain optimises, weights included; NaN = could not be scored, or nothing applies.
        notes: anything a person may want to look at later ("dropped": {row: text}, ...).
        state: next states of stateful links, by position in the chain; `System.commit` makes them current.
        logged: numbers that signals logged (`Scored.metrics`), by their own names.
        texts: columns of B cells that signals logged (`Scored.texts`).
    """

    sources: dict[str, Rewards]
    keep: Tensor
    raw: dict[str, Rewards] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    reward: Tensor | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    state: dict[int, Any] = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)
    texts: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.keep.shape[0]

    @staticmethod
    def empty(rollouts: Rollouts) -> Scores:
        assert rollouts.trainable is not None
        return Scores({}, rollouts.trainable.bool().clone())

    def __getitem__(self, name: str) -> Rewards:
        if name not in self.sources:
            raise ChainError(f"no source {name!r} at this point of the chain (have: {sorted(self.sources) or 'none'})")
        return self.sources[name]

    def with_source(self, name: str, rewards: Rewards, *, drop: Sequence[str] = ()) -> Scores:
        """Replace or add one source, dropping others."""
        left = {key: value for key, value in self.sources.items() if key not in drop and key != name}
        return replace(self, sources={**left, name: rewards})

    def to(self, device: torch.device | str) -> Scores:
        """The scores on a device; themselves where everything is there already.

        Sources, `raw`, `keep` and `reward` move; notes, metrics and states stay as they are.
        """
        device = torch.device(device)
        sources = {name: rewards.to(device) for name, rewards in self.sources.items()}
        raw = {name: rewards.to(device) for name, rewards in self.raw.items()}
        moved = any(sources[name] is not self.sources[name] for name in sources)
        moved = moved or any(raw[name] is not self.raw[name] for name in raw)
        reward = self.reward
        if not moved and self.keep.device == device and (reward is None or reward.device == device):
            return self
        reward = None if reward is None else reward.to(device)
        return replace(self, sources=sources, raw=raw, keep=self.keep.to(device), reward=reward)

    def with_metrics(self, **metrics: float) -> Scores:
        return replace(self, metrics={**self.metrics, **metrics})

    def dropping(self, rows: Tensor, why: str) -> Scores:
        """Clear `keep` for some rows. `rows`: [B] bool, True = drop."""
        rows, dropped = rows.to(self.keep.device), dict(self.notes.get("dropped", {}))
        for row in (rows & self.keep).nonzero()[:, 0].tolist():
            dropped[row] = why
        return replace(self, keep=self.keep & ~rows, notes={**self.notes, "dropped": dropped})

    @property
    def sole(self) -> str:
        """The name of the only live source; ChainError where there are several."""
        if len(self.sources) != 1:
            raise ChainError(
                f"this link needs to be told which source it works on: {sorted(self.sources) or 'none are live'}"
            )
        return next(iter(self.sources))

    @property
    def advantages(self) -> Tensor:
        """[B, T] float32: what the chain left at token level, 0 at padding and in rows that were dropped."""
        token = [name for name, rewards in self.sources.items() if rewards.level == "token"]
        if len(token) != 1:
            raise ChainError(
                f"advantages are the one token-level source at the end of a chain; here are {token or 'none'} (add ToTokens(), or fuse them)"
            )
        rewards = self.sources[token[0]]
        return torch.where(
            rewards.mask & self.keep.to(rewards.values.device)[:, None],
            rewards.values,
            torch.zeros_like(rewards.values),
        ).float()
