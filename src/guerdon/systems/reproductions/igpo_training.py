"""Training the tiny policy of the task "search" under IGPO and its ablations, through the real trainer and its multi-turn loop.

Arms differ in the reward alone: starting policy, questions, sampling, steps and optimiser are the same. The confidences are those of the
policy that is being trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts
from guerdon.system import System
from guerdon.systems.igpo import igpo
from guerdon.systems.reproductions.arm import TrainingPlan, held_out, kept_run, train_arm
from guerdon.systems.reproductions.teaching import teaching_groups
from guerdon.tasks.base import Task
from guerdon.tasks.search import search

ARMS: dict[str, Any] = {"F1 alone (GRPO)": "outcome", "IGPO (gain and F1)": "both"}


@dataclass(frozen=True)
class Plan(TrainingPlan):
    """The budget of a run; a measurement is of `samples` held-out rollouts. hops: of the questions."""

    samples: int = 256
    hops: tuple[int, int] = (2, 3)


SMOKE = Plan(steps=2, warmup=0, prompts=2, group=2, every=1, samples=4)


@dataclass
class Run:
    """Held-out true success and mean number of searches at `x` steps; the share of groups that teach at each training step."""

    x: list[int] = field(default_factory=list)
    success: list[float] = field(default_factory=list)
    searches: list[float] = field(default_factory=list)
    taught: list[float] = field(default_factory=list)


class Truth:
    """The evaluator's truth: the task's verifier, remembering true success and the number of searches."""

    def __init__(self, task: Task, run: Run) -> None:
        self.task, self.run = task, run

    def __call__(self, completions: Sequence[str], rows: Sequence[Any]) -> list[Any]:
        verdicts = self.task.true_success(completions, rows)
        self.run.success.append(sum(verdict.value for verdict in verdicts) / len(verdicts))
        self.run.searches.append(sum(text.count("</tool_response>") for text in completions) / len(completions))
        return verdicts


class Taught:
    """Monitor: the share of groups whose rewards differ by more than noise (`teaching_groups`)."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self, rollouts: Rollouts, scores: Scores) -> None:
        teaching = teaching_groups(scores, rollouts.groups)
        self.run.taught.append(sum(teaching) / len(teaching))


def run_arm(arm: str, seed: int, plan: Plan, policy: str, folder: Path | None = None) -> Run:
    """One training run; taken from `folder` if it was finished there before with the same plan and policy."""
    system = igpo(rewards=ARMS[arm], answer_head="<answer>")
    asked = {"arm": str(system), "seed": seed, "plan": asdict(plan), "policy": Path(policy).name}
    make = partial(train, system, seed, plan, policy)
    return Run(**kept_run(folder, f"{arm}-{seed}", asked, lambda: asdict(make())))


def train(system: System, seed: int, plan: Plan, policy: str) -> Run:
    """GRPO as the paper has it: token mean of each rollout, then the mean over rollouts, temperature 1; without a KL term."""
    from guerdon.engines.trl import multi_turn

    task, run = search(hops=plan.hops), Run()
    assert task.environment is not None
    evaluator = held_out(task, Truth(task, run), system, plan, plan.samples)
    trained = train_arm(
        policy,
        system,
        task.to_dataset("train"),
        plan,
        tokens=task.max_completion_length,
        seed=seed,
        loss_type="grpo",
        monitors=[evaluator, Taught(run)],
        rollout_func=multi_turn(task.environment),
    )
    run.x = trained.measured
    return run
