"""CreditTrainer: TRL's GRPOTrainer, with the reward and the advantages from a System.

TRL samples, computes the log-probabilities it needs, shuffles, splits and steps. Four of its methods are overridden for that:
`_generate` (keep the ids), `_calculate_rewards` (run the signals), `_generate_and_score_completions` (run the chain, put
[B, T] advantages in) and `_compute_loss` (auxiliary objectives); those of stopping and going on are in `resumable`. The
placeholder `reward_funcs`, one per source, are there for TRL's own logs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig

from guerdon.engines.support import limit
from guerdon.engines.trl import batch as B
from guerdon.engines.trl import compat
from guerdon.engines.trl.callbacks import StepHooks
from guerdon.engines.trl.health import Health
from guerdon.engines.trl.initial import plain_init
from guerdon.engines.trl.instruments import Instruments
from guerdon.engines.trl.resumable import ResumableTrainer
from guerdon.engines.trl.run_identity import identity_of_run
from guerdon.engines.trl.runlog import ROLLOUTS, RolloutLog, RunLog, generation_metrics, mean_std, rollout_records
from guerdon.engines.trl.state_file import check_state
from guerdon.engines.trl.together import together_sampler
from guerdon.errors import CapabilityError, ChainError
from guerdon.folders.claim import claim
from guerdon.lm.load import refuse_other_models
from guerdon.lm.ranks import once
from guerdon.parts import asked_of
from guerdon.rewards import Scores
from guerdon.rollouts import Clock, Rollouts
from guerdon.system import System, UpdateAt

Truth = Callable[[list[str], list[dict[str, Any]]], Sequence[Any]]
Monitor = Callable[[Rollouts, Scores], dict[str, float] | None]


class CreditTrainer(ResumableTrainer):
    """A GRPOTrainer whose advantages come from a System; in every other respect TRL's.

    Args:
        model: a path or hub id, a model, or a PEFT model. With `args.beta` it must be loadable from a path.
        system: with a chain. Its group statistics replace `scale_rewards`, its fusion `reward_weights`.
        args: TRL's configuration. `save_steps` is rounded up to a multiple of the generation cycle.
        train_dataset, eval_dataset, processing_class, peft_config, optimizers, quantization_config, tools, rollout_func,
            environment_factory: as TRL has them.
        callbacks: transformers callbacks.
        truth: (completions, rows) -> one number, or (value, reason), for each completion: true success, logged as "true" and
            never trained on. NaN = the verifier failed. Of several turns it sees what the policy said last.
        monitors: called with the global (Rollouts, Scores) of every training generation, returning numbers for the log;
            `Evaluator`s belong here too.
        rollout_log: which rollouts go to `rollouts.jsonl`.
        log_dir: folder of metrics.jsonl, rollouts.jsonl and eval.jsonl; default `args.output_dir`.
        stop_when_failed: save and stop after so many generations in a row that instruments could not score (a judge that is down);
            None = go on.
        stop_when_flat: save and stop after so many generations without an advantage other than 0 where the run never had one; None = go
            on. Objectives train without advantages, so a system with one is never flat.

    Raises:
        CapabilityError, ConfigError: what TRL cannot do with this system or configuration, and what to do instead.

    Attributes:
        status: "ready", "running", "finished", "interrupted" or "failed", see `ResumableTrainer`; `failure` says why.
        health: what the training generations came to.
    """

    # What `transformers` types too widely for this trainer.
    num_generations: Any
    num_generations_eval: Any
    _logs: dict[str, Any]

    def __init__(
        self,
        model: Any,
        system: System,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: list[Any] | None = None,
        truth: Truth | None = None,
        monitors: Sequence[Any] = (),
        rollout_log: RolloutLog | None = None,
        log_dir: str | Path | None = None,
        stop_when_failed: int | None = 3,
        stop_when_flat: int | None = 20,
        **trl_options: Any,
    ) -> None:
        compat.check_trl()
        args = args or GRPOConfig("credit-output")
        peft = peft_config is not None or hasattr(model, "peft_config")
        compat.check_arguments(args)
        if isinstance(model, (str, Path)):
            refuse_other_models(model)
        compat.check_system(system, args, peft=peft, evaluates=eval_dataset is not None)
        compat.check_reference_path(model, args, peft)
        compat.warn_about_temperature(system, args)
        compat.warn_about_checkpoints(args)
        compat.check_data(train_dataset, args, environments=bool(trl_options.get("environment_factory")))
        compat.check_held_out(eval_dataset)
        self.identity = identity_of_run(
            model, system, args, data=train_dataset, eval_data=eval_dataset, peft=peft_config, truth=truth, monitors=monitors, options=trl_options
        )  # fmt: skip
        self.system, self.truth, self.monitors = system, truth, list(monitors)
        self.rollout_log = rollout_log or RolloutLog()
        self.health = Health(stop_when_failed, stop_when_flat, trains_anyway=bool(system.objectives))
        self._source_names = source_names(system)
        initial = any(getattr(monitor, "wants_initial_policy", False) for monitor in self.monitors)
        # Before TRL patches the policy.
        self.instruments = Instruments(system, model, args, adapters=peft, initial=initial)
        for monitor in self.monitors:
            if hasattr(monitor, "before_trainer"):
                monitor.before_trainer(model)
        with plain_init(model):
            super().__init__(
                model=model,
                reward_funcs=list(map(_placeholder, self._source_names)),
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                peft_config=peft_config,
                callbacks=callbacks,
                **trl_options,
            )
        self._leave_out_environment_rewards()
        compat.check_reference_weights(self)
        compat.check_sharding(self, system)
        self.run_log = RunLog(log_dir or self.args.output_dir, active=self.accelerator.is_main_process)
        self.hooks = StepHooks(self)
        self.add_callback(self.hooks)
        self._sampled: B.Sampled | None = None
        self._scored: tuple[Rollouts, Scores, Tensor | None, list[str]] | None = None
        self._objective_rows: tuple[Rollouts, Scores] | None = None
        self._warned: set[str] = set()
        self.instruments.attach(self)
        together_sampler(self, None)  # refuses data and batch sizes in which rows that must meet cannot
        for monitor in self.monitors:
            if hasattr(monitor, "attach"):
                monitor.attach(self)

    def _leave_out_environment_rewards(self) -> None:
        """Take back the columns TRL appends for environments with `get_reward`: a signal of the system asks them, or none may."""
        own = len(self._source_names)
        if len(self.reward_funcs) == own:
            return
        if not any(getattr(signal, "owns_get_reward", False) for signal in self.system.signals.values()):
            raise CapabilityError(limit("environment_reward", environment=", ".join(self.reward_func_names[own:])))
        del self.reward_funcs[own:], self.reward_func_names[own:], self.reward_processing_classes[own:]
        self.reward_weights = self.reward_weights[:own]

    # -- one generation --------------------------------------------------------------------------------------------------

    def clock(self, *, training: bool) -> Clock:
        return Clock(self.state.global_step, self.state.max_steps or None, training, self.args.seed)

    def forked(self, clock: Clock, *key: object) -> AbstractContextManager[None]:
        """Generators seeded by the clock and the key for a block, put back afterwards."""
        # Not `_step` itself, which a resumed run counts from 0: only its place within the optimiser step.
        micro = self._step % self.args.gradient_accumulation_steps
        return B.forked_rng(clock.generator(*key, micro).initial_seed())

    def rollouts_of(
        self, sampled: B.Sampled, prompts: list[Any], columns: dict[str, list[Any]], group_size: int, clock: Clock
    ) -> Rollouts:
        """This rank's Rollouts of what was sampled."""
        options: Any = self.args.generation_kwargs or {}
        stops = {*self.eos_token_ids}
        if options.get("stop_strings"):
            stops.add(self._tokenizer.pad_token_id)  # what `generate` writes after a stop string
        return B.build_rollouts(
            sampled,
            prompts,
            columns,
            tokenizer=self._tokenizer,
            stop_ids=stops,
            cap=options.get("max_new_tokens", self.max_completion_length),
            group_size=group_size,
            rank=self.accelerator.process_index,
            clock=clock,
            drop_unfinished=self.mask_truncated_completions,
        )

    def _generate(self, prompts: list[Any]) -> Any:
        result = super()._generate(prompts)
        self._sampled = B.Sampled(*result[:4])
        return result

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        training = self.model.training
        clock = self.clock(training=training)
        assert self._sampled is not None
        keys = [key for key in inputs[0] if key != "prompt"]
        columns = {key: [row.get(key) for row in inputs] for key in keys}
        if self.environments is not None:
            columns["environments"] = list(self.environments)
        group_size = self.num_generations if training else self.num_generations_eval
        with self.instruments.measuring():
            local = self.rollouts_of(self._sampled, prompts, columns, group_size, clock)
            rollouts, scores = self.score(local)
        truth, reasons = self._measure_truth(local)
        self._scored = (rollouts, scores, truth, reasons)
        matrix = self._source_matrix(scores)
        compat.warn_about_unscored(matrix, rollouts)
        return matrix.to(self.accelerator.device)

    def score(self, local: Rollouts) -> tuple[Rollouts, Scores]:
        """Signals on this rank's rollouts; returns the global rollouts and their scores, the same on every rank."""
        with self.instruments.in_step():
            return self._score(local)

    def _score(self, local: Rollouts) -> tuple[Rollouts, Scores]:
        clock, processes, rank = local.clock, self.accelerator.num_processes, self.accelerator.process_index
        local = self._segmented(local)
        rollouts = B.gather_rollouts(local, processes)
        if clock.training:
            self.learn(rollouts, Scores.empty(rollouts), "before_scoring")
        scores = Scores.empty(rollouts)
        for number, (apart, names) in enumerate(self.system.stages()):
            later = [number] if number else []
            if apart:  # each row is scored where it is, whatever the signals before needed to see
                with self.forked(clock, "row signals", rank, *later):
                    own = self.system.score(local, only=names, scores=B.own_scores(scores, rank, len(local)))
                scores = B.gather_scores(own, processes, onto=scores)
            else:
                with self.forked(clock, "signals"):
                    scores = self.system.score(rollouts, only=names, scores=scores, once=once)
        return rollouts, scores

    def gathered(self, local: Rollouts) -> Rollouts:
        """The global rollouts, not scored; the same on every rank."""
        with self.instruments.in_step():
            return B.gather_rollouts(self._segmented(local), self.accelerator.num_processes)

    def _segmented(self, local: Rollouts) -> Rollouts:
        with self.forked(local.clock, "rows", self.accelerator.process_index):
            return self.instruments.with_logprobs(self.system.segmented(local), self.temperature)

    def learn(self, rollouts: Rollouts, scores: Scores, at: UpdateAt) -> None:
        """Let the parts that learn at this point do so, on the global batch, on every rank alike."""
        if any(getattr(signal, "update_at", None) == at for signal in self.system.signals.values()):
            with self.forked(rollouts.clock, at), self.instruments.measuring(), self.instruments.in_step():
                self.hooks.learned(self.system.update(rollouts, scores, at=at))

    def credit(self, rollouts: Rollouts, scores: Scores) -> Scores:
        """The chain on the global batch; in training also the states and the parts that learn after scoring."""
        clock = rollouts.clock
        with self.forked(clock, "chain"):
            scores = self.system.credit(scores, rollouts, once=once)
            if clock.training:
                self.system.commit(scores)
        if clock.training:
            self.learn(rollouts, scores, "after_scoring")
        return scores

    def _source_matrix(self, scores: Scores) -> Tensor:
        """[B_global, K]: each source's row total, NaN where it failed or does not apply: what TRL logs."""
        missing = [name for name in self._source_names if name not in scores.raw]
        if missing or len(scores.raw) != len(self._source_names):
            raise ChainError(
                f"{self.system.name}: signals declared the sources {self._source_names} and gave {sorted(scores.raw)}; a signal with several sources declares level={{name: level}}"
            )
        columns = [scores.raw[name] for name in self._source_names]
        return torch.stack([source.row_reward().cpu().float() for source in columns], 1)

    def _measure_truth(self, local: Rollouts) -> tuple[Tensor | None, list[str]]:
        """[B_global] true success of the training rollouts, for the log only."""
        if self.truth is None:
            return None, []
        with self.forked(local.clock, "truth"):
            answers = self.truth(local.last_turns, B.rows_of(local))
        values, reasons = B.read_truth(answers, len(local))
        self._log_completion_extra("true", values.tolist())
        if self.accelerator.num_processes == 1:
            return values, reasons
        parts = B._gather((values, reasons))
        return torch.cat([v for v, _ in parts]), [why for _, texts in parts for why in texts]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        mode = "train" if self.model.training else "eval"
        if self.environment_factories is None:  # whose `reset` may bring the prompt
            compat.check_row(inputs[0])
        if mode == "train":
            self.hooks.learned(self.instruments.move(self.state.global_step + 1, self.state.max_steps or None))
        output = super()._generate_and_score_completions(inputs)
        assert self._scored is not None
        rollouts, scores, truth, reasons = self._scored
        with self.instruments.measuring():
            scores = self.credit(rollouts, scores)
        B.install_credit(output, scores, rollouts, self.accelerator.process_index)
        self._log_generation(mode, rollouts, scores, truth, reasons)
        if mode == "train":
            self.health.see(rollouts, scores)
            assert rollouts.policy_mask is not None
            for text in compat.credit_warnings(self.args, scores.advantages, rollouts.policy_mask):
                self._warn_once(text)
            self.hooks.pending.append((rollouts, scores))
            if self.system.objectives:
                size = len(output["advantages"])
                first = self.accelerator.process_index * size
                output["rows"] = torch.arange(first, first + size, device=output["advantages"].device)
                self._objective_rows = (rollouts, scores)
        self._sampled = self._scored = None
        return output

    def _log_generation(
        self, mode: str, rollouts: Rollouts, scores: Scores, truth: Tensor | None, reasons: list[str]
    ) -> None:
        """Our numbers in TRL's logs where TRL's own would mislead, and the run's log."""
        record = generation_metrics(rollouts, scores, truth)
        metrics = self._metrics[mode]
        metrics["reward"][-1], metrics["reward_std"][-1] = record["reward"], record["reward_std"]
        metrics["kept"].append(record["kept"])
        for name, value in scores.metrics.items():
            metrics[f"chain/{name}"].append(float(value))
        for name, value in scores.logged.items():
            metrics[name].append(float(value))
        for name, cells in scores.texts.items():
            self._logs["extra"][name].extend(cells)
        if truth is not None:
            metrics["true"].append(mean_std(truth)[0])
        shown, size = self._logs["advantages"], len(rollouts)
        if scores.advantages.shape[1]:
            assert rollouts.policy_mask is not None
            share = rollouts.policy_mask.sum(1).clamp(min=1)
            row_means = ((scores.advantages * rollouts.policy_mask).sum(1) / share).tolist()
            for _ in range(min(size, len(shown))):  # the completions table wants one number a row
                shown.pop()
            shown.extend(row_means)
        if mode != "train":
            return
        self.hooks.generation = record
        for monitor in self.monitors:
            if callable(monitor):
                with self.forked(rollouts.clock, "monitor"), self.instruments.measuring():
                    self.hooks.learned(_watched(monitor, rollouts, scores) or {})
        step, every = self.state.global_step, self.rollout_log.every
        if every and step % every == 0 and self.run_log.active:
            first = list(dict.fromkeys(rollouts.groups.tolist()))[: self.rollout_log.groups]
            rows = [row for row, group in enumerate(rollouts.groups.tolist()) if group in first]
            for line in rollout_records(
                rollouts, scores, rows, step=step, split="train", truth=truth, truth_reasons=reasons
            ):
                self.run_log.write(ROLLOUTS, line)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(f"{self.system.name}: {text}", stacklevel=3)

    # -- the loss ----------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        share, beta, scaled = inputs.get("row_share"), self.beta, inputs
        if share is not None and self.loss_type in B.ROW_MEAN_LOSSES:
            # Scaling the credit and the KL coefficient is scaling their sum, and leaves an entropy bonus alone.
            scaled = {**inputs, "advantages": inputs["advantages"] * share}
            self.beta = beta * float(share)
        try:
            loss = super()._compute_loss(model, scaled)
        finally:
            self.beta = beta
        if "rows" not in inputs or self._objective_rows is None:
            return loss
        rollouts, scores = self._objective_rows
        rows = inputs["rows"].cpu()
        rewards = {name: rewards.select(rows) for name, rewards in scores.raw.items()}
        scale = B.row_scale(
            inputs,
            self.loss_type,
            processes=self.accelerator.num_processes,
            generation_steps=self.args.steps_per_generation,
            max_completion_length=self.max_completion_length or 1,
        )
        part = B.ObjectiveBatch(
            rollouts.select(rows), rewards, scores.keep[rows], inputs, self.temperature, scale, (rollouts, scores)
        )
        models = {**self.instruments.by_role, "policy": model}
        for objective in self.system.objectives:
            with self.instruments.learning():
                extra, metrics = objective(models, part)
            loss = loss + extra / self.current_gradient_accumulation_steps
            for name, value in metrics.items():
                self._metrics["train"][f"objective/{name}"].append(float(value))
        return loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.hooks.loss += loss.detach()
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        self.hooks.grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self.hooks.grad_norm

    # -- what a checkpoint holds of a run, and its end ---------------------------------------------------------------------

    def run_state(self) -> dict[str, Any]:
        health = self.health.state_dict()
        return {"system": self.system.state_dict(), "models": self.instruments.state_dict(), "health": health}

    def load_run_state(self, state: dict[str, Any]) -> None:
        self.system.load_state_dict(state["system"])
        self.instruments.load_state_dict(state.get("models", {}))
        self.health.load_state_dict(state.get("health", {}))

    def final_failure(self) -> str | None:
        step = self.state.global_step
        if step == self.hooks.first_step and step < self.state.max_steps:
            return f"no step was taken: {limit('no_data', step=step, steps=self.state.max_steps, prompts=compat.prompts_needed(self.args))}"
        return self.health.at_the_end()

    def places(self) -> list[Path]:
        return [self.run_log.folder, *super().places()]

    def claim_places(self) -> None:
        claim(self.run_log.folder, "trainer")
        check_state(self.system.state_dict())

    def own_sampler(self, dataset: Any) -> Any:
        return together_sampler(self, dataset)

    def _hand_back(self) -> None:
        self.run_log.close()
        super()._hand_back()


def source_names(system: System) -> list[str]:
    """The sources the signals declare, in order: a signal's name, or name.sub for each of its levels."""
    names: list[str] = []
    for name, signal in system.signals.items():
        level = getattr(signal, "level", "sequence")
        names += [name] if isinstance(level, str) else [f"{name}.{sub}" for sub in level]
    return names


def _watched(monitor: Monitor, rollouts: Rollouts, scores: Scores) -> dict[str, float] | None:
    if asked_of(monitor) == "everywhere":
        return monitor(rollouts, scores)
    return once(lambda: monitor(rollouts, scores))


def _placeholder(name: str) -> Callable[..., list[float | None]]:
    """A reward function that is never called: `_calculate_rewards` runs the signals, TRL takes the name for its logs."""

    def placeholder(**_: Any) -> list[float | None]:
        raise AssertionError(f"the reward of {name!r} comes from the system")

    placeholder.__name__ = name
    return placeholder


__all__ = ["CreditTrainer", "source_names"]
