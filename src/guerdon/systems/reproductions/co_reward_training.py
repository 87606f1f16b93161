"""Training the policy of the two templates without labels, through the real trainer: own view, other view, teacher."""

from __future__ import annotations

import json
import tempfile
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

EXTRACT = "after:#"
SYSTEMS: dict[str, Callable[[], System]] = {
    OWN: lambda: co_reward(label="own_view", extract=EXTRACT, truth="answer"),
    CROSS: lambda: co_reward(extract=EXTRACT, truth="answer"),
    TEACHER: lambda: co_rewarding_ii(max_completion_length=5, extract=EXTRACT, truth="answer"),
}


@dataclass(frozen=True)
class Plan:
    """The budget of a run: optimiser steps of `questions` x 2 views x `group` rollouts, a measurement every `every` steps."""

    steps: int = 100
    questions: int = 16
    group: int = 8
    lr: float = 5e-4
    every: int = 20


SMOKE = Plan(steps=2, questions=2, group=2, every=1)


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

    def __init__(self, plan: Plan, run: Run, samples: int = 8) -> None:
        self.plan, self.run, self.samples = plan, run, samples
        self.task = two_templates()

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
    name = "".join(c if c.isalnum() else "-" for c in arm)
    file = folder / f"{name}-{seed}.json" if folder else None
    asked = {"arm": str(SYSTEMS[arm]()), "seed": seed, "plan": asdict(plan), "policy": Path(policy).name}
    if file is not None and file.exists():
        record = json.loads(file.read_text())
        if record["asked"] == asked:
            return Run(**record["run"])
    run = train(SYSTEMS[arm](), seed, plan, policy)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".part")
        draft.write_text(json.dumps({"asked": asked, "run": asdict(run)}))
        draft.replace(file)
    return run


def train(system: System, seed: int, plan: Plan, policy: str) -> Run:
    """On-policy, one update a batch, no KL term, temperature 1. The loss is a mean over rollouts, so that no view weighs more."""
    from transformers import PrinterCallback
    from trl import GRPOConfig

    from guerdon.engines.trl import CreditTrainer, RolloutLog
    from guerdon.lm.load import load_tokenizer

    run = Run()
    measure = Measure(plan, run)
    with tempfile.TemporaryDirectory() as scratch:
        args = GRPOConfig(
            scratch,
            max_steps=plan.steps,
            per_device_train_batch_size=2 * plan.questions * plan.group,
            num_generations=plan.group,
            max_completion_length=5,
            learning_rate=plan.lr,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=min(5, plan.steps - 1),
            temperature=1.0,
            beta=0.0,
            loss_type="grpo",
            seed=seed,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
        )
        trainer = CreditTrainer(
            policy,
            system,
            args=args,
            train_dataset=two_templates().to_dataset("train"),
            processing_class=load_tokenizer(policy),
            monitors=[measure],
            rollout_log=RolloutLog(every=0),
            log_dir=scratch,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        measure.measure(plan.steps, seed)
    return run


__all__ = ["ARMS", "CROSS", "OWN", "SMOKE", "TEACHER", "Plan", "Run", "run_arm", "train"]
