"""Training the policy of the two templates without labels, through the real trainer: own view, other view, teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from guerdon.rollouts import Rollouts
from guerdon.signals.agreement import SameViewVote
from guerdon.system import System
from guerdon.systems.co_reward import co_reward, co_rewarding_ii
from guerdon.systems.reproductions.co_reward_tabular import ARMS, CROSS, OWN, TEACHER
from guerdon.systems.reproductions.co_reward_task import OWN_ANSWER, two_templates
from guerdon.systems.reproductions.short_answers import SMOKE, Plan, kept_run, train
from guerdon.tasks.base import Task

EXTRACT = "after:#"
SYSTEMS: dict[str, Callable[[], System]] = {
    OWN: lambda: co_reward(label="own_view", extract=EXTRACT, truth="answer"),
    CROSS: lambda: co_reward(extract=EXTRACT, truth="answer"),
    TEACHER: lambda: co_rewarding_ii(max_completion_length=5, extract=EXTRACT, truth="answer"),
}


@dataclass
class Run:
    """After `x` steps, on all questions in both views: `accuracy`, `hard` = accuracy in the hard quarter, `own` = the share of the
    template's own answer, `vote` = how often the majority of a view's eight new rollouts is right in the hard quarter. reward: what
    the policy was paid at each step."""

    x: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    hard: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    vote: list[float] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)


class Measure:
    """Monitor: every few steps, and once at the end, eight answers to every question in both views."""

    def __init__(self, task: Task, plan: Plan, run: Run, samples: int = 8) -> None:
        self.task, self.plan, self.run, self.samples = task, plan, run, samples

    def attach(self, trainer: Any) -> None:
        self.policy = trainer.instruments.policy

    def __call__(self, rollouts: Rollouts, scores: Any) -> None:
        self.run.reward.append(float(scores.reward.float().mean()))
        if rollouts.clock.step % self.plan.every == 0:
            self.measure(rollouts.clock.step, rollouts.clock.seed)

    def measure(self, step: int, seed: int) -> None:
        rows = [row for row in self.task.train for _ in range(self.samples)]
        prompts = [row["prompt"] for row in self.task.train]
        made = self.policy.generate(prompts, n=self.samples, max_new_tokens=5, seed=1000 * seed + step)
        right = torch.tensor([v.value for v in self.task.true_success(made.texts, rows)])
        hard = torch.tensor([row["tier"] == "hard" for row in rows])
        own = [text.strip() == f"#{OWN_ANSWER[row['view']]}" for text, row in zip(made.texts, rows, strict=True)]
        groups = torch.arange(len(prompts)).repeat_interleave(self.samples)
        rollouts = Rollouts.from_texts(
            [row["prompt"] for row in rows], made.texts, {"answer": [row["answer"] for row in rows]}, group_ids=groups
        )
        votes = SameViewVote(EXTRACT, truth="answer")(rollouts, None)["right"].values[:, 0]  # type: ignore[arg-type]
        run = self.run
        run.x.append(step)
        run.accuracy.append(float(right.mean()))
        run.hard.append(float(right[hard].mean()))
        run.own.append(sum(own) / len(own))
        run.vote.append(float(votes[hard].mean()))


def run_arm(arm: str, seed: int, plan: Plan, policy: str, folder: Path | None = None) -> Run:
    """One training run; taken from `folder` if it was finished there before with the same plan and policy."""

    def make() -> dict[str, Any]:
        run, task = Run(), two_templates()
        train(SYSTEMS[arm](), task, policy, seed, plan, Measure(task, plan, run))
        return asdict(run)

    asked = {"arm": str(SYSTEMS[arm]()), "seed": seed, "plan": asdict(plan), "policy": Path(policy).name}
    return Run(**kept_run(folder, f"{arm}-{seed}", asked, make))


__all__ = ["ARMS", "CROSS", "OWN", "SMOKE", "TEACHER", "Measure", "Plan", "Run", "run_arm"]
