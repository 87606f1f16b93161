"""Scoring files: columns kept, reasons, groups never split, clashes, resuming after Ctrl-C and kill -9."""

from __future__ import annotations

import json
import math
import os
import signal as signals
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from guerdon import Rewards, Rollouts, Scores, System
from guerdon.errors import CapabilityError, DataError, MissingColumn
from guerdon.io import RowWriter, ScoreProgress, read_rows, score_file
from guerdon.segment import ByDelimiter

pytest.importorskip("pyarrow")

ENDINGS = ["out.jsonl", "out.jsonl.gz", "out.parquet"]


class Exact:
    """1 where completion equals the column `answer`, NaN where there is none."""

    scope = "row"

    def __init__(self, stop_after: int = 10**9) -> None:
        self.calls: list[list[str]] = []
        self.stop_after = stop_after

    def __repr__(self) -> str:
        return "Exact()"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        if len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(list(rollouts.completions))
        answers = rollouts.column("answer")
        values = [math.nan if a is None else float(c == a) for c, a in zip(rollouts.completions, answers, strict=True)]
        reasons = [
            "no reference" if a is None else None if v else "wrong" for v, a in zip(values, answers, strict=True)
        ]
        return Rewards.sequence(torch.tensor(values), rollouts, reasons)


class Centred:
    """The number of rows in a group: a group-scope signal that shows whether groups came whole."""

    scope = "group"

    def __repr__(self) -> str:
        return "GroupSize()"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        same = rollouts.groups[:, None] == rollouts.groups[None]
        return Rewards.sequence(same.sum(1).float(), rollouts)


class StepLengths:
    """Characters of each step."""

    level = "steps"

    def __repr__(self) -> str:
        return "StepLengths()"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        spans = rollouts.segment("steps")
        values = spans.lengths.float()
        return Rewards(values.masked_fill(values == 1, math.nan), spans, {})


def source(folder: Path, rows: Sequence[dict[str, Any]], name: str = "in.jsonl") -> Path:
    with RowWriter(folder / name) as out:
        for row in rows:
            out.write([row])
    return folder / name


def read(path: Path) -> list[dict[str, Any]]:
    return [row for batch in read_rows(path) for row in batch]


ROWS = [
    {"prompt": "1+1", "completion": "2", "answer": "2", "meta": {"id": 1}},
    {"prompt": "1+2", "completion": "4", "answer": "3", "meta": None},
    {"prompt": "1+3", "completion": "4", "answer": None, "meta": {"id": 3}},
    {"prompt": "1+4", "completion": None, "answer": "5", "meta": {"id": 4}},
]


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("read_from", ["in.jsonl", "in.parquet"])
def test_columns_are_kept_and_three_are_added(tmp_path: Path, name: str, read_from: str) -> None:
    told: list[ScoreProgress] = []
    result = score_file(
        source(tmp_path, ROWS, read_from), tmp_path / name, Exact(), batch_size=3, on_progress=told.append
    )
    rows = read(tmp_path / name)
    assert [{key: row[key] for key in ROWS[0]} for row in rows] == ROWS
    assert [row["reward"] for row in rows[:2]] == [1.0, 0.0]
    assert all(row["reward"] is None or math.isnan(row["reward"]) for row in rows[2:])
    assert {row["reward_level"] for row in rows} == {"sequence"}
    assert [row["reward_reason"] for row in rows] == [None, "wrong", "no reference", "the row has no 'completion'"]
    assert (result.rows, result.failed, result.skipped, result.mean) == (4, 2, 0, 0.5)
    assert [p.rows for p in told] == [3, 4] and told[-1].total == (4 if read_from.endswith("parquet") else None)
    assert told[-1].failed == 2 and told[-1].mean == 0.5


def test_an_input_column_of_an_added_name_is_kept_under_another(tmp_path: Path) -> None:
    path = source(tmp_path, [{**ROWS[0], "reward": 7, "input_reward": 8, "reward_reason": "old"}, ROWS[1]])
    result = score_file(path, tmp_path / "out.jsonl", Exact())
    first = read(tmp_path / "out.jsonl")[0]
    assert (first["reward"], first["input_reward"], first["input_input_reward"]) == (1.0, 8, 7)
    assert first["input_reward_reason"] == "old"
    assert result.renamed == {"reward": "input_input_reward", "reward_reason": "input_reward_reason"}


