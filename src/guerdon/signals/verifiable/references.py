"""Reading the references of a row: the one place where a data cell becomes acceptable answers."""

from __future__ import annotations

import math
from typing import Any


def reference_values(cell: Any) -> list[Any]:
    """The acceptable references of a row: the cell itself, or the items of a list; what is missing (None, NaN, "") left out."""
    if hasattr(cell, "tolist"):  # numpy and torch values
        cell = cell.tolist()
    if isinstance(cell, list | tuple | set | frozenset):
        return [value for item in cell for value in reference_values(item)]
    missing = (
        cell is None
        or isinstance(cell, bool)
        or (isinstance(cell, float) and not math.isfinite(cell))
        or not str(cell).strip()
    )
    return [] if missing else [cell]
