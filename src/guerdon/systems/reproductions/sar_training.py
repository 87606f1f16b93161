"""Training an over-long tiny policy (`guerdon.tasks.padded`) under SAR and its baselines, or other arms, through the real trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from guerdon.system import System
from guerdon.systems.context import TaskReward
from guerdon.systems.outcome import dr_grpo
from guerdon.systems.reproductions.arm import TrainingPlan, held_out, kept_run, train_arm
from guerdon.systems.sar import sar
from guerdon.tasks.arithmetic import sums
from guerdon.tasks.base import Task
from guerdon.tasks.padded import NO_QUESTION, TERMS, padded_policy
from guerdon.tasks.tiny import TinyConfig

OUTCOME, SAR, LENGTH = (
    "correctness only",
    "correctness + 0.2 SAR",
    "correctness + 0.2 O1-pruner",
)
ARMS: dict[str, Callable[[Any], System]] = {
    OUTCOME: lambda verifier: dr_grpo(verifier=verifier),
    SAR: lambda verifier: sar(verifier=verifier, questionless=NO_QUESTION),
    LENGTH: lambda verifier: sar(verifier=verifier, efficiency="o1_pruner"),
}


@dataclass(frozen=True)
class Plan(TrainingPlan):
    """The budget of a run; a measurement is of `samples` held-out rollouts, of at most `tokens` tokens as in training."""

    prompts: int = 16
    group: int = 6
    warmup: int = 0
    samples: int = 1024
    tokens: int = 96


SMOKE = Plan(steps=2, prompts=2, group=2, every=1, samples=8, tokens=24)


@dataclass
class Run:
    """Held-out accuracy and mean length (tokens, the end-of-sequence token included) at `x` steps."""

    x: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    length: list[float] = field(default_factory=list)


def starting_policy(smoke: bool) -> str:
    """The over-long policy; a far smaller, hardly trained one for a smoke run."""
    return (
        padded_policy(3, config=TinyConfig(hidden=16, layers=1, heads=2, intermediate=16)) if smoke else padded_policy()
    )


def run_arm(
    arm: str,
    seed: int,
    plan: Plan,
    policy: str,
    folder: Path | None = None,
    arms: Mapping[str, Callable[[Any], System]] = ARMS,
) -> Run:
    """One training run under `arms[arm]`; taken from `folder` if it was finished there before with the same plan and policy."""
    task = sums(terms=TERMS, train_size=80, held_out_size=20)
    system = arms[arm](TaskReward(task))
    asked = {"arm": str(system), "seed": seed, "plan": asdict(plan), "policy": Path(policy).name}
    make = partial(train, system, task, seed, plan, policy)
    return Run(**kept_run(folder, f"{arm}-{seed}", asked, lambda: asdict(make())))


def train(
    system: System,
    task: Task,
    seed: int,
    plan: Plan,
    policy: str,
    finished: Callable[[dict[str, torch.Tensor]], None] | None = None,
) -> Run:
    """GRPO as the official scripts have it: no division by the std, token sums over a constant, temperature 1; no KL term.

    finished: called with the trained weights.
    """
    from guerdon.lm.load import load_tokenizer

    run = Run()
    evaluator = held_out(task, Truth(task, run, load_tokenizer(policy)), system, plan, plan.samples, batch_size=512)
    trained = train_arm(
        policy,
        system,
        task.to_dataset("train"),
        plan,
        tokens=plan.tokens,
        seed=seed,
        loss_type="dr_grpo",
        monitors=[evaluator],
    )
    if finished is not None:
        finished(trained.trainer.accelerator.unwrap_model(trained.trainer.model).state_dict())
    run.x = trained.measured
    return run


class Truth:
    """The evaluator's truth: the task's verifier, remembering accuracy and length."""

    def __init__(self, task: Task, run: Run, tokenizer: Any) -> None:
        self.task, self.run, self.tokenizer = task, run, tokenizer

    def __call__(self, completions: Sequence[str], rows: Sequence[Any]) -> list[Any]:
        verdicts = self.task.true_success(completions, rows)
        self.run.accuracy.append(sum(verdict.value for verdict in verdicts) / len(verdicts))
        # One token a character, and one that ends the text.
        self.run.length.append(sum(len(text) + 1 for text in completions) / len(completions))
        return verdicts
