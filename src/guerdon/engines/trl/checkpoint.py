"""Checkpoints that can be trusted: our state is written first, a COMPLETE marker last, and only marked ones are resumed.

`transformers` writes a checkpoint file by file, and `resume_from_checkpoint=True` picks the newest folder, half-written or
not. The marker lists every file with its size, so a folder that was cut short or tampered with does not count. A checkpoint
inside a generation cycle (reused or not yet used rollouts are lost with the process) is never marked: resuming it would be
another run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from guerdon.errors import ConfigError, DataError

MARKER = "COMPLETE"
STATE = "guerdon_state.pt"
PREFIX = "checkpoint-"


def newest_complete_checkpoint(directory: str | Path) -> Path | None:
    """The checkpoint folder of the highest step that was written to its end, or None.

    Args:
        directory: the run's `output_dir`, holding checkpoint-<step> folders.
    """
    folders = [p for p in Path(directory).glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()]
    for folder in sorted(folders, key=lambda p: int(p.name.removeprefix(PREFIX)), reverse=True):
        if is_complete(folder):
            return folder
    return None


def is_complete(folder: str | Path) -> bool:
    """Whether the marker is there and every file it lists has its size."""
    folder = Path(folder)
    try:
        marker = json.loads((folder / MARKER).read_text())
        return holds_optimiser(marker["files"]) and all(
            (folder / name).stat().st_size == size for name, size in marker["files"].items()
        )
    except (OSError, json.JSONDecodeError):
        return False


def holds_optimiser(names: Iterable[str]) -> bool:
    """Whether files of a checkpoint hold an optimiser's state: of torch, of FSDP (a folder) or of DeepSpeed (global_step<N>)."""
    return any(Path(name).parts[0].startswith(("optimizer", "global_step")) for name in names)


def weights_only(directory: str | Path) -> Path | None:
    """The newest checkpoint that was saved to its end without an optimiser (`save_only_model`), or None."""
    found = [
        folder
        for folder in Path(directory).glob(f"{PREFIX}*")
        if folder.name.removeprefix(PREFIX).isdigit()
        and (folder / "trainer_state.json").exists()  # written last
        and not holds_optimiser(path.name for path in folder.iterdir())
    ]
    return max(found, key=lambda folder: int(folder.name.removeprefix(PREFIX)), default=None)


def begin(folder: Path, state: dict[str, Any]) -> None:
    """Take the marker of an earlier attempt away and write our state."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).unlink(missing_ok=True)
    draft = folder / f".{STATE}"
    torch.save(state, draft)
    os.replace(draft, folder / STATE)


def finish(folder: Path, step: int) -> None:
    """Write the marker, in one step, after everything else is on the disk. Weights without an optimiser get none."""
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MARKER
    }
    if not holds_optimiser(files):
        return
    for name in files:  # a marker must not reach the disk before what it vouches for
        with (folder / name).open("rb") as handle:
            os.fsync(handle.fileno())
    draft = folder / f".{MARKER}"
    with draft.open("w") as handle:
        json.dump({"step": step, "files": files}, handle)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(draft, folder / MARKER)


def load_state(folder: str | Path) -> dict[str, Any]:
    """What `begin` wrote.

    Raises:
        DataError: the checkpoint was not made by this engine.
    """
    path = Path(folder) / STATE
    if not path.exists():
        raise DataError(
            f"{folder} has no {STATE}: it was not saved by this engine; start from its weights instead (model={str(folder)!r})"
        )
    return torch.load(path, map_location="cpu", weights_only=False)  # links' states are arbitrary objects of our own


def resolve_resume(resume: bool | str | None, output_dir: str | Path) -> str | None:
    """What to resume from: a path, or None to start anew.

    Args:
        resume: True = the newest complete checkpoint of `output_dir` if there is one; a path = that one; None/False = none.

    Raises:
        ConfigError: a path that is not a complete checkpoint, or nothing but checkpoints without an optimiser.
    """
    if not resume:
        return None
    if resume is True:
        newest = newest_complete_checkpoint(output_dir)
        if newest is None and (bare := weights_only(output_dir)) is not None:
            raise ConfigError(_bare(bare))
        return None if newest is None else str(newest)
    if not is_complete(resume):
        folder = Path(resume)
        if (folder / "trainer_state.json").exists() and not holds_optimiser(path.name for path in folder.iterdir()):
            raise ConfigError(_bare(folder))
        newest = newest_complete_checkpoint(Path(resume).parent)
        hint = f"; the newest complete one beside it is {newest}" if newest else ""
        raise ConfigError(
            f"{resume} is no complete checkpoint of a generation boundary (its {MARKER} marker is missing or does not fit){hint}"
        )
    return str(resume)


def _bare(folder: Path) -> str:
    return (
        f"{folder} holds weights and no optimiser state (save_only_model=True), and a run resumed from it would be another one: start from "
        f"its weights (model={str(folder)!r}) in another output_dir, start anew (resume_from_checkpoint=None), or save with save_only_model=False"
    )
