"""Checkpoints that can be trusted: our state is written first, a COMPLETE marker last, and only marked ones are resumed.

`transformers` writes a checkpoint file by file, and `resume_from_checkpoint=True` picks the newest folder, half-written or
not. The marker lists every file with its size and digest, so a folder that was cut short, damaged or tampered with does not
count. A checkpoint inside a generation cycle (reused or not yet used rollouts are lost with the process) is never marked:
resuming it would be another run. What the run was made of stands beside the state, and a run of other settings is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guerdon.engines.trl import state_file
from guerdon.errors import ConfigError, DataError
from guerdon.folders.claim import remove_checkpoint, written
from guerdon.identity import differences

MARKER = "COMPLETE"
STATE = state_file.STATE
RUN = "guerdon_run.json"  # what the run is made of
PREFIX = "checkpoint-"


def newest_complete_checkpoint(directory: str | Path) -> Path | None:
    """The checkpoint folder of the highest step that was written to its end, or None.

    Args:
        directory: the run's `output_dir`, holding checkpoint-<step> folders.
    """
    return next((folder for folder in _newest_first(directory) if is_complete(folder)), None)


def _newest_first(directory: str | Path) -> list[Path]:
    folders = [p for p in Path(directory).glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()]
    return sorted(folders, key=lambda p: int(p.name.removeprefix(PREFIX)), reverse=True)


def is_complete(folder: str | Path) -> bool:
    """Whether the marker is there and every file it lists is as it was written."""
    return fault_of(folder) is None


def fault_of(folder: str | Path) -> str | None:
    """Why a checkpoint does not count, or None: it does."""
    folder = Path(folder)
    try:
        files = json.loads((folder / MARKER).read_text())["files"]
        if not holds_optimiser(files):
            return "it holds no optimiser state"
        for name, known in files.items():
            size, digest = (known["size"], known["sha256"]) if isinstance(known, dict) else (known, None)
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, and {size} were written"
            if digest is not None and _digest(path) != digest:
                return f"the content of {name} is not what was written"
    except FileNotFoundError:
        return "it was not written to its end"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {MARKER} marker cannot be read ({type(error).__name__})"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def begin(folder: Path, state: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Take the marker of an earlier attempt away and write our state, and what the run is made of.

    Returns:
        What was in the folder before: files that this checkpoint does not write are not its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = written(folder)
    (folder / MARKER).unlink(missing_ok=True)
    state_file.save(folder, state)
    draft = folder / f".{RUN}"
    draft.write_text(json.dumps({"python": platform.python_version_tuple()[:2], "made_of": run}) + "\n")
    os.replace(draft, folder / RUN)
    return before


def finish(folder: Path, step: int, before: dict[str, Any] | None = None) -> None:
    """Write the marker, in one step, after everything else is on the disk. Weights without an optimiser get none.

    Args:
        folder: of the checkpoint.
        step: optimiser steps taken.
        before: what `begin` found there.
    """
    now = written(folder)
    names = [name for name, state in now.items() if (before or {}).get(name) != state and name != MARKER]
    if not holds_optimiser(names):
        return
    files = {}
    for name in names:  # a marker must not reach the disk before what it vouches for
        with (folder / name).open("rb") as handle:
            os.fsync(handle.fileno())
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        files[name] = {"size": now[name][1], "sha256": digest}
    draft = folder / f".{MARKER}"
    with draft.open("w") as handle:
        json.dump({"step": step, "files": files}, handle)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(draft, folder / MARKER)


def rotate(directory: Path, keep: int, *, protected: str | None = None) -> None:
    """Delete all but the `keep` latest complete checkpoints, and half-written ones from before; files that no run wrote stay.

    Args:
        directory: the run's `output_dir`.
        keep: at least 1.
        protected: a checkpoint that stays in any case (the best one).
    """
    last = {folder: _written_last(folder) for folder in _newest_first(directory)}
    when = {folder: path.stat().st_mtime_ns for folder, path in last.items() if path is not None}
    marked = sorted(when, key=when.__getitem__, reverse=True)
    kept = {*marked[: max(1, keep)], *([Path(protected)] if protected else [])}
    latest = max((int(folder.name.removeprefix(PREFIX)) for folder in kept), default=0)
    for folder in _newest_first(directory):
        stale = folder in marked or int(folder.name.removeprefix(PREFIX)) < latest
        if folder not in kept and stale and any((folder / name).exists() for name in (STATE, MARKER)):
            remove_checkpoint(folder)


def _written_last(folder: Path) -> Path | None:
    """The file that says a checkpoint was written to its end: the marker, or for our weights without an optimiser the trainer's state."""
    if (folder / MARKER).exists():
        return folder / MARKER
    bare = (folder / STATE).exists() and not holds_optimiser(path.name for path in folder.iterdir())
    state = folder / "trainer_state.json"
    return state if bare and state.exists() else None


