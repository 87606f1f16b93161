"""A run's state as data: tensors in a safetensors file, everything else in JSON beside it. Nothing is ever unpickled.

What a state may hold: None, bool, int, float, text, bytes, lists, tuples, sets, dicts (with keys of these kinds), deques, counters
and tensors; NumPy numbers and arrays come back as such.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter, OrderedDict, deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from guerdon.errors import ConfigError, DataError

STATE, TENSORS = "guerdon_state.json", "guerdon_state.safetensors"
_KIND = "__kind__"  # marks what JSON has no word for


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write the two files; each replaces an older one in one step.

    Raises:
        ConfigError: the state holds something that is no data, with its place and type.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain = encode(state, tensors)
    for name, write in (
        (TENSORS, lambda path: save_file(tensors, path)),
        (STATE, lambda path: path.write_text(json.dumps(plain) + "\n")),
    ):
        draft = folder / f".{name}"
        write(draft)
        os.replace(draft, folder / name)


def check_state(state: dict[str, Any]) -> None:
    """Refuse, before a run begins, a state that no checkpoint could keep.

    Raises:
        ConfigError: it holds something that is no data, with its place and type.
    """
    encode(state, {})


def load(folder: Path) -> dict[str, Any]:
    """What `save` wrote.

    Raises:
        DataError: a file that is not there or cannot be read.
    """
    try:
        plain = json.loads((folder / STATE).read_text())
        tensors = load_file(folder / TENSORS, device="cpu")
        return decode(plain, tensors)
    except Exception as error:  # whatever a damaged file makes of the readers
        raise DataError(f"{folder / STATE} cannot be read ({type(error).__name__}: {error})") from error


def encode(value: Any, tensors: dict[str, torch.Tensor], where: str = "state") -> Any:
    """JSON data for a state; its tensors are put into `tensors` by number.

    Raises:
        ConfigError: a value of a type that cannot be written as data.
    """
    if value is None or isinstance(value, bool | str) or type(value) in (int, float):
        return value
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        # A copy: safetensors refuses tensors that share memory, and views that are not contiguous.
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {_KIND: "tensor", "of": name}
    if isinstance(value, np.ndarray | np.generic):
        inner = encode(torch.as_tensor(np.array(value)), tensors, where)
        return {
            _KIND: "array" if isinstance(value, np.ndarray) else "number",
            "of": inner["of"],
            "dtype": value.dtype.name,
        }
    if isinstance(value, bytes):
        return {_KIND: "bytes", "of": base64.b64encode(value).decode()}
    kind = type(value)
    if kind is list:
        return [encode(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]
    if kind in (tuple, torch.Size, set, frozenset, deque):
        items = [encode(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]
        more = {"maxlen": value.maxlen} if kind is deque else {}
        return {_KIND: {torch.Size: "tuple"}.get(kind, kind.__name__), "of": items, **more}
    if kind in (dict, OrderedDict, Counter):
        if kind is dict and all(type(key) is str for key in value) and _KIND not in value:
            return {key: encode(item, tensors, f"{where}.{key}") for key, item in value.items()}
        pairs = [[encode(k, tensors, where), encode(v, tensors, f"{where}[{k!r}]")] for k, v in value.items()]
        return {_KIND: kind.__name__, "of": pairs}
    raise ConfigError(
        f"{where} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot keep: it holds data only; make it of "
        f"numbers, texts, lists, dicts and tensors in state_dict() (for a link: in its state), and back in load_state_dict()"
    )


def decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The state `encode` was given."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_KIND)
    if kind is None:
        return {key: decode(item, tensors) for key, item in value.items()}
    of = value["of"]
    if kind == "tensor":
        return tensors[of]
    if kind in ("array", "number"):
        array = tensors[of].numpy().astype(value["dtype"], copy=False)
        return array if kind == "array" else array[()]
    if kind == "bytes":
        return base64.b64decode(of)
    if kind == "deque":
        return deque((decode(item, tensors) for item in of), maxlen=value["maxlen"])
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](decode(item, tensors) for item in of)
    return _MAPPINGS[kind]({decode(key, tensors): decode(item, tensors) for key, item in of})


_SEQUENCES: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_MAPPINGS: dict[str, Any] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}