def test_steps_become_lists(tmp_path: Path) -> None:
    path = source(
        tmp_path,
        [
            {"prompt": "p", "completion": "ab\n\ncdef"},
            {"prompt": "p", "completion": ""},
            {"prompt": "p", "completion": "a"},
        ],
    )
    score_file(path, tmp_path / "out.jsonl", StepLengths(), segments={"steps": ByDelimiter()})
    rows = read(tmp_path / "out.jsonl")
    assert rows[0]["reward"] == 8.0 and rows[0]["reward_values"] == [4.0, 4.0]
    assert rows[0]["reward_spans"] == [[0, 3], [4, 7]] and rows[0]["reward_unit"] == "char"
    assert {row["reward_level"] for row in rows} == {"steps"}
    assert rows[1]["reward"] == 0.0 and rows[1]["reward_values"] == []
    assert rows[2]["reward"] is None and rows[2]["reward_values"] == [None]
    assert rows[2]["reward_reason"] == "steps 0: StepLengths returned NaN without a reason"


def test_several_sources_become_parts(tmp_path: Path) -> None:
    system = System(signals={"exact": Exact(), "steps": StepLengths()}, segments={"steps": ByDelimiter()}, name="both")
    score_file(source(tmp_path, ROWS[:2]), tmp_path / "out.jsonl", system)
    first, second = read(tmp_path / "out.jsonl")
    assert first["reward"] is None and first["reward_parts"]["exact"]["values"] == [1.0]  # "2" has one character: NaN
    assert second["reward_reason"] == "exact: wrong; steps: steps 0: steps returned NaN without a reason"
    assert second["reward_parts"]["steps"] == {"level": "steps", "values": [None], "spans": [[0, 0]], "unit": "char"}


@pytest.mark.parametrize("group", [None, "g"])
def test_groups_are_never_split(tmp_path: Path, group: str | None) -> None:
    sizes = [1, 4, 2, 7, 3]
    rows = [{"prompt": f"p{g}", "g": g, "completion": "x"} for g, size in enumerate(sizes) for _ in range(size)]
    score_file(source(tmp_path, rows), tmp_path / "out.jsonl", Centred(), batch_size=3, group_column=group)
    assert [row["reward"] for row in read(tmp_path / "out.jsonl")] == [
        float(size) for size in sizes for _ in range(size)
    ]


def test_scattered_groups_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": p, "completion": "x"} for p in "aabba"]
    path = source(tmp_path, rows)
    with pytest.raises(DataError, match="row 5 was seen before"):
        score_file(path, tmp_path / "out.jsonl", Centred(), batch_size=2)
    score_file(
        path, tmp_path / "rows.jsonl", lambda r, s: Rewards.sequence(torch.ones(len(r)), r), name="ones"
    )  # row scope
    with pytest.raises(DataError, match="sort the file by 'prompt'"):
        score_file(path, tmp_path / "other.jsonl", Centred(), group_column="prompt", batch_size=1)


