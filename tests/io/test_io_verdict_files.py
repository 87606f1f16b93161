"""Files as people have them, through `guerdon score`'s own function: conversations, references of every kind, odd Parquet and JSON."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guerdon.cli.score import reward_by_name
from guerdon.errors import DataError
from guerdon.io import read_rows, score_file


def rewards(source: Path, reward: str, target: Path | None = None) -> list[float | None]:
    target = target or source.with_name("out.jsonl")
    name, signal = reward_by_name(reward)
    score_file(source, target, signal, name=name, restart=True)
    values = [row["reward"] for rows in read_rows(target) for row in rows]
    return [None if value is None or math.isnan(value) else value for value in values]


def jsonl(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


BOX, WRONG, NONE = "\\boxed{48}", "\\boxed{47}", "I cannot tell."
CALL = {"tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([say("assistant", BOX)], 1.0),
        ([say("assistant", "Let me look."), say("tool", BOX), say("assistant", NONE)], 0.0),
        ([say("assistant", WRONG), say("user", "Sure?"), say("assistant", BOX)], 1.0),
        ([say("assistant", BOX), say("user", "Sure?"), say("assistant", WRONG)], 0.0),
        ([say("assistant", NONE), say("user", BOX)], 0.0),
        ([say("assistant", NONE), say("function", BOX)], 0.0),
        ([say("assistant", NONE), say("environment", BOX)], 0.0),
        ([say("assistant", None, **CALL), say("tool", BOX), say("assistant", None, **CALL)], 0.0),
        ([{"role": "assistant", **CALL}, say("tool", WRONG), say("assistant", BOX)], 1.0),
        ([say("assistant", BOX), say("tool", WRONG)], 1.0),
        ([say("assistant", [{"type": "text", "text": "It is "}, {"type": "text", "text": BOX}])], 1.0),
        ([say("assistant", [{"type": "thinking", "text": BOX}, {"type": "text", "text": NONE}])], 0.0),
        ([say("assistant", f"<think>{WRONG}</think>{BOX}")], 1.0),
        ([say("assistant", f"<think>{BOX}</think>{WRONG}")], 0.0),
        ([say("assistant", NONE, reasoning_content=BOX)], 0.0),
        ([say("assistant", BOX, reasoning_content=WRONG)], 1.0),
        ([say("system", BOX), say("assistant", NONE)], 0.0),
        ([say("model", BOX)], 1.0),
        ([say("tool", BOX)], 0.0),
        ([], 0.0),
        (say("assistant", BOX), 1.0),
        ([BOX, WRONG], None),
        (48, None),
        (None, None),
    ],
)
def test_a_conversation_has_one_verdict(turns: Any, expected: float | None, tmp_path: Path) -> None:
    row = {"prompt": "q", "completion": turns, "answer": "48"}
    assert rewards(jsonl(tmp_path, row), "math") == [expected]
    if expected is not None:
        _, signal = reward_by_name("math")
        assert signal.as_reward_func()(prompts=["q"], completions=[turns], answer=["48"]) == [expected]


def parquet(folder: Path, **columns: Any) -> Path:
    path = folder / "in.parquet"
    size = len(next(iter(columns.values())))
    pq.write_table(pa.table({"prompt": ["p"] * size, "completion": [BOX] * size, **columns}), path)
    return path


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([b"48", b"47", b"\xff"]), [1.0, 0.0, None]),
        (pa.array([["48", "49"], [], None], pa.list_(pa.string())), [1.0, None, None]),
        (pa.array([Decimal("48.00"), None, Decimal("47.00")]), [1.0, None, 0.0]),
        (pa.array(["48", "48", "47"]).dictionary_encode(), [1.0, 1.0, 0.0]),
        (pa.array([48.0, float("nan"), 47.0]), [1.0, None, 0.0]),
        (pa.array([48, None, 47]), [1.0, None, 0.0]),
        (pa.array(['["48"]', '{"value": 48}', "nan"]), [1.0, None, None]),
        (pa.array([{"value": "48"}] * 3), [None, None, None]),
    ],
)
def test_references_in_parquet(column: Any, expected: list[float | None], tmp_path: Path) -> None:
    source = parquet(tmp_path, answer=column)
    assert rewards(source, "math") == expected
    assert rewards(source, "math", tmp_path / "out.parquet") == expected


def test_a_dotted_path_into_a_struct_and_into_json(tmp_path: Path) -> None:
    source = parquet(
        tmp_path,
        reward_model=pa.array([{"ground_truth": "48", "style": "rule"}, {"ground_truth": "47", "style": "rule"}]),
    )
    assert rewards(source, "math:reference=reward_model.ground_truth") == [1.0, 0.0]
    rows = [
        {"prompt": "", "completion": "48", "info": json.dumps({"truth": {"value": value}})} for value in ("48", "47")
    ]
    assert rewards(jsonl(tmp_path, *rows), "numeric:reference=info.truth.value") == [1.0, 0.0]


def test_a_map_with_a_repeated_key_is_kept(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.int64())
    maps = pa.array([[("a", 1), ("a", 2)], [("a", 1), ("b", 2)], None], kind)
    source = parquet(tmp_path, answer=["48"] * 3, m=maps, n=pa.array([[[("a", 1)]], [[]], None], pa.list_(kind)))
    assert rewards(source, "math") == [1.0, 1.0, 1.0]
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["m"] for row in written] == [[["a", 1], ["a", 2]], {"a": 1, "b": 2}, None]
    assert [row["n"] for row in written] == [[{"a": 1}], [{}], None]
    assert rewards(source, "math", tmp_path / "out.parquet") == [1.0, 1.0, 1.0]
    assert pq.read_table(tmp_path / "out.parquet")["m"].to_pylist() == maps.to_pylist()


def test_a_map_whose_keys_are_structs_is_kept(tmp_path: Path) -> None:
    maps = pa.array([[({"x": 1}, 2)], None], pa.map_(pa.struct([("x", pa.int64())]), pa.int64()))
    assert rewards(parquet(tmp_path, answer=["48"] * 2, m=maps), "math") == [1.0, 1.0]
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["m"] for row in written] == [[[{"x": 1}, 2]], None]


@pytest.mark.parametrize(
    "data",
    [
        b'{"completion": "a \\ud83d \\\\boxed{48}", "answer": "48"}\n',  # half of a pair, spelled out
        b'{"completion": "a \xed\xa0\xbd \\\\boxed{48}", "answer": "48"}\n',  # and as bytes
        b'\xef\xbb\xbf{"completion": "\\\\boxed{48}", "answer": "48"}\n',
        b'{"completion": "\\\\boxed{48}", "answer": "48"}\r\n\r\n\r\n',
        b'\r\n{"completion": "\\\\boxed{48}", "answer": "48"}',
        b'{"completion": "\\\\boxed{48}", "answer": "48", "x": "\xe2\x80\xa8\xc2\x85"}\n',
        b'{"completion": "\\\\boxed{48}\\u0000", "answer": "48"}\n',
        b'{"completion": "\\\\boxed{48}", "answer": 48.0, "y": NaN, "z": Infinity}\n',
    ],
)
def test_odd_lines(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    assert rewards(path, "math:extract=boxed") == [1.0]
    assert rewards(path, "math:extract=boxed", tmp_path / "out.parquet") == [1.0]


def test_a_broken_line_names_a_way_out_that_the_command_has(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"completion": "48", "answer": "48"}\n{"completion": \n', encoding="utf-8")
    with pytest.raises(DataError, match="--on-broken skip"):
        rewards(path, "exact")
    from typer.testing import CliRunner

    from guerdon.cli.main import app

    run = CliRunner().invoke(
        app, ["score", str(path), str(tmp_path / "o.jsonl"), "--reward", "exact", "--on-broken", "skip", "--restart"]
    )
    assert run.exit_code == 0, run.output
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 1
