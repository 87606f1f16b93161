"""A world of reasoning steps: episodes are sequences of step kinds, a scripted process reward model scores each step.

One step is one token, so a policy is a softmax over step kinds and thousands of episodes cost milliseconds. What makes
process rewards hackable is there: filler steps that score well, lead nowhere and can be repeated up to a cap. What is left
out: language, a reward model that can be wrong at random, prompts that differ.

A task is a set of pure functions of the action ids, so the scripted reward model and the verifier read the finished
rollouts, as real ones do, not the simulator's memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Clock, LogProbs, Rollouts
from guerdon.spans import Spans
from guerdon.system import System


class StepTask(Protocol):
    """actions: one letter each, action id = position. cap: most steps an episode may have. states: what a policy may tell apart.

    states_before(actions [B, T]) -> [B, T], the state in which each action was taken, in 0..states-1;
    ends(actions) -> bool, same shape: this action closes the episode;
    step_scores(actions [B, T]) -> [B, T] float, the scripted reward model;
    success(actions [B, T], mask [B, T]) -> [B] bool, the verifier.
    """

    @property
    def actions(self) -> str: ...

    @property
    def cap(self) -> int: ...

    @property
    def states(self) -> int: ...

    def states_before(self, actions: Tensor) -> Tensor: ...

    def ends(self, actions: Tensor) -> Tensor: ...

    def step_scores(self, actions: Tensor) -> Tensor: ...

    def success(self, actions: Tensor, mask: Tensor) -> Tensor: ...


def last_action(actions: Tensor, mask: Tensor) -> Tensor:
    """[B] int64: the last valid action of each row, -1 for an empty row."""
    count = mask.sum(1)
    last = actions.gather(1, (count - 1).clamp(min=0)[:, None])[:, 0]
    return torch.where(count > 0, last, -1)


@dataclass(frozen=True)
class FillerOrAnswer:
    """(f)iller, (r)ight answer, (w)rong answer. An answer ends the episode; a policy cannot tell one step from another.

    The reward model likes filler somewhat less than a right answer, which is all it takes for a SUM of scores to prefer
    twelve fillers (12 x 0.5) to the answer (0.8).
    """

    actions: str = "frw"
    cap: int = 12
    states: int = 1
    scores: tuple[float, float, float] = (0.5, 0.8, -0.8)

    def states_before(self, actions: Tensor) -> Tensor:
        return torch.zeros_like(actions)

    def ends(self, actions: Tensor) -> Tensor:
        return actions > 0

    def step_scores(self, actions: Tensor) -> Tensor:
        return torch.tensor(self.scores)[actions]

    def success(self, actions: Tensor, mask: Tensor) -> Tensor:
        return last_action(actions, mask) == 1


@dataclass(frozen=True)
class UsefulSteps:
    """(u)seful step, (f)iller, (a)nswer. An answer is right once enough useful steps were made; it ends the episode.

    The reward model gives `good` to everything that is not wrong, filler included, and `bad` to an answer that comes too early.
    slips: there is a fourth action, a (w)rong step; it scores `bad`, and no later answer is right.
    """

    slips: bool = False
    cap: int = 12
    needed: int = 3
    good: float = 0.95
    bad: float = 0.1

    @property
    def actions(self) -> str:
        return "ufaw" if self.slips else "ufa"

    @property
    def states(self) -> int:
        """The number of useful steps made so far, 0..needed; and, with slips, a spoilt state of its own."""
        return self.needed + 1 + self.slips

    def states_before(self, actions: Tensor) -> Tensor:
        useful, wrong = (actions == 0).long(), (actions == 3).long()
        made = (useful.cumsum(1) - useful).clamp(max=self.needed)
        return torch.where(wrong.cumsum(1) - wrong > 0, self.needed + 1, made)

    def ends(self, actions: Tensor) -> Tensor:
        return actions == 2

    def step_scores(self, actions: Tensor) -> Tensor:
        wrong_answer = self.ends(actions) & (self.states_before(actions) != self.needed)
        return torch.where(wrong_answer | (actions == 3), self.bad, self.good)

    def success(self, actions: Tensor, mask: Tensor) -> Tensor:
        made = ((actions == 0) & mask).sum(1)
        spoilt = ((actions == 3) & mask).any(1)
        return (last_action(actions, mask) == 2) & (made >= self.needed) & ~spoilt


# --- policies ----------------------------------------------------------------------------------------------------------


class TabularPolicy(nn.Module):
    """One softmax per state. It knows the state and nothing else: not how many steps it has made."""

    def __init__(self, task: StepTask, start: Sequence[float]) -> None:
        super().__init__()
        self.task = task
        self.logits = nn.Parameter(torch.tensor([list(start)] * task.states))

    def forward(self, actions: Tensor) -> Tensor:
        """[B, T] actions -> [B, T, A] logits; position t is computed from actions before t."""
        return self.logits[self.task.states_before(actions)]


class TransformerPolicy(nn.Module):
    """A causal transformer over the actions so far, with learned positions: it can tell how many steps it has made."""

    def __init__(self, task: StepTask, start: Sequence[float], width: int = 32, heads: int = 2) -> None:
        super().__init__()
        kinds = len(task.actions)
        self.bos = kinds
        self.embed = nn.Embedding(kinds + 1, width)
        self.position = nn.Embedding(task.cap, width)
        self.block = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, kinds)
        nn.init.zeros_(self.head.weight)  # so that training starts from the stated logits
        self.head.bias.data = torch.tensor(list(start))

    def forward(self, actions: Tensor) -> Tensor:
        """[B, T] actions -> [B, T, A] logits; position t is computed from actions before t."""
        width = actions.shape[1]
        before = torch.cat([torch.full_like(actions[:, :1], self.bos), actions[:, :-1]], 1)
        hidden = self.embed(before) + self.position.weight[:width]
        causal = nn.Transformer.generate_square_subsequent_mask(width)
        return self.head(self.block(hidden, src_mask=causal, is_causal=True))


# --- from a policy to rollouts -----------------------------------------------------------------------------------------


class Episodes(NamedTuple):
    """actions: [B, T] int64. mask: [B, T] bool, steps that were made. logprobs: [B, T], of the actions when sampled."""

    actions: Tensor
    mask: Tensor
    logprobs: Tensor


@torch.no_grad()
def sample(policy: nn.Module, task: StepTask, size: int, generator: torch.Generator) -> Episodes:
    """`size` episodes, all at once, step by step until every one has ended or the cap is reached."""
    actions = torch.zeros(size, task.cap, dtype=torch.long)
    mask = torch.zeros(size, task.cap, dtype=torch.bool)
    logprobs = torch.zeros(size, task.cap)
    running = torch.ones(size, dtype=torch.bool)
    steps = 0
    while steps < task.cap and bool(running.any()):
        now = policy(actions[:, : steps + 1])[:, -1].log_softmax(-1)
        drawn = torch.multinomial(now.exp(), 1, generator=generator)
        actions[:, steps] = torch.where(running, drawn[:, 0], 0)
        logprobs[:, steps] = torch.where(running, now.gather(1, drawn)[:, 0], 0.0)
        mask[:, steps] = running
        running = running & ~task.ends(actions[:, steps])
        steps += 1
    return Episodes(actions[:, :steps], mask[:, :steps], logprobs[:, :steps])


def to_rollouts(episodes: Episodes, task: StepTask, group_size: int, clock: Clock | None = None) -> Rollouts:
    """Episodes as the library sees them: one character per step is one token, and every token is a span of "steps".

    Rows are grouped `group_size` in a row; every prompt has an answer.
    """
    actions, mask, logprobs = episodes
    texts = [
        "".join(task.actions[a] for a in row[:length])
        for row, length in zip(actions.tolist(), mask.sum(1).tolist(), strict=True)
    ]
    groups = torch.arange(len(texts)) // group_size
    return Rollouts(
        [f"problem {group}" for group in groups.tolist()],
        texts,
        completion_ids=actions,
        completion_mask=mask,
        finished=(task.ends(actions) & mask).any(1),
        logprobs={"old": LogProbs(logprobs, 1.0)},
        group_ids=groups,
        spans={"steps": Spans.from_ends(mask, mask, "steps")},
        columns={"answer": ["a"] * len(texts)},
        clock=clock or Clock(training=True),
    )


def _ids(rollouts: Rollouts) -> Tensor:
    assert rollouts.completion_ids is not None
    return rollouts.completion_ids


@dataclass(frozen=True)
class ScriptedPRM:
    """Signal: the task's scripted step scores, read at the end of every span of "steps"."""

    task: StepTask
    scope: ClassVar[str] = "row"
    level: ClassVar[str] = "steps"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        spans = rollouts.segment(self.level)
        values = self.task.step_scores(_ids(rollouts)).gather(1, spans.end.clamp(min=0))
        return Rewards(torch.where(spans.mask, values, 0.0), spans)


