"""Parts in words: how a system is printed, and how a checkpoint recognises a chain. Only what differs from the defaults is written,
so that an option that is added later, with a default, changes no text that was written before.
"""

from __future__ import annotations

import dataclasses
import re
import types
from typing import Any

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def label(part: Any) -> str:
    """A part in a line for a checkpoint: as `shown`, with the `version` of every part that has had another one before."""
    return _shown(part, versions=True)


def shown(part: Any) -> str:
    """A part as it is written: its source or transform by position, options by name where they are not the default."""
    return _shown(part, versions=False)


def _shown(part: Any, versions: bool) -> str:
    version = getattr(type(part), "version", 1) if versions else 1
    mark = f"@{version}" if version != 1 and not isinstance(part, type) else ""
    if isinstance(part, types.FunctionType):
        return part.__name__
    if not dataclasses.is_dataclass(part) or isinstance(part, type) or not _generated_repr(part):
        return _ADDRESS.sub("", repr(part)) + mark
    words: list[str] = []
    visible = {item.name for item in dataclasses.fields(part) if item.repr or versions}
    for name, value in changed_fields(part).items():
        if name == "names" and isinstance(value, tuple):
            words += [repr(source) for source in value]
        elif name in ("name", "transform"):
            words.append(_shown(value, versions))
        elif name in visible:
            words.append(f"{name}={_shown(value, versions)}")
    return f"{type(part).__name__}{mark}({', '.join(words)})"


def _generated_repr(part: Any) -> bool:
    """Whether a dataclass has no text of its own: `dataclass` wraps the one it makes, `Shown` says so."""
    method = type(part).__repr__
    return hasattr(method, "__wrapped__") or getattr(method, "shows_changes", False)


def changed_fields(part: Any) -> dict[str, Any]:
    """The fields of a dataclass whose values differ from their defaults, and those without a default."""
    changed = {}
    for item in dataclasses.fields(part):
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        value = getattr(part, item.name, dataclasses.MISSING)
        if value is not dataclasses.MISSING and not _equal(value, default):
            changed[item.name] = value
    return changed


def _equal(value: Any, default: Any) -> bool:
    if value is default:
        return True
    if type(value) is not type(default) and not (isinstance(value, int | float) and isinstance(default, int | float)):
        return False
    try:
        return bool(value == default)
    except Exception:  # tensors of several elements and the like have no truth value
        return False
