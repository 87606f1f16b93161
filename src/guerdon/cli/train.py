"""`guerdon train`: one policy, one system, one seed, in a folder that can be killed at any time and gone on with.

Order matters: everything that can be refused (configuration, system, task, model, the trainer's own checks) is refused before
anything is deleted, written or sampled.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from guerdon.cli import config as settings
from guerdon.cli.config import RunConfig
from guerdon.cli.device import dtype_name, training_device
from guerdon.cli.models import resolve_model
from guerdon.cli.presets import preset_line
from guerdon.cli.runfolder import last_record, provenance, read_manifest, write_manifest
from guerdon.errors import ConfigError, TrainingFailed
from guerdon.folders import claim
from guerdon.folders.lock import hold_folder
from guerdon.redact import without_credentials

if TYPE_CHECKING:
    from guerdon.system import System
    from guerdon.tasks.base import Task


LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")


@dataclass(frozen=True)
class Parts:
    """What a configuration stands for, once resolved."""

    task: Task
    policy: str  # a path or hub id that transformers loads
    tokenizer: Any
    system: System
    chat: bool  # prompts go through the tokenizer's chat template


def train_run(
    config: RunConfig, *, restart: bool, quiet: bool, console: Console, wait_s: float = 0.0
) -> dict[str, Any]:
    """Train, measure, report. Returns the run's manifest. Nothing is deleted or written before everything was checked.

    Args:
        config: the run.
        restart: throw away the run that the folder holds. Files that no run wrote stay.
        quiet: no bars, no table.
        console: where progress goes.
        wait_s: seconds to wait for another process that writes the folder.

    Raises:
        ConfigError: the folder holds another run, or a setting is wrong.
        BusyError: another process writes the folder.
        KeyboardInterrupt: after the run was saved; the same call continues it.
        TrainingFailed: nothing could be trained; the manifest says why, and the same call continues it.
    """
    folder = config.folder
    with hold_folder(folder, wait_s=wait_s):
        found = settings.check_same(config, folder, restart=restart)
        if found == "continue" and read_manifest(folder).get("status") == "done":
            console.print(f"{folder} is done already; --restart runs it anew")
            return read_manifest(folder)
        hush()
        try:
            parts = resolve_parts(config)
            trainer = build_trainer(config, parts, folder, quiet=quiet, console=console)
            take(folder, found, "train", console=console)
        except BaseException:
            with contextlib.suppress(OSError):  # the trainer makes it; a refused run leaves nothing behind
                (folder / "checkpoints").rmdir()
            raise
        settings.save(config, folder)
        return _run(config, parts, trainer, folder, quiet=quiet, console=console)


def take(folder: Path, found: settings.Found, kind: claim.Kind, *, console: Console, **names: Sequence[str]) -> None:
    """Make a folder a run's: what an earlier run wrote is deleted where it is to be replaced, and a mark is written."""
    if found == "replace":
        left = claim.clear(folder)
        if left:
            console.print(
                f"{folder}: the run in it was deleted; what no run wrote stays: {', '.join(left[:8])}",
                highlight=False,
                soft_wrap=True,
            )
    claim.claim(folder, kind, **names)


def _run(
    config: RunConfig, parts: Parts, trainer: Any, folder: Path, *, quiet: bool, console: Console
) -> dict[str, Any]:
    write_manifest(
        folder,
        system=config.system,
        task=config.task,
        model=config.model,
        seed=config.seed,
        status="running",
        error=None,
        **provenance(),
        description=str(parts.system),
        policy=str(parts.policy),
        questions=count_questions(parts.task),
    )
    if not quiet:
        console.print(questions_line(parts.task, config.eval_prompts), highlight=False, soft_wrap=True)
        if said := preset_line(config):
            console.print(said, highlight=False, soft_wrap=True)
    started = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=True)
        if trainer.status == "finished":
            with claim.noting_policy(folder):
                trainer.save_model(str(folder / "policy"))
        status = "done" if trainer.status == "finished" else trainer.status
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        with contextlib.suppress(OSError):  # a full disk: the error that comes is the one to tell
            write_manifest(
                folder,
                status="interrupted" if stopped else "failed",
                error=None if stopped else without_credentials(f"{type(error).__name__}: {error}"),
            )
        raise
    write_manifest(
        folder,
        status=status,
        error=trainer.failure,
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        seconds=round(time.monotonic() - started, 1),
    )
    if status == "interrupted":
        raise KeyboardInterrupt
    if status == "failed":
        raise TrainingFailed(
            f"{trainer.failure}. {folder} holds what there is, with status 'failed'; the same command goes on from there"
        )
    if not quiet:
        from guerdon.cli.outcome import print_table, write_report
        from guerdon.report import summarise

        print_table(summarise([folder]), console)
        console.print(f"report: {write_report(folder)}")
    return read_manifest(folder)


