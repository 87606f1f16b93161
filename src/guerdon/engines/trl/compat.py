"""What is checked before training: the installed TRL, and everything in a configuration that would silently do something else.

Refusals are typed errors with the sentence of `guerdon.engines.support`. Called by the trainer's constructor, in the order of
this file.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from guerdon.engines.support import limit
from guerdon.engines.trl.together import PREFIX, together_column
from guerdon.errors import CapabilityError, ConfigError, DataError
from guerdon.rollouts import Rollouts
from guerdon.system import TRAINER_STATE, System, model_roles

logger = logging.getLogger(__name__)

# The private methods this engine overrides, with the parameters it relies on.
HOOKS: Mapping[str, tuple[str, ...]] = {
    "_generate": ("prompts",),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_generate_and_score_completions": ("inputs",),
    "_compute_loss": ("model", "inputs"),
    "_save_checkpoint": ("model", "trial"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_get_train_sampler": ("dataset",),
    "_init_training_state": (
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
        "trial",
    ),
    "_run_epoch": (
        "model",
        "epoch",
        "train_dataloader",
        "steps_in_epoch",
        "num_update_steps_per_epoch",
        "trial",
        "ignore_keys_for_eval",
        "start_time",
        "resume_from_checkpoint",
        "epochs_trained",
        "steps_trained_in_current_epoch",
    ),
    "_get_grad_norm": ("model", "grad_norm"),
    "training_step": ("model", "inputs", "num_items_in_batch"),
}
PROMPT_NAMES = (
    "question",
    "problem",
    "query",
    "instruction",
    "prompts",
    "input",
    "messages",
)  # what prompts are often called
ENGINE_ROLES = frozenset({"policy", TRAINER_STATE})  # what a trainer itself hands to parts that ask
PROVIDED = frozenset(
    {"tokens", "offsets", "logprobs.old", "policy", "policy.score", "policy.logprobs", "policy.generate"}
)


def check_trl() -> None:
    """Raise CapabilityError unless the installed TRL has the hooks this engine was written against."""
    import trl
    from trl import GRPOTrainer

    version = tuple(int(part) for part in trl.__version__.split(".")[:2])
    if version != (1, 16):
        raise CapabilityError(
            f"this engine overrides private methods of TRL 1.16, and {trl.__version__} is installed: pip install 'trl>=1.16,<1.17'"
        )
    for name, expected in HOOKS.items():
        method = getattr(GRPOTrainer, name, None)
        found = tuple(inspect.signature(method).parameters)[1:] if method else ()
        if found != expected:
            raise CapabilityError(
                f"TRL {trl.__version__}: GRPOTrainer.{name} takes {found}, this engine expects {expected}; pip install 'trl==1.16.0'"
            )


def generation_cycle(args: Any) -> int:
    """Optimiser steps from one generation boundary to the next one that is also the end of an optimiser step."""
    micro_steps = args.steps_per_generation * args.num_iterations
    return math.lcm(micro_steps, args.gradient_accumulation_steps) // args.gradient_accumulation_steps


def check_arguments(args: Any) -> None:
    """Refuse GRPOConfig fields that would be dead or wrong under a chain."""
    from trl import GRPOConfig

    if not isinstance(args, GRPOConfig):
        raise ConfigError(limit("dpo", kind=type(args).__name__))
    defaults = {name: item.default for name, item in GRPOConfig.__dataclass_fields__.items()}
    for name in ("scale_rewards", "reward_weights", "multi_objective_aggregation"):
        value = getattr(args, name)
        if value != defaults[name]:
            raise ConfigError(limit(name, value=value))
    if args.use_liger_kernel:
        raise ConfigError(limit("use_liger_kernel"))
    if args.max_completion_length is None and args.loss_type == "dr_grpo":
        raise ConfigError(limit("no_cap"))
    cycle = generation_cycle(args)
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy == "steps":
        round_save_steps(args, cycle)
    elif strategy != "no":
        raise ConfigError(limit("save_strategy", value=strategy, cycle=cycle))


def round_save_steps(args: Any, cycle: int) -> None:
    """Move `args.save_steps` up to the next generation boundary, and say so. A share of the run becomes steps first.

    Raises:
        ConfigError: no positive number of steps, or a share of a run of unknown length.
    """
    steps = float(args.save_steps)
    if 0 < steps < 1 and args.max_steps > 0:
        steps = math.ceil(steps * args.max_steps)
    if steps < 1 or not float(steps).is_integer():
        raise ConfigError(limit("save_steps", value=args.save_steps, cycle=cycle))
    unit = cycle
    if args.load_best_model_at_end and args.eval_steps and float(args.eval_steps).is_integer():
        unit = math.lcm(cycle, int(args.eval_steps))  # the best of what was measured must be among what was saved
    rounded = math.ceil(int(steps) / unit) * unit
    if rounded != args.save_steps:
        if rounded != steps:
            warnings.warn(
                limit("save_steps_rounded", value=args.save_steps, rounded=rounded, cycle=cycle), stacklevel=4
            )
        args.save_steps = rounded


def prompts_needed(args: Any) -> int:
    """Different prompts of a generation batch, over all ranks."""
    return max(1, args.generation_batch_size // args.num_generations)


def check_data(dataset: Any, args: Any, *, environments: bool = False) -> None:
    """Refuse data without prompts, or with fewer than one generation batch: TRL leaves out a batch that is not whole, and would train nothing.

    `environments`: made by a factory, whose `reset` may bring the prompt.
    """
    if dataset is None:
        return  # TRL says what it thinks of that
    names = _columns_of(dataset)
    if names is not None and not environments:
        check_row(dict.fromkeys(names))
    if hasattr(dataset, "__len__") and len(dataset) < prompts_needed(args):
        raise ConfigError(limit("few_prompts", have=len(dataset), need=prompts_needed(args)))


def check_held_out(datasets: Any) -> None:
    """Refuse evaluation data without prompts: one data set, or several by name."""
    for dataset in datasets.values() if isinstance(datasets, dict) else [datasets]:
        names = _columns_of(dataset) if dataset is not None else None
        if names is not None:
            check_row(dict.fromkeys(names))


def check_row(row: Mapping[str, Any]) -> None:
    """Refuse a row without a prompt, naming what there is. A stream shows its columns with its first row only."""
    names = list(row)
    if "prompt" not in names:
        near = [name for name in PROMPT_NAMES if name in names]
        hint = (
            f"; rename it: dataset.rename_column({near[0]!r}, 'prompt')" if near else "; rename the one that holds them"
        )
        raise DataError(limit("prompt_column", have=", ".join(names) or "none", hint=hint))


def _columns_of(dataset: Any) -> list[str] | None:
    """The names of a data set's columns; None where they cannot be known without reading it."""
    names = getattr(dataset, "column_names", None)
    if isinstance(names, list):
        return names
    first = dataset[0] if isinstance(dataset, (list, tuple)) and dataset else None
    return list(first) if isinstance(first, Mapping) else None


