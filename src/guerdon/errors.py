"""The exceptions Guerdon raises. Each message names the offending value and what to do next."""

from __future__ import annotations


class GuerdonError(Exception):
    """Base class: catch this to catch everything Guerdon raises on purpose."""


class ShapeError(GuerdonError, ValueError):
    """Tensors of a Rollouts, Spans or Rewards do not fit together."""


class ChainError(GuerdonError, ValueError):
    """A system's signals and links do not compose: found when the System is constructed, not in the middle of a run."""


class CapabilityError(GuerdonError, ValueError):
    """A system needs something (`values`, `logprobs.reference`, `policy.generate`, ...) that this engine or these rollouts lack."""


class MissingColumn(GuerdonError, KeyError):
    """A signal reads a data column that the rollouts do not have."""

    def __init__(self, name: str, available: list[str]) -> None:
        have = ", ".join(sorted(available)) or "no columns at all"
        super().__init__(
            f"rollouts have no column {name!r} (they have: {have}); rename the data's column or pass the signal the right name"
        )

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0])


class ConfigError(GuerdonError, ValueError):
    """A configuration value is missing, unknown or out of range."""


class DataError(GuerdonError, ValueError):
    """A data file or record cannot be read as what it is said to be."""
