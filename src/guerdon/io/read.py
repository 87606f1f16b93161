"""Reading rows: JSONL (plain or .gz) and Parquet, in batches, with broken lines reported by file and line.

A row is a plain dict. In JSONL, `null` is None and a `NaN` token (Python writes them) is a float NaN; in Parquet, null is
None and NaN is NaN. Nested columns are dicts and lists. Rows of one file may have different keys.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from guerdon.errors import ConfigError, DataError
from guerdon.extras import require

Row = dict[str, Any]
Format = Literal["jsonl", "parquet"]
BYTES_KEY = "__bytes__"  # how bytes stand in JSON: {"__bytes__": base64}


def format_of(path: Path) -> Format:
    """By the ending: .jsonl, .ndjson (also .gz) or .parquet. Raises ConfigError for any other."""
    name = path.name.lower()
    if name.endswith((".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")):
        return "jsonl"
    if name.endswith((".parquet", ".pq")):
        return "parquet"
    raise ConfigError(
        f"{path}: the ending says neither JSONL (.jsonl, .ndjson, .jsonl.gz) nor Parquet (.parquet); rename it"
    )


class RowReader:
    """Iterates over batches of rows. Made by `read_rows`.

    Attributes:
        position: records of the file consumed up to and including the last batch given out (broken lines included, blank
            lines too): hand it to `read_rows(start=...)` to go on from there.
        skipped: broken lines left out so far.
        problems: "file:line: what is wrong" of the first twenty of them.
    """

    def __init__(self, path: str | Path, batch_size: int, on_broken: Literal["raise", "skip"], start: int) -> None:
        self.path = Path(path)
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: must be at least 1")
        if on_broken not in ("raise", "skip"):
            raise ConfigError(f"on_broken={on_broken!r}: use 'raise' or 'skip'")
        self.format = format_of(self.path)
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file")
        self.batch_size, self.on_broken = batch_size, on_broken
        self.position, self.skipped = start, 0
        self.problems: list[str] = []
        self.fraction: float | None = None
        records = self._parquet(start) if self.format == "parquet" else self._jsonl(start)
        self._records: Iterator[tuple[int, Row]] = records

    def __iter__(self) -> Iterator[list[Row]]:
        while batch := list(islice(self._records, self.batch_size)):
            self.position = batch[-1][0] + 1
            yield [row for _, row in batch]

    def numbered(self) -> Iterator[tuple[int, Row]]:
        """The rows one by one, each with its record number (0-based line or Parquet row)."""
        for number, row in self._records:
            self.position = number + 1
            yield number, row

    # -- JSONL -----------------------------------------------------------------------------------------------------------

    def _jsonl(self, start: int) -> Iterator[tuple[int, Row]]:
        size = self.path.stat().st_size
        with self.path.open("rb") as raw:
            lines: IO[bytes] = gzip.open(raw) if self.path.name.endswith(".gz") else raw  # type: ignore[assignment]  # noqa: SIM115
            number = -1
            try:
                for number, line in enumerate(lines):
                    if number < start or not line.strip():
                        continue
                    row = self._parse(line, number)
                    if row is not None:
                        self.fraction = raw.tell() / size if size else 1.0
                        yield number, row
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                self._broken(f"{self.path}:{number + 2}: the compressed file is damaged or cut short: {error}")

    def _parse(self, line: bytes, number: int) -> Row | None:
        where = f"{self.path}:{number + 1}"
        try:
            text = _decoded(line, "utf-8-sig" if number == 0 else "utf-8")
            row = json.loads(text, object_hook=_restore_bytes)
        except UnicodeDecodeError as error:
            return self._broken(f"{where}: not UTF-8 ({error.reason} at byte {error.start} of the line)")
        except json.JSONDecodeError as error:
            cut = "" if line.endswith(b"\n") else "; the line has no end: was its writer killed?"
            return self._broken(f"{where}: not JSON: {error.msg} at column {error.colno}{cut}")
        except RecursionError:
            return self._broken(f"{where}: JSON nested too deeply")
        except ValueError as error:  # Python refuses integers of more than a few thousand digits
            return self._broken(f"{where}: {error}")
        if not isinstance(row, dict):
            return self._broken(f"{where}: a row must be an object, this is {type(row).__name__}")
        return row

    def _broken(self, problem: str) -> Row | None:
        if self.on_broken == "raise":
            raise DataError(
                f'{problem} (--on-broken skip, in Python on_broken="skip", leaves such lines out and counts them)'
            )
        self.skipped += 1
        if len(self.problems) < 20:
            self.problems.append(problem)
        return None

    # -- Parquet ---------------------------------------------------------------------------------------------------------

    def _parquet(self, start: int) -> Iterator[tuple[int, Row]]:
        with _open_parquet(self.path) as file:
            total = file.metadata.num_rows
            number = 0
            for group in range(file.num_row_groups):
                length = file.metadata.row_group(group).num_rows
                if number + length <= start:
                    number += length
                    continue
                for batch in file.iter_batches(batch_size=min(self.batch_size, 1024), row_groups=[group]):
                    for row in _rows_of(batch):
                        if number >= start:
                            self.fraction = (number + 1) / total
                            yield number, row
                        number += 1


def read_rows(
    path: str | Path, batch_size: int = 256, *, on_broken: Literal["raise", "skip"] = "raise", start: int = 0
) -> RowReader:
    """Rows of a JSONL (.jsonl, .ndjson, also .gz) or Parquet file, `batch_size` at a time.

    Args:
        path: the file; its ending says the format.
        batch_size: rows per batch; the last one may be smaller.
        on_broken: a line that is no JSON object: "raise" a DataError that names file and line, or "skip" it, counted in
            the reader's `skipped` and told in its `problems`.
        start: records to pass over unread, counted as `RowReader.position` does.

    Raises:
        DataError: no such file, a broken line, a Parquet file that cannot be read.
        ConfigError: an ending that says no known format.
    """
    return RowReader(path, batch_size, on_broken, start)


def count_rows(path: str | Path) -> int | None:
    """Rows of a Parquet file (from its footer); None for JSONL, where counting would mean reading it."""
    path = Path(path)
    if format_of(path) != "parquet":
        return None
    with _open_parquet(path) as file:
        return int(file.metadata.num_rows)


def parquet_schema(path: Path) -> Any:
    """The file's pyarrow schema."""
    with _open_parquet(path) as file:
        return file.schema_arrow


