"""Specs, tables and reasoning-gym: what they become, and how they fail."""

import json
import math

import pytest

from guerdon.errors import ConfigError, DataError
from guerdon.tasks import Task, load_task
from guerdon.tasks.base import Task as BaseTask


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ROWS = [{"question": f"What is {i}+1?", "answer": str(i + 1), "source": "made"} for i in range(20)]


def test_sums_by_spec_and_a_task_is_returned_as_it_is():
    task = load_task("sums,terms=3-3,held_out_size=16,train_size=32")
    assert isinstance(task, Task) and len(task.held_out) == 16
    assert all(row["prompt"].count("+") == 2 for row in task.train)
    assert load_task(task) is task


@pytest.mark.parametrize(
    "spec",
    ["summs", "", "sums,terms", "sums,colour=red", "reasoning-gym:chain_summ", "reasoning-gym:chain_sum,depth=3"],
)
def test_unknown_specs_say_what_there_is(spec):
    with pytest.raises(ConfigError) as caught:
        load_task(spec)
    assert len(str(caught.value)) > 20


def test_reasoning_gym_uses_its_own_scorer():
    task = load_task("reasoning-gym:chain_sum,min_terms=2,max_terms=3", train_size=16, held_out_size=8)
    row = task.held_out[0]
    right, wrong, no_tag = task.true_success(
        [f"thinking\n<answer>{row['answer']}</answer>", "<answer>x</answer>", row["answer"]], [row] * 3
    )
    assert right.value == 1.0
    assert wrong.value < 0.1 and "answered" in wrong.reason
    assert no_tag.value == 0.0 and "tag" in no_tag.reason
    assert {r["prompt"] for r in task.train}.isdisjoint(r["prompt"] for r in task.held_out)
    assert "<answer>" in task.to_dataset(chat=True)[0]["prompt"][0]["content"]


def test_a_generator_of_few_questions_is_shared_out():
    """About 180 sums of two digits: training and held-out rows draw nearly the same ones, and neither side may have the other's."""
    pytest.importorskip("reasoning_gym")
    few = load_task("reasoning-gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1")
    train, held_out = [row["prompt"] for row in few.train], [row["prompt"] for row in few.held_out]
    assert not set(train) & set(held_out) and len(set(held_out)) == len(held_out)
    assert 0.15 < len(held_out) / len({*train, *held_out}) <= 0.21 and len(train) > 350
    assert few.questions("train") == len(set(train)) < len(train) and few.questions("held_out") == len(held_out)
    many = load_task("reasoning-gym:chain_sum", train_size=64, held_out_size=16)
    assert (len(many.train), len(many.held_out)) == (64, 16)  # nothing to share out
    verdicts = few.true_success([row["answer"] for row in few.held_out], few.held_out)
    assert not all(v.value == 1.0 for v in verdicts)  # no tag
    tagged = [f"<answer>{row['answer']}</answer>" for row in few.held_out]
    assert all(v.value == 1.0 for v in few.true_success(tagged, few.held_out)), "each with its own entry"


def test_a_generator_of_one_question_cannot_be_shared_out():
    from guerdon.tasks.adapters import _apart

    row = {"prompt": "Q", "answer": "A"}
    with pytest.raises(DataError, match="too few to share out"):
        _apart([row], [row], 4, "x")
    ten = [{"prompt": str(i), "answer": ""} for i in range(10)]
    train, held_out = _apart(ten * 3, ten[5:] * 2, 8, "x")
    assert [r["prompt"] for r in held_out] == ["5", "6"] and len(train) == 24


def test_reasoning_gym_finds_answers_by_another_rule():
    task = load_task("reasoning-gym:chain_sum,extract=last_number,instruction=Be brief.", train_size=4, held_out_size=4)
    row = task.held_out[0]
    right, nothing = task.true_success([f"it is 1, no, {row['answer']}", "I do not know"], [row] * 2)
    assert right.value == 1.0 and nothing.value == 0.0 and "last_number" in nothing.reason
    assert task.to_dataset(chat=True)[0]["prompt"][0]["content"].endswith("Be brief.")
    with pytest.raises(ConfigError, match="last_number"):
        load_task("reasoning-gym:chain_sum,extract=lastnumber", train_size=4, held_out_size=4)


def test_jsonl(tmp_path):
    task = load_task(write(tmp_path / "p.jsonl", ROWS), held_out=0.25)
    assert len(task.held_out) == 5 and len(task.train) == 15
    row = task.held_out[0]
    assert set(row) == {"prompt", "answer", "source"}
    verdicts = task.true_success([f"so \\boxed{{{row['answer']}}}", "no idea"], [row] * 2)
    assert [v.value for v in verdicts] == [1.0, 0.0]
    assert load_task(str(tmp_path / "p.jsonl"), held_out=0.25).held_out == task.held_out