def warn_about_checkpoints(args: Any) -> None:
    """Say that checkpoints without an optimiser cannot be resumed."""
    if args.save_only_model and str(getattr(args.save_strategy, "value", args.save_strategy)) != "no":
        warnings.warn(limit("save_only_model"), stacklevel=3)


def check_reference_path(model: Any, args: Any, peft: bool) -> None:
    """With beta, TRL loads the reference from where the policy says it came from: that must be a place to load from."""
    if args.beta == 0.0 or peft or isinstance(model, str):
        return
    name = str(getattr(model.config, "_name_or_path", ""))
    path = Path(name).expanduser()
    local = path.is_dir() or name.startswith(("/", ".", "~")) or name.count("/") > 1
    if not name or name.endswith(".gguf") or (local and not (path / "config.json").exists()):
        raise CapabilityError(limit("reference_path", beta=args.beta, path=name))


def check_reference_weights(trainer: Any) -> None:
    """The reference TRL loaded must be the policy that was passed, weight for weight."""
    if trainer.ref_model is None or is_sharded(trainer):
        return  # sharded parameters have other names and shapes: nothing to compare here
    policy = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    reference = dict(trainer.accelerator.unwrap_model(trainer.ref_model).named_parameters())
    for name, weight in policy.items():
        other = reference.get(name)
        if other is None or not torch.equal(weight.detach().to(other.device, other.dtype), other):
            path = trainer.model.config._name_or_path
            raise CapabilityError(limit("reference_differs", beta=trainer.beta, path=path, name=name))


