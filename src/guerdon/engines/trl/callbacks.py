"""What happens once an optimiser step: the metrics line, updates after the policy step, and stopping where it was asked for."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from guerdon.engines.trl.runlog import METRICS
from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts

if TYPE_CHECKING:
    from guerdon.engines.trl.trainer import CreditTrainer


class StepHooks(TrainerCallback):
    """The trainer's once-a-step duties. Collects while a step runs, writes when it ends.

    Attributes:
        loss: of the running step, summed over its micro-batches (as TRL logs it).
        grad_norm: of the running step, before clipping.
        generation: the numbers of the newest generation.
        pending: generations whose "after_policy_step" updates are due.
        first_step: optimiser steps taken before this call of `train`.
    """

    def __init__(self, trainer: CreditTrainer) -> None:
        self.trainer = trainer
        self.loss: Any = 0.0
        self.grad_norm: Any = None
        self.generation: dict[str, Any] = {}
        self.pending: list[tuple[Rollouts, Scores]] = []
        self.first_step = 0
        self._learned: dict[str, float] = {}
        self._learning_rate = math.nan
        self._began = 0.0
        self._seen: dict[str, int] = {}

    def learned(self, metrics: dict[str, float]) -> None:
        """Numbers of updates and monitors: into TRL's log and the next metrics line."""
        for name, value in metrics.items():
            self.trainer._metrics["train"][name].append(float(value))
            self._learned[name] = float(value)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.run_log.restart(state.global_step)
        self.first_step = state.global_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()
        self.loss, self.grad_norm = 0.0, None
        self._seen = {name: len(values) for name, values in self.trainer._metrics["train"].items()}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._learning_rate = self.trainer._get_learning_rate()  # of this step: the scheduler has not moved yet

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        if trainer.at_boundary():
            for rollouts, scores in self.pending:
                trainer.learn(rollouts, scores, "after_policy_step")
            self.pending.clear()
        self._write(state.global_step)
        failure = trainer.health.failure()
        if failure is not None and trainer.at_boundary():
            trainer.failure = failure
            control.should_save = control.should_training_stop = True
        if self._asked_to_stop() and trainer.at_boundary():
            trainer.interrupt.obeyed = True
            control.should_save = control.should_training_stop = True

    def _write(self, step: int) -> None:
        trainer = self.trainer
        loss = torch.as_tensor(self.loss, dtype=torch.float32, device=trainer.accelerator.device)
        if trainer.accelerator.num_processes > 1:
            loss = trainer.accelerator.reduce(loss, reduction="mean")
        record = {
            "step": step,
            **self.generation,
            "loss": float(loss),
            "grad_norm": None if self.grad_norm is None else float(self.grad_norm),
            "lr": self._learning_rate,
        }
        for name in ("kl", "entropy"):
            if (value := self._mean(name)) is not None:
                record[name] = value
        objectives = [name for name in trainer._metrics["train"] if name.startswith("objective/")]
        record |= {name: self._mean(name) for name in objectives} | self._learned
        record["seconds"] = time.perf_counter() - self._began
        trainer.run_log.write(METRICS, record)
        self._learned = {}

    def _mean(self, name: str) -> float | None:
        """Mean of what TRL noted under `name` during this step."""
        values = self.trainer._metrics["train"].get(name, [])[self._seen.get(name, 0) :]
        return sum(values) / len(values) if values else None

    def _asked_to_stop(self) -> bool:
        """On every rank the same: any rank's Ctrl-C stops all."""
        asked = self.trainer.interrupt.requested
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return asked
        return bool(accelerator.reduce(torch.tensor(int(asked), device=accelerator.device), reduction="sum"))