def test_parquet_with_named_columns_and_several_references(tmp_path):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "p.parquet"
    rows = [{"text": f"capital {i}", "gold": [f"city {i}", f"town {i}"], "answer": "decoy"} for i in range(10)]
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    task = load_task(f"{path},prompt=text,answer=gold,verifier=qa")
    row = task.train[0]
    assert row["prompt"].startswith("capital") and len(row["answer"]) == 2
    assert task.true_success([row["answer"][1]], [row])[0].value == 1.0


def test_references_under_their_usual_names_one_or_several_a_row(tmp_path):
    for name, value in (("reference", "gold"), ("references", ["gold", "or"]), ("reference_answer", "gold")):
        task = load_task(write(tmp_path / "p.jsonl", [{"question": f"{i}", name: value} for i in range(8)]))
        assert set(task.train[0]) == {"prompt", "answer"} and task.train[0]["answer"] == value
    mixed = [{"question": f"{i}", "answer": ["a", 7] if i % 2 else "a"} for i in range(8)]
    task = load_task(write(tmp_path / "p.jsonl", mixed))
    cells = [row["answer"] for row in (*task.train, *task.held_out)]
    assert sorted(cells) == [["a"]] * 4 + [["a", "7"]] * 4
    assert task.to_dataset()[0]["answer"] == task.train[0]["answer"]


def test_numbers_stay_as_the_file_writes_them(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"question": "a", "answer": 7}\n{"question": "b", "answer": 0.5}\n{"question": "c", "answer": "x"}\n'
    )
    task = load_task(str(path))
    assert {row["prompt"]: row["answer"] for row in (*task.train, *task.held_out)} == {"a": "7", "b": "0.5", "c": "x"}
    assert sorted(task.to_dataset()["answer"]) == sorted(row["answer"] for row in task.train)


def test_a_column_of_several_types_is_named(tmp_path):
    rows = [{"question": f"{i}", "answer": "a", "note": i if i % 2 else "odd"} for i in range(8)]
    with pytest.raises(DataError, match="values of note are not of one type"):
        load_task(write(tmp_path / "p.jsonl", rows)).to_dataset()


def test_repeated_prompts_stay_on_one_side(tmp_path):
    task = load_task(write(tmp_path / "p.jsonl", ROWS * 3), held_out=0.5)
    assert {r["prompt"] for r in task.train}.isdisjoint(r["prompt"] for r in task.held_out)
    assert len(task.train) + len(task.held_out) == 60


def test_another_file_as_held_out(tmp_path):
    train, test = write(tmp_path / "a.jsonl", ROWS[:15]), write(tmp_path / "b.jsonl", ROWS[10:])
    task = load_task(train, held_out=test)
    assert [r["prompt"] for r in task.held_out] == [r["question"] for r in ROWS[15:]]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"q": "x", "answer": "1"}], {}, "no prompt column"),
        ([{"question": "x", "a": "1"}], {}, "no answer column"),
        (ROWS, {"answer": "gold"}, "gold"),
        ([*ROWS, {"question": "x", "answer": None, "source": ""}], {}, "row 20 has no answer"),
        (ROWS[:1], {}, "distinct prompt"),
    ],
)
def test_unusable_tables(tmp_path, rows, options, message):
    with pytest.raises(DataError, match=message):
        load_task(write(tmp_path / "p.jsonl", rows), **options)


def test_missing_and_malformed_files(tmp_path):
    with pytest.raises(DataError, match="no file"):
        load_task(str(tmp_path / "absent.jsonl"))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "x", "answer"')
    with pytest.raises(DataError, match="cannot be read"):
        load_task(str(broken))
    with pytest.raises(ConfigError, match="verifier"):
        load_task(write(tmp_path / "p.jsonl", ROWS), verifier="vibes")


def test_a_leaking_split_is_refused():
    row = {"prompt": "x", "answer": "1"}
    with pytest.raises(DataError, match="held-out"):
        BaseTask("t", [row], [row], verify=lambda c, r: [])
    with pytest.raises(DataError, match="answer"):
        BaseTask("t", [{"prompt": "x"}], [], verify=lambda c, r: [])


def test_a_missing_reference_is_nan_not_wrong(tmp_path):
    task = load_task(write(tmp_path / "p.jsonl", ROWS))
    verdict = task.true_success(["\\boxed{1}"], [{"prompt": "x", "answer": None}])[0]
    assert math.isnan(verdict.value) and verdict.reason