def check_system(system: System, args: Any, *, peft: bool, evaluates: bool) -> None:
    """Everything the system needs must be there, and its scope must make sense for the group sizes."""
    if not system.chain:
        raise CapabilityError(f"{system.name}: {limit('chain')}")
    for need in ("values", "resample"):
        if need in system.needs:
            raise CapabilityError(f"{system.name}: {limit(need)}")
    named = "reference" in system.models
    reference = peft or named or args.beta != 0.0
    if "logprobs.reference" in system.needs and not reference:
        raise CapabilityError(f"{system.name}: {limit('reference_missing')}")
    provided = PROVIDED | ({"logprobs.reference", "reference"} if reference else set())
    provided |= {f"logprobs.{role}" for role in system.models} | set(system.models)
    column = together_column(system)
    if column is not None:
        if evaluates:
            raise CapabilityError(f"{system.name}: {limit('together_eval', column=column)}")
        provided |= {f"{PREFIX}{column}"}
    system.require(provided, "TRL's GRPO trainer")
    for part in system.parts():
        for role in getattr(part, "roles", ()):
            if role not in ENGINE_ROLES and role not in system.models and not (role == "reference" and reference):
                raise CapabilityError(f"{system.name}: {limit('role', part=repr(part), role=role)}")
    for role, model in system.models.items():
        if model.refresh not in ("frozen", "phase_start") and not model.moves:
            raise CapabilityError(f"{system.name}: {limit('refresh', role=role, refresh=model.refresh)}")
        if model.moves and peft:
            raise CapabilityError(f"{system.name}: {limit('moving_adapter', role=role, refresh=model.refresh)}")


def warn_about_temperature(system: System, args: Any) -> None:
    """Warn where a part scores under logits divided by another temperature than the rollouts are sampled at.

    A part that means the sampling temperature says so with the attribute `sampling_temperature`.
    """
    for part in system.parts():
        meant = getattr(part, "sampling_temperature", None)
        if meant is not None and meant != args.temperature:
            warnings.warn(
                f"{system.name}: {part!r} divides logits by {meant}, and rollouts are sampled at temperature {args.temperature}: what is "
                f"scored is not the policy that sampled. Give the system temperature={args.temperature}",
                stacklevel=3,
            )


def warn_about_unscored(matrix: torch.Tensor, rollouts: Rollouts) -> None:
    """Warn, as TRL does, where no source applies to a row: it is trained on nothing.

    Args:
        matrix: [B, K] what each source paid each row, NaN where it failed or does not apply.
        rollouts: the same B.
    """
    lost = matrix.isnan().all(1).nonzero()[:, 0].tolist()
    if lost:
        row = {name: column[lost[0]] for name, column in rollouts.columns.items()}
        row |= {"prompt": rollouts.prompts[lost[0]], "completion": rollouts.completions[lost[0]]}
        logger.warning(
            "All reward functions returned None for the following kwargs:\n%s\n(and for %d of the other %d rollouts: no source of the "
            "system applies to them, or all failed; they are trained on nothing)",
            row,
            len(lost) - 1,
            len(matrix) - 1,
        )


