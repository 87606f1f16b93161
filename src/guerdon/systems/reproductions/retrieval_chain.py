"""A world of retrieval hops: queries and an answer, one action a turn, so that thousands of rollouts cost milliseconds.

Three hops lead to the answer. In each state one of six queries finds the next hop, the others find nothing; answering ends the rollout
and is right with the probability that stands for what the policy knows by then. What is left out: language, retrieval that errs,
questions that differ. `guerdon.tasks.search` has those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Clock, Rollouts
from guerdon.signals.likelihood.information_gain import information_gains
from guerdon.spans import Spans
from guerdon.system import System
from guerdon.systems.reproductions.step_chain import TabularPolicy, chosen_logprobs, sample, to_rollouts
from guerdon.systems.reproductions.teaching import teaching_groups


@dataclass(frozen=True)
class Hops:
    """Queries 0 to 5 and (a)nswer. Query h finds hop h + 1 where h hops are found, and nothing elsewhere.

    actions, cap: as in `step_chain.StepTask`. confidences: of a right answer after 0, 1, 2, 3 hops.
    """

    actions: str = "012345a"
    cap: int = 6
    confidences: tuple[float, ...] = (0.02, 0.08, 0.3, 0.9)

    @property
    def states(self) -> int:
        """The hops found, 0..3."""
        return len(self.confidences)

    @property
    def answer(self) -> int:
        return len(self.actions) - 1

    def states_before(self, actions: Tensor) -> Tensor:
        """[B, T] hops found when each action was taken."""
        found, states = torch.zeros_like(actions[:, 0]), []
        for column in actions.T:
            states.append(found)
            found = found + ((column == found) & (found < self.states - 1)).long()
        return torch.stack(states, 1)

    def ends(self, actions: Tensor) -> Tensor:
        return actions == self.answer

    def step_scores(self, actions: Tensor) -> Tensor:
        """The confidence in each state: what a step of this world is worth is a difference of these."""
        return torch.tensor(self.confidences)[self.states_before(actions)]

    def success(self, actions: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError("an answer of this world is right by chance: see `answered_right`")


def as_turns(rollouts: Rollouts) -> Rollouts:
    """One turn a token (runs of sampled tokens would be one single turn, since there is no tool output between them)."""
    return rollouts.with_spans(turns=rollouts.segment("steps").renamed("turns"))


def paid_turns(turns: Spans) -> Spans:
    """The turns that another one follows."""
    return replace(turns, mask=turns.mask & torch.nn.functional.pad(turns.mask[:, 1:], (0, 1)))


@dataclass(frozen=True)
class KnownGain:
    """Signal: gains of the world's own confidences, one for every turn but the last."""

    world: Hops
    scope: ClassVar[str] = "row"
    level: ClassVar[str] = "turns"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        assert rollouts.completion_ids is not None
        paid = paid_turns(rollouts.segment("turns"))
        gains = information_gains(self.world.step_scores(rollouts.completion_ids))
        gains = torch.nn.functional.pad(gains, (0, 1))[:, : paid.mask.shape[1]]
        return Rewards(torch.where(paid.mask, gains, 0.0), paid)


@dataclass(frozen=True)
class Outcome:
    """Signal: the column "right", 1 or 0."""

    scope: ClassVar[str] = "row"
    level: ClassVar[str] = "sequence"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        return Rewards.sequence(torch.tensor([float(x) for x in rollouts.column("right")]), rollouts)


class Trace(NamedTuple):
    """One run, update by update.

    success: probability of a right answer, mean over rollouts. taught: whether any advantage was not zero. meant: whether the group's
    outcomes differed, or its gains by more than noise (`teaching_groups`).
    """

    success: list[float]
    taught: list[bool]
    meant: list[bool]

    def final(self, last: int = 20) -> float:
        """Mean success of the last updates."""
        return sum(self.success[-last:]) / len(self.success[-last:])

    def share_taught(self, first: int = 20) -> float:
        """Share of the first groups that had an advantage to learn from."""
        return sum(self.taught[:first]) / len(self.taught[:first])

    def share_meant(self, first: int = 20) -> float:
        """Share of the first groups whose rewards differed by more than noise."""
        return sum(self.meant[:first]) / len(self.meant[:first])


@dataclass(frozen=True)
class Setting:
    """updates of one group of `group` rollouts each; Adam with `lr`."""

    updates: int = 150
    group: int = 8
    lr: float = 0.1
    world: Hops = field(default_factory=Hops)


Believed = Callable[[Tensor, Tensor], Tensor]


def known_belief(world: Hops) -> Believed:
    """What a rollout's answer is worth: the confidence in the state it was given in; 0 where there is no answer."""

    def believed(actions: Tensor, mask: Tensor) -> Tensor:
        answered = world.ends(actions) & mask
        return (world.step_scores(actions) * answered).sum(1)

    return believed


def train(system: System, setting: Setting, seed: int, believed: Believed | None = None, extra: Any = None) -> Trace:
    """The policy gradient of GRPO on one group an update: token mean of each rollout, then the mean over rollouts.

    Args:
        system: igpo or an ablation of it.
        setting: the budget.
        seed: of sampling, answers' luck included. The start is uniform.
        believed: probability that a rollout's answer is right; None = `known_belief`.
        extra: (rollouts) -> rollouts, what a signal needs beside turns and "right".
    """
    world = setting.world
    believed = believed or known_belief(world)
    generator = torch.Generator().manual_seed(seed)
    policy = TabularPolicy(world, [0.0] * len(world.actions))
    optimizer = torch.optim.Adam(policy.parameters(), lr=setting.lr)
    trace = Trace([], [], [])
    for step in range(setting.updates):
        episodes = sample(policy, world, setting.group, generator)
        chance = believed(episodes.actions, episodes.mask)
        right = torch.rand(setting.group, generator=generator) < chance
        rollouts = as_turns(to_rollouts(episodes, world, setting.group, Clock(step, setting.updates, True, seed)))
        rollouts = replace(rollouts, columns={**rollouts.columns, "right": right.tolist()})
        scores = system(extra(rollouts) if extra else rollouts)
        advantages = scores.advantages
        logprobs = chosen_logprobs(policy, episodes.actions)
        loss = -((logprobs * advantages).sum(1) / episodes.mask.sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trace.success.append(float(chance.mean()))
        trace.taught.append(bool(advantages.any()))
        trace.meant.extend(teaching_groups(scores, rollouts.groups))
    return trace