def count_questions(task: Task) -> dict[str, int]:
    """Different prompts of both sides."""
    return {"train": task.questions("train"), "held_out": task.questions("held_out")}


def questions_line(task: Task, samples: int) -> str:
    """What there is to learn from and to be measured on, for a reader who is about to wait.

    samples: rollouts of a measurement; with fewer held-out prompts some are asked more than once, which its intervals do not know of.
    """
    counts = count_questions(task)
    line = f"{task.name}: {counts['train']} questions to train on, {counts['held_out']} held out"
    short = counts["held_out"] < samples
    return line + (f"; a measurement takes {samples} samples, so it asks them more than once" if short else "")


def resolve_parts(config: RunConfig) -> Parts:
    """Task, starting policy, tokenizer and system; whatever has to be made first (the tiny policy, its PRM) is made and cached."""
    from guerdon.lm.load import load_tokenizer
    from guerdon.systems.context import Context, build
    from guerdon.tasks import load_task

    task = load_task(config.task, **config.columns)
    known = config.task.partition(",")[0] == "sums" or task.tiny_policy is not None
    if config.model == "tiny" and not known:
        raise ConfigError(
            f"the tiny policies only know the built-in tasks 'sums' and 'search'; for task {config.task!r} choose --model smollm2, a hub id or a path"
        )
    own = task.tiny_policy if config.model == "tiny" else None
    policy = own() if own else resolve_model(config.model)
    tokenizer = load_tokenizer(policy)
    system = build(config.system, Context(task, tokenizer, policy, config.model, config.max_completion_length))
    if not system.chain:
        raise ConfigError(f"{config.system} has no chain: it scores, and cannot train")
    if "turns" in system.segments and task.environment is None:
        raise ConfigError(
            f"{config.system} pays the turns of an agent, and in task {config.task!r} nobody answers a turn: choose a task with an "
            "environment (--task search)"
        )
    return Parts(task, policy, tokenizer, system, chat=bool(getattr(tokenizer, "chat_template", None)))


def build_trainer(config: RunConfig, parts: Parts, folder: Path, *, quiet: bool, console: Console) -> Any:
    """The trainer of a run. Whatever it refuses is refused here."""
    import torch
    from transformers import PrinterCallback

    from guerdon.engines.trl import CreditTrainer, Evaluator, RolloutLog, multi_turn

    if config.threads:
        torch.set_num_threads(config.threads)
    evaluator = Evaluator(
        list(parts.task.to_dataset("held_out", chat=parts.chat)),
        parts.task.true_success,
        parts.system,
        every=config.eval_every,
        samples=config.eval_prompts,
        initial_policy=parts.policy,
        kl=config.kl_to_start,
    )
    data = parts.task.to_dataset("train", chat=parts.chat)
    if len(data) < config.prompts_per_step:
        raise ConfigError(
            f"task {config.task!r} has {len(data)} prompt(s) to train on and a step takes {config.prompts_per_step} different ones: lower "
            "--prompts-per-step, or give more data"
        )
    trainer = CreditTrainer(
        parts.policy,
        parts.system,
        args=grpo_config(config, parts, folder),
        train_dataset=data,
        processing_class=parts.tokenizer,
        peft_config=_lora(config),
        truth=parts.task.true_success,
        monitors=[evaluator],
        rollout_func=multi_turn(parts.task.environment) if parts.task.environment is not None else None,
        rollout_log=RolloutLog(every=config.log_rollouts_every),
        log_dir=folder,
        stop_when_failed=config.stop_when_failed or None,
        stop_when_flat=config.stop_when_flat or None,
        callbacks=[] if quiet else [_bar_callback(config, folder, console)],
    )
    trainer.remove_callback(PrinterCallback)  # a dictionary a step; ours are in metrics.jsonl
    return trainer


