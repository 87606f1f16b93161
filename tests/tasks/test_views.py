"""Two views of each question: parsing, checks, the kept file, aligned files, tasks."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from guerdon.errors import ConfigError, DataError
from guerdon.lm.chat import Reply, ScriptedModel
from guerdon.tasks import load_task
from guerdon.tasks.arithmetic import is_held_out, parse_prompt
from guerdon.tasks.views import (
    ModelRewriter,
    Rewrite,
    differs,
    disagreeing,
    main,
    paired_rows,
    parse_rewrite,
    reordered,
    rewrite,
    same_numbers,
    with_views,
    write_views,
)

GOOD = "<<<START>>>\nORIGINAL: Ann has 2 apples.\nREWRITE: Bo owns 2 boats.\nHow many?\n<<<END>>>"


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (GOOD, "Bo owns 2 boats.\nHow many?"),
        ("Sure!\n" + GOOD + "\nHope it helps", "Bo owns 2 boats.\nHow many?"),
        ("<<<START>>> form <<<END>>>" + GOOD, "Bo owns 2 boats.\nHow many?"),
        ("REWRITE: Bo owns 2 boats.", None),
        (GOOD.removesuffix("<<<END>>>"), None),
        ("<<<START>>>\nREWRITE: x\n<<<END>>>", None),
        ("<<<START>>>\nORIGINAL: x\nREWRITE:  \n<<<END>>>", None),
        ("", None),
    ],
)
def test_parsing(reply: str, text: str | None) -> None:
    found = parse_rewrite(reply)
    assert found.text == text and bool(found.reason) == (text is None)


def test_checks() -> None:
    assert differs("How many?  2", "how many 2") and not differs("2+3", "3+2")
    assert same_numbers("2 and 3.5", "3.5 then 2") is None and "became ['3']" in str(same_numbers("2", "3"))


class Numbered:
    """A rewriter that counts what it is asked and fails for questions with an x."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, questions: Sequence[str]) -> list[Any]:
        self.asked += questions
        return [Rewrite(None, "an x") if "x" in q else f"{q} again" for q in questions]


def test_answers_are_kept_and_failures_asked_again(tmp_path: Path) -> None:
    cache, rewriter = tmp_path / "deep" / "kept.jsonl", Numbered()
    found = rewrite(["a", "x", "b", "a"], rewriter, cache=cache, batch_size=2)
    assert [r.text for r in found] == ["a again", None, "b again", "a again"] and found[1].reason == "an x"
    assert rewriter.asked == ["a", "x", "b"], "each different question once"
    cache.write_text(cache.read_text() + '{"question": "c", "rew')  # killed while writing
    again = Numbered()
    assert rewrite(["a", "b", "c", "x"], again, cache=cache)[2].text == "c again" and again.asked == ["c", "x"]
    assert rewrite(["c"], again, cache=cache)[0].text == "c again" and again.asked == ["c", "x"]
    cache.write_text("no json\n" + cache.read_text())
    with pytest.raises(DataError, match="line 1"):
        rewrite(["a"], again, cache=cache)
    with pytest.raises(DataError, match="0 rewritings for 1"):
        rewrite(["a"], lambda questions: [])


def test_a_model_rewrites_and_its_failures_have_reasons() -> None:
    def script(messages: Any, draw: int) -> str | Reply:
        question = messages[0]["content"].splitlines()[-1]
        if question == "late":
            return Reply(None, error="timed out")
        return GOOD if question == "fine" else "I would rather not"

    model = ScriptedModel(script)
    found = rewrite(["fine", "late", "odd"], ModelRewriter(model))
    assert found[0].text == "Bo owns 2 boats.\nHow many?"
    assert "timed out" in found[1].reason and "no <<<START>>>" in found[2].reason
    assert found[1].text is found[2].text is None


