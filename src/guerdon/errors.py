"""The exceptions Guerdon raises. Each message names the offending value and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from guerdon.redact import without_credentials


class GuerdonError(Exception):
    """Base class: catch this to catch everything Guerdon raises on purpose. No address in a message shows a password or a key."""

    def __str__(self) -> str:
        return without_credentials(super().__str__())


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


class BusyError(GuerdonError, RuntimeError):
    """Another process is writing the folder or the file; the message says which process, and since when."""


class DataError(GuerdonError, ValueError):
    """A data file or record cannot be read as what it is said to be."""


class TrainingFailed(GuerdonError):
    """A run that stopped, or came to its end, without training anything. What there is to keep was saved, and it can be resumed."""


def nearest(word: str, known: Iterable[str]) -> str:
    """ " (did you mean 'pure'?)" for a misspelt word, or nothing where no known one is near: it goes behind the word in an error."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
