"""Tasks from elsewhere: `reasoning-gym` generators, and tables (JSONL, Parquet, hub data sets) with prompts and answers.

A table's true success is one of the library's verifiable signals, named or given; a generator's is its own scorer.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from guerdon.errors import ConfigError, DataError
from guerdon.extras import require
from guerdon.io.names import ANSWER_COLUMNS, PROMPT_COLUMNS
from guerdon.signals.verifiable.answer_part import answering
from guerdon.signals.verifiable.extraction import Extract, extractor
from guerdon.signals.verifiable.verdict import Verdict
from guerdon.tasks.base import Row, Task, Verifier, prompt_key

VERIFIERS = {"math": "Math", "exact": "Exact", "numeric": "Numeric", "choice": "MultipleChoice", "qa": "QA"}


# --- reasoning-gym ---------------------------------------------------------------------------------------------------


def reasoning_gym_task(
    dataset: str,
    *,
    train_size: int = 512,
    held_out_size: int = 128,
    seed: int = 0,
    tag: str = "answer",
    extract: Extract = "tag",
    instruction: str | None = None,
    **options: Any,
) -> Task:
    """A task of procedurally generated questions, scored by the generator's own scorer.

    dataset: a reasoning-gym data set such as "chain_sum". options: its configuration.
    tag: the completion's answer is the last ``<tag>...</tag>``; without one the answer is empty, which scores 0.
    extract: another rule for where the answer is (`verifiable.extraction`), such as "last_number" for a model too small to keep to
        a format. instruction: put after every question; default: what the rule asks for.

    Held-out questions come from another seed, each is asked once, and none occurs in training: where a generator has so few questions
    that both sides drew the same ones, up to a fifth of all questions are held out and left out of the training rows.
    Columns: prompt, answer, index (of the generated entry).
    """
    gym = require("reasoning_gym", extra="tasks")
    name = ",".join([f"reasoning-gym:{dataset}", *(f"{k}={v}" for k, v in options.items())])
    try:
        made = {
            "train": gym.create_dataset(dataset, size=train_size, seed=seed, **options),
            "held_out": gym.create_dataset(dataset, size=held_out_size, seed=seed + 1_000_003, **options),
        }
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(_gym_complaint(name, dataset, options, error)) from error
    entries = {split: [source[i] for i in range(len(source))] for split, source in made.items()}
    find: Callable[[str], str | None]
    if extract == "tag":
        find, missing = partial(gym.utils.extract_answer, tag_name=tag), f"no <{tag}> tag"
        asks = f"Think step by step, with a blank line after each step. Then give only the final answer between <{tag}> and </{tag}>."
    else:
        try:
            find, missing = extractor(extract), f"no answer found by the rule {extract!r}"
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
        asks = "Think step by step, with a blank line after each step. End with the final answer."

    def rows(split: str) -> list[Row]:
        return [
            {"prompt": entry["question"], "answer": entry["answer"], "index": i, "split": split}
            for i, entry in enumerate(entries[split])
        ]

    def verify(completions: Sequence[str], asked: Sequence[Row]) -> list[Verdict]:
        verdicts = []
        answer_of = answering(find, "drop")
        for completion, row in zip(completions, asked, strict=True):
            answer = answer_of(completion).text
            value = float(made[row["split"]].score_answer(answer, entries[row["split"]][row["index"]]))
            reason = None if value >= 1.0 else missing if answer is None else f"answered {answer[:60]!r}"
            verdicts.append(Verdict(0.0 if answer is None else value, reason))
        return verdicts

    train, held_out = _apart(rows("train"), rows("held_out"), held_out_size, name)
    return Task(
        name=name,
        train=train,
        held_out=held_out,
        verify=verify,
        max_completion_length=512,
        instruction=asks if instruction is None else instruction,
        notes={} if extract == "tag" else {"splice": "append"},  # there is no place where the answer stands
    )


def _apart(train: list[Row], drawn: list[Row], size: int, label: str) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows without a common prompt: what was drawn for the held-out side and is not in training and, where that is
    fewer than `size` and than a fifth of all prompts, some that were, taken from the training rows."""
    known, distinct = {prompt_key(row) for row in train}, {prompt_key(row): row for row in reversed(drawn)}
    order = list(dict.fromkeys(prompt_key(row) for row in drawn))
    common = [key for key in order if key in known]
    wanted = min(size, len(known.union(order)) // 5)
    moved = set(common[: max(0, wanted - (len(order) - len(common)))])
    held_out = [distinct[key] for key in order if key not in known or key in moved]
    if not held_out:
        raise DataError(
            f"{label}: every held-out prompt also occurs in the training prompts, and there are too few to share out"
        )
    return [row for row in train if prompt_key(row) not in moved], held_out


def _gym_complaint(name: str, dataset: str, options: dict[str, Any], error: Exception) -> str:
    from reasoning_gym.factory import DATASETS

    if dataset not in DATASETS:
        import difflib

        near = difflib.get_close_matches(dataset, DATASETS, n=3, cutoff=0.4)
        return f"{name}: reasoning-gym has no data set {dataset!r}" + (
            f"; did you mean {' or '.join(near)}?" if near else ""
        )
    known = sorted(set(inspect.signature(DATASETS[dataset][1]).parameters) - {"seed", "size"})
    return f"{name}: reasoning-gym refuses these options {options}: {error}. {dataset} takes {', '.join(known)}"


# --- tables ----------------------------------------------------------------------------------------------------------


def table_task(
    source: str,
    *,
    prompt: str | None = None,
    answer: str | None = None,
    verifier: str | Any = "math",
    split: str = "train",
    held_out: str | float = 0.1,
    limit: int | None = None,
    seed: int = 0,
    max_completion_length: int = 1024,
    delimiter: str = "\n\n",
    instruction: str = "",
    together: str | None = None,
) -> Task:
    """A task from a JSONL or Parquet file, or a hub data set.

    source: a path ending in .jsonl, .json, .parquet, or a hub id.
    prompt, answer: column names; default: the first present of PROMPT_COLUMNS and of ANSWER_COLUMNS. They are called "prompt" and
        "answer" from there on. A prompt is a text or a list of messages; an answer is one reference or a list of equally
        right ones. Numbers become texts as the file writes them (7, not 7.0).
    verifier: "math", "exact", "numeric", "choice", "qa", or a sequence-level signal that reads the column "answer".
    split: of a hub data set. held_out: another file or hub split, or the share of prompts to hold out (drawn by `seed`).
    limit: rows at most, for a quick look.
    together: column whose equal values stay on one side when a share is held out (views of one question); default "question_id"
        where there is such a column, else the prompt.

    Every other column is carried along. Repeated prompts stay together on one side. Raises DataError for a missing
    column, an empty table, or a row whose prompt or answer is missing.
    """
    label = Path(source).name if _is_file(source) else source
    rows = _named(_read(source, split, limit), prompt, answer, label)
    if isinstance(held_out, str):
        other_source, other_split = (held_out, "train") if _is_file(held_out) else (source, held_out)
        train, unseen = rows, _named(_read(other_source, other_split, limit), prompt, answer, held_out)
        unseen = _unseen(unseen, train, label)
    else:
        if together is not None and together not in rows[0]:
            raise DataError(f"{label} has no column {together!r} to keep together (it has: {', '.join(rows[0])})")
        column = together or ("question_id" if "question_id" in rows[0] else None)
        train, unseen = _cut(rows, held_out, seed, label, column)
    return Task(
        name=source,
        train=train,
        held_out=unseen,
        verify=signal_verifier(verifier),
        max_completion_length=max_completion_length,
        delimiter=delimiter,
        instruction=instruction,
    )


def signal_verifier(verifier: str | Any) -> Verifier:
    """A verifier out of a verifiable signal: a name of VERIFIERS, or a sequence-level signal that reads "answer"."""
    from guerdon.rewards import Scores
    from guerdon.rollouts import Rollouts

    if isinstance(verifier, str):
        if verifier not in VERIFIERS:
            raise ConfigError(f"verifier={verifier!r}: use one of {', '.join(VERIFIERS)}, or pass a signal")
        import guerdon.signals.verifiable as verifiable

        verifier = getattr(verifiable, VERIFIERS[verifier])()

    def verify(completions: Sequence[str], rows: Sequence[Row]) -> list[Verdict]:
        names = [key for key in dict.fromkeys(k for row in rows for k in row) if key != "prompt"]
        columns = {key: [row.get(key) for row in rows] for key in names}
        rollouts = Rollouts.from_texts([row["prompt"] for row in rows], completions, columns)
        rewards = verifier(rollouts, Scores.empty(rollouts))
        return [Verdict(float(value), rewards.reasons.get((b, 0))) for b, value in enumerate(rewards.values[:, 0])]

    return verify


def _is_file(source: str) -> bool:
    return Path(source).suffix in (".jsonl", ".json", ".parquet") or Path(source).exists()


def _read(source: str, split: str, limit: int | None) -> list[dict[str, Any]]:
    datasets = require("datasets", extra="train")
    path = Path(source)
    if _is_file(source):
        if not path.is_file():
            raise DataError(
                f"there is no file {source}; give a .jsonl or .parquet file, or a hub data set id without a suffix"
            )
        if path.suffix in (".jsonl", ".ndjson"):
            return _read_lines(source, limit)
        kind = "parquet" if path.suffix == ".parquet" else "json"
        try:
            table = datasets.load_dataset(kind, data_files=str(path), split="train")
        except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
            raise DataError(f"{source} cannot be read as {kind}: {error.__cause__ or error}") from error
    else:
        try:
            table = datasets.load_dataset(source, split=split)
        except (OSError, ValueError) as error:  # not found, no network, gated, unknown split
            raise DataError(
                f"data set {source!r} (split {split!r}) could not be loaded: {error}. Give a .jsonl or .parquet file, a hub id "
                "with 'owner/name', or one of guerdon's own tasks ('sums', 'reasoning-gym:<data set>')"
            ) from error
    return [dict(row) for row in (table if limit is None else table.select(range(min(limit, len(table)))))]


def _read_lines(source: str, limit: int | None) -> list[dict[str, Any]]:
    """Rows of a JSONL file, value by value as they are written; None where a row lacks a column."""
    from guerdon.io.read import read_rows

    rows: list[dict[str, Any]] = []
    try:
        for batch in read_rows(source, 1024):
            rows += batch
            if limit is not None and len(rows) >= limit:
                break
    except DataError as error:
        raise DataError(f"{source} cannot be read as JSONL: {error}") from error
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows[:limit]]


