"""An output file has one writer, is never taken from others, and a refused command leaves everything as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from guerdon.errors import BusyError, DataError
from guerdon.io import read_rows, score_file
from guerdon.io.output import state_path
from guerdon.preference import annotate_file
from guerdon.signals import Exact, TextSignal
from guerdon.signals.verdict import Verdict

ENDINGS = ["out.jsonl", "out.parquet"]


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for batch in read_rows(path) for row in batch]


def source(folder: Path, count: int = 40) -> Path:
    lines = [{"prompt": f"{i}", "completion": f"{i % 7}", "answer": f"{i % 3}"} for i in range(count)]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "in.jsonl"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def paying(weight: float) -> TextSignal:
    return TextSignal(lambda texts, columns: [Verdict(weight * len(t)) for t in texts], name="length")


SLOW = """
import sys, time
from guerdon.interrupt import raise_on_stop
from guerdon.io import score_file
from guerdon.signals import Exact
raise_on_stop()
score_file(sys.argv[1], sys.argv[2], Exact(), name="exact", batch_size=2, on_progress=lambda state: time.sleep(0.05))
"""


def slowly(path: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SLOW, str(path), str(out)], stderr=subprocess.PIPE, text=True)


def wait_for_rows(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if json.loads(state_path(out).read_text())["rows"] >= count:
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize("name", ENDINGS)
def test_the_second_writer_is_refused_and_the_firsts_rows_are_whole(name: str, tmp_path: Path) -> None:
    path, out = source(tmp_path), tmp_path / name
    process = slowly(path, out)
    wait_for_rows(out, 2, process)
    for restart in (False, True):
        with pytest.raises(BusyError, match=f"{name} is being written by process {process.pid} on"):
            score_file(path, out, Exact(), name="exact", restart=restart)
    assert process.wait(60) == 0
    score_file(path, tmp_path / f"whole-{name}", Exact(), name="exact", batch_size=2)
    assert rows(out) == rows(tmp_path / f"whole-{name}") and len(rows(out)) == 40


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize(("number", "at"), [(signal.SIGTERM, 2), (signal.SIGHUP, 12), (signal.SIGKILL, 24)])
def test_a_killed_writer_is_gone_on_with_or_refused_never_mixed(
    name: str, number: int, at: int, tmp_path: Path
) -> None:
    path, out = source(tmp_path), tmp_path / name
    process = slowly(path, out)
    wait_for_rows(out, at, process)
    process.send_signal(number)
    process.wait(60)
    with pytest.raises(DataError, match="begun with another reward"):
        score_file(path, out, Exact(ignore_case=True), name="exact", batch_size=2)
    result = score_file(path, out, Exact(), name="exact", batch_size=2)
    assert at <= result.resumed_at < 40
    score_file(path, tmp_path / f"whole-{name}", Exact(), name="exact", batch_size=2)
    assert rows(out) == rows(tmp_path / f"whole-{name}")
    assert not [file for file in files(tmp_path) if file.startswith(".")], "no lock and no journal is left"


def test_another_function_under_the_same_name_is_another_reward(tmp_path: Path) -> None:
    path, out = source(tmp_path), tmp_path / "out.jsonl"
    score_file(path, out, paying(1.0))
    before = files(tmp_path)
    score_file(path, out, paying(1.0))
    with pytest.raises(DataError, match="begun with another reward_code"):
        score_file(path, out, paying(2.0))
    assert files(tmp_path) == before


@pytest.mark.parametrize("restart", [False, True])
def test_what_scoring_did_not_make_is_never_replaced(restart: bool, tmp_path: Path) -> None:
    path, mine = source(tmp_path), tmp_path / "mine.jsonl"
    mine.write_text("precious\n")
    with pytest.raises(DataError, match=r"was not made by scoring.*move it away"):
        score_file(path, mine, Exact(), restart=restart)
    out = tmp_path / "out.jsonl"
    score_file(path, out, Exact())
    with out.open("a") as file:
        file.write('{"added": "by hand"}\n')
    with pytest.raises(DataError, match="was changed after it was finished"):
        score_file(path, out, Exact(), restart=restart)
    assert mine.read_text() == "precious\n" and "by hand" in out.read_text()


@pytest.mark.parametrize("name", ENDINGS)
def test_restart_deletes_only_once_everything_was_checked(name: str, tmp_path: Path) -> None:
    path, out = source(tmp_path), tmp_path / name
    score_file(path, out, Exact())
    before = files(tmp_path)
    with pytest.raises(DataError, match="no column"):
        score_file(path, out, Exact(), completion_column="nothere", restart=True)
    with pytest.raises(Exception, match="nothere"):
        score_file(path, out, Exact(reference="nothere"), restart=True)
    path.write_text("not json\n")
    with pytest.raises(DataError, match="--on-broken skip"):
        score_file(path, out, Exact(), restart=True)
    assert {k: v for k, v in files(tmp_path).items() if k != "in.jsonl"} == {
        k: v for k, v in before.items() if k != "in.jsonl"
    }
    source(tmp_path, 4)
    assert score_file(path, out, Exact(), restart=True).rows == 4 and len(rows(out)) == 4


def test_what_a_refused_command_left_is_in_nobodys_way(tmp_path: Path) -> None:
    path, out = source(tmp_path, 6), tmp_path / "out.jsonl"
    with pytest.raises(DataError, match="no column"):
        score_file(path, out, Exact(), completion_column="nothere")
    assert list(files(tmp_path)) == ["in.jsonl"]
    with path.open("a") as file:
        file.write("not json\n")
    with pytest.raises(DataError, match="not JSON"):
        score_file(path, out, Exact(), batch_size=2)
    assert score_file(path, out, Exact(ignore_case=True), batch_size=2, on_broken="skip").resumed_at == 0
    answers = [{"prompt": "a", "answer": "x", "responses": ["x", "x"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in answers))
    pairs = tmp_path / "pairs.jsonl"
    with pytest.raises(DataError, match="not one of 1 prompts gave a pair"):
        annotate_file(path, pairs, Exact())
    assert not pairs.exists() and not state_path(pairs).exists()
    path.write_text(json.dumps({**answers[0], "responses": ["x", "y"]}) + "\n")
    assert annotate_file(path, pairs, Exact()).file.rows == 1


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the batch that did not fit is made again."""
    path, out = source(tmp_path, 60), tmp_path / "out.jsonl"
    limited = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))\n{SLOW}"
    process = subprocess.run(
        [sys.executable, "-c", limited, str(path), str(out)], capture_output=True, text=True, env={**os.environ}
    )
    assert process.returncode != 0 and "File too large" in process.stderr
    result = score_file(path, out, Exact(), name="exact", batch_size=2)
    assert result.resumed_at > 0 and result.rows == 60
    assert [row["prompt"] for row in rows(out)] == [str(i) for i in range(60)]
