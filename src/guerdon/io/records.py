"""Rows of a file to Rollouts and back. Only names of columns are decided here."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from guerdon.errors import DataError
from guerdon.io.read import Row
from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.conversation import completion_text, is_conversation


def rollouts_from_rows(
    rows: Sequence[Row],
    *,
    prompt_column: str = "prompt",
    completion_column: str = "completion",
    group_column: str | None = None,
) -> Rollouts:
    """Text-only rollouts; every other column goes to `columns`, None where a row lacks it.

    A prompt is a text or chat messages; a completion is a text, or chat messages, of which the assistant's last turn is the text
    (`signals.conversation`; the messages stay in the column `completion_column`). A missing prompt is the empty text.

    Args:
        rows: of a file.
        prompt_column, completion_column: their names.
        group_column: names a rollout's group, any value; None = rows next to each other with equal prompts are a group.

    Raises:
        DataError: a row without a completion, or without a group where a group column was named.
    """
    completions = [_completion_text(row, completion_column, i) for i, row in enumerate(rows)]
    keys = dict.fromkeys(key for row in rows for key in row if key not in (prompt_column, completion_column))
    columns = {key: [row.get(key) for row in rows] for key in keys}
    if any(isinstance(row.get(completion_column), (list, dict)) for row in rows):
        columns[completion_column] = [row.get(completion_column) for row in rows]
    prompts = [_prompt(row.get(prompt_column)) for row in rows]
    return Rollouts.from_texts(prompts, completions, columns, group_ids=_group_ids(rows, prompt_column, group_column))


def rows_from_rollouts(rollouts: Rollouts, scores: Scores | None = None) -> list[Row]:
    """One row per rollout: prompt, completion, its columns, `group`, and, where known, `finished`, `completion_ids`.

    With scores also `reward`, `kept` and `scores` ({name: {level, values, spans, unit, reasons}}). NaN stays NaN.
    """
    assert rollouts.group_ids is not None
    rows = []
    for i in range(len(rollouts)):
        row: Row = {"prompt": rollouts.prompts[i], "completion": rollouts.completions[i]}
        row |= {name: column[i] for name, column in rollouts.columns.items() if name not in row}
        row["group"] = int(rollouts.group_ids[i])
        if rollouts.finished is not None:
            row["finished"] = bool(rollouts.finished[i])
        if rollouts.completion_ids is not None:
            row["completion_ids"] = rollouts.completion_ids[i][
                rollouts.mask[i].to(rollouts.completion_ids.device)
            ].tolist()
        rows.append(row)
    if scores is not None:
        for i, (row, record) in enumerate(zip(rows, score_records(scores), strict=True)):
            row["reward"] = None if scores.reward is None else float(scores.reward[i])
            row["kept"] = bool(scores.keep[i])
            row["scores"] = record
    return rows


def score_records(scores: Scores) -> list[dict[str, Any]]:
    """For each row {name: {level, unit, values, spans, reasons}} of the raw scores; masked cells left out.

    `reasons` is {position in values, as text: reason}.
    """
    records: list[dict[str, Any]] = [{} for _ in range(len(scores))]
    for name, rewards in scores.raw.items():
        masks, spans = rewards.mask.tolist(), rewards.spans.to_lists()
        by_row: dict[int, dict[int, str]] = {}
        for (row, cell), reason in rewards.reasons.items():
            by_row.setdefault(row, {})[cell] = reason
        for i, values in enumerate(rewards.values.tolist()):
            cells = [j for j, real in enumerate(masks[i]) if real]
            told = by_row.get(i, {})
            records[i][name] = {
                "level": rewards.level,
                "unit": rewards.spans.unit,
                "values": [values[j] for j in cells],
                "spans": [list(span) for span in spans[i]],
                "reasons": {str(k): told[j] for k, j in enumerate(cells) if j in told},
            }
    return records


def group_key(row: Row, prompt_column: str, group_column: str | None) -> Hashable:
    """What rows of one group share: the group column's value, or the prompt."""
    value = row.get(group_column) if group_column is not None else row.get(prompt_column)
    return value if isinstance(value, (str, int)) else repr(value)


def _group_ids(rows: Sequence[Row], prompt_column: str, group_column: str | None) -> torch.Tensor:
    ids: list[int] = []
    known: dict[Hashable, int] = {}
    previous: Hashable = None
    for i, row in enumerate(rows):
        if group_column is not None and row.get(group_column) is None:
            raise DataError(f"row {i} has no {group_column!r} to say which group it belongs to; it has {sorted(row)}")
        key = group_key(row, prompt_column, group_column)
        if group_column is not None:
            ids.append(known.setdefault(key, len(known)))
        else:
            ids.append(ids[-1] + (key != previous) if ids else 0)
        previous = key
    return torch.tensor(ids, dtype=torch.long)


def _prompt(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, (str, list)):
        return value
    return str(value)


def completion_problem(row: Row, column: str) -> str | None:
    """Why a row has no completion that can be scored, or None."""
    value = row.get(column)
    if value is None:
        return f"the row has no {column!r}"
    if isinstance(value, str) or is_conversation(value):
        return None
    return f"{column!r} is neither text nor chat messages but {type(value).__name__}"


def _completion_text(row: Row, column: str, number: int) -> str:
    problem = completion_problem(row, column)
    if problem:
        raise DataError(f"row {number}: {problem}; it has {sorted(row)}")
    return completion_text(row[column])
