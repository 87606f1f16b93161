"""Reward noise on purpose: a wrapper around any signal that makes a stated share of its rewards wrong, to test robustness.

    Noisy(Math(), 0.4)                                   # for 40 % of the questions every verdict is turned round
    Noisy(Math(), 0.35, only="high")                     # false negatives: of rewards in the upper half alone
    Noisy(RewardModel(path), 0.1, kind="normal", scale=0.5)
    guerdon.systems.pure(prm=path, verifier=Noisy(Math(), 0.2))   # inside any system that takes a signal

The unit matters. Noise per QUESTION turns a whole group round, which reverses its advantages; noise per rollout is averaged
away within the group and is the easier test. Draws are keyed by the run's seed, the step and the question, so a rank, a batch
size or a resumed run changes nothing.

Source: question-wise flipping is from "The Climb Carves Wisdom Deeper Than the Summit", arXiv 2505.22653; the other kinds are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.errors import ConfigError
from guerdon.options import checked
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Clock, Rollouts
from guerdon.signals.around import Around, Given, as_given, by_name, levels_of

Kind = Literal["flip", "uniform", "normal"]
Unit = Literal["question", "rollout"]
Only = Literal["any", "high", "low"]


def flip_scores(scores: Tensor, flipped: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """low + high - r where flipped, else r: 1 - s for a verdict in {0, 1}.

    Args:
        scores: [...]. flipped: [...] bool.
    """
    return torch.where(flipped, low + high - scores, scores)


def noise_draws(rollouts: Rollouts, name: str, unit: Unit = "question", *, persistent: bool = False) -> Tensor:
    """[B, 2] float64 in [0, 1): two uniform draws a row, the same for all rows of a question, or its own for each rollout.

    Args:
        rollouts: the batch; a question is a group and its prompt.
        name: of the noise; another name, other draws.
        unit: what shares a draw. Within a group rollouts are told apart by their order.
        persistent: the draw depends on the prompt and the seed alone, so a question is noisy always or never, as a wrong label is.
    """
    clock = Clock(seed=rollouts.clock.seed) if persistent else rollouts.clock
    known: dict[tuple[object, ...], Tensor] = {}
    seen: dict[tuple[object, ...], int] = {}
    rows = []
    for prompt, group in zip(rollouts.prompts, rollouts.groups.tolist(), strict=True):
        question = (str(prompt),) if persistent else (str(prompt), group)
        nth = seen[question] = seen.get(question, -1) + 1
        key = (*question, nth) if unit == "rollout" else question
        if key not in known:
            known[key] = torch.rand(2, generator=clock.generator("noise", name, *key), dtype=torch.float64)
        rows.append(known[key])
    return torch.stack(rows) if rows else torch.zeros(0, 2, dtype=torch.float64)


@checked
class Noisy(Around):
    """Signal: the inner one with a share of its rewards made wrong.

    signal: any signal. NaN (the instrument failed) and masked cells stay as they are.
    p: probability that a unit is hit; hit where p > u, u uniform in [0, 1), so 0 hits nothing and 1 everything.
    kind: "flip" = low + high - r; "uniform" = a draw from [low, high) instead of r, one for the unit; "normal" = r plus one draw
        of N(0, scale) for the unit.
    unit: "question" (all rollouts of a group together) or "rollout".
    only: "high" / "low" = rewards above / not above the middle of [low, high] alone: one-sided noise (false negatives /
        false positives).
    low, high: range of the inner rewards.
    spare: rollouts -> B flags, rows that are never hit (completions without an answer, say).
    persistent: a prompt is hit in every step or in none: a wrong label rather than a moody judge.
    training_only: leave evaluation batches and scored files (clock.training False) as they are.
    keep_clean: give {"score": noisy, "clean": as it was}, for logs; then leave "clean" out of the chain with `Drop`.
    name: keys the draws; two signals of one name are hit together.
    """

    def __init__(
        self,
        signal: Any,
        p: float,
        *,
        kind: Kind = "flip",
        unit: Unit = "question",
        only: Only = "any",
        low: float = 0.0,
        high: float = 1.0,
        scale: float = 1.0,
        spare: Callable[[Rollouts], Sequence[bool]] | None = None,
        persistent: bool = False,
        training_only: bool = False,
        keep_clean: bool = False,
        name: str = "noise",
    ) -> None:
        if not 0 <= p <= 1 or not high > low or scale < 0:
            raise ConfigError(f"p={p} must be in [0, 1], low={low} below high={high}, scale={scale} not negative")
        for option, value, allowed in (
            ("kind", kind, ("flip", "uniform", "normal")),
            ("unit", unit, ("question", "rollout")),
            ("only", only, ("any", "high", "low")),
        ):
            if value not in allowed:
                raise ConfigError(f"{option}={value!r}: use one of {allowed}")
        levels = levels_of(signal)
        if keep_clean and set(levels) != {""}:
            raise ConfigError(f"keep_clean takes a signal with one reward, {signal!r} gives {sorted(levels)}")
        self.signal, self.p, self.kind, self.unit, self.only = signal, p, kind, unit, only
        self.low, self.high, self.scale = low, high, scale
        self.spare, self.persistent, self.training_only = spare, persistent, training_only
        self.keep_clean, self.name = keep_clean, name
        if keep_clean:
            self.level = {"score": levels[""], "clean": levels[""]}

    def __repr__(self) -> str:
        more = f", kind={self.kind!r}" if self.kind != "flip" else ""
        more += f", only={self.only!r}" if self.only != "any" else ""
        more += ", persistent=True" if self.persistent else ""
        more += ", training_only=True" if self.training_only else ""
        return f"Noisy({self.signal!r}, {self.p!r}, unit={self.unit!r}{more})"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Given:
        answer = self.signal(rollouts, scores)
        given = by_name(answer)
        if self.training_only and not rollouts.clock.training:
            return {"score": given[""], "clean": given[""]} if self.keep_clean else answer
        draws = noise_draws(rollouts, self.name, self.unit, persistent=self.persistent)
        hit = self.p > draws[:, 0]
        if self.spare is not None:
            hit &= ~torch.tensor([bool(flag) for flag in self.spare(rollouts)], dtype=torch.bool)
        noisy = {name: self._disturbed(rewards, hit, draws[:, 1]) for name, rewards in given.items()}
        return {"score": noisy[""], "clean": given[""]} if self.keep_clean else as_given(noisy, answer)

    def _disturbed(self, rewards: Rewards, hit: Tensor, draw: Tensor) -> Rewards:
        values = rewards.values
        rows, u = hit.to(values.device)[:, None], draw.to(values)[:, None]
        middle = (self.low + self.high) / 2
        side = {"any": torch.ones_like(rewards.mask), "high": values > middle, "low": values <= middle}[self.only]
        cells = rows & side & rewards.usable
        if self.kind == "flip":
            changed = flip_scores(values, cells, self.low, self.high)
        elif self.kind == "uniform":
            changed = torch.where(cells, self.low + (self.high - self.low) * u, values)
        else:
            # The quantile of the draw, kept away from 0 and 1, where it is infinite.
            deviate = torch.special.ndtri(u.double().clamp(1e-12, 1 - 1e-12)).to(values)
            changed = torch.where(cells, values + self.scale * deviate, values)
        reasons = {(row, span): f"noise: {self.kind}" for row, span in cells.nonzero().tolist()}
        return replace(rewards, values=changed, reasons={**rewards.reasons, **reasons})
