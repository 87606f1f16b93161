"""Whether a model can share prefixes, and what that costs on it: what is known by name, and the trees it is tried on.

The trials themselves are run by `shared.SharedForward`, which knows the paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from guerdon.lm.packing import Costs

SMALL = 20  # tokens of the first trial


@dataclass
class Support:
    """What one model was seen to do.

    Attributes:
        attention: the attention implementation this was tried with.
        window: tokens after which attention is cut; None = never.
        refused: {path: why not}.
        checked: longest sequence on which the paths agreed.
    """

    attention: str
    window: int | None
    refused: dict[str, str] = field(default_factory=dict)
    checked: int = 0


def costs_of(model: Any) -> Costs:
    """Costs of a model by its configuration: attention a pair over linear layers a token, and a call's overhead in tokens."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers, hidden = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if not layers or not hidden:
        return Costs()
    embedded = sum(p.numel() for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters())
    linear = 2 * max(sum(p.numel() for p in model.parameters()) - embedded, 12 * layers * hidden * hidden // 4)
    # A call reads all weights, however few the tokens: worth about 10 tokens of arithmetic on a CPU, 150 on a GPU. A layer
    # is some 15 kernels to launch. Orders of magnitude, measured on one CPU: only the choice of a path depends on them.
    device = next(model.parameters()).device.type
    speed, latency_s, reading = (2e13, 1e-4, 150.0) if device == "cuda" else (2e10, 1.5e-4, 10.0)
    return Costs(pair=4 * layers * hidden / linear, call=reading + layers * latency_s * speed / linear)


def window_of(config: Any) -> int | None:
    """Tokens after which some layer of a model no longer sees: None = never, 0 = a layer that is no attention (recurrent)."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    kinds = getattr(config, "layer_types", None)
    windows = []
    if kinds and set(kinds) - {"full_attention", "sliding_attention", "chunked_attention", "attention"}:
        return 0
    names = ("sliding_window", "attention_chunk_size", "window_size", "attention_window", "local_attention")
    for name in names:
        value = getattr(config, name, None)
        used = name != "sliding_window" or getattr(config, "use_sliding_window", True) is not False
        if isinstance(value, int) and value > 0 and used:
            windows.append(value)
    if kinds and set(kinds) <= {"full_attention", "attention"}:
        return None
    if "local" not in (getattr(config, "attention_layers", None) or ["local"]):  # GPT-Neo without local layers
        return None
    return min(windows, default=None)


def known_refusal(model: nn.Module, attention: str, window: int | None) -> str:
    """What is known without a trial."""
    if "flash" in attention or "flex" in attention or "paged" in attention:
        return f"attn_implementation={attention!r} takes no custom mask; load it with 'sdpa' or 'eager'"
    return (
        "it has layers that are no attention (recurrent or hybrid), and these cannot leave tokens out"
        if window == 0
        else ""
    )


def small_tree(parts: Any) -> tuple[list[Tensor], list[Tensor]]:
    """A trunk with branches, and a shorter rollout of the same prompt."""
    size = int(getattr(parts.model.get_input_embeddings(), "num_embeddings", 0) or 16)
    ids = torch.randint(size, (40,), generator=torch.Generator().manual_seed(0))
    prompt = ids[:6]
    sequences = [ids[:SMALL], torch.cat([ids[:9], ids[20:24]]), torch.cat([ids[:14], ids[24:27]])]
    sequences += [torch.cat([prompt, ids[30:36]])]
    return sequences, [torch.arange(len(s) - 3, len(s)) for s in sequences]


def real_tree(longest: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The longest sequence with its own second half grafted on at a quarter: far apart in the row, near in position."""
    quarter, half = len(longest) // 4, len(longest) // 2
    sequences = [longest.cpu(), torch.cat([longest[:quarter], longest[half:]]).cpu()]
    return sequences, [torch.tensor([len(s) - 1]) for s in sequences]


def by_sequence(batches: Iterator[tuple[list[int], Tensor]], wanted: list[Tensor]) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for rows, states in batches:
        found |= dict(zip(rows, states.split([len(wanted[n]) for n in rows]), strict=True))
    return found


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-12))


def tolerance(states: Tensor) -> float:
    exact = states.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(states.device.type)
    return 1e-4 if exact else 5e-2


def mask_dtype(model: nn.Module) -> torch.dtype:
    found = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
    return found if found.itemsize > 1 else torch.bfloat16
