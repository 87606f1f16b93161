"""What a training run will hold in memory, in bytes, from configurations alone: no weights are read, none are made.

Exact, by counting: parameters of every model (built on torch's meta device), a LoRA's factors, gradients, AdamW's moments, keys
and values of one token. An estimate, and named one: activations and logits, whose size depends on kernels.

    shape = Shape.of_config(AutoConfig.from_pretrained(folder))
    shape.parameters * 2                     # bytes of the weights in bfloat16
    shape.lora_parameters(16)                # a LoRA of rank 16 on every linear layer but the head

Left out: what CUDA itself takes (about half a gigabyte), fragmentation, sharding (divide by the ranks), quantised weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from guerdon.errors import ConfigError
from guerdon.extras import require

Head = Literal["causal", "steps", "score", "encoder"]
_CLASSES: dict[Head, str] = {
    "causal": "AutoModelForCausalLM",
    "steps": "AutoModelForTokenClassification",
    "score": "AutoModelForSequenceClassification",
    "encoder": "AutoModel",
}
LOGIT_POSITIONS = 1024  # whose logits exist at once, in TRL's fused head as in `guerdon.lm.forward`


@dataclass(frozen=True)
class Shape:
    """A model's shape.

    Attributes:
        parameters: numbers in all weights, tied ones once.
        linear: (in, out) of every linear layer but the output embedding: what a LoRA on "all-linear" adapts.
        vocabulary, hidden, intermediate, layers, kv_width: sizes of its configuration; kv_width = key-value heads x head size.
    """

    parameters: int
    linear: tuple[tuple[int, int], ...]
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    kv_width: int

    @staticmethod
    def of_config(config: Any, head: Head = "causal", labels: int | None = None) -> Shape:
        """The shape of a model with this transformers configuration.

        Raises:
            ConfigError: transformers has no model of this kind for it.
        """
        transformers = require("transformers", extra="train")
        if labels is not None:
            config.num_labels = labels
        try:
            with torch.device("meta"):
                model = getattr(transformers, _CLASSES[head]).from_config(config)
        except ValueError as error:
            raise ConfigError(f"transformers has no {head} model for {type(config).__name__}: {error}") from error
        return Shape.of_model(model)

    @staticmethod
    def of_model(model: nn.Module) -> Shape:
        """The shape of a model, on any device."""
        config: Any = model.config
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        out = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
        heads = getattr(config, "num_attention_heads", 1)
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        return Shape(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            linear=tuple(
                (module.in_features, module.out_features)
                for module in model.modules()
                if isinstance(module, nn.Linear) and module is not out
            ),
            vocabulary=config.vocab_size,
            hidden=config.hidden_size,
            intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            layers=config.num_hidden_layers,
            kv_width=(getattr(config, "num_key_value_heads", None) or heads) * size,
        )

    def lora_parameters(self, rank: int) -> int:
        """Numbers in a LoRA of this rank on every linear layer but the head: rank x (in + out) each."""
        return rank * sum(inside + outside for inside, outside in self.linear)

    def kv_bytes(self, tokens: int, itemsize: int) -> int:
        """Keys and values of so many tokens in all layers."""
        return 2 * self.layers * self.kv_width * tokens * itemsize

    def activation_bytes(self, tokens: int, itemsize: int, *, checkpointing: bool) -> int:
        """An estimate of what backward keeps of a forward over so many tokens, with fused attention.

        A layer keeps about 9 vectors of the hidden size, 4 of the intermediate one, and keys and values with their gradients; with
        checkpointing each layer keeps its input alone, and one of them at a time all of it.
        """
        layer = tokens * itemsize * (9 * self.hidden + 4 * self.intermediate + 4 * self.kv_width)
        if not checkpointing:
            return self.layers * layer
        return self.layers * tokens * self.hidden * itemsize + layer

    def logit_bytes(self, positions: int = LOGIT_POSITIONS) -> int:
        """An estimate of logits and their softmax, in float32, of as many positions as exist at once."""
        return 2 * 4 * positions * self.vocabulary


@dataclass(frozen=True)
class Item:
    """Something that will lie in memory.

    Attributes:
        what: "weights", "adapter", "gradients", "optimiser", "activations", "logits", "keys and values" or "nothing new".
        roles: who uses it.
        source: path or hub id of the model it belongs to.
        parameters: numbers it has; 0 where that says nothing.
        dtype: of the numbers.
        bytes: its size.
        device: where it lies.
        note: why it is there, or why it costs nothing.
        estimated: whether the bytes are an estimate.
    """

    what: str
    roles: tuple[str, ...]
    source: str
    parameters: int
    dtype: torch.dtype
    bytes: int
    device: str
    note: str = ""
    estimated: bool = False


@dataclass(frozen=True)
class Footprint:
    """Everything a run will hold."""

    items: tuple[Item, ...]

    @cached_property
    def weights(self) -> int:
        """Bytes of all models' weights and adapters."""
        return sum(item.bytes for item in self.items if item.what in ("weights", "adapter"))

    @cached_property
    def total(self) -> int:
        """Bytes of everything, estimates included."""
        return sum(item.bytes for item in self.items)

    def copies_of(self, source: str) -> int:
        """How often the weights of a model are there."""
        return sum(item.what == "weights" and item.source == source for item in self.items)


def weights(roles: Sequence[str], source: str, shape: Shape, dtype: torch.dtype, device: str, note: str = "") -> Item:
    """A model's weights."""
    size = shape.parameters * dtype.itemsize
    return Item("weights", tuple(roles), source, shape.parameters, dtype, size, device, note)


def training(
    source: str, trained: int, dtype: torch.dtype, device: str, *, optimiser: str = "adamw_torch_fused"
) -> list[Item]:
    """Gradients and optimiser state of so many trained numbers: AdamW keeps two of the weights' dtype for each, SGD none."""
    states = 2 if "adam" in optimiser else 0
    found = [Item("gradients", ("policy",), source, trained, dtype, trained * dtype.itemsize, device)]
    if states:
        size = states * trained * dtype.itemsize
        if "8bit" in optimiser:
            size = states * trained
        found.append(Item("optimiser", ("policy",), source, states * trained, dtype, size, device, optimiser))
    return found


def passing(
    source: str,
    shape: Shape,
    compute: torch.dtype,
    device: str,
    *,
    rows: int,
    sampled: int,
    prompt: int,
    completion: int,
    checkpointing: bool,
) -> list[Item]:
    """What comes and goes with a forward: activations and logits of a micro-batch, keys and values while sampling.

    Args:
        rows: of a micro-batch; sampled: rollouts sampled at once.
        prompt, completion: tokens, at most.
    """
    tokens = rows * (prompt + completion)
    how = "checkpointed" if checkpointing else "all layers kept"
    kept = shape.activation_bytes(tokens, compute.itemsize, checkpointing=checkpointing)
    cache = shape.kv_bytes(sampled * (prompt + completion), compute.itemsize)
    at_once = f"{rows} x {prompt + completion} tokens, {how}"
    return [
        Item("activations", ("policy",), source, 0, compute, kept, device, at_once, estimated=True),
        Item("logits", ("policy",), source, 0, torch.float32, shape.logit_bytes(), device, f"{LOGIT_POSITIONS} positions at once", estimated=True),
        Item("keys and values", ("policy",), source, 0, compute, cache, device, f"{sampled} rollouts, not while training", estimated=True),
    ]  # fmt: skip


def human(size: int) -> str:
    """14.2 GB: powers of 1000, as cards are sold."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.{2 if size < 10 * factor else 1}f} {unit}"
    return f"{size} B"
