"""What a run is made of, as data that two runs can be compared by: settings, parts with their options, the caller's functions.

A checkpoint keeps `describe(...)` of its run, and `differences` says in words what changed since. Three rules keep an old
checkpoint good for as long as it means the same:

- A part of this library is known by its type, its `version` and the options that differ from their defaults, so that a new
  option with a default changes nothing. Whoever changes what a part computes raises its `version` (a class attribute).
- Code that is not this library's is known by its bytecode, so comments, names of files and line numbers do not matter. What
  it reads (closures, globals, functions it calls) is followed. What it writes to is state, and left out.
- What cannot change a number is left out by name: `HARMLESS`. Secrets are left out, too.

Left out: code of other libraries, whose versions are a matter of the environment; weights of the policy, which a checkpoint
brings itself.
"""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import hashlib
import json
import math
import re
import sys
import types
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import nn

from guerdon.labels import changed_fields, shown
from guerdon.redact import SECRET, without_credentials


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


HARMLESS = _words(
    "backoff_s base_url batch_size concurrency device kept max_backoff_s max_retry_after_s memory_mb retries timeout_s workers"
)
_LIBRARIES = _words(
    "accelerate bm25s datasets diskcache filelock guerdon httpx jinja2 math_verify numpy openai pandas "
    "peft pyarrow pydantic reasoning_gym rich safetensors scipy sentence_transformers sympy tenacity "
    "tokenizers torch transformers trl typer yaml"
)
_MUTATORS = _words(
    "add append appendleft clear discard extend insert pop popitem popleft remove setdefault sort update"
)
_SETUP = frozenset({"__init__", "__post_init__", "__new__", "__set_name__"})
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_LONG = 200  # longer texts and lists are kept as a digest
_SAMPLED = 1 << 22  # elements of a tensor that are hashed


def describe(value: Any, *, trust_repr: bool = False) -> Any:
    """A value as JSON data: equal for equal settings and code, in every process of one Python version.

    Args:
        value: anything.
        trust_repr: an object of the caller's that has a `__repr__` of its own says its plain options there; others are not looked at.
    """
    return _Describer(trust_repr).of(value)


def differences(then: Any, now: Any, *, same_python: bool = True) -> list[str]:
    """What differs between two descriptions, a short text each: "args.learning_rate: 0.001 -> 1e-05".

    Args:
        then, now: what `describe` gave.
        same_python: whether one Python version made both; another one compiles the same code to other bytecode.
    """
    return list(_differences(then, now, "", same_python))


def _differences(then: Any, now: Any, where: str, same_python: bool) -> Any:
    if isinstance(then, dict) and isinstance(now, dict):
        # Derived attributes of a part and names in a closure come and go with the library's versions.
        shared_only = where.endswith((".attributes", ".closure"))
        for key in sorted({*then, *now}):
            if (key == "code" and not same_python) or (shared_only and not (key in then and key in now)):
                continue
            yield from _differences(then.get(key), now.get(key), f"{where}.{key}" if where else key, same_python)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for i, (old, new) in enumerate(zip(then, now, strict=True)):
            yield from _differences(old, new, f"{where}[{i}]", same_python)
    elif then != now:
        place = re.sub(r"(^|\.)(fields|attributes|closure)\b", "", where).removeprefix(".")
        if place.endswith(".code"):
            yield f"{place.removesuffix('.code')}: the code is another"
        else:
            yield f"{place}: {_told(then)} -> {_told(now)}"