def micro_batch(config: RunConfig, rollouts: int) -> int:
    """Rollouts of one forward: what was set, all of a step for the tiny model, else the most up to 8 that divide a step.

    Raises:
        ConfigError: what was set does not divide the step.
    """
    fits = max(size for size in range(1, 9) if rollouts % size == 0)  # groups of 5 or 6 have no micro-batch of 8
    micro = config.micro_batch or (rollouts if config.model == "tiny" else fits)
    if rollouts % micro:
        raise ConfigError(
            f"micro_batch={micro} does not divide the {rollouts} rollouts of a step ({config.prompts_per_step} prompts x {config.group_size})"
        )
    return micro


def grpo_config(config: RunConfig, parts: Parts, folder: Path) -> Any:
    """The trl.GRPOConfig of a run: our few words, then whatever `grpo` says."""
    import torch
    from trl import GRPOConfig

    tiny = config.model == "tiny"
    rollouts = config.prompts_per_step * config.group_size
    micro = micro_batch(config, rollouts)
    gpu = training_device(config.device) == "cuda"
    values: dict[str, Any] = {
        "output_dir": str(folder / "checkpoints"),
        "max_steps": config.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rollouts // micro,
        "num_generations": config.group_size,
        "max_completion_length": config.max_completion_length or parts.task.max_completion_length,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "beta": config.beta,
        "loss_type": config.loss_type,
        "learning_rate": config.learning_rate or (2e-4 if tiny else 1e-6),
        "lr_scheduler_type": "constant",
        "warmup_steps": 5 if tiny else 0,  # Adam's first steps are full-sized whatever the noise
        "seed": config.seed,
        "save_steps": config.save_every or (1 if tiny else 10),
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": gpu,  # memory is what a GPU lacks; a CPU lacks time
        "use_cpu": not gpu,
        "bf16": gpu and torch.cuda.is_bf16_supported(),
    }
    if config.dtype is not None:
        values["model_init_kwargs"] = {
            "dtype": dtype_name(config.dtype),
            **(config.grpo.get("model_init_kwargs") or {}),
        }
    try:
        made = GRPOConfig(
            **{**values, **config.grpo, **({"model_init_kwargs": values["model_init_kwargs"]} if config.dtype else {})}
        )
    except (TypeError, ValueError) as error:  # a key or a value that TRL refuses
        raise ConfigError(f"grpo: {error}") from error
    if made.loss_type not in LOSS_TYPES:  # TRL finds out in the middle of the first step
        raise ConfigError(f"loss_type={made.loss_type!r}: TRL has {', '.join(LOSS_TYPES)}")
    return made


def hush() -> None:
    """Keep the libraries' own bars and notices off the screen; their warnings stay."""
    import warnings

    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()  # a table of "missing" weights for every new head
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    # What transformers says about its own names, through trl; nothing a user of either can act on.
    warnings.filterwarnings("ignore", message=".*is deprecated and will be removed in v6", category=FutureWarning)


def _lora(config: RunConfig) -> Any:
    if not config.lora_rank:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def _bar_callback(config: RunConfig, folder: Path, console: Console) -> Any:
    """A progress bar that shows what matters beside the step: true success, reward, length."""
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
            columns += (TextColumn("{task.fields[seen]}"), TimeElapsedColumn(), TimeRemainingColumn())  # type: ignore[assignment]
            self.progress = Progress(*columns, console=console)
            self.task = self.progress.add_task(config.system, total=config.steps, completed=state.global_step, seen="")
            self.progress.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step, truth = last_record(folder / "metrics.jsonl"), last_record(folder / "eval.jsonl").get("true_success")
            seen = [f"reward {step['reward']:.3f}"] if step.get("reward") is not None else []
            seen += [f"length {step['length']:.0f}"] if step.get("length") is not None else []
            seen += [f"true success {truth['mean']:.2f}"] if truth and truth.get("mean") is not None else []
            self.progress.update(self.task, completed=state.global_step, seen="  ".join(seen))

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.progress.stop()

    return Bar()
