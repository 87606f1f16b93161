"""Guerdon: reward design for reinforcement learning, as parts that compose.

    system = guerdon.systems.pure(prm="path/or/hub-id")     # a published system with the paper's defaults
    scores = system(rollouts); scores.advantages            # [B, T]

Importing this package loads torch and nothing heavier; rooms are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from guerdon.errors import CapabilityError, ChainError, ConfigError, DataError, GuerdonError, MissingColumn, ShapeError
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Clock, LogProbs, Rollouts, concat_rollouts
from guerdon.spans import Spans
from guerdon.system import Model, System

if TYPE_CHECKING:
    from guerdon import credit, engines, lm, objectives, segment, signals, systems, tasks

__version__ = "0.1.0"

_ROOMS = ("credit", "engines", "lm", "objectives", "segment", "signals", "systems", "tasks")

__all__ = [
    "CapabilityError",
    "ChainError",
    "Clock",
    "ConfigError",
    "DataError",
    "GuerdonError",
    "LogProbs",
    "MissingColumn",
    "Model",
    "Rewards",
    "Rollouts",
    "Scores",
    "ShapeError",
    "Spans",
    "System",
    "concat_rollouts",
    "credit",
    "engines",
    "lm",
    "objectives",
    "segment",
    "signals",
    "systems",
    "tasks",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"guerdon.{name}")
    raise AttributeError(f"module 'guerdon' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
