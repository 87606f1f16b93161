"""Training the tiny policy of the digit sums under one reward, through the real trainer, one JSON record for each run.

Arms differ in the reward alone; starting policy, prompts, sampling, steps and optimiser are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from guerdon.rollouts import Rollouts
from guerdon.signals.likelihood.reference_likelihood import ReferenceLikelihood
from guerdon.system import System
from guerdon.systems.context import TaskReward
from guerdon.systems.likelihood import Form, likelihood
from guerdon.systems.outcome import rloo
from guerdon.systems.reproductions.arm import TrainingPlan, kept_run, train_arm
from guerdon.systems.reproductions.likelihood_task import SPLICE, Regime, digit_sums
from guerdon.tasks.base import Task

LOGPROB, VERIFREE, BASE = "log-prob", "probability (VeriFree)", "0/1 verifier"
MEAN_PROB, JEPO, NOVER = "mean probability", "JEPO", "NOVER"


def _member(form: Form) -> Callable[[Task], System]:
    # Cut at the cap comes after the reference's place here, so such rollouts are scored like others.
    return lambda task: likelihood(form=form, splice=SPLICE, truncated="score")


ARMS: dict[str, Callable[[Task], System]] = {
    LOGPROB: _member("logprob"),
    VERIFREE: _member("prob"),
    BASE: lambda task: rloo(verifier=TaskReward(task)),
    MEAN_PROB: _member("mean_prob"),
    JEPO: _member("jepo"),
    NOVER: _member("nover"),
}


@dataclass(frozen=True)
class Plan(TrainingPlan):
    """The budget of a run: optimiser steps of `prompts` x `group` rollouts; a measurement on `samples` held-out prompts every `every`.

    scratchpad: cap on sampled tokens where only the reasoning is needed; a verifier needs whole answers, up to the task's cap.
    """

    every: int = 10
    samples: int = 200
    scratchpad: int = 16


SMOKE = Plan(steps=2, warmup=0, prompts=2, group=2, every=1, samples=4, scratchpad=8)


@dataclass
class Run:
    """Held-out means after `x` steps.

    logprob: of the whole reference after a sampled reasoning (and the mark of an answer, where the policy wrote none). mean_logprob:
    a token. prob: exp of the whole. accuracy: of sampled answers. marked: share of completions with an answer. reasoning: tokens
    before the answer. flat: share of training groups without a difference in reward, at each step.
    """

    x: list[int] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)
    mean_logprob: list[float] = field(default_factory=list)
    prob: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    marked: list[float] = field(default_factory=list)
    reasoning: list[float] = field(default_factory=list)
    flat: list[float] = field(default_factory=list)


class Measure:
    """Monitor: every few steps, and once at the end, what a policy does on held-out prompts."""

    def __init__(self, task: Task, plan: Plan, run: Run) -> None:
        self.task, self.plan, self.run = task, plan, run
        self.signal = ReferenceLikelihood(splice=SPLICE, truncated="score")

    def __call__(self, rollouts: Rollouts, scores: Any) -> None:
        reward = scores.reward.float()
        groups = [reward[rollouts.groups == group] for group in rollouts.groups.unique()]
        self.run.flat.append(sum(float(bool((g == g[0]).all())) for g in groups) / len(groups))
        if rollouts.clock.step % self.plan.every == 0:
            self.measure(self.policy, rollouts.clock.step, rollouts.clock.seed)

    def attach(self, trainer: Any) -> None:
        self.policy = trainer.instruments.policy

    def measure(self, policy: Any, step: int, seed: int) -> None:
        """Sample one completion for each of the held-out prompts, at temperature 1; keep a scratchpad's length of it."""
        rows = list(self.task.held_out)[: self.plan.samples]
        prompts = [row["prompt"] for row in rows]
        made = policy.generate(prompts, max_new_tokens=self.task.max_completion_length, seed=1000 * seed + step)
        right = [verdict.value for verdict in self.task.true_success(made.texts, rows)]
        marked = [text if SPLICE.tag in text else text + SPLICE.tag for text in made.texts]
        rollouts = Rollouts.from_texts(prompts, marked, {"answer": [row["answer"] for row in rows]})
        self.signal.bind("policy", policy)
        found = {name: rewards.values[:, 0].double() for name, rewards in self.signal(rollouts).items()}
        run = self.run
        run.x.append(step)
        run.accuracy.append(sum(right) / len(right))
        run.marked.append(sum(SPLICE.tag in text for text in made.texts) / len(rows))
        run.logprob.append(float(found["logprob"].mean()))
        run.mean_logprob.append(float((found["logprob"] / found["tokens"]).mean()))
        run.prob.append(float(found["logprob"].exp().mean()))
        run.reasoning.append(float(found["reasoning"].mean()))


def run_arm(arm: str, regime: Regime, seed: int, plan: Plan, policy: str, folder: Path | None = None) -> Run:
    """One training run; taken from `folder` if it was finished there before with the same plan and policy."""
    task = digit_sums(regime)
    asked = {
        "arm": str(ARMS[arm](task)),
        "regime": regime,
        "seed": seed,
        "plan": asdict(plan),
        "policy": Path(policy).name,
    }
    make = partial(train, ARMS[arm](task), task, seed, plan, policy, whole=arm == BASE)
    return Run(**kept_run(folder, f"{arm}-{regime}-{seed}", asked, lambda: asdict(make())))


def train(system: System, task: Task, seed: int, plan: Plan, policy: str, *, whole: bool) -> Run:
    """Train on-policy: one update a batch, sums over tokens (no length normalisation), no KL, temperature 1.

    whole: sample up to the task's cap, for a reward that reads the policy's own answer.
    """
    run = Run()
    measure = Measure(task, plan, run)
    trained = train_arm(
        policy,
        system,
        task.to_dataset("train"),
        plan,
        tokens=task.max_completion_length if whole else plan.scratchpad,
        seed=seed,
        loss_type="dapo",
        monitors=[measure],
    )
    measure.measure(trained.trainer.instruments.policy, plan.steps, seed)
    return run
