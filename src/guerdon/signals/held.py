"""Which models a part will load, as far as can be said without loading one: what `guerdon train --dry-run` counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import nn


class Held(NamedTuple):
    """A model of a part's own.

    Attributes:
        source: path or hub id, or a loaded model.
        head: what it is loaded as.
        dtype: what the caller chose; None = the policy's.
        role: what it is to the part ("strong", ...); "" where there is one.
    """

    source: Any
    head: Literal["causal", "steps", "score", "encoder"]
    dtype: torch.dtype | None = None
    role: str = ""


def held_by(part: Any) -> list[Held]:
    """The models a part declares by `held()`; none where it does not, or where it is an endpoint."""
    declared = getattr(part, "held", None)
    found: Iterable[Held] = declared() if callable(declared) else ()
    return [
        model for model in found if isinstance(model.source, str | nn.Module) or hasattr(model.source, "__fspath__")
    ]
