"""Optional dependencies: imported where they are used, and a missing one says which `pip install` mends it."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, which the extra `extra` installs.

    Raises:
        ImportError: naming the `pip install "guerdon[extra]"` that provides it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != root:
            raise  # the module is there and one of ITS imports is broken: do not send the user to reinstall the wrong thing
        raise ImportError(f'{root} is needed here and is not installed: pip install "guerdon[{extra}]"') from error
