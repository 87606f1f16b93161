"""One writer at a time: a run's folder and an output file are held for as long as a process writes them.

The lock is the operating system's (`filelock`): it ends with its holder, however that dies, so a lock is never left behind.
Beside it stands who holds it, for the message to whoever comes second. A process may hold a place several times over: a
trainer inside a command that holds the run's folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from guerdon.errors import BusyError

OWN = ".guerdon"  # what Guerdon keeps of its own in a run's folder
LOCK, HOLDER = "lock", "holder.json"


@dataclass
class _Held:
    lock: FileLock
    count: int = 1


_HELD: dict[tuple[int, str], _Held] = {}  # by process (a fork holds nothing) and path


@contextmanager
def hold_folder(folder: str | Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a run's folder for a block. It is made if it is missing; what stays empty is taken away again.

    Args:
        folder: of the run.
        wait_s: seconds to wait for another process to let go.

    Raises:
        BusyError: another process writes there; says which.
        OSError: the folder cannot be made or written.
    """
    folder = Path(folder)
    made = _make(folder / OWN)
    with _removing(made), _hold(folder / OWN / LOCK, folder / OWN / HOLDER, str(folder), wait_s):
        yield


@contextmanager
def hold_file(path: str | Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold an output file for a block: `.NAME.lock` and `.NAME.holder` stand beside it meanwhile.

    Raises:
        BusyError: another process writes it; says which.
        OSError: its folder cannot be made or written.
    """
    path = Path(path)
    made = _make(path.parent)
    lock, holder = path.with_name(f".{path.name}.lock"), path.with_name(f".{path.name}.holder")
    with _removing(made), _hold(lock, holder, str(path), wait_s):
        yield


def holder_of(folder: str | Path) -> dict[str, Any]:
    """{pid, host, since, command} of who holds a folder or held it last; {} where nobody did."""
    return read_record(Path(folder) / OWN / HOLDER)


def _make(folder: Path) -> list[Path]:
    """Make a folder and its parents; returns those that were missing, innermost first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


@contextmanager
def _removing(made: list[Path]) -> Iterator[None]:
    try:
        yield
    finally:
        for place in made:
            with contextlib.suppress(OSError):  # not empty: it has come to hold something
                place.rmdir()


@contextmanager
def _hold(path: Path, holder: Path, shown: str, wait_s: float) -> Iterator[None]:
    key = (os.getpid(), os.path.realpath(path))
    held = _HELD.get(key)
    if held is not None:
        held.count += 1
    else:
        held = _HELD[key] = _Held(_acquired(path, holder, shown, wait_s))
        holder.write_text(json.dumps(_me()))
    try:
        yield
    finally:
        held.count -= 1
        if not held.count:
            del _HELD[key]
            # Taken away while it is still held: who waits for it sees that it is no more, and makes another.
            for file in (holder, path):
                file.unlink(missing_ok=True)
            held.lock.release()


def _acquired(path: Path, holder: Path, shown: str, wait_s: float) -> FileLock:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait_s, poll_interval=0.2)
    except Timeout:
        raise BusyError(
            f"{shown} is being written by {_who(holder)}; wait until it has ended, or write elsewhere"
        ) from None
    return lock


def _me() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": " ".join(Path(word).name if i == 0 else word for i, word in enumerate(sys.argv))[:200],
    }


def _who(holder: Path) -> str:
    record = read_record(holder)
    if not record:
        return "another process"
    command = f" ({record['command']})" if record.get("command") else ""
    return f"process {record.get('pid')} on {record.get('host')} since {record.get('since')}{command}"


def read_record(path: Path) -> dict[str, Any]:
    """What a small JSON file of ours holds; empty where it is missing, damaged or no mapping, as a kill may leave it."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