@dataclass(frozen=True)
class Verifier:
    """Signal: 1 where the task is solved, else 0; NaN for a prompt that has no answer to compare with."""

    task: StepTask
    scope: ClassVar[str] = "row"
    level: ClassVar[str] = "sequence"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        unknown = [answer is None for answer in rollouts.column("answer")]
        solved = self.task.success(_ids(rollouts), rollouts.mask).float()
        reasons = ["the prompt has no answer" if missing else None for missing in unknown]
        return Rewards.sequence(torch.where(torch.tensor(unknown), float("nan"), solved), rollouts, reasons)


# --- training ----------------------------------------------------------------------------------------------------------


class Trace(NamedTuple):
    """What one training run showed: for each update the mean number of steps, of fillers, and the share solved."""

    steps: list[float]
    fillers: list[float]
    solved: list[float]

    def final(self, what: str, last: int) -> float:
        """The mean over the last updates."""
        values = getattr(self, what)[-last:]
        return sum(values) / len(values)


@dataclass(frozen=True)
class Training:
    """updates, batch (episodes of each update), group_size (rollouts of a prompt), lr; `optimizer` takes (parameters, lr).

    critic: give the rollouts the values of a tabular critic, for systems that estimate advantages with one.
    """

    updates: int
    batch: int
    group_size: int
    lr: float
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    critic: bool = False


