"""`guerdon train --dry-run`: what a run would load where, and how many bytes, from configurations alone.

Nothing is downloaded but configurations, no weights are read, nothing is written. A folder with a `config.json` is enough for a model.
The arithmetic is `guerdon.engines.footprint`; who shares a model with whom is `guerdon.engines.trl.initial`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from guerdon.cli.config import RunConfig
from guerdon.cli.device import dtype_name
from guerdon.cli.models import resolve_model
from guerdon.engines.footprint import Footprint, Item, Shape, human, passing, training, weights
from guerdon.errors import ConfigError
from guerdon.signals.held import held_by

if TYPE_CHECKING:
    import torch

    from guerdon.system import System

PROMPT_TOKENS = 512  # assumed: tokenizers are not loaded


def dry_run(config: RunConfig, console: Console) -> Footprint:
    """Print what `guerdon train` with these settings would hold in memory, and return it."""
    footprint = plan(config)
    table = Table("what", "for", "model", "where", "dtype", "numbers", "bytes", "")
    for item in footprint.items:
        size = ("about " if item.estimated else "") + (human(item.bytes) if item.bytes else "none")
        dtype = str(item.dtype).removeprefix("torch.")
        count = f"{item.parameters:,}" if item.parameters else ""
        table.add_row(item.what, ", ".join(item.roles), item.source, item.device, dtype, count, size, item.note)
    console.print(table)
    base = footprint.items[0].source
    copies = footprint.copies_of(base)
    console.print(
        f"{base}: {copies} {'copy' if copies == 1 else 'copies'} of the base; all weights {human(footprint.weights)}; "
        f"with gradients, optimiser and estimates about {human(footprint.total)}. Nothing was loaded.",
        highlight=False,
        soft_wrap=True,
    )
    return footprint


def plan(config: RunConfig) -> Footprint:
    """What a run with these settings would hold.

    Raises:
        ConfigError: a setting is wrong, or a model's configuration cannot be read.
    """
    import torch

    from guerdon.systems.context import Context, build
    from guerdon.tasks import load_task

    task = load_task(config.task, **config.columns)
    own = task.tiny_policy if config.model == "tiny" else None
    policy = own() if own else resolve_model(config.model)
    system = build(config.system, Context(task, None, policy, config.model))
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.startswith("cuda")
    settings = {"gradient_checkpointing": gpu, "bf16": gpu, **config.grpo}
    dtype = policy_dtype(config)
    compute = torch.bfloat16 if settings["bf16"] else torch.float16 if settings.get("fp16") else dtype
    shape = shape_of(policy)
    adapter = shape.lora_parameters(config.lora_rank)
    items = [weights(["policy"], policy, shape, dtype, device)]
    if adapter:
        size = adapter * torch.float32.itemsize
        note = f"LoRA of rank {config.lora_rank}; PEFT keeps it in float32"
        items.append(Item("adapter", ("policy",), policy, adapter, torch.float32, size, device, note))
    items += _as_it_began(config, system, policy, shape, dtype, device)
    items += _others(system, policy, dtype, device)
    trained = (adapter, torch.float32) if adapter else (shape.parameters, dtype)
    items += training(policy, *trained, device, optimiser=str(settings.get("optim", "adamw_torch_fused")))
    rollouts = config.prompts_per_step * config.group_size
    items += passing(
        policy, shape, compute, device, rows=_micro_batch(config, rollouts), sampled=rollouts, prompt=PROMPT_TOKENS,
        completion=config.max_completion_length or task.max_completion_length,
        checkpointing=bool(settings["gradient_checkpointing"]),
    )  # fmt: skip
    return Footprint(tuple(items))


def policy_dtype(config: RunConfig) -> torch.dtype:
    """The dtype a policy is loaded in: `--dtype`, what TRL is told, or TRL's own default, float32."""
    import torch

    told = config.dtype or (config.grpo.get("model_init_kwargs") or {}).get("dtype") or "float32"
    return getattr(torch, dtype_name(str(told).removeprefix("torch.")))


def shape_of(source: Any, head: Any = "causal") -> Shape:
    """The shape of a model by its configuration, or of a loaded one.

    Raises:
        ConfigError: there is no configuration to read.
    """
    from torch import nn
    from transformers import AutoConfig

    if isinstance(source, nn.Module):
        return Shape.of_model(source)
    try:
        found = AutoConfig.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read a configuration of {str(source)!r}: a folder with a config.json is enough, or a hub id that can be reached "
            f"({str(error).splitlines()[0]})"
        ) from error
    return Shape.of_config(found, head, {"steps": 2, "score": 1}.get(head))


def _micro_batch(config: RunConfig, rollouts: int) -> int:
    from guerdon.cli.train import micro_batch

    return micro_batch(config, rollouts)


def _as_it_began(
    config: RunConfig, system: System, policy: str, shape: Shape, dtype: torch.dtype, device: str
) -> list[Item]:
    """The policy the run began with, once for all who ask, and copies for roles whose model moves or is written to."""
    written = {role for part in system.parts() for role in getattr(part, "writes", ())}
    asks: list[str] = []
    copies: list[str] = []
    for role, model in system.models.items():
        if model.source != "policy" and str(model.source) != policy:
            continue
        (copies if model.moves or role in written else asks).append(role)
    if config.kl_to_start:
        asks.append("evaluator")
    if config.beta:
        asks.append("TRL's KL term")
    elif config.lora_rank and "logprobs.reference" in system.needs and "reference" not in system.models:
        asks.append("reference")
    items = []
    if asks and config.lora_rank:
        items.append(
            Item("nothing new", tuple(asks), policy, 0, dtype, 0, device, "the policy with its new adapter off")
        )
    elif asks:
        items.append(weights(asks, policy, shape, dtype, device, "the policy as it began, one frozen copy for all"))
    return items + [weights([role], policy, shape, dtype, device, "follows the policy") for role in copies]


def _others(system: System, policy: str, dtype: torch.dtype, device: str) -> list[Item]:
    """Models of other roles and of learned parts: a path that several roles name is loaded once."""
    roles: dict[str, list[str]] = {}
    for role, model in system.models.items():
        if isinstance(model.source, str) and model.source not in ("policy", policy):
            roles.setdefault(model.source, []).append(role)
    items = [weights(names, source, shape_of(source), dtype, device, "frozen") for source, names in roles.items()]
    for name, signal in system.signals.items():
        for held in held_by(signal):
            label = f"{name}.{held.role}" if held.role else name
            shape, own = shape_of(held.source, held.head), held.dtype or dtype
            if not isinstance(held.source, str):
                own = _loaded_dtype(held.source, own)
            items.append(
                weights([label], _shown(held.source), shape, own, device, f"a {held.head} model of the signal's own")
            )
    return items


def _loaded_dtype(source: Any, default: torch.dtype) -> torch.dtype:
    parameters: Callable[[], Any] | None = getattr(source, "parameters", None)
    return next(parameters()).dtype if parameters is not None else default


def _shown(source: Any) -> str:
    return str(source) if not hasattr(source, "parameters") else type(source).__name__
