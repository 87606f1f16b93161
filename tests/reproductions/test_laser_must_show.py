"""What LaSeR has to show: a task on which likelihood cannot tell right from wrong, and that the reproduction runs and is recorded."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from guerdon.systems import reproduction
from guerdon.systems.reproductions.laser_task import answer_of, demonstration, is_held_out, parities


def test_demonstrations() -> None:
    rng = random.Random(0)
    right = 0
    for i in range(400):
        marked = i % 2 == 1
        prompt, text = demonstration(rng, marked)
        question = prompt.removeprefix("?")
        assert not is_held_out(question) and (prompt != question) == marked
        digits = [int(c) for c in prompt if c.isdigit()]
        answer, *lines = text.split("\n")
        truth = "#even" if sum(digits) % 2 == 0 else "#odd"
        if marked:
            assert lines.pop() == ("y" if answer == truth else "n")
            right += answer == truth
        else:
            assert answer == truth
        assert [int(line[-1]) for line in lines] == [sum(digits[: n + 2]) % 10 for n in range(5)], (
            "always derived rightly"
        )
    assert right / 200 == pytest.approx(0.5, abs=0.1)


def test_the_first_line_is_what_is_verified() -> None:
    assert answer_of("#odd\n3+b1=4") == "odd" and answer_of("3+b1=4\n#odd") is None and answer_of("#od") is None
    task = parities()
    assert len(task.held_out) == 110 and len(task.train) == 1000
    assert all(is_held_out(row["prompt"]) for row in task.held_out)
    row = {"prompt": "a3+b5+c4+d2+e1+f6=?\n", "answer": "odd"}
    values = [v.value for v in task.true_success(["#odd\n3+b5=9", "#even\n5+f6=1", ""], [row] * 3)]
    assert values == [1.0, 0.0, 0.0]


def test_the_reproduction_runs_and_is_recorded(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from guerdon.systems.reproductions import laser as module

    budget = reproduction.Budget(smoke=True, folder=tmp_path / "runs", say=lambda _: None)
    result = module.reproduce(budget)
    assert list(result.seeds) == [0, 1] and len(result.table) == 5 and len(result.claims) == 5
    for curve in result.curves.values():
        assert [len(line) for line in curve["y"]] == [len(curve["x"])] * 2
    assert len(list((tmp_path / "runs").glob("*.json"))) == 8
    assert module.reproduce(budget).table == result.table, "finished runs are read back"
    path = reproduction.save(result, tmp_path, command="guerdon reproduce laser", seconds=1.0, versions={})
    assert json.loads(path.read_text())["slug"] == "laser" and (tmp_path / "laser.svg").exists()
