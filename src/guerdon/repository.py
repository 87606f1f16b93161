"""Where the checkout is, for the few commands that read or write files of the repository (vectors, results, benchmarks)."""

from __future__ import annotations

from pathlib import Path

from guerdon.errors import GuerdonError


def find_root() -> Path | None:
    """The checkout this package runs from, or the one the working directory is in; None for an installed wheel elsewhere."""
    for start in (Path(__file__).resolve().parent, Path.cwd()):
        for folder in (start, *start.parents):
            if (folder / "pyproject.toml").exists() and (folder / "src" / "guerdon").is_dir():
                return folder
    return None


def root(what: str) -> Path:
    """The checkout, or an error that says that `what` needs it."""
    found = find_root()
    if found is None:
        raise GuerdonError(
            f"{what} are part of the repository, not of the installed package: run this inside a clone of it"
        )
    return found
