"""What LaSeR has to show: a task on which likelihood does not tell right from wrong, and that the reproduction runs and is recorded."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from guerdon.systems import reproduction
from guerdon.systems.reproductions.laser_task import demonstration, remarked_sums
from guerdon.systems.reproductions.laser_training import answer_of
from guerdon.tasks.arithmetic import is_held_out, verify_sum


def test_demonstrations() -> None:
    rng = random.Random(0)
    right, remarks, lines = 0, 0, 0
    for _ in range(600):
        prompt, text = demonstration(rng, 0.25)
        assert not is_held_out(prompt) and answer_of(text) is not None
        total = sum(int(c) for c in prompt if c.isdigit())
        right += verify_sum(text, {"answer": str(total)}).value == 1.0
        remarks += sum(line.startswith("(") for line in text.split("\n"))
        lines += 4
        assert int(answer_of(text) or 0) - total in (0, 5, 10, 15)
    assert right / 600 == pytest.approx(0.75**3, abs=0.06) and remarks / lines == pytest.approx(0.5, abs=0.05)
    clean = [demonstration(rng, 0.0) for _ in range(20)]
    assert all(answer_of(text) == str(sum(int(c) for c in prompt if c.isdigit())) for prompt, text in clean)
    for _ in range(50):
        prompt, text = demonstration(rng, 0.25, marked=True)
        sums = [line for line in text.split("\n") if "=" in line]
        for line in sums:
            left, total = line[:-1].split("=")
            first, second = left.split("+")
            assert line[-1] == ("y" if int(first) + int(second[1:]) == int(total) else "n")
        whole = int(text.split("#")[1][:-1]) == sum(int(c) for c in prompt if c.isdigit())
        assert prompt[0] == "?" and not is_held_out(prompt[1:]) and text[-1] == ("y" if whole else "n")
    assert answer_of("3+b1=4\n#4 ") is None and answer_of("x") is None and answer_of("#12") == "12"
    assert len(remarked_sums().held_out) == 110


def test_the_reproduction_runs_and_is_recorded(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from guerdon.systems.reproductions import laser as module

    budget = reproduction.Budget(smoke=True, folder=tmp_path / "runs", say=lambda _: None)
    result = module.reproduce(budget)
    assert list(result.seeds) == [0, 1] and len(result.table) == 3 and len(result.claims) == 5
    for curve in result.curves.values():
        assert [len(line) for line in curve["y"]] == [len(curve["x"])] * 2
    assert len(list((tmp_path / "runs").glob("*.json"))) == 8
    assert module.reproduce(budget).table == result.table, "finished runs are read back"
    path = reproduction.save(result, tmp_path, command="guerdon reproduce laser", seconds=1.0, versions={})
    assert json.loads(path.read_text())["slug"] == "laser" and (tmp_path / "laser.svg").exists()
