"""Training the guessing policy (`laser_task`) with and without the last-token score, through the real trainer; voting on held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from guerdon.credit import auroc, verification_metrics
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.agreement.choice import best_of, vote_in_groups
from guerdon.signals.likelihood.last_token import LastTokenScore
from guerdon.system import System
from guerdon.systems.context import TaskReward
from guerdon.systems.laser import laser
from guerdon.systems.outcome import grpo
from guerdon.systems.reproductions.arm import TrainingPlan, kept_run, train_arm
from guerdon.systems.reproductions.laser_task import answer_of, guessing_policy, parities
from guerdon.tasks.base import Task
from guerdon.tasks.tiny import TinyConfig

GRPO, LASER = "GRPO", "GRPO + LaSeR"


@dataclass(frozen=True)
class Plan(TrainingPlan):
    """The budget of a run: optimiser steps of `prompts` x `group` rollouts; every `every` of them `votes` votes of `voters` samples a prompt."""

    prompts: int = 12
    lr: float = 3e-4
    steps: int = 60
    every: int = 20
    votes: int = 1
    voters: int = 8
    tokens: int = 48
    coefficient: float = 0.5
    beta: float = 0.08


SMOKE = Plan(steps=2, warmup=0, prompts=2, group=2, every=1, votes=1, voters=2, tokens=24)


def systems(plan: Plan) -> dict[str, Callable[[Any], System]]:
    """The arms. The score's loss is weighed by `plan.coefficient` in place of 0.1: a run has few steps here, the paper's 1600."""
    options: dict[str, Any] = {"beta": plan.beta, "coefficient": plan.coefficient}
    return {
        GRPO: lambda verifier: grpo(verifier=verifier, eps=1e-6),
        LASER: lambda verifier: laser(verifier=verifier, **options),
    }


@dataclass
class Measured:
    """What a policy does on held-out prompts: accuracy of single samples, of votes, and how well scores tell right from wrong."""

    accuracy: float
    length: float
    majority: float
    auc_logprob: float
    logprob_vote: float
    auc: float | None = None
    f1: float | None = None
    weighted: float | None = None
    best: float | None = None
    score_right: float | None = None
    score_wrong: float | None = None


@dataclass
class Run:
    """x, held_out: steps and what was measured on held-out prompts after them. accuracy, auc: of the training rollouts of each step.
    calibration: constant, spread, log Z."""

    x: list[int] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    auc: list[float] = field(default_factory=list)
    calibration: list[float] = field(default_factory=list)

    @property
    def end(self) -> dict[str, Any]:
        """The last measurement."""
        return self.held_out[-1]


def starting_policy(smoke: bool) -> str:
    """The warm-started policy; a far smaller, hardly trained one for a smoke run."""
    small = TinyConfig(hidden=16, layers=1, heads=2, intermediate=16)
    return guessing_policy(3, 2, config=small) if smoke else guessing_policy()


def sample(
    policy: Any, task: Task, plan: Plan, seed: int, split: Literal["held_out", "train"] = "held_out"
) -> tuple[Rollouts, list[float]]:
    """`votes` x `voters` samples of every held-out prompt (or of as many training prompts), each vote a group, and which are right."""
    rows = list(getattr(task, split))[: 4 if plan == SMOKE else len(task.held_out)]
    each = plan.votes * plan.voters
    made = policy.generate(
        [row["prompt"] for row in rows], n=each, max_new_tokens=plan.tokens, seed=seed, logprobs=True
    )
    rollouts = Rollouts(
        [row["prompt"] for row in rows for _ in range(each)],
        made.texts,
        prompt_ids=made.prompt_ids,
        prompt_mask=made.prompt_mask,
        completion_ids=made.ids,
        completion_mask=made.mask,
        finished=made.finished,
        logprobs={"old": made.logprobs},
        group_ids=torch.arange(len(rows) * each) // plan.voters,
    )
    right = [float(v.value) for v in task.true_success(made.texts, [row for row in rows for _ in range(each)])]
    return rollouts, right


def measure(policy: Any, task: Task, plan: Plan, seed: int, signal: LastTokenScore | None) -> Measured:
    """Held-out numbers of a policy. signal: its calibrated score; None = it has none."""
    rollouts, right = sample(policy, task, plan, seed)
    answers = [row["answer"] for row in list(task.held_out)]
    truth = {group: answers[group // plan.votes] for group in rollouts.groups.unique().tolist()}

    def voted(votes: Any) -> float:
        return sum(vote.winner == truth[group] for group, vote in votes.items()) / len(votes)

    logprobs = rollouts.logprob("old").values
    mean = torch.where(rollouts.mask, logprobs, 0.0).sum(1) / rollouts.lengths.clamp(min=1)
    found = Measured(
        accuracy=sum(right) / len(right),
        length=float(rollouts.lengths.float().mean()),
        majority=voted(vote_in_groups(rollouts, answer_of)),
        auc_logprob=auroc(mean.tolist(), right),
        logprob_vote=voted(vote_in_groups(rollouts, answer_of, Rewards.sequence(mean.exp(), rollouts))),
    )
    if signal is None:
        return found
    signal.bind("policy", policy)
    scores = signal(rollouts)
    values = scores.values[:, 0].tolist()
    picks = [best_of(values[g * plan.voters : (g + 1) * plan.voters]) for g in truth]
    found.auc, found.f1 = auroc(values, right), verification_metrics(values, right).f1
    found.weighted = voted(vote_in_groups(rollouts, answer_of, scores))
    found.best = sum(right[g * plan.voters + (pick or 0)] for g, pick in zip(truth, picks, strict=True)) / len(picks)
    classes = [[v for v, r in zip(values, right, strict=True) if r == label] for label in (1.0, 0.0)]
    found.score_right, found.score_wrong = (sum(c) / len(c) if c else None for c in classes)
    return found


class Watch:
    """Monitor: accuracy of each training generation and the AUC of its scores; every few steps, votes on held-out prompts."""

    def __init__(self, run: Run, task: Task, plan: Plan, signal: LastTokenScore | None) -> None:
        self.run, self.task, self.plan, self.signal = run, task, plan, signal

    def attach(self, trainer: Any) -> None:
        self.policy = trainer.instruments.policy

    def __call__(self, rollouts: Rollouts, scores: Scores) -> None:
        right = scores.raw["answer"].values[:, 0].tolist()
        self.run.accuracy.append(sum(right) / len(right))
        if "self" in scores.raw:
            self.run.auc.append(auroc(scores.raw["self"].values[:, 0].nan_to_num(nan=0.0).tolist(), right))
        step = rollouts.clock.step
        if step and step % self.plan.every == 0:
            self.measure(step, rollouts.clock.seed)

    def measure(self, step: int, seed: int) -> None:
        found = measure(self.policy, self.task, self.plan, 1000 * seed + step, self.signal)
        self.run.x.append(step)
        self.run.held_out.append(asdict(found))


def run_arm(arm: str, seed: int, plan: Plan, policy: str, folder: Path | None = None) -> Run:
    """One training run; taken from `folder` if it was finished there before with the same plan and policy."""
    task = parities()
    system = systems(plan)[arm](TaskReward(task))
    # Coefficient and beta are in what the arm says of itself.
    budget = {key: value for key, value in asdict(plan).items() if key not in ("coefficient", "beta")}
    asked = {"arm": str(system), "seed": seed, "plan": budget, "policy": Path(policy).name}
    make = partial(train, system, task, seed, plan, policy)
    return Run(**kept_run(folder, f"{arm}-{seed}", asked, lambda: asdict(make())))


def train(system: System, task: Task, seed: int, plan: Plan, policy: str) -> Run:
    """GRPO at temperature 1 without a KL term, token-mean loss."""
    run, signal = Run(), system.signals.get("self")
    watch = Watch(run, task, plan, signal)
    train_arm(
        policy,
        system,
        task.to_dataset("train"),
        plan,
        tokens=plan.tokens,
        seed=seed,
        loss_type="dapo",
        monitors=[watch],
    )
    watch.measure(plan.steps, seed)
    if signal is not None:
        run.calibration = list(signal.update(Rollouts.from_texts([], []), Scores({}, torch.zeros(0))).values())
    return run


def column(runs: Sequence[Run], name: str) -> list[float]:
    """One held-out number at the end of each run."""
    return [run.end[name] for run in runs]