def load_state(folder: str | Path) -> dict[str, Any]:
    """What `begin` wrote.

    Raises:
        DataError: the checkpoint was not made by this engine, or its state cannot be read.
    """
    _require(Path(folder), STATE)
    return state_file.load(Path(folder))


def check_run(folder: str | Path, run: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint of a run that was made of something else.

    Args:
        folder: of the checkpoint.
        run: what this run is made of (`run_identity`).

    Raises:
        ConfigError: the settings, the system, the data or the caller's functions differ; says in what.
        DataError: the checkpoint was not made by this engine.
    """
    path = Path(folder) / RUN
    _require(Path(folder), RUN)
    try:
        saved = json.loads(path.read_text())
        then, same_python = saved["made_of"], tuple(saved["python"]) == platform.python_version_tuple()[:2]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    now = json.loads(json.dumps(run))
    if not now.get("length_matters"):
        then, now = ({**side, "length": None} for side in (then, now))
    if changes := differences(then, now, same_python=same_python):
        shown = "; ".join(changes[:6]) + (f"; and {len(changes) - 6} more" if len(changes) > 6 else "")
        raise ConfigError(
            f"{folder} was saved by a run that was made of something else ({shown}). Going on from it would mix the two: set it back to go "
            f"on, use another folder (output_dir, --out), or start anew with train(resume_from_checkpoint=False) or --restart"
        )


def _require(folder: Path, name: str) -> None:
    if not (folder / name).exists():
        raise DataError(
            f"{folder} has no {name}: it was not saved by this engine; start from its weights instead (model={str(folder)!r})"
        )


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
        newest = _newest_said(output_dir)
        if newest is None and (bare := weights_only(output_dir)) is not None:
            raise ConfigError(_bare(bare))
        return None if newest is None else str(newest)
    if not is_complete(resume):
        folder = Path(resume)
        if (folder / "trainer_state.json").exists() and not holds_optimiser(path.name for path in folder.iterdir()):
            raise ConfigError(_bare(folder))
        newest = newest_complete_checkpoint(Path(resume).parent)
        hint = f"; the newest complete one beside it is {newest}" if newest else ""
        raise ConfigError(f"{resume} is no complete checkpoint of a generation boundary ({fault_of(resume)}){hint}")
    return str(resume)


def _newest_said(directory: str | Path) -> Path | None:
    """The newest complete checkpoint; what newer ones lack is said."""
    faults = []
    for folder in _newest_first(directory):
        fault = fault_of(folder)
        if fault is None:
            break
        faults.append(f"{folder.name}: {fault}")
    else:
        folder = None  # type: ignore[assignment]
    if faults:
        then = f"going on from {folder.name}" if folder is not None else "starting anew"
        warnings.warn(
            f"{directory}: {then}, because a newer checkpoint does not count ({'; '.join(faults)})", stacklevel=4
        )
    return folder


def _bare(folder: Path) -> str:
    return (
        f"{folder} holds weights and no optimiser state (save_only_model=True), and a run resumed from it would be another one: start from "
        f"its weights (model={str(folder)!r}) in another output_dir, start anew (resume_from_checkpoint=None), or save with save_only_model=False"
    )
