"""A GRPOTrainer that can be stopped at any time and gone on with exactly: Ctrl-C, checkpoints, the sampler's place.

TRL resumes a run nearly: its sampler begins anew, rollouts that were sampled and not yet used are lost, and what a system has
learned is not in its checkpoints. Here a checkpoint counts only at a generation boundary (`checkpoint`), and holds `run_state`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers.trainer_utils import TrainOutput
from trl import GRPOTrainer

from guerdon.engines.trl import checkpoint
from guerdon.errors import BusyError, GuerdonError
from guerdon.folders.lock import hold_folder
from guerdon.interrupt import Interrupt


class ResumableTrainer(GRPOTrainer):
    """Training that stops on request and resumes where it was.

    Args:
        model: the policy.
        options: of GRPOTrainer, by keyword.

    Attributes:
        status: "ready", "running", "finished", "interrupted" (Ctrl-C, TERM or HUP; a checkpoint was
            saved at the generation boundary) or "failed" (nothing could be trained; a checkpoint was saved where there was a step to save).
        failure: why it failed, in words; None otherwise.
        interrupt: whether somebody asked to stop.
        identity: what the run is made of, as `describe` gives it; a checkpoint of another is not resumed.
    """

    # What `transformers` types too widely for this trainer.
    args: Any
    model: Any

    def __init__(self, model: Any, **options: Any) -> None:
        self.status = "ready"
        self.failure: str | None = None
        self.interrupt = Interrupt()
        self.identity: dict[str, Any] = getattr(self, "identity", {})
        self._use_cache = getattr(getattr(model, "config", None), "use_cache", True)
        super().__init__(model=model, **options)

    def run_state(self) -> dict[str, Any]:
        """What a checkpoint must hold beside weights and optimiser: data, see `state_file`."""
        return {}

    def load_run_state(self, state: dict[str, Any]) -> None:
        """Go on from what `run_state` returned."""

    def train(self, resume_from_checkpoint: bool | str | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; True = go on from the newest complete checkpoint of output_dir, or start where there is none.

        Ctrl-C, TERM and HUP save at the next generation boundary and return (`status` = "interrupted"); a second Ctrl-C stops at once.
        """
        with self._held():
            return self._train(resume_from_checkpoint, *args, **kwargs)

    def _train(self, resume_from_checkpoint: bool | str | None, *args: Any, **kwargs: Any) -> TrainOutput:
        resume = checkpoint.resolve_resume(resume_from_checkpoint, self.args.output_dir)
        if resume is not None:
            checkpoint.check_run(resume, self.identity)
        self.status, self.failure = "running", None
        with self.interrupt:
            try:
                output = super().train(resume, *args, **kwargs)
            except KeyboardInterrupt:
                # In the middle of a step there is nothing exact to save: the newest complete checkpoint stands.
                self.status = "interrupted"
                return TrainOutput(self.state.global_step, float("nan"), {})
            finally:
                self._hand_back()
        stopped = self.interrupt.obeyed and self.state.global_step < self.state.max_steps
        self.failure = None if stopped else self.failure or self.final_failure()
        self.status = "interrupted" if stopped else "failed" if self.failure else "finished"
        return output

    def places(self) -> list[Path]:
        """The folders that a run writes: held for as long as it trains."""
        return [Path(self.args.output_dir)]

    def claim_places(self) -> None:
        """Refuse to write over what no run wrote. On the main process."""

    @contextmanager
    def _held(self) -> Iterator[None]:
        """One writer: the main process holds the folders, and every rank hears of it when it cannot."""
        problem: Exception | None = None
        with ExitStack() as held:
            if self.accelerator.is_main_process:
                try:
                    for place in self.places():
                        held.enter_context(hold_folder(place))
                    self.claim_places()
                except (GuerdonError, OSError) as error:
                    problem = error
            if self.accelerator.num_processes > 1:
                said = [None if problem is None else str(problem)]
                broadcast_object_list(said)
                if problem is None and said[0] is not None:
                    problem = BusyError(said[0])
            if problem is not None:
                raise problem
            yield

    def final_failure(self) -> str | None:
        """Why a run that ended by itself is not finished, or None."""
        return None

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if (
            self.state.global_step >= self.state.max_steps
        ):  # a finished run, resumed: `transformers` would take one more step
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _hand_back(self) -> None:
        """The policy ready for use: training leaves it in train mode with checkpointing on, and `generate` then gives garbage."""
        policy = self.accelerator.unwrap_model(self.model)
        policy.eval()
        for module in policy.modules():
            if getattr(module, "gradient_checkpointing", False) is True:
                module.gradient_checkpointing = False
        policy.config.use_cache = self._use_cache

    def at_boundary(self) -> bool:
        """Whether the next micro-step would sample anew, so that nothing is lost with the process."""
        return self._step % (self.args.steps_per_generation * self.num_iterations) == 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"{checkpoint.PREFIX}{self.state.global_step}"
        if self.args.should_save:
            before = checkpoint.begin(folder, self.run_state() | {"step": self.state.global_step}, self.identity)
        # Older checkpoints go only when this one is complete: a kill in between must leave one to resume from.
        keep, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = keep
        self.accelerator.wait_for_everyone()
        if self.args.should_save and self.at_boundary():
            checkpoint.finish(folder, self.state.global_step, before)
            if keep is not None and keep > 0:
                checkpoint.rotate(folder.parent, keep, protected=self.state.best_model_checkpoint)

    def _load_optimizer_and_scheduler(self, folder: Any) -> None:
        super()._load_optimizer_and_scheduler(folder)
        if folder is not None:
            self.load_run_state(checkpoint.load_state(folder))

    def own_sampler(self, dataset: Any) -> Any:
        """A sampler in place of TRL's, with its `shuffle`, `generator` and `num_samples`; None = TRL's."""
        return None

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        own = self.own_sampler(dataset)
        self._train_sampler: Any = super()._get_train_sampler(dataset) if own is None else own
        return self._train_sampler

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._init_training_state(*args, **kwargs)
        sampler: Any = getattr(self, "_train_sampler", None)
        if getattr(sampler, "shuffle", False):
            # TRL's sampler draws one permutation an epoch from its own generator, which a resumed run starts from anew.
            for _ in range(found[0]):
                torch.randperm(sampler.num_samples, generator=sampler.generator)
        return found
