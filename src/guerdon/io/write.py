"""Writing rows as they come: JSONL (plain or .gz) and Parquet. A kill loses at most the batch in flight.

JSONL grows in place, a whole batch per write. A Parquet file is only readable once its footer is there, so batches go to a
journal beside it (`.NAME.journal`: length-prefixed Arrow streams) and become row groups of a temporary file at `close`,
which then replaces the target in one step. Schemas may drift between batches: columns are joined, numbers widened, and a
column whose types cannot be reconciled is stored as JSON text, with a warning that names it.

NaN stays NaN in Parquet; JSON has none, so there it is null. Infinities are the texts "Infinity" and "-Infinity" in JSON.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from guerdon.errors import DataError
from guerdon.extras import require
from guerdon.io.read import BYTES_KEY, Row, format_of

_HEADER = struct.Struct("<QQ")  # bytes, rows


class RowWriter:
    """Appends batches of rows to a file.

    Args:
        path: the ending says the format.
        resume_at: a `position` that an earlier writer of this path reported: what stands after it is cut off and writing
            goes on there. None = start anew, replacing the file.
        schema: a pyarrow schema whose column types to keep where they fit (Parquet only).

    Raises:
        DataError: what the earlier writer left is shorter than `resume_at`.
    """

    def __init__(self, path: str | Path, *, resume_at: int | None = None, schema: Any = None) -> None:
        self.path = Path(path)
        self.format = format_of(self.path)
        self.schema = schema
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._target = self.path if self.format == "jsonl" else journal_of(self.path)
        if resume_at is None:
            self._file: BinaryIO = self._target.open("wb")
        else:
            have = self._target.stat().st_size if self._target.exists() else -1
            if have < resume_at:
                raise DataError(
                    f"{self._target} holds {max(have, 0)} bytes where {resume_at} were written: it was changed since"
                )
            self._file = self._target.open("r+b")
            self._file.truncate(resume_at)
            self._file.seek(resume_at)

    @property
    def position(self) -> int:
        """Bytes that stand for sure (in the file, or in the journal of a Parquet file): see `resume_at`."""
        return self._file.tell()

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows and hand them to the operating system: they survive the death of this process."""
        if not rows:
            return
        if self.format == "parquet":
            data = _arrow_stream(rows, self.schema)
            data = _HEADER.pack(len(data), len(rows)) + data
        else:
            data = b"".join(encode_line(row) for row in rows)
            if self.path.name.endswith(".gz"):
                data = gzip.compress(data, 6, mtime=0)
        self._file.write(data)
        self._file.flush()

    def close(self) -> None:
        """Finish the file. For Parquet: turn the journal into the file and remove it."""
        if self._file.closed:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self.format == "parquet":
            _journal_to_parquet(self._target, self.path, self.schema)
            self._target.unlink()

    def abandon(self) -> None:
        """Stop without finishing: what was written stays for `resume_at`."""
        self._file.close()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close() if kind is None else self.abandon()


def journal_of(path: Path) -> Path:
    """Where a Parquet file's batches stand until it is closed."""
    return path.with_name(f".{path.name}.journal")


# -- JSON ------------------------------------------------------------------------------------------------------------------


def encode_line(row: Row) -> bytes:
    """One line of valid JSON in UTF-8."""
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_jsonable)
    except ValueError:
        text = json.dumps(_finite(row), ensure_ascii=False, allow_nan=False, default=_jsonable)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only spell out
        return json.dumps(_finite(row), allow_nan=False, default=_jsonable).encode() + b"\n"


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return {BYTES_KEY: base64.b64encode(value).decode()}
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "tolist"):  # numpy, torch
        return _finite(value.tolist())
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    return str(value)


