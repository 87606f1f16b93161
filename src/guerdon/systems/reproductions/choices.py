"""A world of questions with a few possible completions each, and a softmax over them: what a reward design makes a policy choose.

The completions are real texts, scored by the real signals through the real system; only the policy is a table. What is left out:
language, and anything learned from one question for another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Clock, Rollouts
from guerdon.system import System


@dataclass(frozen=True)
class Choices:
    """Q questions with K completions each.

    Attributes:
        prompts: Q texts.
        texts: Q lists of K completions.
        quality: [Q, K] float64, what is truly wanted of each; never seen by a reward unless a signal is given it.
        lengths: [Q, K] int64 tokens; None = one each.
        finished: [Q, K] bool; None = all ended by themselves.
        columns: data columns, Q values each.
    """

    prompts: Sequence[str]
    texts: Sequence[Sequence[str]]
    quality: Tensor
    lengths: Tensor | None = None
    finished: Tensor | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def rollouts(self, questions: Tensor, chosen: Tensor, clock: Clock) -> Rollouts:
        """Rollouts of `questions` [N], each a group, with the completions `chosen` [N, G]."""
        rows, picks = questions.repeat_interleave(chosen.shape[1]), chosen.flatten()
        pairs = list(zip(rows.tolist(), picks.tolist(), strict=True))
        lengths = torch.ones(len(rows), dtype=torch.long) if self.lengths is None else self.lengths[rows, picks]
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        return Rollouts(
            [self.prompts[q] for q, _ in pairs],
            [self.texts[q][k] for q, k in pairs],
            completion_ids=mask.long(),
            completion_mask=mask,
            finished=torch.ones(len(rows), dtype=torch.bool) if self.finished is None else self.finished[rows, picks],
            group_ids=torch.arange(len(questions)).repeat_interleave(chosen.shape[1]),
            columns={name: [column[q] for q, _ in pairs] for name, column in self.columns.items()},
            clock=clock,
        )


class Remembered:
    """Signal: one that reads texts alone, asked once about each (prompt, completion); a world of few texts is sampled many times.

    signal: of row scope, one number a completion, without chance or state.
    """

    scope: ClassVar[str] = "row"
    level: ClassVar[str] = "sequence"

    def __init__(self, signal: Any) -> None:
        self.signal = signal
        self._known: dict[tuple[str, str], tuple[float, str | None]] = {}

    def __repr__(self) -> str:
        return repr(self.signal)

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        texts = [(str(prompt), text) for prompt, text in zip(rollouts.prompts, rollouts.completions, strict=True)]
        new = list({text: row for row, text in enumerate(texts) if text not in self._known}.values())
        if new:
            found = self.signal(rollouts.select(new), scores)
            for place, row in enumerate(new):
                self._known[texts[row]] = float(found.values[place, 0]), found.reasons.get((place, 0))
        values, reasons = zip(*(self._known[text] for text in texts), strict=True) if texts else ((), ())
        return Rewards.sequence(torch.tensor(values, dtype=torch.float64), rollouts, list(reasons))


class Learned(NamedTuple):
    """policy: [Q, K] probabilities at the end. curve: at the stated updates, the policy's expected quality [Q] each."""

    policy: Tensor
    curve: list[Tensor]
    updates: list[int]

    def quality(self, questions: Sequence[int] | slice = slice(None)) -> float:
        """Expected quality at the end over some questions."""
        return float(self.curve[-1][questions].mean())

    def gain(self) -> float:
        """Expected quality at the end minus at the start, over all questions."""
        return float(self.curve[-1].mean() - self.curve[0].mean())


def learn(
    system: System,
    world: Choices,
    *,
    seed: int,
    updates: int,
    group: int = 8,
    lr: float = 0.5,
    batch: int | None = None,
    start: Tensor | None = None,
    points: int = 50,
) -> Learned:
    """REINFORCE on the system's advantages: logits of a question move by lr * mean over its group of A (onehot - policy).

    Args:
        batch: questions an update, in turn; None = all of them.
        start: [Q, K] logits; None = 0.
        points: how many points of the curve are kept.
    """
    generator = torch.Generator().manual_seed(seed)
    number, options = world.quality.shape
    logits = torch.zeros(number, options, dtype=torch.float64) if start is None else start.double().clone()
    order = torch.randperm(number, generator=generator)
    size = number if batch is None else min(batch, number)
    curve, seen = [(logits.softmax(1) * world.quality).sum(1)], [0]
    for step in range(updates):
        questions = order[torch.arange(step * size, (step + 1) * size) % number]
        policy = logits[questions].softmax(1)
        chosen = torch.multinomial(policy, group, replacement=True, generator=generator)
        scores = system(world.rollouts(questions, chosen, Clock(step, updates, True, seed)))
        system.commit(scores)
        advantages = scores.advantages[:, 0].double().view(size, group)
        moved = torch.zeros_like(policy).scatter_add_(1, chosen, advantages) - advantages.sum(1, keepdim=True) * policy
        logits[questions] += lr * moved / group
        if (step + 1) % max(1, updates // points) == 0 or step + 1 == updates:
            curve.append((logits.softmax(1) * world.quality).sum(1))
            seen.append(step + 1)
    return Learned(logits.softmax(1), curve, seen)
