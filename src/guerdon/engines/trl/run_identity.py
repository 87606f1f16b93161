"""What a training run is made of: what decides its numbers, as data that a checkpoint keeps and a resumed run is compared with.

Settings that only say where, how often and how loudly (folders, logging, saving, hubs) are left out. The length of the run is
compared only where something depends on it: a learning rate that falls, a part with a schedule.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from guerdon.identity import describe, digest
from guerdon.system import System

_HARMLESS = """
    output_dir logging log_ report_to run_name project trackio wandb disable_tqdm save_ hub push_to_hub dataloader_
    ddp_ resume use_cpu local_rank include_ skip_memory do_train do_eval do_predict debug gradient_checkpointing
    torch_compile num_completions_to_print vllm_server vllm_gpu_memory deepspeed fsdp_ parallelism_config
    accelerator_config torch_empty_cache average_tokens eval_on_start remove_unused prediction_loss_only jit_mode
    tpu restore_callback
"""
_LENGTH = ("max_steps", "num_train_epochs")
_FIXED_RATES = ("constant", "constant_with_warmup")
_ROWS = 20_000  # of a data set that are read; of a longer one as many, evenly spaced


def identity_of_run(
    model: Any,
    system: System,
    args: Any,
    *,
    data: Any = None,
    eval_data: Any = None,
    peft: Any = None,
    truth: Any = None,
    monitors: Sequence[Any] = (),
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The description. To be made before a trainer binds models to the parts.

    Args:
        model, system, args, peft, truth, monitors: of the trainer.
        data, eval_data: its data sets.
        options: what else TRL's constructor gets (tools, rollout functions, optimisers).
    """
    settings, harmless = args.to_dict(), tuple(_HARMLESS.split())
    rate = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    named = {key: value for key, value in settings.items() if not key.startswith(harmless) and key not in _LENGTH}
    measured = [m for m in monitors if hasattr(m, "before_trainer")]  # other monitors only look
    return {
        "args": describe(named),
        "length": {key: settings.get(key) for key in _LENGTH},
        "length_matters": rate not in _FIXED_RATES or reads_length(system),
        "policy": policy_of(model),
        "system": {
            "signals": describe(system.signals),
            "chain": describe(list(system.chain)),
            "segments": describe(system.segments),
            "objectives": describe(list(system.objectives)),
            "models": describe(system.models),
        },
        "adapter": describe(peft.to_dict() if hasattr(peft, "to_dict") else peft),
        "data": data_of(data),
        "eval_data": data_of(eval_data),
        "truth": describe(truth),
        "evaluators": [_evaluator(m) for m in measured],
        "options": describe({key: value for key, value in (options or {}).items() if value is not None}),
    }


def reads_length(system: System) -> bool:
    """Whether a part does something at a share of the run, so that the same step of a longer run is another one."""
    parts = [
        *system.parts(),
        *(part for link in system.chain for part in vars(link).values() if hasattr(link, "__dict__")),
    ]
    return any(getattr(part, "reads_length", False) for part in parts) or any(
        callable(model.rate) for model in system.models.values()
    )


def _evaluator(monitor: Any) -> dict[str, Any]:
    names = ("truth", "every", "samples", "temperature", "max_new_tokens", "kl")
    rows = getattr(monitor, "rows", [])
    return {**{name: describe(getattr(monitor, name, None)) for name in names}, "rows": _rows(rows, len(rows))}


def policy_of(model: Any) -> Any:
    """A policy by what it starts as: the files of a folder, the name of one on a hub, or the configuration of an object."""
    if isinstance(model, str | Path):
        folder = Path(model)
        return {"files": _files(folder)} if folder.is_dir() else str(model)
    if isinstance(model, nn.Module):
        # Not its weights: the object may have been trained since, and a checkpoint brings them.
        config: Any = getattr(model, "config", None)  # a user's module may have none
        named = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
        kept = {
            key: value
            for key, value in named.items()
            if key not in ("_name_or_path", "transformers_version", "use_cache")
        }
        return {"model": type(model).__name__, "config": digest(kept)}
    return describe(model)


def _files(folder: Path) -> dict[str, str]:
    """Size and a digest of both ends of every file with weights or a configuration: enough to notice other weights."""
    found = {}
    for path in sorted(folder.iterdir()):
        if (
            path.suffix in (".safetensors", ".bin", ".gguf", ".json")
            and path.is_file()
            and path.name not in ("trainer_state.json",)
        ):
            size, window = path.stat().st_size, 1 << 20
            with path.open("rb") as file:
                head = hashlib.sha256(file.read(window))
                file.seek(max(0, size - window))
                head.update(file.read())
            found[path.name] = f"{size} bytes, {head.hexdigest()[:16]}"
    return found


def data_of(data: Any) -> Any:
    """A data set by its length, its columns and its rows. A stream has neither: its type."""
    if data is None:
        return None
    if isinstance(data, Mapping):
        return {str(key): data_of(value) for key, value in data.items()}
    try:
        size = len(data)
    except TypeError:
        return type(data).__name__
    return {"rows": size, "columns": sorted(getattr(data, "column_names", None) or []), "content": _rows(data, size)}


def _rows(data: Any, size: int) -> str:
    every = max(1, -(-size // _ROWS))
    found = hashlib.sha256(str(size).encode())
    for i in range(0, size, every):
        found.update(json.dumps(describe(dict(data[i])), sort_keys=True, default=str).encode())
    return found.hexdigest()[:16]