def is_sharded(trainer: Any) -> bool:
    """Whether no rank has the policy whole: FSDP, or DeepSpeed's ZeRO stage 3. Stages 1 and 2 leave the weights whole on every rank."""
    if getattr(trainer, "is_fsdp_enabled", False):
        return True
    return bool(getattr(trainer, "is_deepspeed_enabled", False)) and zero_stage(trainer) not in (0, 1, 2)


def zero_stage(trainer: Any) -> int | None:
    """DeepSpeed's ZeRO stage of a trainer; None where it does not say one."""
    accelerator, args = getattr(trainer, "accelerator", None), getattr(trainer, "args", None)
    plugin = getattr(getattr(accelerator, "state", None), "deepspeed_plugin", None) or getattr(
        args, "deepspeed_plugin", None
    )
    config = getattr(plugin, "deepspeed_config", None) or getattr(args, "deepspeed", None)
    if isinstance(config, str) and Path(config).is_file():
        config = json.loads(Path(config).read_text())
    optimisation = config.get("zero_optimization", {}) if isinstance(config, Mapping) else {}
    for stage in (getattr(plugin, "zero_stage", None), optimisation.get("stage")):
        if str(stage).isdigit():
            return int(str(stage))
    return None


def check_sharding(trainer: Any, system: System) -> None:
    """What a policy whose weights are spread over the ranks cannot do. Reading it without gradients it can (`guerdon.lm.in_step`)."""
    if not is_sharded(trainer):
        return
    for role, model in system.models.items():
        if model.moves:
            raise CapabilityError(f"{system.name}: {limit('moving_sharded', role=role, refresh=model.refresh)}")
    for part in system.parts():
        if problem := _beyond_reading(part, system):
            raise CapabilityError(f"{system.name}: {limit('sharded_policy', part=repr(part), problem=problem)}")


def _beyond_reading(part: object, system: System) -> str:
    """What a part does with the policy that a sharded one cannot: more than to be read by all ranks together."""
    needs = {need for need in getattr(part, "needs", ()) if need.partition(".")[0] == "policy"}
    reads = needs or {"policy", "reference"} & set(model_roles(part)) - set(system.models)
    if "policy.generate" in needs:
        return "samples from it outside of the trainer's own generation"
    if part in system.objectives and reads:
        return "runs it with gradients beside the trainer's own forward"
    if getattr(part, "writes", ()):
        return "reads its weights"
    if getattr(part, "asked", None) == "once" and reads:
        return "is asked on one rank, where the others must run along"
    return ""


def credit_warnings(args: Any, advantages: torch.Tensor, mask: torch.Tensor) -> list[str]:
    """What TRL's options do to credit that differs within a row; looked at on real advantages, since a chain cannot tell.

    Args:
        args: the GRPOConfig.
        advantages: [B, T].
        mask: [B, T] bool, the tokens in the loss.
    """
    mask = mask.to(advantages.device)
    low = advantages.masked_fill(~mask, math.inf).amin(1)
    high = advantages.masked_fill(~mask, -math.inf).amax(1)
    varies, two_signs = bool((high > low).any()), bool(((high > 0) & (low <= 0)).any())
    found = []
    if two_signs and args.loss_type in ("vespo", "sapo"):
        found.append(
            f"loss_type={args.loss_type!r} chooses its weights by the sign of each advantage: with per-token credit one rollout gets both sets (the paper has one sign a rollout)"
        )
    if two_signs and args.off_policy_mask_threshold is not None:
        found.append(
            "off_policy_mask_threshold drops single tokens of negative advantage, not rollouts, when credit differs within a rollout"
        )
    if varies and args.top_entropy_quantile < 1.0:
        found.append(
            f"top_entropy_quantile={args.top_entropy_quantile} masks low-entropy tokens, among them the ends of steps where process credit sits"
        )
    return found