def _as_references(answers: Sequence[Any]) -> list[Any]:
    """Answers as texts; where one row has several, each as a list, so that the column has one type."""
    several = any(isinstance(answer, list | tuple) for answer in answers)
    cells = [list(answer) if isinstance(answer, list | tuple) else [answer] for answer in answers]
    texts = [[str(one) if isinstance(one, int | float) else one for one in cell] for cell in cells]
    return texts if several else [cell[0] for cell in texts]


def _named(rows: list[dict[str, Any]], prompt: str | None, answer: str | None, label: str) -> list[Row]:
    """Rows with the columns called "prompt" and "answer"."""
    if not rows:
        raise DataError(f"{label} has no rows")
    names: dict[str, str] = {}
    for role, given, usual in (("prompt", prompt, PROMPT_COLUMNS), ("answer", answer, ANSWER_COLUMNS)):
        found = next((c for c in ([given] if given else usual) if c in rows[0]), None)
        if found is None:
            looked = repr(given) if given else ", ".join(usual)
            raise DataError(
                f"{label} has no {role} column {looked} (it has: {', '.join(rows[0])}); name it with {role}=..."
            )
        names[found] = role
    renamed: list[Row] = [
        {names.get(key, key): value for key, value in row.items() if key in names or key not in names.values()}
        for row in rows
    ]
    for i, row in enumerate(renamed):
        for role in ("prompt", "answer"):
            if row[role] is None or row[role] == "" or row[role] == []:
                raise DataError(f"{label}: row {i} has no {role}; remove it or fill it in")
    answers = _as_references([row["answer"] for row in renamed])
    return [{**row, "answer": answer} for row, answer in zip(renamed, answers, strict=True)]


def _cut(rows: list[Row], share: float, seed: int, label: str, together: str | None) -> tuple[list[Row], list[Row]]:
    """Hold out a share of the distinct prompts, or of the distinct values of a column."""
    if not 0.0 < share < 1.0:
        raise ConfigError(f"held_out={share}: a share between 0 and 1, or the name of a file or split")

    def key(row: Row) -> Any:
        return prompt_key(row) if together is None else row[together]

    keys = list(dict.fromkeys(map(key, rows)))
    if len(keys) < 2:
        raise DataError(
            f"{label} has {len(keys)} distinct {together or 'prompt'}(s); at least 2 are needed to hold some out"
        )
    random.Random(seed).shuffle(keys)
    chosen = set(keys[: min(len(keys) - 1, max(1, round(share * len(keys))))])
    return [r for r in rows if key(r) not in chosen], [r for r in rows if key(r) in chosen]


def _unseen(rows: list[Row], train: Sequence[Row], label: str) -> list[Row]:
    """Held-out rows whose prompt is not a training prompt."""
    seen = {prompt_key(row) for row in train}
    left = [row for row in rows if prompt_key(row) not in seen]
    if not left:
        raise DataError(f"{label}: every held-out prompt also occurs in the training prompts")
    return left