def state_means(returns: Tensor, states: Tensor, mask: Tensor, before: Tensor) -> Tensor:
    """The tabular critic after a batch: the mean return of each state, or its value before where the state did not occur.

    returns, states, mask: [B, T]. before: [states]. Returns [states].
    """
    which = states[mask]
    total = torch.zeros_like(before).index_add(0, which, returns[mask].to(before))
    seen = torch.zeros_like(before).index_add(0, which, torch.ones_like(returns[mask]).to(before))
    return torch.where(seen > 0, total / seen.clamp(min=1), before)


def chosen_logprobs(policy: nn.Module, actions: Tensor) -> Tensor:
    """[B, T]: log pi of each action, given those before it."""
    return policy(actions).log_softmax(-1).gather(2, actions[..., None])[..., 0]


def train(policy: nn.Module, task: StepTask, system: System, how: Training, seed: int) -> Trace:
    """REINFORCE on the advantages of `system`: the loss is minus the mean over episodes of sum_t A_t log pi(a_t).

    The reference of a KL penalty is the policy as it starts.
    """
    generator = torch.Generator().manual_seed(seed)
    reference = deepcopy(policy) if "logprobs.reference" in system.needs else None
    optimizer = how.optimizer(policy.parameters(), lr=how.lr)
    trace = Trace([], [], [])
    filler, values = task.actions.index("f"), torch.zeros(task.states)
    for step in range(how.updates):
        episodes = sample(policy, task, how.batch, generator)
        rollouts = to_rollouts(episodes, task, how.group_size, Clock(step, how.updates, True, seed))
        if reference is not None:
            known = LogProbs(chosen_logprobs(reference, episodes.actions).detach(), 1.0)
            rollouts = replace(rollouts, logprobs={**rollouts.logprobs, "reference": known})
        states = task.states_before(episodes.actions)
        if how.critic:
            rollouts = replace(rollouts, values=values[states] * episodes.mask)
        with warnings.catch_warnings():
            # A policy that answers at once has one step; here that is the policy's doing, not a wrong delimiter.
            warnings.filterwarnings("ignore", message="the median completion has one span")
            scores = system(rollouts)
        system.commit(scores)
        if how.critic:  # learned from this batch, used from the next one on
            values = state_means(scores.notes["returns"], states, episodes.mask, values)
        logprobs = chosen_logprobs(policy, episodes.actions)
        loss = -(logprobs * scores.advantages * episodes.mask).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trace.steps.append(float(episodes.mask.sum(1).float().mean()))
        trace.fillers.append(float(((episodes.actions == filler) & episodes.mask).sum(1).float().mean()))
        trace.solved.append(float(task.success(episodes.actions, episodes.mask).float().mean()))
    return trace
