"""Whose a folder is: a run marks the folder it writes, and what it wrote there is the only thing that is ever deleted.

`.guerdon/run.json` says that a run of Guerdon owns the files it names. A file of such a name that was there before the run is
somebody else's: the run is refused. Whatever else lies in the folder (a data set, a YAML file, notes) is nobody's business.
Checkpoints and saved policies are folders of files with names that the libraries choose: of those, what is listed in a
checkpoint's marker or bears a name that these libraries give.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from guerdon.errors import ConfigError
from guerdon.folders.lock import HOLDER, LOCK, OWN, read_record

RUN = "run.json"
Kind = Literal["train", "compare", "trainer"]
CHECKPOINTS, POLICY = "checkpoints", "policy"
LOGS = ("metrics.jsonl", "eval.jsonl", "rollouts.jsonl")
COMMAND = ("config.yaml", "manifest.json", "report.html")
FILES: dict[str, tuple[str, ...]] = {
    "trainer": LOGS,
    "train": (*COMMAND, *LOGS, CHECKPOINTS, POLICY),
    "compare": (*COMMAND, "compare.json"),
}
_MODEL_FILES = """config.json generation_config.json model*.safetensors model.safetensors.index.json pytorch_model*.bin
    pytorch_model.bin.index.json adapter_config.json adapter_model.* tokenizer*.json tokenizer.model special_tokens_map.json
    added_tokens.json vocab.json vocab.txt merges.txt spiece.model chat_template.* preprocessor_config.json
    processor_config.json README.md optimizer*.pt optimizer*.bin scheduler.pt scaler.pt rng_state*.pth trainer_state.json
    training_args.bin guerdon_state* .guerdon_state* guerdon_run.json .guerdon_run* COMPLETE .COMPLETE"""


def owner(folder: str | Path) -> dict[str, Any] | None:
    """What `claim` wrote, or None: the folder is no run's. Runs from before there was a mark are known by their manifest."""
    folder = Path(folder)
    record = read_record(folder / OWN / RUN)
    if record.get("kind") in FILES:
        return record
    manifest = read_record(folder / "manifest.json")
    if isinstance(manifest.get("versions"), dict) and "guerdon" in manifest["versions"]:
        kind = "compare" if "systems" in manifest else "train"
        return {"kind": kind, "files": list(FILES[kind])}
    return None


def claim(folder: str | Path, kind: Kind, *, also: Sequence[str] = (), arms: Sequence[str] = ()) -> None:
    """Mark a folder as a run's. Nothing is done where it is one of that kind.

    Args:
        folder: of the run.
        kind: who writes it: the command `train`, the command `compare`, or a trainer in Python.
        also: further names that the run writes.
        arms: folders of runs inside, relative.

    Raises:
        ConfigError: a file that the run would overwrite is there, and no run wrote it.
    """
    folder = Path(folder)
    known = owner(folder)
    files = [*FILES[kind], *also]
    before = {*known["files"]} if known else set()
    if strangers := [name for name in files if name not in before and _is_there(folder / name)]:
        raise ConfigError(
            f"{folder / strangers[0]} is there and no run of Guerdon wrote it: it would be overwritten; write the run to another "
            f"folder, or move the file away"
        )
    record = {
        "kind": known["kind"] if known and kind == "trainer" else kind,
        "files": list(dict.fromkeys([*before, *files])),
        "arms": list(dict.fromkeys([*(known or {}).get("arms", []), *arms])),
    }
    if known != record or not (folder / OWN / RUN).exists():
        _write(folder, (known or {}) | record)


def _write(folder: Path, record: dict[str, Any]) -> None:
    (folder / OWN).mkdir(parents=True, exist_ok=True)
    scratch = folder / OWN / f".{RUN}"
    scratch.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(scratch, folder / OWN / RUN)


