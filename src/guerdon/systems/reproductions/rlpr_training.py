"""Training a tiny policy on the task "references" under a system, through the real trainer, one JSON record for each run.

Half of the questions have a number as reference, half a few words around the number which the policy cannot foresee (see
`guerdon.tasks.references`). Arms differ in the reward alone; budget, prompts, and sampling are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from guerdon.credit import group_stats
from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts
from guerdon.system import System
from guerdon.systems.reproductions.arm import TrainingPlan, held_out, kept_run, train_arm
from guerdon.systems.rlpr import rlpr
from guerdon.tasks.references import HALVES, Habits, references, references_policy

MEAN, PRODUCT = "mean probability (RLPR)", "product"
UNFILTERED = "mean probability, no filter"
ARMS: dict[str, Callable[[], System]] = {
    MEAN: lambda: rlpr(format_mode="R1_nothink"),
    UNFILTERED: lambda: rlpr(format_mode="R1_nothink", std_beta=None),
    PRODUCT: lambda: rlpr(format_mode="R1_nothink", aggregation="prod_prob", debias=False, std_beta=None),
}


@dataclass(frozen=True)
class Plan(TrainingPlan):
    """The budget of a run; a measurement is of `samples` held-out rollouts, of at most `tokens` tokens as in training."""

    steps: int = 50
    lr: float = 1e-4
    every: int = 25
    samples: int = 320
    tokens: int = 72


SMOKE = Plan(steps=2, warmup=0, prompts=2, group=2, every=1, samples=8, tokens=24)


@dataclass
class Run:
    """What a run showed: held-out exact match by half at `x` steps; for each step the group stds of the reward and the share kept."""

    x: list[int] = field(default_factory=list)
    short: list[float] = field(default_factory=list)
    long: list[float] = field(default_factory=list)
    stds: list[list[float]] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)

    @property
    def both(self) -> list[float]:
        return [(a + b) / 2 for a, b in zip(self.short, self.long, strict=True)]


class Exact:
    """The evaluator's truth: the task's verifier, remembering each half's exact match."""

    def __init__(self, task: Any, run: Run) -> None:
        self.task, self.run = task, run

    def __call__(self, completions: Sequence[str], rows: Sequence[Any]) -> list[Any]:
        verdicts = self.task.true_success(completions, rows)
        for half in HALVES:
            values = [verdict.value for verdict, row in zip(verdicts, rows, strict=True) if row["half"] == half]
            getattr(self.run, half).append(sum(values) / len(values))
        return verdicts


class GroupStds:
    """Monitor: the group stds of the optimised reward before the filter, and the share of rows it kept."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self, rollouts: Rollouts, scores: Scores) -> None:
        assert scores.reward is not None
        std = group_stats(scores.reward, rollouts.groups, singleton="nan").std
        first = {group: row for row, group in reversed(list(enumerate(rollouts.groups.tolist())))}
        self.run.stds.append([float(std[row]) for row in sorted(first.values())])
        self.run.kept.append(float(scores.keep.float().mean()))


def starting_policy(smoke: bool) -> str:
    """The warm-started policy of the task; a far smaller, hardly trained one for a smoke run."""
    if not smoke:
        return references_policy()
    from guerdon.tasks.tiny import TinyConfig

    return references_policy(steps=3, habits=Habits(), config=TinyConfig(hidden=16, layers=1, heads=2, intermediate=16))


def run_arm(arm: str, seed: int, plan: Plan, policy: str, folder: Path | None = None) -> Run:
    """One training run; taken from `folder` if it was finished there before with the same plan and policy."""
    asked = {"arm": str(ARMS[arm]()), "seed": seed, "plan": asdict(plan), "policy": Path(policy).name}
    make = partial(train, ARMS[arm](), seed, plan, policy)
    return Run(**kept_run(folder, f"{arm}-{seed}", asked, lambda: asdict(make())))


def train(system: System, seed: int, plan: Plan, policy: str) -> Run:
    """Train the policy under a system with GRPO as the paper has it: clip 0.2 / 0.27, no KL, token-mean loss, temperature 1."""

    task, run = references(), Run()
    evaluator = held_out(task, Exact(task, run), system, plan, plan.samples)
    trained = train_arm(
        policy,
        system,
        task.to_dataset("train"),
        plan,
        tokens=plan.tokens,
        seed=seed,
        loss_type="dapo",
        monitors=[evaluator, GroupStds(run)],
        epsilon=0.2,
        epsilon_high=0.27,
    )
    run.x = trained.measured
    return run
