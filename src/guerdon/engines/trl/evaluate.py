"""Is the policy truly better? Held-out prompts, sampled every few steps at the run's temperature, measured and written down.

True success comes from the task's own verifier and is never fed into an advantage; beside it stand the reward the system
optimises, length, the share that was cut off, and the KL to the policy the run began with. Each number has its n and its
standard error, clustered by prompt: rollouts of one prompt are not independent.

The same prompts and the same draws are used whatever else the run did: the generators are forked and seeded by the step.
Sampling goes through the trainer's own `_generate`, so tools and rollout functions work; environments with a factory do not.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from guerdon.engines.trl import batch as B
from guerdon.engines.trl.instruments import completion_logprobs
from guerdon.engines.trl.runlog import EVAL, ROLLOUTS, rollout_records
from guerdon.engines.trl.together import column_of, together_column, units_of
from guerdon.errors import CapabilityError, ConfigError
from guerdon.lm.ranks import once
from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts, concat_rollouts
from guerdon.system import System

if TYPE_CHECKING:
    from guerdon.engines.trl.trainer import CreditTrainer


class Evaluator(TrainerCallback):
    """Measures the policy on held-out prompts: before training, every `every` steps, and after the last step.

    Args:
        rows: held-out rows, each a mapping with "prompt" and whatever columns the system and the truth read.
        truth: (completions, rows) -> a number or (value, reason) for each; None = true success is not measured.
        system: whose reward is reported: the trainer's.
        every: optimiser steps between measurements.
        samples: rollouts of a measurement, each of another prompt: the same ones whatever the system, so that true success can be
            compared between systems. The first rows are used, again from the start if there are too few.
        temperature, max_new_tokens: default the trainer's.
        group_size: rollouts of a prompt that the reward needs: default 1 where the reward of a row needs that row alone, the trainer's
            num_generations for others. Above 1, the reward is measured on as many rollouts again, samples / group_size groups.
        initial_policy: what KL is measured against: a path, a model, or None = the policy as the trainer gets it, which is no second
            model where the trainer has it anyway (a reference, adapters).
        kl: False = no KL, and no second model in memory.
        batch_size: rollouts sampled together.
        log_rollouts: groups of each measurement that go to rollouts.jsonl, as split "held_out".
    """

    def __init__(
        self,
        rows: Sequence[Any],
        truth: Callable[[list[str], list[Any]], Sequence[Any]] | None,
        system: System,
        *,
        every: int = 10,
        samples: int = 128,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        group_size: int | None = None,
        initial_policy: Any = None,
        kl: bool = True,
        batch_size: int = 64,
        log_rollouts: int = 2,
    ) -> None:
        if not len(rows):
            raise ConfigError("the evaluator has no held-out rows")
        if every < 1 or samples < 1:
            raise ConfigError(f"every={every}, samples={samples}: both must be at least 1")
        self.rows, self.truth, self.system = list(rows), truth, system
        self.every, self.samples, self.group_size = every, samples, group_size
        self.temperature, self.max_new_tokens = temperature, max_new_tokens
        self.kl, self.batch_size, self.log_rollouts = kl, batch_size, log_rollouts
        self._initial: Any = initial_policy
        self._trainer: CreditTrainer | None = None
        self._last = -1
        self._unit = 1  # held-out rows that must be measured together

    # -- around the trainer ----------------------------------------------------------------------------------------------

    @property
    def wants_initial_policy(self) -> bool:
        """Whether it will ask the trainer for the policy as it began, which may have to be copied before the trainer has it."""
        return self.kl and self._initial is None

    def attach(self, trainer: CreditTrainer) -> None:
        if trainer.environment_factories is not None:
            raise CapabilityError(
                "held-out evaluation cannot reset environments made by environment_factory; own them in a rollout_func, or evaluate outside"
            )
        if self.system is not trainer.system:
            raise ConfigError(
                f"the evaluator measures {self.system.name!r} and the trainer trains {trainer.system.name!r}: give both the same System object"
            )
        self._trainer = trainer
        column = together_column(self.system)
        if column is not None:
            units = units_of(column_of(self.rows, column), column)
            self.rows, self._unit = [self.rows[row] for unit in units for row in unit], len(units[0])
        self.group_size = self.group_size or (1 if self.system.reward_scope() == "row" else trainer.num_generations)
        if self.kl:
            instruments = trainer.instruments
            self._initial = instruments.as_it_began() if self._initial is None else instruments.frozen(self._initial)
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last = state.global_step if state.global_step else -1
        if not state.global_step:
            self.evaluate()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self.evaluate()

    # -- one measurement -------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, Any]:
        """Sample, measure, append a line to eval.jsonl; returns the line. On every rank, with the same result."""
        trainer = self._trainer
        assert trainer is not None
        step, began = trainer.state.global_step, time.perf_counter()
        if step == self._last:
            return {}
        clock, size = trainer.clock(training=False), self.group_size
        assert size is not None
        with trainer.instruments.sampling():
            with trainer.forked(clock, "held-out", trainer.accelerator.process_index):
                local = self._sample(1)
            if size == 1:
                rollouts, scores = trainer.score(local)
                measured = rollouts
            else:
                measured = trainer.gathered(local)
                with trainer.forked(clock, "held-out groups", trainer.accelerator.process_index):
                    local = self._sample(size)
                rollouts, scores = trainer.score(local)
            with trainer.forked(clock, "held-out chain"):
                scores = self.system.credit(scores, rollouts, once=once)
            truth, reasons = self._measure_truth(measured)
            line = {"step": step, **self._numbers(measured, truth), **self._reward(rollouts, scores)}
        line["seconds"] = time.perf_counter() - began
        trainer.run_log.write(EVAL, line)
        self._log(step, rollouts, scores, *((truth, reasons) if size == 1 else (None, [])))
        self._last = step
        return line

    def _log(self, step: int, rollouts: Rollouts, scores: Scores, truth: Tensor | None, reasons: list[str]) -> None:
        """Write the first groups; their truth is measured here where the measured rollouts were others."""
        trainer = self._trainer
        assert trainer is not None
        shown = list(dict.fromkeys(rollouts.groups.tolist()))[: self.log_rollouts]
        kept = [row for row, group in enumerate(rollouts.groups.tolist()) if group in shown]
        if truth is None and self.truth is not None and kept:
            found, why = self._measure_truth(rollouts.select(kept))
            assert found is not None
            truth, reasons = torch.full((len(rollouts),), math.nan, dtype=found.dtype), [""] * len(rollouts)
            truth[kept] = found
            for row, reason in zip(kept, why, strict=True):
                reasons[row] = reason
        for record in rollout_records(
            rollouts, scores, kept, step=step, split="held_out", truth=truth, truth_reasons=reasons
        ):
            trainer.run_log.write(ROLLOUTS, record)

    def _sample(self, size: int) -> Rollouts:
        """This rank's share of the held-out rollouts, `size` of each prompt. Every rank samples equally often, or sharded models would
        hang."""
        trainer = self._trainer
        assert trainer is not None
        prompts, ranks = max(1, self.samples // size), trainer.accelerator.num_processes
        whole = math.lcm(self._unit, ranks)  # rows that must meet do so in the gathered batch
        share = math.ceil(prompts / whole) * whole // ranks
        first = trainer.accelerator.process_index * share
        chosen = [(first + i) % len(self.rows) for i in range(share)]
        per_batch = max(1, self.batch_size // size)
        parts = [self._sample_batch(chosen[i : i + per_batch], first + i, size) for i in range(0, share, per_batch)]
        return concat_rollouts(parts)

    def _sample_batch(self, chosen: list[int], first_group: int, size: int) -> Rollouts:
        trainer = self._trainer
        assert trainer is not None
        rows = [self.rows[i] for i in chosen for _ in range(size)]
        # As the columns of a data set: every row has every key.
        keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "prompt"]
        columns = {key: [row.get(key) for row in rows] for key in keys}
        prompts = [row["prompt"] for row in rows]
        with _Settings(trainer, self.temperature, self.max_new_tokens, size):
            sampled = B.Sampled(*trainer._generate(prompts)[:4])
            rollouts = trainer.rollouts_of(sampled, prompts, columns, size, trainer.clock(training=False))
        index = torch.arange(len(rows))
        return replace(
            rollouts,
            group_ids=first_group + index // size,
            sample_ids=first_group * size + index,
            trainable=torch.ones(len(rows), dtype=torch.bool),
        )

    def _measure_truth(self, rollouts: Rollouts) -> tuple[Tensor | None, list[str]]:
        if self.truth is None:
            return None, []
        truth = self.truth  # every rank holds all rows: one asks, a verifier may cost money or vary
        return once(lambda: B.read_truth(truth(rollouts.last_turns, B.rows_of(rollouts)), len(rollouts)))

    def _numbers(self, rollouts: Rollouts, truth: Tensor | None) -> dict[str, Any]:
        """Of the rollouts that are the same whatever the system."""
        clusters = self._prompt_of(rollouts)
        found: dict[str, Any] = {}
        if truth is not None:
            found["true_success"] = estimate(truth, clusters)
        found["length"] = estimate(rollouts.lengths.float(), clusters)
        if rollouts.finished is not None:
            found["truncated"] = estimate(1 - rollouts.finished.float(), clusters)
        if self.kl:
            found["kl"] = self._kl(rollouts)
        return found

    def _reward(self, rollouts: Rollouts, scores: Scores) -> dict[str, Any]:
        """Of the rollouts that were scored."""
        reward = scores.reward if scores.reward is not None else torch.full((len(scores),), math.nan)
        found: dict[str, Any] = {"reward": estimate(reward, self._prompt_of(rollouts))}
        if self.system.relative or same_in_every_group(reward, rollouts.groups):
            found["relative"] = True
        if scores.metrics:
            found["chain"] = dict(scores.metrics)  # what watching links noted, on held-out prompts
        return found

    def _prompt_of(self, rollouts: Rollouts) -> list[int]:
        """B indices of held-out rows: the clusters. A row used again is the same cluster, and so are rows that must meet."""
        return (rollouts.groups % len(self.rows) // self._unit).tolist()

    def _kl(self, rollouts: Rollouts) -> dict[str, Any]:
        """Mean over sampled tokens of log pi - log pi_initial, both at the sampling temperature."""
        trainer = self._trainer
        assert trainer is not None and rollouts.policy_mask is not None
        temperature = self.temperature or trainer.temperature
        old = rollouts.logprobs.get("old")
        known = old is not None and old.temperature == temperature
        with trainer.instruments.in_step():
            policy = (
                old.values
                if known and old is not None
                else completion_logprobs(trainer.instruments.policy, rollouts, temperature)
            )
            initial = completion_logprobs(self._initial, rollouts, temperature)
        mask = rollouts.policy_mask
        return estimate(((policy - initial) * mask).sum(1), self._prompt_of(rollouts), mask.sum(1).float())


class _Settings:
    """The trainer sampling as the evaluator wants it, its own settings and eval metrics put back afterwards."""

    def __init__(
        self, trainer: CreditTrainer, temperature: float | None, max_new_tokens: int | None, group: int
    ) -> None:
        self.trainer, self.group = trainer, group
        self.temperature, self.max_new_tokens = temperature, max_new_tokens

    def __enter__(self) -> None:
        trainer: Any = self.trainer
        self.saved = (trainer.max_completion_length, trainer.num_generations_eval, trainer._sampled)
        self.metrics = {name: list(values) for name, values in trainer._metrics["eval"].items()}
        self.config: Any = getattr(trainer, "generation_config", None)
        trainer.num_generations_eval = self.group
        changes = {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}
        changes = {name: value for name, value in changes.items() if value is not None}
        if changes and self.config is None:
            raise CapabilityError(
                "another temperature or length for held-out prompts needs generation by transformers (use_vllm=False)"
            )
        if changes:
            trainer.generation_config = copy.deepcopy(self.config)
            trainer.generation_config.update(**changes)
        if self.max_new_tokens is not None:
            trainer.max_completion_length = self.max_new_tokens

    def __exit__(self, *error: object) -> None:
        trainer: Any = self.trainer
        trainer.max_completion_length, trainer.num_generations_eval, trainer._sampled = self.saved
        if self.config is not None:
            trainer.generation_config = self.config
        trainer._metrics["eval"].clear()
        trainer._metrics["eval"].update(self.metrics)


def same_in_every_group(reward: Tensor, groups: Tensor) -> bool:
    """Whether rewards differ within groups and every group has the same mean: they only share something out (win rates, ranks).

    Args:
        reward: [B], NaN where it could not be scored.
        groups: [B] int64.
    """
    known = ~reward.isnan()
    _, group = torch.unique(groups[known], return_inverse=True)
    values = reward[known].double()
    if not len(values) or int(group.max()) < 3:  # two or three groups may be equal by chance
        return False
    size = torch.bincount(group).double()
    mean = torch.zeros_like(size).index_add_(0, group, values) / size
    spread = values - mean[group]
    scale = float(spread.abs().max())
    return scale > 1e-6 and bool(((mean - mean.mean()).abs() <= 1e-4 * scale).all())


def estimate(values: Tensor, clusters: Sequence[Any], weights: Tensor | None = None) -> dict[str, Any]:
    """A mean with its standard error, clustered.

    Args:
        values: [B], NaN = the instrument failed, left out and counted. With weights, totals to be divided by the weights' sum.
        clusters: B labels; rows of one label are not independent (rollouts of one prompt).
        weights: [B] denominators of a ratio (tokens of each rollout), or None for a plain mean.

    Returns:
        {"mean", "se", "n", "failed"}; se is NaN for fewer than two clusters. The ratio's error is linearised (Taylor); rows in
        clusters of one give the usual s / sqrt(n).
    """
    ok = ~values.isnan()
    failed = int((~ok).sum())
    values, labels = values[ok].double(), [label for label, good in zip(clusters, ok.tolist(), strict=True) if good]
    size = torch.ones_like(values) if weights is None else weights[ok].double()
    total = float(size.sum())
    if not len(values) or total == 0:
        return {"mean": math.nan, "se": math.nan, "n": len(values), "failed": failed}
    mean = float(values.sum()) / total
    index = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    rows = torch.tensor([index[label] for label in labels])
    residual = torch.zeros(len(index), dtype=torch.float64).index_add_(0, rows, values - mean * size)
    count = len(index)
    error = math.sqrt(float((residual**2).sum()) * count / (count - 1)) / total if count > 1 else math.nan
    return {"mean": mean, "se": error, "n": len(values), "failed": failed}


__all__ = ["Evaluator", "estimate"]
