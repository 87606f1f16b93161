"""A policy with three behaviours, trained by REINFORCE on the advantages of a System: skip steps, be exact, or pad.

Skipping makes wrong answers, padding costs nothing but length. The policy is one softmax, the same for all prompts; everything else
(groups, the reward, the normalisation) is the library's own chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from guerdon.credit import Drop, Fuse, GroupNorm, ToTokens
from guerdon.credit.length import LengthReward
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Clock, Rollouts
from guerdon.system import System
from guerdon.systems.crm import crm

ACCURACY = torch.tensor([0.35, 0.95, 0.95], dtype=torch.float64)
LENGTH = torch.tensor([1, 4, 8])
CONCISENESS = torch.tensor([1.0, 0.7, 0.3], dtype=torch.float64)
START = (-1.0, 0.0, 1.0)  # logits of skip, exact, filler
NECESSARY = 4
GROUPS, SIZE, RATE, ALPHA = 16, 8, 0.3, 1.0


@dataclass(frozen=True)
class Column:
    """Signal: a data column of numbers."""

    name: str
    scope: ClassVar[str] = "row"
    level: ClassVar[str] = "sequence"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        return Rewards.sequence(torch.tensor(rollouts.column(self.name), dtype=torch.float64), rollouts)


def _crf(**options: object) -> Callable[[], System]:
    settings = {"alpha": ALPHA, "schedule": "constant", **options}
    return lambda: crm(verifier=Column("right"), crm=Column("conciseness"), **settings)  # type: ignore[arg-type]


def _outcome() -> System:
    return System(
        {"answer": Column("right")}, [GroupNorm("answer", eps=1e-6), ToTokens("answer", "whole")], name="outcome"
    )


def _length_only() -> System:
    chain = [
        LengthReward("kimi", "answer", "length"),
        Fuse("answer", "length", weights=(1.0, ALPHA), into="reward"),
        GroupNorm("reward", eps=1e-6),
        ToTokens("reward", "whole"),
    ]
    return System({"answer": Column("right")}, chain, name="length")


def _length_instead() -> System:
    chain = [
        LengthReward("cosine", "answer", "length", max_length=16),
        Drop("answer"),
        GroupNorm("length", eps=1e-6),
        ToTokens("length", "whole"),
    ]
    return System({"answer": Column("right")}, chain, name="cosine")


OUTCOME, CRF, ADDED = "outcome only", "CRF, alpha 1", "additive conciseness, alpha 1"
CRF_SMALL, ADDED_SMALL = "CRF, alpha 0.2", "additive, alpha 0.2"
CRF_DECAY, ADDED_DECAY = "CRF, alpha 1, s decaying", "additive, alpha 1, s decaying"
DECAYING = (CRF_SMALL, ADDED_SMALL, CRF_DECAY, ADDED_DECAY)
ARMS: dict[str, Callable[[], System]] = {
    OUTCOME: _outcome,
    CRF: _crf(),
    ADDED: _crf(form="added"),
    "length penalty (Kimi), factor 1": _length_only,
    "cosine length reward": _length_instead,
    CRF_SMALL: _crf(alpha=0.2),
    ADDED_SMALL: _crf(alpha=0.2, form="added"),
    CRF_DECAY: _crf(schedule="linear"),
    ADDED_DECAY: _crf(schedule="linear", form="added"),
}


@dataclass
class Trace:
    """Expected accuracy, length in steps and share that skips, before each update; of the policy itself, not of its samples."""

    accuracy: list[float] = field(default_factory=list)
    length: list[float] = field(default_factory=list)
    skips: list[float] = field(default_factory=list)

    def note(self, chances: Tensor) -> None:
        self.accuracy.append(float(chances @ ACCURACY))
        self.length.append(float(chances @ LENGTH.double()))
        self.skips.append(float(chances[0]))


def run_arm(arm: str, seed: int, updates: int = 300) -> Trace:
    """One training run: plain gradient ascent on mean A log pi."""
    generator = torch.Generator().manual_seed(seed)
    system, trace = ARMS[arm](), Trace()
    logits = torch.tensor(START, dtype=torch.float64)
    for step in range(updates):
        chances = logits.softmax(-1)
        trace.note(chances)
        chosen = torch.multinomial(chances, GROUPS * SIZE, replacement=True, generator=generator)
        right = torch.rand(len(chosen), generator=generator, dtype=torch.float64) < ACCURACY[chosen]
        scores = system(_rollouts(chosen, right, Clock(step, updates, True, seed)))
        advantages = scores.advantages[:, 0].double()
        gradient = torch.nn.functional.one_hot(chosen, 3).double() - chances
        logits = logits + RATE * (advantages[:, None] * gradient).mean(0)
    return trace


def _rollouts(chosen: Tensor, right: Tensor, clock: Clock) -> Rollouts:
    """A step is a token."""
    mask = torch.arange(int(LENGTH.max()))[None] < LENGTH[chosen][:, None]
    return Rollouts(
        ["sum"] * len(chosen),
        ["."] * len(chosen),
        completion_ids=mask.long(),
        completion_mask=mask,
        group_ids=torch.arange(len(chosen)) // SIZE,
        columns={"right": right.double().tolist(), "conciseness": CONCISENESS[chosen].tolist()},
        clock=clock,
    )
