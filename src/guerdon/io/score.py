"""Scoring a file: every input column is kept, a reward and its reasons are added. The engine of `guerdon score`.

Rows go out in the order they came in, batch by batch; beside the output stands `OUT.score.json`, which says what was asked,
how far it is and how it went. It is renewed after each batch, so that a kill loses at most the batch in flight and the same
call goes on from there; with other settings or another input it refuses. Once finished, the same call does nothing.

Added columns: `reward` (a number; null/NaN = the instrument failed), `reward_level`, `reward_reason`; for one source that
scores spans also `reward_values`, `reward_spans` (inclusive) and `reward_unit`; for several sources `reward_parts`. An input
column of the same name is kept as `input_NAME`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from guerdon.errors import DataError
from guerdon.identity import describe, digest
from guerdon.io.columns import description, lift, notes_on, reward_columns, reward_scope, runs_chain
from guerdon.io.output import Output, output
from guerdon.io.read import Row, RowReader, count_rows, format_of, parquet_schema, read_rows
from guerdon.io.records import completion_problem, group_key, rollouts_from_rows
from guerdon.system import System

ADDED = ("reward", "reward_level", "reward_reason")


@dataclass(frozen=True)
class ScoreProgress:
    """How far scoring is.

    rows: rows written, those of earlier runs included. total: rows of the file where known (Parquet). fraction: of the
    file read, in [0, 1], or None (compressed). failed: rows without a number so far. mean: of the numbers so far, or NaN.
    """

    rows: int
    total: int | None
    fraction: float | None
    failed: int
    mean: float


@dataclass(frozen=True)
class ScoreResult:
    """How scoring went: `rows` written, `resumed_at` of them by earlier calls, `failed` without a number, `skipped` broken
    lines (`problems` tells the first), `mean` of the numbers, `renamed` input columns, `notes` for the reader."""

    path: Path
    rows: int
    resumed_at: int
    failed: int
    skipped: int
    mean: float
    renamed: dict[str, str]
    problems: list[str]
    notes: list[str]


def score_file(
    in_path: str | Path,
    out_path: str | Path,
    reward: System | Any,
    *,
    name: str | None = None,
    segments: Mapping[str, Any] | None = None,
    prompt_column: str = "prompt",
    completion_column: str = "completion",
    group_column: str | None = None,
    batch_size: int = 256,
    provides: frozenset[str] = frozenset(),
    config: Mapping[str, Any] | None = None,
    on_broken: Literal["raise", "skip"] = "raise",
    on_progress: Callable[[ScoreProgress], None] | None = None,
    restart: bool = False,
) -> ScoreResult:
    """Score every row of a file into another one.

    Args:
        in_path, out_path: JSONL (also .gz) or Parquet, by their endings; they may differ.
        reward: a System, or a signal (Rollouts, Scores) -> Rewards.
        name: of the source a bare signal makes; default its class or function name.
        segments: segmenters for a bare signal that scores spans.
        prompt_column, completion_column: names in the file.
        group_column: names a rollout's group. None = rows next to each other with equal prompts. A reward that compares the
            rollouts of a group gets every group whole.
        batch_size: rows scored at once; more where a group would be split.
        provides: what models bound by the caller provide, for the check of the system's `needs`.
        config: anything that says what was asked (a command's settings); part of the fingerprint, saved beside the output.
        on_broken: broken input lines: "raise", or "skip" and count.
        on_progress: called after each batch.
        restart: throw away what an earlier call made, once the first batch could be made anew.

    Raises:
        DataError: a broken line; a column that no row has; groups that are not contiguous; an output made with other settings
            or from another input, or a file that no call of this function made.
        BusyError: another process writes the output.
        CapabilityError: the reward needs what a file of texts cannot give.
    """
    source, target = Path(in_path), Path(out_path)
    system = reward if isinstance(reward, System) else lift(reward, name, segments)
    system.require(provides, "a file of rollouts", chain=runs_chain(system))
    columns = {"prompt": prompt_column, "completion": completion_column, "group": group_column}
    asked = {
        "reward": description(system),
        "reward_code": digest(describe(system, trust_repr=True)),
        "columns": columns,
        **(config or {}),
    }
    with output(source, target, asked, restart=restart) as made:
        state, resumed_at = made.state, made.state.rows
        if state.status != "done":
            _run(source, made, system, columns, batch_size, on_broken, on_progress)
    return ScoreResult(
        target,
        state.rows,
        resumed_at,
        state.failed,
        state.skipped,
        state.mean,
        state.renamed or {},
        state.problems or [],
        notes_on(system),
    )


def _run(
    source: Path,
    made: Output,
    system: System,
    columns: Mapping[str, Any],
    batch_size: int,
    on_broken: Literal["raise", "skip"],
    on_progress: Callable[[ScoreProgress], None] | None,
) -> None:
    state = made.state
    reader = read_rows(source, batch_size, on_broken=on_broken, start=state.records)
    skipped, problems, total = state.skipped, list(state.problems or []), count_rows(source)
    if format_of(source) == format_of(made.target) == "parquet":
        made.schema = parquet_schema(source)
    whole_groups = reward_scope(system) != "row"
    for records, rows in _batches(reader, batch_size, columns, whole_groups):
        added = score_rows(rows, system, columns)
        renamed = dict(state.renamed or {})
        made.write([_join(row, extra, renamed) for row, extra in zip(rows, added, strict=True)])
        numbers = [extra["reward"] for extra in added if not math.isnan(extra["reward"])]
        state.rows, state.records = state.rows + len(rows), records
        state.failed, state.total = state.failed + len(rows) - len(numbers), state.total + math.fsum(numbers)
        state.skipped, state.problems, state.renamed = skipped + reader.skipped, problems + reader.problems, renamed
        made.note()
        if on_progress is not None:
            on_progress(ScoreProgress(state.rows, total, reader.fraction, state.failed, state.mean))
    state.skipped, state.problems = skipped + reader.skipped, problems + reader.problems


def score_rows(rows: list[Row], system: System, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The added columns of each row of one batch. Rows without a completion get NaN and the reason."""
    completion = columns["completion"]
    if not any(completion in row for row in rows):
        have = sorted({key for row in rows for key in row})
        raise DataError(
            f"no column {completion!r} to score; the file has {have}; name it with --completion (completion_column in Python)"
        )
    problems = [completion_problem(row, completion) for row in rows]
    good = [i for i, problem in enumerate(problems) if problem is None]
    added: list[dict[str, Any]] = [
        {"reward": float("nan"), "reward_level": "sequence", "reward_reason": problem} for problem in problems
    ]
    if good:
        rollouts = rollouts_from_rows(
            [rows[i] for i in good],
            prompt_column=columns["prompt"],
            completion_column=completion,
            group_column=columns["group"],
        )
        for i, extra in zip(good, reward_columns(system, rollouts), strict=True):
            added[i] = extra
    return added


def _join(row: Row, extra: dict[str, Any], renamed: dict[str, str]) -> Row:
    """The row and what is added; an input column of an added name is kept as input_NAME."""
    out = {}
    for key, value in row.items():
        new = key
        while new in extra or new in ADDED or (new != key and new in row):
            new = f"input_{new}"
        if new != key:
            renamed[key] = new
        out[new] = value
    return {**out, **extra}


def _batches(
    reader: RowReader, batch_size: int, columns: Mapping[str, Any], whole_groups: bool
) -> Iterator[tuple[int, list[Row]]]:
    """(records consumed, rows), at least `batch_size` rows where groups must stay whole, else exactly."""
    rows: list[Row] = []
    consumed = reader.position
    seen: set[int] = set()
    previous: Hashable = None
    for number, row in reader.numbered():
        if whole_groups:
            key = group_key(row, columns["prompt"], columns["group"])
            if not rows or key != previous:
                if len(rows) >= batch_size:
                    yield consumed, rows
                    rows = []
                if hash(key) in seen and key != previous:
                    raise DataError(_scattered(reader.path, number, columns))
                seen.add(hash(key))
            previous = key
        elif len(rows) == batch_size:
            yield consumed, rows
            rows = []
        rows.append(row)
        consumed = number + 1
    if rows:
        yield consumed, rows


def _scattered(path: Path, number: int, columns: Mapping[str, Any]) -> str:
    if columns["group"] is not None:
        return (
            f"{path}: row {number + 1} goes on with a group that ended earlier; sort the file by {columns['group']!r}"
        )
    return (
        f"{path}: the prompt of row {number + 1} was seen before, in rows that are not next to it. This reward compares the "
        "rollouts of a group: sort the file by prompt, or name the column that says which group a row belongs to (--group)"
    )