def _finite(value: Any) -> Any:
    """NaN to None, infinities to text, all the way down."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


# -- Parquet ---------------------------------------------------------------------------------------------------------------


def _as_json(column: Sequence[Any]) -> Any:
    pa = require("pyarrow", extra="data")
    texts = [None if v is None else json.dumps(_finite(v), default=_jsonable, ensure_ascii=True) for v in column]
    return pa.array(texts, pa.string())


def _writable(kind: Any) -> bool:
    """Parquet has no struct without fields."""
    pa = require("pyarrow", extra="data")
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_writable(kind.field(i).type) for i in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _writable(kind.value_type)
    return True


def _column(values: Sequence[Any], hint: Any) -> Any:
    """An Arrow array of the hinted type, else of the type found, else None: the values have no common type."""
    pa = require("pyarrow", extra="data")
    for kind in [hint, None] if hint is not None else [None]:
        try:
            array = pa.array(values, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, UnicodeEncodeError, OverflowError):
            continue
        if _writable(array.type):
            return array
    return None


def _table(rows: Sequence[Row], schema: Any) -> Any:
    """Rows as an Arrow table of all their keys; columns stored as JSON text are marked so in their field's metadata."""
    pa = require("pyarrow", extra="data")
    names = list(dict.fromkeys(key for row in rows for key in row))
    hints = {field.name: field.type for field in schema} if schema is not None else {}
    arrays, fields = [], []
    for name in names:
        values = [row.get(name) for row in rows]
        array = _column(values, hints.get(name))
        fields.append(
            pa.field(name, pa.string() if array is None else array.type, metadata=_JSON_MARK if array is None else None)
        )
        arrays.append(_as_json(values) if array is None else array)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


_JSON_MARK = {"guerdon": "json"}


def _is_json(field: Any) -> bool:
    return (field.metadata or {}).get(b"guerdon") == b"json"


def _arrow_stream(rows: Sequence[Row], schema: Any) -> bytes:
    pa = require("pyarrow", extra="data")
    table = _table(rows, schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def _frames(journal: Path) -> Iterator[Any]:
    """The journal's batches, as Arrow stream readers; a cut last one is left out."""
    pa = require("pyarrow", extra="data")
    with journal.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, _ = _HEADER.unpack(header)
            data = file.read(length)
            if len(data) < length:
                return
            with pa.ipc.open_stream(data) as stream:
                yield stream


def _joint_schema(journal: Path, hint: Any) -> Any:
    """One schema for all batches: columns in order of appearance, types widened, irreconcilable ones JSON text."""
    pa = require("pyarrow", extra="data")
    fields: dict[str, Any] = {}
    for stream in _frames(journal):
        for field in stream.schema:
            known = fields.get(field.name)
            if known is None or known.equals(field, check_metadata=True) or _is_json(known):
                fields.setdefault(field.name, field)
                continue
            try:
                joined = pa.unify_schemas([pa.schema([known]), pa.schema([field])], promote_options="permissive").field(
                    0
                )
                fields[field.name] = (
                    pa.field(field.name, pa.string(), metadata=_JSON_MARK) if _is_json(field) else joined
                )
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                fields[field.name] = pa.field(field.name, pa.string(), metadata=_JSON_MARK)
    if not fields and hint is not None:
        return hint
    mixed = sorted(name for name, field in fields.items() if _is_json(field))
    if mixed:
        warnings.warn(f"columns {mixed} hold values without a common type; they are stored as JSON text", stacklevel=4)
    return pa.schema(list(fields.values()))


def _fitted(table: Any, schema: Any) -> Any:
    """A batch under the joint schema."""
    pa = require("pyarrow", extra="data")
    if table.schema.equals(schema):
        return table
    arrays = []
    for field in schema:
        index = table.schema.get_field_index(field.name)
        if index < 0:
            arrays.append(pa.nulls(table.num_rows, field.type))
        elif _is_json(field) and not _is_json(table.schema.field(index)):
            arrays.append(_as_json(table.column(index).to_pylist()))
        elif table.schema.field(index).type.equals(field.type):
            arrays.append(table.column(index))
        else:
            arrays.append(pa.array(table.column(index).to_pylist(), field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _journal_to_parquet(journal: Path, path: Path, hint: Any, group_rows: int = 8192) -> None:
    """Write the batches as row groups of about `group_rows` to a temporary file, then put it in place."""
    pa, pq = require("pyarrow", extra="data"), require("pyarrow.parquet", extra="data")
    schema = _joint_schema(journal, hint)
    scratch = path.with_name(f".{path.name}.part")
    try:
        with pq.ParquetWriter(scratch, schema) as out:
            waiting: list[Any] = []
            for stream in _frames(journal):
                waiting.append(_fitted(stream.read_all(), schema))
                if sum(table.num_rows for table in waiting) >= group_rows:
                    out.write_table(pa.concat_tables(waiting), row_group_size=group_rows)
                    waiting = []
            if waiting:
                out.write_table(pa.concat_tables(waiting), row_group_size=group_rows)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
