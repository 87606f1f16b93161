"""What every link shares: how it finds its source, and which cells may enter a statistic.

A link is a small frozen dataclass: configuration only. It is called with (Scores, Rollouts) and returns Scores; the maths is in
the pure functions beside it. Class attributes are the protocol of `guerdon.system`: `scope` (row, group or batch), `needs`
(what rollouts must carry), `centres` (what comes out are advantages), `accumulates` (over a
row's later cells: what comes before it stands at ends), `handles_failure`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from guerdon.errors import ChainError, nearest
from guerdon.labels import shown
from guerdon.options import check_fields, checked, fields_checked
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts

Levels = dict[str, str]
Singleton = Literal["zero", "raw", "drop"]
StdKind = Literal["sample", "population"]


class Shown:
    """A dataclass shown as it is written: the source or transform by position, settings by name where they are not the default.

    An option that is added later, with a default, changes no text that was written before.
    """

    def __repr__(self) -> str:
        return shown(self) if is_dataclass(self) else f"{type(self).__name__}()"  # a user's link need not be one

    __repr__.shows_changes = True  # type: ignore[attr-defined]


class LinkBase(Shown):
    """Defaults of the link protocol: a row-scope link that needs nothing, keeps levels as they are and does not centre.

    Options that are words are checked against their `Literal` before anything else (`guerdon.options`).
    """

    version: ClassVar[int] = 1  # raised when the same settings come to mean another computation: checkpoints compare it
    scope: ClassVar[Literal["row", "group", "batch"]] = "row"
    needs: ClassVar[frozenset[str]] = frozenset()
    centres: ClassVar[bool] = False
    accumulates: ClassVar[bool] = False
    handles_failure: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__post_init__" in vars(cls):
            cls.__post_init__ = fields_checked(cls.__post_init__)  # type: ignore[method-assign]
        if "__init__" in vars(cls):
            checked(cls)

    def __post_init__(self) -> None:
        check_fields(self)


def planned_name(name: str | None, levels: Mapping[str, str]) -> str:
    """The source a link will work on, from levels alone. `None` means "the only one there is"."""
    if name is None:
        if len(levels) != 1:
            raise ChainError(f"name the source to work on: {sorted(levels) or 'none are live'}")
        return next(iter(levels))
    if name not in levels:
        raise ChainError(
            f"no source {name!r} at this point of the chain{nearest(name, levels)} (have: {sorted(levels) or 'none'})"
        )
    return name


def require_level(name: str, levels: Mapping[str, str], level: str, why: str) -> None:
    """Raise ChainError unless `name` stands at `level`."""
    if levels[name] != level:
        raise ChainError(f"{name!r} is at {levels[name]!r} level, {why}")


def source_of(name: str | None, scores: Scores) -> str:
    """The source a link works on, at run time."""
    return scores.sole if name is None else name


def countable(scores: Scores, rewards: Rewards, rollouts: Rollouts) -> Tensor:
    """[B, S] bool: the cells that may enter a statistic.

    A cell counts when it applies, holds a finite number, its row is kept and, at token level, the policy sampled the token.
    """
    values = rewards.values
    cells = rewards.mask & torch.isfinite(values) & scores.keep.to(values.device)[:, None]
    if rewards.level == "token" and rollouts.policy_mask is not None and rollouts.policy_mask.shape == values.shape:
        cells = cells & rollouts.policy_mask.to(values.device)
    return cells


def row_totals(scores: Scores, rewards: Rewards) -> tuple[Tensor, Tensor]:
    """Row totals [B] and which of them may enter a statistic [B] bool (kept, finite, not wholly masked)."""
    totals = rewards.row_total()
    live = torch.isfinite(totals) & scores.keep.to(totals.device) & rewards.mask.any(1)
    return totals, live