def test_unparsable_questions_leave_both_files(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "answer": str(i)} for i in range(4)]
    rewrites = [Rewrite("r0"), Rewrite(None, "lost"), Rewrite("r2"), Rewrite("r3")]
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert write_views(rows, rewrites, first, second) == 3
    original, other = ([json.loads(line) for line in path.read_text().splitlines()] for path in (first, second))
    assert [row["prompt"] for row in original] == ["q0", "q2", "q3"]
    assert [row["prompt"] for row in other] == ["r0", "r2", "r3"]
    for a, b in zip(original, other, strict=True):
        assert (a["question_id"], a["answer"], a["view"], b["view"]) == (b["question_id"], b["answer"], 0, 1)
    pairs = paired_rows(rows, rewrites)
    assert [(row["question_id"], row["view"]) for row in pairs] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    with pytest.raises(DataError, match="4 rewritings for 3 rows"):
        paired_rows(rows[:3], rewrites)


def test_pairs_that_vote_differently_are_found() -> None:
    same, other = (["4", "4", "5"], ["4", "4"]), (["4", "4", "5"], ["5", "5", "5"])
    silent, unsure = (["4"], ["", ""]), (["4", "5", "6"], ["7", "7"])
    assert disagreeing([same, other, silent, unsure]) == [1, 3]
    assert disagreeing([same, other, silent, unsure], least=0.5) == [1]


def test_sums_in_two_orders() -> None:
    task = load_task("sums,views=2,train_size=64,held_out_size=40")
    assert task.notes["extract"] == "after:#" and load_task("sums").notes == {}
    for rows, held_out in ((task.train, False), (task.held_out, True)):
        assert len(rows) >= 30 and len(rows) % 2 == 0
        for first, second in zip(rows[::2], rows[1::2], strict=True):
            assert first["question_id"] == second["question_id"] and (first["view"], second["view"]) == (0, 1)
            assert first["prompt"] != second["prompt"] and first["answer"] == second["answer"]
            assert sorted(parse_prompt(first["prompt"])) == sorted(parse_prompt(second["prompt"]))
            assert is_held_out(first["prompt"]) == is_held_out(second["prompt"]) == held_out
    assert (
        len({row["question_id"] for row in [*task.train, *task.held_out]}) == (len(task.train) + len(task.held_out)) / 2
    )
    with pytest.raises(ConfigError, match="views=3"):
        load_task("sums,views=3")
    assert reordered(["a2+b2+c2=?\n"])[0].text is None, "equal operands have one order"


def test_what_is_held_out_is_not_rewritten_into_training() -> None:
    task = load_task("sums", train_size=8, held_out_size=8)
    unseen = [row["prompt"] for row in task.held_out]
    with pytest.raises(DataError, match="other side"):
        with_views(task, lambda questions: [random.Random(q).choice(unseen) for q in questions])
    with pytest.raises(DataError, match="nothing was given"):
        with_views(task, lambda questions: [None] * len(questions))


def test_a_table_of_pairs_is_cut_by_question(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i} v{v}", "answer": "1", "question_id": i, "view": v} for i in range(10) for v in (0, 1)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(f"{path},held_out=0.3")
    assert len(task.held_out) == 6
    for side in (task.train, task.held_out):
        assert all(sum(r["question_id"] == row["question_id"] for r in side) == 2 for row in side)
    with pytest.raises(DataError, match="'topic'"):
        load_task(f"{path},together=topic")


def test_the_command_writes_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("guerdon.tasks.views._model", lambda name: ScriptedModel(lambda m, d: GOOD if "2" in m[0]["content"].splitlines()[-1] else "no"))  # fmt: skip
    questions, pairs = tmp_path / "q.jsonl", tmp_path / "p.jsonl"
    questions.write_text('{"prompt": "Ann has 2 apples", "answer": "2"}\n{"prompt": "none", "answer": "0"}\n')
    monkeypatch.setattr("sys.argv", ["views", str(questions), str(pairs), "--model", "any", "--same-numbers"])
    assert main() == 0
    assert [json.loads(line)["view"] for line in pairs.read_text().splitlines()] == [0, 1]
    assert "1 of 2 questions in two views" in capsys.readouterr().out
    assert (tmp_path / "p.rewrites.jsonl").exists()
