"""An output file that is made batch by batch: held while it is written, gone on with after a kill, never taken from others.

Beside the output stands `OUT.score.json`: what was asked, how far it is, how it went. It is renewed after each batch. Nothing is
touched before the first batch was made: a command that is refused leaves everything as it was. What `restart` replaces is an
output of ours that nobody has changed since.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from guerdon.errors import DataError, GuerdonError
from guerdon.folders.lock import hold_file
from guerdon.io.read import Row, count_rows, format_of
from guerdon.io.write import RowWriter, journal_of
from guerdon.redact import without_credentials


@dataclass
class State:
    """What `OUT.score.json` holds.

    Attributes:
        status: "running" (or killed), "refused" (an error of the command ended it) or "done".
        final: size and digest of the finished output.
    """

    fingerprint: str
    config: dict[str, Any]
    status: str = "running"
    rows: int = 0
    records: int = 0  # of the input, consumed
    out_bytes: int = 0
    failed: int = 0
    skipped: int = 0
    total: float = 0.0
    renamed: dict[str, str] | None = None
    problems: list[str] | None = None
    final: dict[str, Any] | None = None

    @property
    def mean(self) -> float:
        scored = self.rows - self.failed
        return self.total / scored if scored else float("nan")


class Output:
    """The file that is being made.

    Attributes:
        target: its path.
        state: how far it is; `note` writes it down.
    """

    def __init__(self, target: Path, state: State, *, replaces: bool) -> None:
        self.target, self.state, self._replaces = target, state, replaces
        self.schema: Any = None
        self._writer: RowWriter | None = None

    def write(self, rows: Sequence[Row]) -> None:
        """Append a batch. The first call makes the file, or cuts it where the last whole batch ended."""
        if rows or self._writer is not None:
            self.open().write(rows)

    def open(self) -> RowWriter:
        if self._writer is None:
            if self._replaces:
                discard(self.target)
            save(self.state, self.target)  # before the output is there: a kill never leaves one without its owner
            self._writer = RowWriter(self.target, resume_at=self.state.out_bytes or None, schema=self.schema)
        return self._writer

    def note(self) -> None:
        """Write down that the state is what the file holds."""
        if self._writer is None:
            return  # not one row so far
        self.state.out_bytes = self._writer.position
        save(self.state, self.target)

    def finish(self) -> None:
        self.open().close()
        self.state.status, self.state.final = "done", identity(self.target)
        save(self.state, self.target)

    def abandon(self, error: BaseException) -> None:
        """Keep what is worth it: whole batches. A file without a row is taken away again."""
        if self._writer is None:
            return
        with contextlib.suppress(OSError):  # a full disk: what stands is what the state says
            self._writer.abandon()
            if not self.state.rows:
                discard(self.target)
            elif isinstance(error, GuerdonError):
                self.state.status = "refused"
                save(self.state, self.target)


@contextmanager
def output(source: Path, target: Path, asked: Mapping[str, Any], *, restart: bool) -> Iterator[Output]:
    """Hold and make a file for a block.

    Args:
        source: the input.
        target: the output.
        asked: everything that says what is made; an output that was begun with something else is not gone on with.
        restart: begin anew, replacing what an earlier call made.

    Raises:
        BusyError: another process writes it.
        DataError: what is there is not ours, is another's, or was changed.
    """
    format_of(target)
    if source.resolve() == target.resolve():
        raise DataError(f"{source} is input and output at once; write to another file")
    given = identity(source)
    with hold_file(target):
        made = begin(target, {"input": given, **asked}, restart)
        if made.state.status == "done":
            yield made
            return
        made.state.status = "running"
        try:
            yield made
            made.finish()
        except BaseException as error:
            made.abandon(error)
            raise


def state_path(out_path: Path) -> Path:
    return out_path.with_name(out_path.name + ".score.json")


def identity(path: Path) -> dict[str, Any]:
    """A file's size and a digest of its two ends: enough to notice another file under the same name."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    size, window = path.stat().st_size, 1 << 16
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(window))
        file.seek(max(0, size - window))
        digest.update(file.read())
    return {"bytes": size, "sha256_of_ends": digest.hexdigest()[:32]}


def begin(target: Path, asked: Mapping[str, Any], restart: bool) -> Output:
    """The output to go on with: a fresh one, or what an earlier call with the same fingerprint left. Nothing is changed yet."""
    plain = json.loads(without_credentials(json.dumps(asked, sort_keys=True, default=str)))
    fingerprint = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    fresh, path = State(fingerprint, plain), state_path(target)
    left = next((file for file in (target, journal_of(target)) if file.exists()), None)
    if not path.exists():
        if left is not None:
            raise DataError(
                f"{left} is there and was not made by scoring, and nothing that others made is replaced: write to another file, or move it away"
            )
        return Output(target, fresh, replaces=False)
    old = _read(path)
    if old is None:
        if not restart:
            raise DataError(f"{path} cannot be read; use --restart (restart=True) to begin anew")
        return Output(target, fresh, replaces=True)
    if old.status == "done" and target.exists() and old.final is not None and identity(target) != old.final:
        raise DataError(
            f"{target} was changed after it was finished, and what others made is not replaced: write to another file, or move it away"
        )
    if restart:
        return Output(target, fresh, replaces=True)
    if old.fingerprint != fingerprint:
        if old.status == "refused" or not old.rows:  # what a refused command left is in nobody's way
            return Output(target, fresh, replaces=True)
        keys = sorted(key for key in {*old.config, *plain} if old.config.get(key) != plain.get(key))
        raise DataError(
            f"{target} was begun with another {' and '.join(keys)}; write to another file, or use --restart (restart=True) to begin anew"
        )
    return _continued(target, old, fresh)


def _continued(target: Path, old: State, fresh: State) -> Output:
    if old.status == "done":
        return Output(target, old if target.exists() else fresh, replaces=False)
    placed = format_of(target) == "parquet" and not journal_of(target).exists() and target.exists()
    if old.out_bytes and placed and count_rows(target) == old.rows:
        # Killed after the file was put in place and before this was noted.
        done = replace(old, status="done", final=identity(target))
        save(done, target)
        return Output(target, done, replaces=False)
    return Output(target, old if old.rows else fresh, replaces=not old.rows)


def _read(path: Path) -> State | None:
    try:
        return State(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def discard(target: Path) -> None:
    """Remove an output, its journal and its state."""
    for file in (state_path(target), target, journal_of(target)):
        file.unlink(missing_ok=True)


def save(state: State, target: Path) -> None:
    path = state_path(target)
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(json.dumps(vars(state), indent=1, ensure_ascii=False) + "\n")
    os.replace(scratch, path)
