"""One training run on rows that must meet, with a teacher that moves, on as many processes as torchrun starts.

[torchrun ...] together_run.py POLICY OUT PER_DEVICE. Writes OUT (rank 0) and OUT.RANK for each rank: what the signals saw and the weights.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from datasets import Dataset
from engine_kit import grpo_config, parameters

from guerdon.credit import Drop, Fuse, GroupNorm, OnFailure, ToTokens
from guerdon.engines.trl import CreditTrainer, Evaluator
from guerdon.signals.agreement import CrossViewVote, TeacherVote
from guerdon.system import Model, System

GROUP, PROMPTS = 4, 6


def pairs(questions: int = 9) -> Dataset:
    """Both views of each question; the second views stand far from the first ones."""
    first = [{"prompt": f"{i}+1=", "answer": str(i + 1), "question_id": f"q{i}", "view": 0} for i in range(questions)]
    second = [{**row, "prompt": f"1+{i}=", "view": 1} for i, row in enumerate(first)]
    return Dataset.from_list([*first, *reversed(second)])


def letter(text: str) -> str:
    """The answer of a random policy's text: its first character."""
    return text[:1]


def system(rate: float = 0.3) -> System:
    cross, teacher = CrossViewVote(letter), TeacherVote(letter, max_tokens=3, samples=4)
    live = ("cross.agrees", "taught.agrees")
    drop = [f"{name}.{part}" for name in ("cross", "taught") for part in cross.watched()]
    return System(
        {"cross": cross, "taught": teacher},
        [Drop(*drop), OnFailure("group"), Fuse(*live, into="reward"), GroupNorm("reward"), ToTokens("reward", "whole")],
        models={"teacher": Model("policy", "ema", rate)},
    )


def make(policy: str, folder: Path, per_device: int = GROUP * PROMPTS, **changes: Any) -> tuple[CreditTrainer, list]:
    seen: list[dict[str, Any]] = []
    composed = system()

    def keep(rollouts: Any, scores: Any) -> None:
        columns = {key: rollouts.columns[key] for key in ("question_id", "view")}
        sources = {name: rewards.values[:, 0] for name, rewards in scores.raw.items()}
        seen.append({**columns, **sources, "groups": rollouts.groups, "texts": rollouts.completions})

    settings = {"max_steps": 3, "learning_rate": 0.05, "optim": "sgd", "loss_type": "grpo", "save_strategy": "no"}
    args = grpo_config(folder, per_device_train_batch_size=per_device, num_generations=GROUP, **{**settings, **changes})
    evaluator = Evaluator(list(pairs()), None, composed, every=3, samples=5 * GROUP, kl=False)
    trainer = CreditTrainer(policy, composed, args, pairs(), monitors=[keep, evaluator], log_dir=folder)
    return trainer, seen


def main(policy: str, out: str, per_device: int) -> None:
    torch.set_num_threads(1)
    trainer, seen = make(policy, Path(out).with_suffix(".run"), per_device)
    trainer.train()
    found = {
        "seen": seen,
        "policy": parameters(trainer),
        "teacher": trainer.instruments.state_dict()["teacher"]["weights"],
        "processes": trainer.accelerator.num_processes,
    }
    torch.save(found, f"{out}.{trainer.accelerator.process_index}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
