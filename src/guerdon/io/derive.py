"""One file made from another, batch by batch: what scoring does, for functions that give other rows than they get.

A batch of input rows becomes any number of output rows (a preference pair for a group of responses, a row with a chain, or none). Beside the
output stands the same `OUT.score.json` as for `score_file`, with the same promises: a kill loses at most the batch in flight, the same call
goes on from there, another input or other settings are refused, and a finished file is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from guerdon.errors import DataError
from guerdon.io.output import output
from guerdon.io.read import Row, read_rows
from guerdon.io.records import group_key

Derived = tuple[list[Row], list[str]]  # output rows, and why inputs have none


@dataclass(frozen=True)
class DeriveResult:
    """How it went: `rows` written, `resumed_at` of them by earlier calls, `left_out` inputs without an output (`problems` tells why, of the
    first twenty), `skipped` broken input lines."""

    path: Path
    rows: int
    resumed_at: int
    left_out: int
    skipped: int
    problems: list[str]


def derive_file(
    in_path: str | Path,
    out_path: str | Path,
    derive: Callable[[list[Row]], Derived],
    *,
    asked: Mapping[str, Any],
    batch_size: int = 64,
    group_column: str | None = None,
    on_broken: Literal["raise", "skip"] = "raise",
    on_progress: Callable[[int, int], None] | None = None,
    restart: bool = False,
    refuse_empty: Callable[[int, list[str]], str] | None = None,
) -> DeriveResult:
    """Make a file.

    Args:
        in_path, out_path: JSONL (also .gz) or Parquet, by their endings.
        derive: (a batch of rows) -> (output rows, a reason for each input that has none). A function of the rows alone: a resumed run cuts the
            input into the same batches and must give the same rows.
        asked: everything that says what is made; part of the fingerprint.
        batch_size: input rows at once; more where a group would be split.
        group_column: rows next to each other with equal values stay in one batch; None = rows are on their own.
        on_broken: broken input lines: "raise", or "skip" and count.
        on_progress: called with (rows written, input records read) after each batch.
        restart: throw away what an earlier call made, once the first batch could be made anew.
        refuse_empty: (inputs left out, why) -> the error where not one row came out; then nothing is left behind. None = an empty file.

    Raises:
        DataError: a broken line; an output made with other settings or from another input.
    """
    source, target = Path(in_path), Path(out_path)
    with output(source, target, {**asked, "batch_size": batch_size}, restart=restart) as made:
        state, resumed_at = made.state, made.state.rows
        if state.status != "done":
            reader = read_rows(source, batch_size, on_broken=on_broken, start=state.records)
            skipped = state.skipped
            for records, rows in _batches(reader, batch_size, group_column):
                derived, why = derive(rows)
                made.write(derived)
                state.rows, state.records = state.rows + len(derived), records
                state.failed, state.skipped = state.failed + len(why), skipped + reader.skipped
                state.problems = [*(state.problems or []), *why][:20]
                made.note()
                if on_progress is not None:
                    on_progress(state.rows, state.records)
            if refuse_empty is not None and not state.rows and state.failed:
                raise DataError(refuse_empty(state.failed, list(state.problems or [])))
    return DeriveResult(target, state.rows, resumed_at, state.failed, state.skipped, list(state.problems or []))


def _batches(reader: Any, batch_size: int, group_column: str | None) -> Iterator[tuple[int, list[Row]]]:
    """(records consumed, rows): `batch_size` rows, and as many more as the last group needs."""
    rows: list[Row] = []
    consumed, previous = reader.position, None
    for number, row in reader.numbered():
        key = group_key(row, group_column, None) if group_column is not None else number
        if len(rows) >= batch_size and key != previous:
            yield consumed, rows
            rows = []
        rows.append(row)
        consumed, previous = number + 1, key
    if rows:
        yield consumed, rows