@pytest.mark.parametrize("name", ENDINGS)
def test_ctrl_c_and_going_on(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": str(i), "completion": str(i), "answer": str(i % 3)} for i in range(10)]
    path, out = source(tmp_path, rows), tmp_path / name
    with pytest.raises(KeyboardInterrupt):
        score_file(path, out, Exact(stop_after=2), batch_size=3)
    again = Exact()
    result = score_file(path, out, again, batch_size=3)
    assert again.calls[0] == ["6", "7", "8"]  # nothing is scored twice
    assert (result.resumed_at, result.rows) == (6, 10)
    assert result.mean == pytest.approx(0.3)
    assert [row["completion"] for row in read(out)] == [str(i) for i in range(10)]
    untouched = Exact()
    assert score_file(path, out, untouched, batch_size=3).rows == 10 and untouched.calls == []
    assert json.loads((tmp_path / f"{name}.score.json").read_text())["status"] == "done"


@pytest.mark.parametrize("name", ENDINGS)
def test_a_file_put_in_place_before_it_was_noted(tmp_path: Path, name: str) -> None:
    """Killed between the output's last byte and the state's: the same call notes it and scores nothing twice."""
    path, out = source(tmp_path, ROWS), tmp_path / name
    score_file(path, out, Exact())
    state = tmp_path / f"{name}.score.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "status": "running"}))
    again = Exact()
    assert score_file(path, out, again).rows == 4 and again.calls == []
    assert len(read(out)) == 4


def test_other_settings_or_another_input_are_refused(tmp_path: Path) -> None:
    path, out = source(tmp_path, ROWS), tmp_path / "out.jsonl"
    score_file(path, out, Exact(), config={"temperature": 1})
    with pytest.raises(DataError, match="another temperature"):
        score_file(path, out, Exact(), config={"temperature": 2})
    source(tmp_path, ROWS[:2])
    with pytest.raises(DataError, match="another input"):
        score_file(path, out, Exact(), config={"temperature": 1})
    assert score_file(path, out, Exact(), config={"temperature": 2}, restart=True).rows == 2
    mine = tmp_path / "mine.jsonl"
    mine.write_text("precious\n")
    with pytest.raises(DataError, match="was not made by scoring"):
        score_file(path, mine, Exact())
    with pytest.raises(DataError, match="input and output at once"):
        score_file(path, path, Exact())
    assert mine.read_text() == "precious\n"


def test_what_cannot_be_scored_is_said(tmp_path: Path) -> None:
    path = source(tmp_path, ROWS)
    with pytest.raises(DataError, match=r"no column 'answr'.*'answer', 'completion'"):
        score_file(path, tmp_path / "a.jsonl", Exact(), completion_column="answr")

    class Reference(Exact):
        needs = frozenset({"reference"})

    with pytest.raises(CapabilityError, match="reference"):
        score_file(path, tmp_path / "b.jsonl", Reference())
    assert score_file(path, tmp_path / "b.jsonl", Reference(), provides=frozenset({"reference"})).rows == 4
    with path.open("a") as file:
        file.write('{"prompt": \n')
    with pytest.raises(DataError, match=r"in\.jsonl:5: not JSON"):
        score_file(path, tmp_path / "c.jsonl", Exact(), batch_size=2)
    result = score_file(path, tmp_path / "c.jsonl", Exact(), batch_size=2, on_broken="skip")
    assert (result.rows, result.resumed_at, result.skipped) == (4, 2, 1) and "in.jsonl:5" in result.problems[0]


def test_empty_input(tmp_path: Path) -> None:
    result = score_file(source(tmp_path, []), tmp_path / "out.jsonl", Exact())
    assert result.rows == 0 and math.isnan(result.mean) and (tmp_path / "out.jsonl").read_text() == ""


SLOW = """
import sys, time, torch
from guerdon import Rewards
from guerdon.io import score_file

def slow(rollouts, scores):
    time.sleep(0.05)
    return Rewards.sequence(torch.ones(len(rollouts)), rollouts)

score_file(sys.argv[1], sys.argv[2], slow, batch_size=2)
"""


def test_kill_9_loses_at_most_the_batch_in_flight(tmp_path: Path) -> None:
    name = "out.parquet"  # the harder one: readable only once its footer is there
    rows = [{"prompt": str(i), "completion": str(i)} for i in range(60)]
    path, out, script = source(tmp_path, rows), tmp_path / name, tmp_path / "slow.py"
    script.write_text(textwrap.dedent(SLOW))
    command = [sys.executable, str(script), str(path), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment)
    state = tmp_path / f"{name}.score.json"
    deadline = time.monotonic() + 60
    while not (state.exists() and json.loads(state.read_text())["rows"] >= 6):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signals.SIGKILL)
    process.wait()
    done = json.loads(state.read_text())["rows"]
    assert 6 <= done < 60
    # the function of another process, with another address, is the same reward
    subprocess.run(command, env=environment, check=True, timeout=60)
    assert [row["completion"] for row in read(out)] == [str(i) for i in range(60)]
    assert json.loads(state.read_text())["rows"] == 60


class Picky:
    """A reward that is refused while it reads the wrong column, and works once that is put right."""

    scope, level, needs = "row", "sequence", frozenset()

    def __init__(self, column: str) -> None:
        self.column = column

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        return Rewards.sequence(torch.tensor([float(cell) for cell in rollouts.column(self.column)]), rollouts)

    def __repr__(self) -> str:
        return f"Picky({self.column!r})"


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_refused_call_leaves_nothing_in_the_way_of_the_corrected_one(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": "p", "completion": "c", "gold": 2}]
    given, target = source(tmp_path, rows), tmp_path / name
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MissingColumn):
        score_file(given, target, Picky("golden"))
    assert sorted(tmp_path.iterdir()) == before
    assert score_file(given, target, Picky("gold")).mean == 2.0


def test_a_refused_annotation_leaves_nothing_either(tmp_path: Path) -> None:
    from guerdon.preference import annotate_file

    given = source(tmp_path, [{"prompt": "p", "responses": ["a", "bb"], "gold": 1}])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MissingColumn):
        annotate_file(given, tmp_path / "pairs.jsonl", Picky("golden"))
    with pytest.raises(DataError, match="not one of 1 prompts gave a pair"):
        annotate_file(given, tmp_path / "pairs.jsonl", Picky("gold"))
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_needs_what_the_signals_need_where_the_chain_does_not_run(tmp_path: Path) -> None:
    """PURE's chain has a KL penalty, and a file of texts has no log-probabilities: its step scores are all the same scored."""
    from guerdon.systems import pure

    given = source(tmp_path, [{"prompt": "p", "completion": "a\n\nbb"}])
    system = pure(prm=StepWidths())
    assert "logprobs.reference" in system.needs
    assert score_file(given, tmp_path / "out.jsonl", system).mean == 5.0


class StepWidths:
    scope, level, needs = "row", "steps", frozenset()

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        spans = rollouts.segment("steps")
        return Rewards(torch.where(spans.mask, spans.end - spans.start + 1.0, 0.0), spans)
