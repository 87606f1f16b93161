"""One arm of a reproduction: a short run through the real trainer, and its record on disk, so that finished arms are not run again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from guerdon.system import System


class Trained(NamedTuple):
    """trainer: as it ended, its policy in eval mode. measured: the steps an Evaluator among the monitors measured at."""

    trainer: Any
    measured: list[int]


@dataclass(frozen=True)
class TrainingPlan:
    """The budget of an arm: `steps` optimiser steps of `prompts` x `group` rollouts, the learning rate constant after `warmup` steps; a
    measurement every `every` steps."""

    steps: int = 40
    prompts: int = 8
    group: int = 8
    lr: float = 2e-4
    warmup: int = 5
    every: int = 20


def held_out(task: Any, truth: Any, system: System, plan: TrainingPlan, samples: int, batch_size: int = 256) -> Any:
    """An Evaluator that measures true success on `samples` held-out rollouts of different prompts, and nothing besides."""
    from guerdon.engines.trl import Evaluator

    rows = list(task.to_dataset("held_out"))
    return Evaluator(
        rows, truth, system, every=plan.every, samples=samples, batch_size=batch_size, group_size=1, kl=False
    )


def train_arm(
    policy: str,
    system: System,
    dataset: Any,
    plan: TrainingPlan,
    *,
    tokens: int,
    seed: int,
    loss_type: str,
    monitors: Sequence[Any] = (),
    rollout_func: Any = None,
    **further: Any,
) -> Trained:
    """On-policy: one update a batch, temperature 1, no KL term in the loss; nothing is kept of the run but what is returned.

    Args:
        policy: path of the starting policy.
        system: what it is trained under.
        dataset: of training rows.
        plan: its budget.
        tokens: of a rollout, at most.
        loss_type: TRL's.
        monitors: evaluators and other callables, see `CreditTrainer`.
        rollout_func: of a task with turns.
        further: fields of trl.GRPOConfig.
    """
    import torch
    from transformers import PrinterCallback
    from trl import GRPOConfig

    from guerdon.engines.trl import CreditTrainer, RolloutLog
    from guerdon.lm.load import load_tokenizer

    with tempfile.TemporaryDirectory() as scratch:
        args = GRPOConfig(
            scratch,
            max_steps=plan.steps,
            per_device_train_batch_size=plan.prompts * plan.group,
            num_generations=plan.group,
            max_completion_length=tokens,
            learning_rate=plan.lr,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=plan.warmup,
            temperature=1.0,
            beta=0.0,
            loss_type=loss_type,
            seed=seed,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            **further,
        )
        trainer = CreditTrainer(
            policy,
            system,
            args=args,
            train_dataset=dataset,
            processing_class=load_tokenizer(policy),
            monitors=list(monitors),
            rollout_func=rollout_func,
            rollout_log=RolloutLog(every=0),
            log_dir=scratch,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        log = Path(scratch) / "eval.jsonl"
        measured = [json.loads(line)["step"] for line in log.read_text().splitlines()] if log.exists() else []
    return Trained(trainer, measured)


def kept_run(
    folder: Path | None, name: str, asked: dict[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `make` gives; taken from a file of `folder` if it was made there before with the same `asked`."""
    file = folder / ("".join(c if c.isascii() and c.isalnum() else "-" for c in name) + ".json") if folder else None
    asked = json.loads(json.dumps(asked))  # as it is read back: JSON has no tuples
    if file is not None and file.exists():
        record = json.loads(file.read_text())
        if record["asked"] == asked:
            return record["run"]
    run = make()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".part")
        draft.write_text(json.dumps({"asked": asked, "run": run}))
        draft.replace(file)
    return run