def _told(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def digest(value: Any) -> str:
    """16 hex digits of JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


class _Describer:
    """Describes values; remembers what it is inside of, because functions and objects may refer to themselves."""

    def __init__(self, trust_repr: bool = False) -> None:
        self._inside: set[int] = set()
        self._trust_repr = trust_repr

    def of(self, value: Any) -> Any:
        if value is None or (isinstance(value, bool | int) and not isinstance(value, enum.Enum)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else repr(value)
        if isinstance(value, enum.Enum):
            return f"{type(value).__name__}.{value.name}"
        if isinstance(value, str | PurePath):
            text = without_credentials(str(value))
            return text if len(text) <= _LONG else {"text": text[:40], "sha256": digest(text)}
        simple = self._simple(value)
        if simple is not None:
            return simple
        if id(value) in self._inside:
            return "(itself)"
        self._inside.add(id(value))
        try:
            return self._compound(value)
        finally:
            self._inside.discard(id(value))

    def _simple(self, value: Any) -> Any:
        if isinstance(value, bytes | bytearray):
            return {"bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()[:16]}
        if isinstance(value, re.Pattern):
            return {"pattern": value.pattern, "flags": value.flags}
        if isinstance(value, torch.dtype | torch.device | types.ModuleType):
            return _ADDRESS.sub("", str(value)) if not isinstance(value, types.ModuleType) else value.__name__
        if isinstance(value, torch.Tensor):
            return _tensor(value)
        if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
            return self.of(value.tolist()) if getattr(value, "size", 0) <= _LONG else _tensor(torch.as_tensor(value))
        if isinstance(value, Counter):
            return "Counter"  # counts what happened: state
        return None

    def _compound(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): self.of(item) for key, item in value.items() if not SECRET.search(str(key))}
        if isinstance(value, list | tuple):
            items = [self.of(item) for item in value]
            return items if len(items) <= _LONG else {"items": len(items), "sha256": digest(items)}
        if isinstance(value, set | frozenset):
            return sorted((self.of(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
        if isinstance(value, functools.partial):
            return {"partial": self.of(value.func), "args": self.of(value.args), "options": self.of(value.keywords)}
        if isinstance(value, types.MethodType):
            return {"method": value.__name__, "of": self.of(value.__self__)}
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, nn.Module):
            return _module(value)
        if callable(value) and hasattr(value, "__qualname__"):  # builtins
            return value.__qualname__
        return self._object(value)

    # -- code ------------------------------------------------------------------------------------------------------------

    def _function(self, function: types.FunctionType) -> Any:
        own, state = _is_library(function.__module__), _written(function.__code__)
        described: dict[str, Any] = {"function": function.__qualname__.rpartition("<locals>.")[2]}
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
        closure = {name: self._content(cell) for name, cell in cells if name not in state and not SECRET.search(name)}
        if own:
            return described | ({"closure": closure} if closure else {})
        read = [
            closure,
            self.of(function.__defaults__),
            self.of(function.__kwdefaults__),
            self._globals(function, state),
        ]
        return described | {"code": digest([_code(function.__code__, function.__doc__), read])}

    def _content(self, cell: Any) -> Any:
        try:
            return self.of(cell.cell_contents)
        except ValueError:  # not assigned yet
            return None

    def _globals(self, function: types.FunctionType, state: frozenset[str]) -> dict[str, Any]:
        """What a function of the caller's reads of its module: constants and the caller's own functions and classes."""
        read = {}
        for name in sorted(_names(function.__code__) - state):
            value = function.__globals__.get(name)
            code = isinstance(value, types.FunctionType | type) and not _is_library(value.__module__)
            plain = isinstance(value, str | int | float | tuple | list | dict | set | frozenset | re.Pattern)
            if (code or plain) and not SECRET.search(name):
                read[name] = self.of(value)
        return read

    def _class(self, kind: type) -> Any:
        if _is_library(kind.__module__):
            return kind.__name__
        parts: dict[str, Any] = {}
        for base in reversed(kind.__mro__):
            if _is_library(base.__module__):
                continue
            for name, value in vars(base).items():
                if isinstance(value, property):
                    value = value.fget
                elif isinstance(value, staticmethod | classmethod):
                    value = value.__func__
                if isinstance(value, types.FunctionType | str | int | float | tuple | frozenset) and name not in (
                    "__module__",
                    "__doc__",
                    "__qualname__",
                    "__firstlineno__",
                    "__static_attributes__",
                ):
                    parts[name] = self.of(value)
        return {"class": kind.__name__, "code": digest(parts)}

    # -- objects -----------------------------------------------------------------------------------------------------------

    def _object(self, value: Any) -> Any:
        kind = type(value)
        described: dict[str, Any] = {"type": kind.__name__}
        library = _is_library(kind.__module__)
        if library and not kind.__module__.startswith("guerdon"):
            return described
        if (version := getattr(kind, "version", 1)) != 1:
            described["version"] = self.of(version)
        if not library:
            described["code"] = self._class(kind)["code"]
        if dataclasses.is_dataclass(value):
            items, place = changed_fields(value), "fields"
        else:
            items, place = dict(getattr(value, "__dict__", {})), "attributes"
        state = _state_of(kind)
        kept = {name: item for name, item in items.items() if name not in state and _counts(name, item)}
        if self._trust_repr and not library and kind.__repr__ is not object.__repr__:
            described["shown"] = shown(value)
            kept = {name: item for name, item in kept.items() if callable(item)}
        return described | ({place: {name: self.of(item) for name, item in kept.items()}} if kept else {})


def _counts(name: str, value: Any) -> bool:
    """Whether an attribute is an option: not harmless, no secret, and if private then a plain value or a function."""
    if name in HARMLESS or SECRET.search(name):
        return False
    return not name.startswith("_") or isinstance(value, str | int | float | types.FunctionType | re.Pattern)


def _is_library(module: str | None) -> bool:
    top = (module or "").partition(".")[0]
    return top in _LIBRARIES or (top in sys.stdlib_module_names and top != "__main__")


def _code(code: types.CodeType, doc: str | None = None) -> list[Any]:
    constants = [
        _code(item)
        if isinstance(item, types.CodeType)
        else _constant(None if doc is not None and item == doc else item)
        for item in code.co_consts
    ]
    return [code.co_code.hex(), constants, code.co_names, code.co_varnames[: code.co_argcount], code.co_freevars]


def _constant(value: Any) -> str:
    return repr(sorted(value, key=repr)) if isinstance(value, frozenset) else repr(value)


def _inner(code: types.CodeType) -> list[types.CodeType]:
    found = [code]
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            found += _inner(item)
    return found


def _names(code: types.CodeType) -> set[str]:
    return {name for inner in _inner(code) for name in inner.co_names}


@functools.lru_cache(maxsize=4096)
def _written(code: types.CodeType) -> frozenset[str]:
    """Names that a function assigns to outside itself or changes in place: state, not settings."""
    written: set[str] = set()
    for inner in _inner(code):
        steps = list(dis.get_instructions(inner))
        for i, step in enumerate(steps):
            if step.opname in ("STORE_GLOBAL", "STORE_ATTR", "DELETE_GLOBAL", "DELETE_ATTR") or (
                step.opname == "STORE_DEREF" and step.argval in inner.co_freevars
            ):
                written.add(step.argval)
            elif step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR"):
                written |= {back.argval for back in steps[max(0, i - 8) : i] if back.opname in _LOADS}
            elif step.opname in ("LOAD_METHOD", "LOAD_ATTR") and step.argval in _MUTATORS and i:
                written |= {steps[i - 1].argval} if steps[i - 1].opname in _LOADS else set()
    return frozenset(written)


_LOADS = frozenset({"LOAD_DEREF", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_ATTR"})


def _state_of(kind: type) -> frozenset[str]:
    """Attributes that methods other than the constructor write."""
    written: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("guerdon") or not _is_library(base.__module__):
            functions = [item for name, item in vars(base).items() if name not in _SETUP]
            written |= {
                name for item in functions if isinstance(item, types.FunctionType) for name in _written(item.__code__)
            }
    return frozenset(written)


def _tensor(value: torch.Tensor) -> dict[str, Any]:
    flat = value.detach().reshape(-1)[:_SAMPLED].cpu().contiguous()
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return {
        "tensor": list(value.shape),
        "dtype": str(value.dtype).removeprefix("torch."),
        "sha256": hashlib.sha256(data).hexdigest()[:16],
    }


def _module(model: nn.Module) -> dict[str, Any]:
    """A model by its class, its shapes and a few weights of it."""
    parameters = list(model.named_parameters())
    sample = [
        parameter.detach().reshape(-1)[:16].float().cpu().tolist()
        for _, parameter in parameters[:: max(1, len(parameters) // 8)]
    ]
    shapes = [[name, list(parameter.shape)] for name, parameter in parameters]
    return {"model": type(model).__name__, "shapes": digest(shapes), "weights": digest(sample)}
