"""Reading and writing rows: both formats, drift, nesting, NaN and null, unicode, broken lines, kills, memory."""

from __future__ import annotations

import datetime
import gzip
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon import Rewards, Rollouts, Scores
from guerdon.errors import ConfigError, DataError
from guerdon.io import RowWriter, count_rows, read_rows, rollouts_from_rows, rows_from_rollouts

pq = pytest.importorskip("pyarrow.parquet")

ENDINGS = ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"]
ROWS: list[dict[str, Any]] = [
    {"prompt": "é🦜\u2028", "completion": "a\nb", "n": 1, "nested": {"x": [1, 2], "y": None}},
    {"prompt": "", "completion": "\x00 \u202eabc", "n": None, "nested": {"x": [], "y": "z"}},
    {"prompt": "3", "completion": "c", "n": 3, "nested": None},
]


def everything(path: Path, **options: Any) -> list[dict[str, Any]]:
    return [row for batch in read_rows(path, 2, **options) for row in batch]


def write(path: Path, *batches: list[dict[str, Any]]) -> Path:
    with RowWriter(path) as out:
        for batch in batches:
            out.write(batch)
    return path


@pytest.mark.parametrize("name", ENDINGS)
def test_round_trip(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS[:2], ROWS[2:])
    assert everything(path) == ROWS
    assert [len(batch) for batch in read_rows(path, 2)] == [2, 1]
    assert list(tmp_path.iterdir()) == [path]  # no journal, no scratch file left


@pytest.mark.parametrize("name", ENDINGS)
def test_empty_file(tmp_path: Path, name: str) -> None:
    assert everything(write(tmp_path / name)) == []


@pytest.mark.parametrize("name", ENDINGS)
def test_columns_that_come_and_go(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"a": 1}], [{"b": "x", "a": 2}], [{"b": None}])
    assert [(row.get("a"), row.get("b")) for row in everything(path)] == [(1, None), (2, "x"), (None, None)]


def test_types_that_drift_in_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"n": None}], [{"n": 1}], [{"n": 2.5}])
    assert [row["n"] for row in everything(path)] == [None, 1.0, 2.5]
    with pytest.warns(UserWarning, match=r"\['m', 'n'\] hold values without a common type"):
        path = write(
            tmp_path / "b.parquet", [{"n": 1, "m": 1}, {"n": 2, "m": "x"}], [{"n": "two", "m": 3}], [{"n": None}]
        )
    assert [row["n"] for row in everything(path)] == ["1", "2", '"two"', None]
    assert [row["m"] for row in everything(path)] == ["1", '"x"', "3", None]


def test_structs_that_drift_in_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"s": {"a": 1}}], [{"s": {"b": "x"}}], [{"s": {"a": 2.5, "b": "y"}}])
    assert [row["s"] for row in everything(path)] == [
        {"a": 1.0, "b": None},
        {"a": None, "b": "x"},
        {"a": 2.5, "b": "y"},
    ]
    with pytest.warns(UserWarning, match="JSON text"):
        path = write(tmp_path / "b.parquet", [{"s": {}}])  # Parquet has no struct without fields
    assert everything(path) == [{"s": "{}"}]


def test_nan_and_null_are_told_apart_in_parquet_and_not_in_json(tmp_path: Path) -> None:
    rows = [{"v": float("nan"), "w": [float("nan"), None]}, {"v": None, "w": []}, {"v": float("inf"), "w": None}]
    first, second, third = everything(write(tmp_path / "a.parquet", rows))
    assert math.isnan(first["v"]) and math.isnan(first["w"][0]) and first["w"][1] is None
    assert second["v"] is None and third["v"] == math.inf
    path = write(tmp_path / "a.jsonl", rows)
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert everything(path) == [{"v": None, "w": [None, None]}, {"v": None, "w": []}, {"v": "Infinity", "w": None}]


def test_nan_tokens_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"v": NaN}\n')
    assert math.isnan(everything(path)[0]["v"])


def test_bytes_dates_and_lone_surrogates(tmp_path: Path) -> None:
    row = {"b": b"\x00\xff", "t": datetime.datetime(2024, 5, 1, 12), "s": "\ud800"}
    (back,) = everything(write(tmp_path / "a.jsonl", [row]))
    assert back == {"b": b"\x00\xff", "t": "2024-05-01T12:00:00", "s": "\ud800"}
    with pytest.warns(UserWarning, match=r"\['s'\]"):
        path = write(tmp_path / "a.parquet", [row])
    assert everything(path) == [{**row, "s": '"\\ud800"'}]


def test_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = b'{"a": 1}\n'
    path.write_bytes(
        b"\xef\xbb\xbf" + good + b"\n[1]\n" + b'{"a": \xff}\n' + good + b'{"a": ' + b"9" * 5000 + b"}\n" + b'{"a": 1'
    )
    with pytest.raises(DataError, match=r"a\.jsonl:3: a row must be an object, this is list"):
        everything(path)
    reader = read_rows(path, 10, on_broken="skip")
    assert [row for batch in reader for row in batch] == [{"a": 1}, {"a": 1}]
    assert reader.skipped == 4
    where = [problem.removeprefix(str(path)) for problem in reader.problems]
    assert where[0].startswith(":3: a row must be") and where[1].startswith(":4: not UTF-8")
    assert where[2].startswith(":6: ") and where[3].startswith(":7: not JSON") and "killed" in where[3]


