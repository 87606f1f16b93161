"""Values of a data column by name, or by a dotted path into one: `reward_model.ground_truth`, `answers.text`.

A path goes through mappings, JSON texts of mappings, positions in lists ("choices.0.text") and, by name, through every item of a
list of mappings. A column whose own name holds the dot comes first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from guerdon.errors import MissingColumn

_MISSING = object()


def column_values(columns: Mapping[str, Sequence[Any]], name: str, available: Iterable[str] | None = None) -> list[Any]:
    """The B values of a column, or what a dotted path leads to in each; None in a row where it leads nowhere.

    Args:
        columns: name -> B values.
        name: a column, or a path whose first part is one.
        available: names to tell of where there is none; default those of `columns`.

    Raises:
        MissingColumn: no such column, or a path that leads nowhere in all rows that have something to look into.
    """
    if name in columns:
        return list(columns[name])
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        base = ".".join(parts[:split])
        if base not in columns:
            continue
        cells = list(columns[base])
        found = [_follow(cell, parts[split:]) for cell in cells]
        if all(value is _MISSING for value in found) and any(cell is not None for cell in cells):
            inside = {f"{base}.{key}" for cell in cells for key in _keys(cell)}
            raise MissingColumn(name, sorted(inside or columns))
        return [None if value is _MISSING else value for value in found]
    raise MissingColumn(name, list(columns if available is None else available))


def _keys(cell: Any) -> Iterable[str]:
    cell = _opened(cell)
    return map(str, cell) if isinstance(cell, Mapping) else ()


def _opened(value: Any) -> Any:
    """A JSON text of a mapping or list as what it holds; NumPy and torch values as plain Python; others as they are."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (bytes, bytearray)):
        value = bytes(value).decode("utf-8", "replace")
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _follow(value: Any, parts: Sequence[str]) -> Any:
    """What the rest of a path leads to, or `_MISSING`."""
    if not parts:
        return value
    value = _opened(value)
    head, rest = parts[0], parts[1:]
    if isinstance(value, Mapping):
        return _follow(value[head], rest) if head in value else _MISSING
    if isinstance(value, (list, tuple)):
        if head.isdigit():
            return _follow(value[int(head)], rest) if int(head) < len(value) else _MISSING
        found = [one for one in (_follow(item, parts) for item in value) if one is not _MISSING]
        return found or _MISSING
    return _MISSING


__all__ = ["column_values"]
