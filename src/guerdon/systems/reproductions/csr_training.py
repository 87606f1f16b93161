"""Training the policy of the look-ups under correctness, CSR, or RLCR's rewards for its spoken confidence, through the real trainer.

All arms have one advantage rule, the group's mean subtracted and nothing divided, but for a pair that divides by the std. Confidence at test
time is the share of the most frequent of ten sampled answers; for the spoken kind also what was said beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from guerdon.credit import auroc, brier_score, expected_calibration_error
from guerdon.signals.agreement import semantic_confidence
from guerdon.signals.text import text_signal
from guerdon.system import System
from guerdon.systems.context import TaskReward
from guerdon.systems.csr import csr
from guerdon.systems.outcome import dr_grpo, grpo
from guerdon.systems.reproductions.arm import kept_run
from guerdon.systems.reproductions.csr_task import HABIT, answer_of, look_ups, said
from guerdon.systems.reproductions.short_answers import SMOKE, Plan, train
from guerdon.tasks.base import Task

CORRECT, CSR, SPOKEN = "correctness only", "CSR, lam 0.5", "spoken confidence (RLCR)"
DIVIDED_CORRECT, DIVIDED_CSR = "correctness only, divided by the std", "CSR, lam 0.5, divided by the std"


def spoken_reward(completion: str, answer: str) -> float:
    """RLCR's reward in the look-ups' own layout: (form + right + 1 - (right - said)^2) / 2, and 0 without the form."""
    given = answer_of(completion)
    if given is None:
        return 0.0
    right = float(given == answer)
    return 0.5 * (1 + right + 1 - (right - said(completion)) ** 2)


def _spoken(task: Task) -> System:
    return dr_grpo(verifier=text_signal(spoken_reward, columns=("answer",), name="spoken"))


ARMS: dict[str, Callable[[Task], System]] = {
    CORRECT: lambda task: dr_grpo(verifier=TaskReward(task)),
    CSR: lambda task: csr(verifier=TaskReward(task), extract=answer_of),
    SPOKEN: _spoken,
    DIVIDED_CORRECT: lambda task: grpo(verifier=TaskReward(task), eps=1e-6),
    DIVIDED_CSR: lambda task: csr(verifier=TaskReward(task), extract=answer_of, norm_by_std=True),
}


@dataclass
class Run:
    """Held-out numbers after `x` steps. accuracy: of the most frequent answer where there is evidence. habit: the share of the habitual
    answer where there is none. ece, auroc, brier: of the share of the most frequent answer as its confidence, all questions. spoken_ece,
    spoken_auroc: of what was said beside that answer, on average."""

    x: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    habit: list[float] = field(default_factory=list)
    ece: list[float] = field(default_factory=list)
    auroc: list[float] = field(default_factory=list)
    brier: list[float] = field(default_factory=list)
    spoken_ece: list[float] = field(default_factory=list)
    spoken_auroc: list[float] = field(default_factory=list)


class Measure:
    """Monitor: every few steps, and once at the end, K answers to every held-out question."""

    def __init__(self, task: Task, plan: Plan, run: Run, samples: int = 10) -> None:
        self.task, self.plan, self.run, self.samples = task, plan, run, samples

    def attach(self, trainer: Any) -> None:
        self.policy = trainer.instruments.policy

    def __call__(self, rollouts: Any, scores: Any) -> None:
        if rollouts.clock.step % self.plan.every == 0:
            self.measure(rollouts.clock.step, rollouts.clock.seed)

    def measure(self, step: int, seed: int) -> None:
        rows, many = list(self.task.held_out), self.samples
        made = self.policy.generate([r["prompt"] for r in rows], n=many, max_new_tokens=5, seed=1000 * seed + step)
        confidences, spoken, right, habit = [], [], [], []
        for i, row in enumerate(rows):
            texts = made.texts[i * many : (i + 1) * many]
            answers = [answer_of(text) for text in texts]
            labels = [int(a) if a is not None else -1 - k for k, a in enumerate(answers)]  # no answer is like no other
            found = semantic_confidence(labels)
            assert found.representative is not None
            chosen = labels[found.representative]
            confidences.append(found.confidence)
            beside = [said(text) for text, label in zip(texts, labels, strict=True) if label == chosen]
            spoken.append(sum(beside) / len(beside))
            right.append(float(str(chosen) == row["answer"]))
            habit.append(sum(label == HABIT for label in labels) / many)
        evidence = torch.tensor([bool(row["evidence"]) for row in rows])
        share, words, correct = torch.tensor(confidences), torch.tensor(spoken), torch.tensor(right)
        run = self.run
        run.x.append(step)
        run.accuracy.append(float(correct[evidence].mean()))
        run.habit.append(float(torch.tensor(habit)[~evidence].mean()))
        run.ece.append(expected_calibration_error(share, correct))
        run.auroc.append(auroc(share, correct))
        run.brier.append(brier_score(share, correct))
        run.spoken_ece.append(expected_calibration_error(words, correct))
        run.spoken_auroc.append(auroc(words, correct))


def run_arm(arm: str, seed: int, plan: Plan, policy: str, folder: Path | None = None) -> Run:
    """One training run; taken from `folder` if it was finished there before with the same plan and policy."""
    task = look_ups()

    def make() -> dict[str, Any]:
        run = Run()
        train(ARMS[arm](task), task, policy, seed, plan, Measure(task, plan, run))
        return asdict(run)

    asked = {"arm": arm, "seed": seed, "plan": asdict(plan), "policy": Path(policy).name}
    return Run(**kept_run(folder, f"{arm}-{seed}", asked, make))


__all__ = [
    "ARMS",
    "CORRECT",
    "CSR",
    "DIVIDED_CORRECT",
    "DIVIDED_CSR",
    "SMOKE",
    "SPOKEN",
    "Measure",
    "Plan",
    "Run",
    "run_arm",
    "spoken_reward",
]
