"""What LaSeR has to show: a task on which likelihood cannot tell right from wrong, and that the reproduction runs and is recorded."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from guerdon.systems import reproduction
from guerdon.systems.reproductions.laser_task import answer_of, demonstration, is_held_out, mark_after, parities
from guerdon.tasks import tiny


def test_demonstrations() -> None:
    rng = random.Random(0)
    right = {True: 0, False: 0}
    for i in range(800):
        marked, written = i % 2 == 1, i % 4 > 1
        prompt, text = demonstration(rng, marked, written)
        question = prompt.removeprefix("?")
        assert not is_held_out(question) and (prompt != question) == marked
        digits = [int(c) for c in prompt if c.isdigit()]
        answer, *lines = text.split("\n")
        truth = "#even" if sum(digits) % 2 == 0 else "#odd"
        mark = "y" if answer == truth else "n"
        right[marked] += answer == truth
        if marked and written:
            assert lines.pop() == mark and mark_after(prompt, text) is None
        else:
            assert mark_after(prompt, text) == (mark if marked else None)
        assert [int(line[-1]) for line in lines] == [sum(digits[: n + 2]) % 10 for n in range(5)], (
            "always derived rightly"
        )
    assert right[True] / 400 == pytest.approx(0.5, abs=0.08) and right[False] / 400 == pytest.approx(0.5, abs=0.08)


def test_marks_are_due_after_the_end_of_marked_work() -> None:
    tokenizer = tiny.char_tokenizer()
    rng = random.Random(0)
    drawn: list[tuple[str, str]] = []

    def draw() -> tuple[str, str]:
        drawn.append(demonstration(rng, marked=len(drawn) % 2 == 1))
        return drawn[-1]

    due = {"y": 40, "n": 41, None: 0}
    packed = tiny.pack_rows(tokenizer, draw, 16, 144, lambda prompt, solution: due[mark_after(prompt, solution)])
    ends = packed.ids == tokenizer.eos_token_id
    found = packed.targets[ends].tolist()
    assert found == [due[mark_after(*pair)] for pair in drawn[: len(found)]] and len(set(found)) == 3


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