def contents(folder: str | Path) -> list[str]:
    """What lies in a folder, without the lock and without what was left empty."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [name for name in names if name != OWN]


def clear(folder: str | Path) -> list[str]:
    """Delete what the run in a folder wrote. Returns what is left in it: other people's files.

    Raises:
        ConfigError: the folder is no run's.
    """
    folder = Path(folder)
    record = owner(folder)
    if record is None:
        raise ConfigError(f"{folder} holds no run of Guerdon: nothing is deleted")
    for arm in record.get("arms", []):
        if (place := folder / arm).is_dir():
            if owner(place) is not None:
                clear(place)
            _remove_empty(place, place.parent)
    for name in record["files"]:
        path = folder / name
        if name == CHECKPOINTS:
            _clear_checkpoints(path)
        elif name == POLICY:
            _unlink(path, _listed(path, record.get(POLICY)))
            _remove_empty(path)
        elif path.is_file() or path.is_symlink():
            path.unlink()
        for scratch in folder.glob(f".{name}.*"):  # drafts that a kill left
            if scratch.is_file():
                scratch.unlink()
    for name in (RUN, f".{RUN}"):
        (folder / OWN / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the lock is in it while it is held
        (folder / OWN).rmdir()
    return contents(folder)


@contextlib.contextmanager
def noting_policy(folder: str | Path) -> Iterator[None]:
    """Write down which files of `policy/` the block saves."""
    place = Path(folder) / POLICY
    before = written(place)
    yield
    record = owner(folder)
    if record is not None:
        _write(
            Path(folder),
            {**record, POLICY: [name for name, state in written(place).items() if before.get(name) != state]},
        )


def written(place: str | Path) -> dict[str, tuple[int, int, int]]:
    """{relative name: what changes when it is written} of every file below a folder."""
    place = Path(place)
    states = {str(path.relative_to(place)): path.stat() for path in sorted(place.rglob("*")) if path.is_file()}
    return {name: (state.st_mtime_ns, state.st_size, state.st_ino) for name, state in states.items()}


def remove_checkpoint(folder: Path) -> None:
    """Delete what was saved as a checkpoint: what its marker lists; without one, what bears a name that the libraries give."""
    marker = read_record(folder / "COMPLETE").get("files")
    named = [*marker, "COMPLETE"] if isinstance(marker, dict) else None
    # The marker goes first: a checkpoint that a kill leaves half deleted must not count.
    (folder / "COMPLETE").unlink(missing_ok=True)
    _unlink(folder, _listed(folder, named))
    _remove_empty(folder)


def _clear_checkpoints(place: Path) -> None:
    for folder in _numbered(place):
        remove_checkpoint(folder)
    card = place / "README.md"  # TRL's model card
    if card.is_file() and "trl" in card.read_text(errors="replace").lower():
        card.unlink()
    _remove_empty(place)


def _numbered(place: Path) -> list[Path]:
    """The folders of checkpoints in a folder."""
    return [
        path for path in place.glob("checkpoint-*") if path.is_dir() and path.name.removeprefix("checkpoint-").isdigit()
    ]


def _listed(place: Path, names: Iterable[str] | None) -> list[Path]:
    """The files of those names, or, where nobody wrote the names down, those with names that the libraries give."""
    if names is not None:
        return [place / name for name in names]
    return [path for path in place.rglob("*") if any(fnmatch(path.name, pattern) for pattern in _MODEL_FILES.split())]


def _unlink(place: Path, files: Iterable[Path]) -> None:
    inside = place.resolve()
    for file in files:
        # A list that was tampered with must not reach out of its folder.
        if file.is_file() and inside in file.resolve().parents:
            file.unlink()
    for folder in sorted((path for path in place.rglob("*") if path.is_dir()), reverse=True):
        _remove_empty(folder)


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        own = folder / OWN
        if own.is_dir() and not {*os.listdir(own)} - {LOCK, HOLDER}:
            for name in (LOCK, HOLDER):
                (own / name).unlink(missing_ok=True)
        for place in (own, folder):
            with contextlib.suppress(OSError):
                place.rmdir()


def _is_there(path: Path) -> bool:
    """Whether there is something to lose: a file with something in it, or a folder with files of the names that are saved there."""
    if path.is_dir() and not path.is_symlink():
        places = _numbered(path) if path.name == CHECKPOINTS else [path]
        return any(file.name != "README.md" for place in places for file in _listed(place, None))
    return path.is_symlink() or (path.is_file() and path.stat().st_size > 0)