def test_cut_gz(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 5000)[:-20])
    with pytest.raises(DataError, match="damaged or cut short"):
        everything(path)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rename it"):
        read_rows(tmp_path / "a.csv")
    with pytest.raises(DataError, match="no such file"):
        read_rows(tmp_path / "a.jsonl")
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        everything(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ENDINGS)
def test_start_goes_on_where_position_was(tmp_path: Path, name: str) -> None:
    rows = [{"i": i} for i in range(11)]
    path = write(tmp_path / name, rows[:4], rows[4:])
    reader = read_rows(path, 3)
    batches = iter(reader)
    next(batches), next(batches)
    assert reader.position == 6
    assert everything(path, start=reader.position) == rows[6:]
    assert count_rows(path) == (11 if name.endswith("parquet") else None)


@pytest.mark.parametrize("name", ENDINGS)
def test_resuming_after_a_kill(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    writer = RowWriter(path)
    writer.write(ROWS[:1])
    stands = writer.position
    writer.write(ROWS[1:2])
    writer.abandon()
    grown = path if path.exists() and not name.endswith("parquet") else tmp_path / f".{name}.journal"
    with grown.open("r+b") as file:  # the kill came in the middle of the second batch
        file.truncate(grown.stat().st_size - 5)
    with RowWriter(path, resume_at=stands) as writer:
        writer.write(ROWS[1:])
    assert everything(path) == ROWS
    with pytest.raises(DataError, match="changed since"):
        RowWriter(path, resume_at=10**9)


def test_an_error_leaves_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(KeyboardInterrupt), RowWriter(path) as writer:
        writer.write(ROWS)
        raise KeyboardInterrupt
    assert not path.exists() and (tmp_path / ".a.parquet.journal").exists()


def test_parquet_types_are_kept_where_they_fit(tmp_path: Path) -> None:
    import pyarrow as pa

    schema = pa.schema([("a", pa.int8()), ("d", pa.date32()), ("gone", pa.string())])
    with RowWriter(tmp_path / "a.parquet", schema=schema) as writer:
        writer.write([{"a": 1, "d": datetime.date(2024, 5, 1), "new": 2.0}])
    found = pq.read_schema(tmp_path / "a.parquet")
    assert found.field("a").type == pa.int8() and found.field("d").type == pa.date32() and "gone" not in found.names


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_the_file_is_never_held_in_memory(tmp_path: Path, name: str) -> None:
    text = "x" * 10_000
    with RowWriter(tmp_path / name) as out:
        for i in range(60):
            out.write([{"i": i * 50 + k, "text": f"{i}{k}{text}"} for k in range(50)])  # 30 MB in all
    tracemalloc.start()
    count = sum(len(batch) for batch in read_rows(tmp_path / name, 50))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3000 and peak < 15e6
    if name.endswith("parquet"):
        assert pq.ParquetFile(tmp_path / name).num_row_groups >= 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3).filter(lambda k: k != "__bytes__"), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=4), max_size=6))
def test_any_json_rows_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = write(tmp_path_factory.mktemp("rows") / "a.jsonl", rows)
    assert everything(path) == rows


# -- rows and rollouts -----------------------------------------------------------------------------------------------------


def test_rollouts_from_rows() -> None:
    rows = [
        {"q": "1+1", "a": "2", "gold": 2},
        {"q": "1+1", "a": "3"},
        {"q": [{"role": "user", "content": "hi"}], "a": [{"role": "assistant", "content": "yo"}, {"role": "tool", "content": None}]},
        {"q": "1+1", "a": "2"},
    ]  # fmt: skip
    rollouts = rollouts_from_rows(rows, prompt_column="q", completion_column="a")
    assert rollouts.completions == ["2", "3", "yo", "2"]
    assert rollouts.groups.tolist() == [0, 0, 1, 2]
    assert rollouts.column("gold") == [2, None, None, None]
    assert rollouts.column("a")[2] == rows[2]["a"]
    by_column = rollouts_from_rows(
        [{**row, "g": i % 2} for i, row in enumerate(rows)], prompt_column="q", completion_column="a", group_column="g"
    )
    assert by_column.groups.tolist() == [0, 1, 0, 1]
    with pytest.raises(DataError, match="row 0: the row has no 'completion'"):
        rollouts_from_rows(rows)
    with pytest.raises(DataError, match="which group"):
        rollouts_from_rows(rows, prompt_column="q", completion_column="a", group_column="g")


def test_rows_from_rollouts_and_back() -> None:
    rollouts = Rollouts.from_texts(["p", "p", "q"], ["a", "b", "c"], {"gold": [1, 2, 3]}, group_ids=[0, 0, 1])
    rewards = Rewards.sequence(torch.tensor([1.0, float("nan"), 0.0]), rollouts, [None, "judge timed out", "no answer"])
    scores = Scores({}, torch.tensor([True, False, True]), raw={"judge": rewards}, reward=rewards.values[:, 0])
    rows = rows_from_rollouts(rollouts, scores)
    assert [row["group"] for row in rows] == [0, 0, 1] and [row["kept"] for row in rows] == [True, False, True]
    assert rows[2]["scores"]["judge"] == {
        "level": "sequence",
        "unit": "token",
        "values": [0.0],
        "spans": [[0, 0]],
        "reasons": {"0": "no answer"},
    }
    assert math.isnan(rows[1]["reward"]) and rows[1]["scores"]["judge"]["reasons"] == {"0": "judge timed out"}
    back = rollouts_from_rows(rows, group_column="group")
    assert (back.prompts, back.completions, back.groups.tolist()) == (["p", "p", "q"], ["a", "b", "c"], [0, 0, 1])
    tokens = Rollouts(
        ["p"],
        ["ab"],
        completion_ids=torch.tensor([[5, 6, 0]]),
        completion_mask=torch.tensor([[True, True, False]]),
        finished=torch.tensor([True]),
    )
    assert rows_from_rollouts(tokens) == [
        {"prompt": "p", "completion": "ab", "group": 0, "finished": True, "completion_ids": [5, 6]}
    ]
