"""Signals around signals: which rows a signal is asked about, which part of a text it reads, what a cut completion gets.

    Route({"rule": Math(), "model": RewardModel(path)}, by="verifiable", names={True: "rule", False: "model"})
    FailTruncated(Math())                     # a completion cut at the length cap scores 0, whatever stands in it
    OnText(RewardModel(path, retokenize=True), last_tag)     # the reward model reads the answer, not the reasoning

A signal is called with the rows that concern it and no others, so a model is not paid for rows a rule decides. Rows it was not
asked about are masked: they do not apply, which is neither 0 nor NaN, and `Fuse` adds nothing for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from guerdon.errors import ConfigError, DataError
from guerdon.parts import declared_asked
from guerdon.rewards import Rewards, Scored, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.held import Held, held_by
from guerdon.spans import Spans
from guerdon.system import SCOPES, Scope, needs_of, scope_of

Given = Rewards | Mapping[str, Rewards] | Scored
_HANDED_ON = (
    "to",
    "held",
    "writes",
    "scope",
    "needs",
    "level",
    "roles",
    "bind",
    "asked",
    "relative",
    "owns_get_reward",
    "state_dict",
    "load_state_dict",
    "update",
    "update_at",
)


def levels_of(signal: Any) -> dict[str, str]:
    """{sub-reward: level} of a signal; a signal that gives one reward has the sub-reward ""."""
    declared = getattr(signal, "level", "sequence")
    return {"": declared} if isinstance(declared, str) else dict(declared)


def by_name(given: Given) -> dict[str, Rewards]:
    """What a signal gave as {sub-reward: Rewards}; "" for a single one. What it logged is left out: see `as_given`."""
    rewards = given.rewards if isinstance(given, Scored) else given
    return {"": rewards} if isinstance(rewards, Rewards) else dict(rewards)


def as_given(named: dict[str, Rewards], of: Given | None = None) -> Given:
    """The inverse of `by_name`. `of`: what the inner signal gave, whose log is kept."""
    rewards = named[""] if set(named) == {""} else named
    return replace(of, rewards=rewards) if isinstance(of, Scored) else rewards


class Around:
    """A signal around another one; what the System and an engine read from a signal is handed on from the inner one."""

    signal: Any

    def __getattr__(self, name: str) -> Any:
        if name not in _HANDED_ON or "signal" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.signal, name)


# --- some rows of a batch ----------------------------------------------------------------------------------------------


def select_scores(scores: Scores, rows: Tensor) -> Scores:
    """The scores so far of some rows [N] int64, for a signal that is called with those rows."""
    return replace(
        scores,
        sources={name: rewards.select(rows) for name, rewards in scores.sources.items()},
        raw={name: rewards.select(rows) for name, rewards in scores.raw.items()},
        keep=scores.keep[rows.to(scores.keep.device)],
        reward=None if scores.reward is None else scores.reward[rows.to(scores.reward.device)],
    )


def score_rows(signal: Any, rollouts: Rollouts, scores: Scores, rows: Tensor) -> Given:
    """Call a signal with some rows and spread what it gives over the batch; the other rows are masked.

    Args:
        rows: [B] bool. Where none is chosen the signal is not called at all.
    """
    index = rows.nonzero()[:, 0].cpu()
    if len(index) == len(rollouts):
        return signal(rollouts, scores)
    if not len(index):
        return as_given({name: _nothing(level, rollouts) for name, level in levels_of(signal).items()})
    given = signal(rollouts.select(index), select_scores(scores, index))
    if isinstance(given, Scored):
        places = {row: n for n, row in enumerate(index.tolist())}
        here = [places.get(row) for row in range(len(rollouts))]
        texts = {name: [None if n is None else cells[n] for n in here] for name, cells in given.texts.items()}
        given = replace(given, texts=texts)
    return as_given({name: spread(rewards, index, rollouts) for name, rewards in by_name(given).items()}, given)


def spread(rewards: Rewards, index: Tensor, rollouts: Rollouts) -> Rewards:
    """Rewards of the rows `index` [N] as rewards of the whole batch [B], masked in the other rows."""
    device = rewards.values.device
    rows = index.to(device)
    width = rewards.values.shape[1]
    values = rewards.values.new_zeros(len(rollouts), width)
    values[rows] = rewards.values
    mask = torch.zeros(len(rollouts), width, dtype=torch.bool, device=device)
    mask[rows] = rewards.mask
    home = _home(rewards.level, rollouts, width, device)
    if home is None:
        start, end = torch.zeros_like(mask, dtype=torch.long), torch.full_like(mask, -1, dtype=torch.long)
        start[rows], end[rows] = rewards.spans.start.to(device), rewards.spans.end.to(device)
        home = replace(rewards.spans, start=start, end=end)
    places = index.tolist()
    reasons = {(places[row], span): text for (row, span), text in rewards.reasons.items()}
    return Rewards(values, replace(home, mask=mask), reasons, rewards.kind)


def _home(level: str, rollouts: Rollouts, width: int, device: torch.device) -> Spans | None:
    """The spans all rows of a level have, so that sources that cover different rows still fuse cell by cell."""
    if level == "sequence":
        return Spans.sequence(rollouts.lengths.to(device))
    spans = Spans.tokens(rollouts.mask) if level == "token" else rollouts.spans.get(level)
    if spans is None or spans.start.shape[1] != width:
        return None
    return replace(spans, start=spans.start.to(device), end=spans.end.to(device), mask=spans.mask.to(device))


def _nothing(level: str, rollouts: Rollouts) -> Rewards:
    """A reward that applies nowhere."""
    width = {"sequence": 1, "token": rollouts.mask.shape[1]}.get(level)
    width = rollouts.segment(level).start.shape[1] if width is None else width
    spans = _home(level, rollouts, width, rollouts.mask.device)
    assert spans is not None
    return Rewards(torch.zeros(spans.start.shape, device=spans.start.device), replace(spans, mask=spans.mask & False))


def joined_cells(first: list[Any] | None, second: list[Any]) -> list[Any]:
    """Two columns of one name that hold different rows, the other cells None."""
    return second if first is None else [b if a is None else a for a, b in zip(first, second, strict=True)]


# --- the signals -------------------------------------------------------------------------------------------------------


class Route:
    """Signal: each question to the signal that can score it; `<name>.<route>` for every route, masked where not asked.

    routes: signals by route.
    by: data column that holds each row's route, or a function Rollouts -> B routes. The route belongs to the QUESTION:
        rows of one group on different routes are refused, because their rewards would be compared with each other.
    names: what a cell of `by` means, {cell: route}; None = the cells are the routes.

    A row without a known route is NaN with a reason in the first route: the data's fault.
    """

    def __init__(
        self,
        routes: Mapping[str, Any],
        *,
        by: str | Callable[[Rollouts], Sequence[Any]],
        names: Mapping[Any, str] | None = None,
    ) -> None:
        unknown = set((names or {}).values()) - set(routes)
        if not routes or unknown:
            raise ConfigError(f"Route: names lead to {sorted(unknown) or 'nothing'}; the routes are {sorted(routes)}")
        learning = [name for name, signal in routes.items() if getattr(signal, "update_at", None)]
        if learning:
            raise ConfigError(
                f"Route: {learning} learn online and would be updated with rows they were not asked about"
            )
        self.routes, self.by = dict(routes), by
        self.names = {name: name for name in routes} if names is None else dict(names)
        self.scope: Scope = max((scope_of(signal) for signal in routes.values()), key=SCOPES.index)
        self.needs = frozenset().union(*(needs_of(signal) for signal in routes.values()))
        said = {declared_asked(signal) for signal in routes.values()}
        self.asked = next((asked for asked in ("once", "rows", "everywhere") if asked in said), None)
        self.relative = any(getattr(signal, "relative", False) for signal in routes.values())
        self.roles = tuple(dict.fromkeys(r for signal in routes.values() for r in getattr(signal, "roles", ())))
        self.level = {
            f"{route}.{sub}".rstrip("."): level
            for route, signal in routes.items()
            for sub, level in levels_of(signal).items()
        }

    def __repr__(self) -> str:
        routes = ", ".join(f"{name}={signal!r}" for name, signal in self.routes.items())
        return (
            f"Route({routes}, by={self.by if isinstance(self.by, str) else getattr(self.by, '__name__', 'function')!r})"
        )

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Given:
        chosen = self.choose(rollouts)
        found: dict[str, Rewards] = {}
        metrics: dict[str, float] = {}
        texts: dict[str, list[Any]] = {}
        for route, signal in self.routes.items():
            rows = torch.tensor([name == route for name in chosen], dtype=torch.bool)
            given = score_rows(signal, rollouts, scores, rows)
            found |= {f"{route}.{sub}".rstrip("."): rewards for sub, rewards in by_name(given).items()}
            if isinstance(given, Scored):
                metrics |= given.metrics
                texts |= {name: joined_cells(texts.get(name), cells) for name, cells in given.texts.items()}
        lost = [row for row, name in enumerate(chosen) if name is None]
        if lost:
            first = next(iter(found))
            found[first] = self._without_route(found[first], lost, rollouts)
        return Scored(found, metrics, texts) if metrics or texts else found

    def choose(self, rollouts: Rollouts) -> list[str | None]:
        """Each row's route, None where the data do not say. Raises DataError where a group is on several routes."""
        cells = self.by(rollouts) if callable(self.by) else rollouts.column(self.by)
        chosen = [self.names.get(cell) for cell in cells]
        seen: dict[int, str | None] = {}
        for row, (group, route) in enumerate(zip(rollouts.groups.tolist(), chosen, strict=True)):
            if seen.setdefault(group, route) != route:
                raise DataError(
                    f"row {row}: its group is on the routes {seen[group]!r} and {route!r}; a route belongs to the question (column {self.by!r})"
                )
        return chosen

    def _without_route(self, rewards: Rewards, lost: list[int], rollouts: Rollouts) -> Rewards:
        cells = self.by(rollouts) if callable(self.by) else rollouts.column(self.by)
        values, mask = rewards.values.clone(), rewards.mask.clone()
        values[lost, 0], mask[lost, 0] = float("nan"), True
        reasons = {(row, 0): f"no route for {cells[row]!r} (known: {sorted(map(str, self.names))})" for row in lost}
        return replace(
            rewards, values=values, spans=replace(rewards.spans, mask=mask), reasons={**rewards.reasons, **reasons}
        )

    def held(self) -> list[Held]:
        """The models of all routes."""
        return [model for signal in self.routes.values() for model in held_by(signal)]

    def to(self, device: Any, dtype: Any = None) -> None:
        """Place the models of the routes that have some."""
        for signal in self.routes.values():
            if callable(getattr(signal, "to", None)):
                signal.to(device, dtype)

    @property
    def writes(self) -> tuple[str, ...]:
        """Roles whose models a route changes."""
        return tuple(dict.fromkeys(role for signal in self.routes.values() for role in getattr(signal, "writes", ())))

    def bind(self, role: str, instrument: Any) -> None:
        """Hand a model to the routes that ask for the role."""
        for signal in self.routes.values():
            if role in getattr(signal, "roles", ()):
                signal.bind(role, instrument)

    def state_dict(self) -> dict[str, Any]:
        return {name: signal.state_dict() for name, signal in self.routes.items() if hasattr(signal, "state_dict")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, inner in state.items():
            self.routes[name].load_state_dict(inner)


class Diagnostic(Around):
    """Signal: the inner one, for the log only: no link sees it, it is no part of the reward and drops no row.

    signal: anything. Later signals may still read its scores.
    """

    diagnostic = True

    def __init__(self, signal: Any) -> None:
        self.signal = signal

    def __repr__(self) -> str:
        return f"Diagnostic({self.signal!r})"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Given:
        return self.signal(rollouts, scores)


class FailTruncated(Around):
    """Signal: the inner one, but a completion cut at the length cap gets a stated value; a row signal is not asked about it.

    signal: of sequence level.
    value: what a cut completion gets; {sub-reward: value} for a signal with several, those not named are then masked.

    Where the rollouts do not say which completions finished, nothing is changed.
    """

    def __init__(self, signal: Any, value: float | Mapping[str, float] = 0.0) -> None:
        levels = levels_of(signal)
        if set(levels.values()) != {"sequence"}:
            raise ConfigError(f"FailTruncated takes sequence rewards, {signal!r} gives {levels}")
        if isinstance(value, Mapping) and set(value) - set(levels):
            raise ConfigError(
                f"FailTruncated: value names {sorted(set(value) - set(levels))}, {signal!r} gives {sorted(levels)}"
            )
        self.signal, self.value = signal, value

    def __repr__(self) -> str:
        return f"FailTruncated({self.signal!r}, {self.value!r})"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Given:
        if rollouts.finished is None or bool(rollouts.finished.all()):
            return self.signal(rollouts, scores)
        whole = rollouts.finished.bool().cpu()
        if scope_of(self.signal) == "row":
            given = score_rows(self.signal, rollouts, scores, whole)
        else:
            given = self.signal(rollouts, scores)
        return as_given({name: self._failed(name, rewards, ~whole) for name, rewards in by_name(given).items()}, given)

    def _failed(self, name: str, rewards: Rewards, cut: Tensor) -> Rewards:
        value = self.value.get(name) if isinstance(self.value, Mapping) else self.value
        rows = cut.to(rewards.values.device)[:, None]
        spans = replace(rewards.spans, mask=rewards.mask & ~rows if value is None else rewards.mask | rows)
        values = torch.where(rows, torch.full_like(rewards.values, value or 0.0), rewards.values)
        reasons = {cell: text for cell, text in rewards.reasons.items() if not cut[cell[0]]}
        if value is not None:
            reasons |= {(row, 0): "cut at the length cap" for row in cut.nonzero()[:, 0].tolist()}
        return Rewards(values, spans, reasons, rewards.kind)


class OnText(Around):
    """Signal: the inner one on a part of each completion; a completion without that part gets a stated value.

    signal: of row scope and sequence level, that reads texts (a reward model: `retokenize=True`): there are no tokens here.
    part: completion -> text, or None where the policy wrote none (`extraction.last_tag`, ...).
    missing: the value of a completion without it. The inner signal is not asked about those.
    """

    def __init__(self, signal: Any, part: Callable[[str], str | None], missing: float = 0.0) -> None:
        if scope_of(signal) != "row" or set(levels_of(signal).values()) != {"sequence"}:
            raise ConfigError(f"OnText takes a signal of row scope that gives sequence rewards, not {signal!r}")
        self.signal, self.part, self.missing = signal, part, missing

    def __repr__(self) -> str:
        return f"OnText({self.signal!r}, {getattr(self.part, '__name__', 'function')}, missing={self.missing!r})"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Given:
        parts = [self.part(text) for text in rollouts.last_turns]
        texts = Rollouts(
            rollouts.prompts,
            [part or "" for part in parts],
            finished=rollouts.finished,
            group_ids=rollouts.group_ids,
            sample_ids=rollouts.sample_ids,
            trainable=rollouts.trainable,
            columns=rollouts.columns,
            clock=rollouts.clock,
        )
        there = torch.tensor([part is not None for part in parts], dtype=torch.bool)
        given = score_rows(self.signal, texts, scores, there)
        placed = {name: self._placed(rewards, ~there, rollouts) for name, rewards in by_name(given).items()}
        return as_given(placed, given)

    def _placed(self, rewards: Rewards, absent: Tensor, rollouts: Rollouts) -> Rewards:
        """Back on the completion's own tokens, with the stated value where the part is missing."""
        rows = absent.to(rewards.values.device)[:, None]
        spans = Spans.sequence(rollouts.lengths.to(rewards.values.device))
        values = torch.where(rows, torch.full_like(rewards.values, self.missing), rewards.values)
        reasons = {(row, 0): "the part that is scored is missing" for row in absent.nonzero()[:, 0].tolist()}
        return Rewards(values, replace(spans, mask=rewards.mask | rows), {**rewards.reasons, **reasons}, rewards.kind)