def _open_parquet(path: Path) -> Any:
    pa, pq = require("pyarrow", extra="data"), require("pyarrow.parquet", extra="data")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error


def _decoded(line: bytes, encoding: str) -> str:
    """A line as text. Halves of surrogate pairs, which some writers leave, are kept as JSON's escapes would be."""
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        try:
            return line.decode("utf-8", "surrogatepass").removeprefix("\ufeff" if encoding == "utf-8-sig" else "")
        except UnicodeDecodeError:
            raise error from None


def _rows_of(batch: Any) -> list[Row]:
    """An Arrow batch as rows, its maps as dicts; one with a repeated key or with structs as keys is its pairs."""
    try:
        return list(batch.to_pylist(maps_as_pydicts="strict"))
    except (KeyError, TypeError):  # a repeated key; a key that is a struct
        kinds = {field.name: field.type for field in batch.schema}
        return [{name: _plain(value, kinds[name]) for name, value in row.items()} for row in batch.to_pylist()]


def _plain(value: Any, kind: Any) -> Any:
    """A value whose maps are lists of pairs, with those of different keys as dicts."""
    types = require("pyarrow", extra="data").types
    if value is None:
        return None
    if types.is_map(kind):
        pairs = [(_plain(key, kind.key_type), _plain(item, kind.item_type)) for key, item in value]
        if types.is_nested(kind.key_type):
            return pairs
        return dict(pairs) if len(dict(pairs)) == len(pairs) else pairs
    if types.is_struct(kind):
        return {name: _plain(item, kind.field(name).type) for name, item in value.items()}
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return [_plain(item, kind.value_type) for item in value]
    return value


def _restore_bytes(value: dict[str, Any]) -> Any:
    if len(value) == 1 and isinstance(value.get(BYTES_KEY), str):
        return base64.b64decode(value[BYTES_KEY])
    return value
