"""Typical mistakes on the command line: exit code 2 and a sentence that says what to type instead, never a traceback."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from guerdon.cli.main import main

# words of the command; words its message must have
MISTAKES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "a misspelt command": (["trian"], ("trian", "train")),
    "a misspelt flag": (["train", "--systm", "pure"], ("--systm", "--system")),
    "a misspelt system": (["train", "--system", "prue"], ("'prue'", "did you mean 'pure'")),
    "a misspelt system to compare": (["compare", "outcome", "prue"], ("'prue'", "did you mean 'pure'")),
    "a system named twice": (["compare", "outcome", "outcome"], ("twice", "outcome")),
    "a misspelt system to show": (["systems", "prue"], ("'prue'", "did you mean 'pure'")),
    "a misspelt option of a system": (["train", "--system", "pure:temprature=1"], ("did you mean 'temperature'",)),
    "an option without a value": (["train", "--system", "pure:temperature"], ("key=value", "'temperature'")),
    "a misspelt setting": (["train", "--set", "learning_rat=1"], ("learning_rat", "did you mean 'learning_rate'")),
    "a setting without a value": (["train", "--set", "learning_rate"], ("key=value", "'learning_rate'")),
    "a learning rate of 0": (["train", "--learning-rate", "0"], ("learning_rate", "greater than 0")),
    "a text for a number": (["train", "--set", "learning_rate=fast"], ("learning_rate", "'fast'")),
    "groups of one": (["train", "--group-size", "1"], ("group_size", "greater than or equal to 2")),
    "a field TRL does not have": (["train", "--set", "grpo.learning_rat=1"], ("grpo", "learning_rat")),
    "a misspelt task": (["train", "--task", "sum"], ("'sum'", "did you mean 'sums'")),
    "a misspelt option of a task": (["train", "--task", "sums,term=3-3"], ("term", "did you mean 'terms'")),
    "more prompts than there are": (["train", "--task", "sums,terms=2-2,train_size=99"], ("train_size=", "99")),
    "a file that is not there": (["train", "--task", "no.jsonl", "--model", "smollm2"], ("no.jsonl", "no file")),
    "the tiny policy on another task": (["train", "--task", "rows.jsonl"], ("tiny", "--model")),
    "a model that is not there": (["train", "--model", "./no/such"], ("no/such", "hub id")),
    "a configuration that is not there": (["train", "--config", "no.yaml"], ("no.yaml",)),
    "a configuration that is no YAML": (["train", "--config", "bad.yaml"], ("bad.yaml",)),
    "a configuration that is a list": (["train", "--config", "list.yaml"], ("list.yaml", "mapping")),
    "no reward": (["score", "rows.jsonl", "out.jsonl"], ("--reward",)),
    "a misspelt reward": (["score", "rows.jsonl", "out.jsonl", "--reward", "mth"], ("'mth'", "did you mean 'math'")),
    "a misspelt option of a reward": (
        ["score", "rows.jsonl", "out.jsonl", "--reward", "math:extrct=tag"],
        ("extrct", "did you mean 'extract'"),
    ),
    "a reward that needs a verifier": (["score", "rows.jsonl", "out.jsonl", "--reward", "outcome"], ("verifier=math",)),
    "a system for a verifier": (
        ["score", "rows.jsonl", "out.jsonl", "--reward", "outcome:verifier=pure"],
        ("no signal 'pure'",),
    ),
    "a file to score that is not there": (["score", "no.jsonl", "out.jsonl", "--reward", "math"], ("no.jsonl",)),
    "an unknown format": (["score", "rows.jsonl", "out.txt", "--reward", "math"], ("out.txt", ".jsonl", ".parquet")),
    "input and output at once": (["score", "rows.jsonl", "rows.jsonl", "--reward", "math"], ("input and output",)),
    "no column with completions": (
        ["score", "empty.jsonl", "out.jsonl", "--reward", "math"],
        ("'completion'", "--completion"),
    ),
    "a line that is no JSON": (["score", "broken.jsonl", "out.jsonl", "--reward", "math"], ("broken.jsonl", "2")),
    "a reward that reads a model": (
        ["score", "rows.jsonl", "out.jsonl", "--reward", "relative_perplexity"],
        ("--model",),
    ),
    "a tokenizer without an endpoint": (
        ["score", "rows.jsonl", "out.jsonl", "--reward", "relative_perplexity", "--tokenizer", "x"],
        ("--endpoint",),
    ),
    "an unknown benchmark": (["bench", "maths"], ("'maths'", "did you mean 'math'")),
    "an unknown reproduction": (["reproduce", "prue"], ("prue", "did you mean 'pure'")),
    "a folder without a run": (["report", "."], ("no run",)),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{"prompt": "1+1=", "completion": "2", "answer": "2"}, {"prompt": "1+2=", "completion": "4", "answer": "3"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "empty.jsonl").write_text('{"prompt": "1+1=", "text": "2", "answer": "2"}\n')
    (tmp_path / "broken.jsonl").write_text(json.dumps(rows[0]) + "\n{not json\n")
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "list.yaml").write_text("- a\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and everything printed, on one line so that wrapping does not matter."""
    monkeypatch.setattr(sys, "argv", ["guerdon", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), " ".join((out + err).split())


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_one_sentence(mistake, folder, monkeypatch, capsys):
    words, wanted = MISTAKES[mistake]
    before = {path.name for path in folder.iterdir()}
    code, printed = run(words, monkeypatch, capsys)
    assert code == 2, printed
    assert "Traceback" not in printed
    for word in wanted:
        assert word in printed, printed
    left = {path.name for path in folder.iterdir()} - before
    if mistake not in ("a line that is no JSON", "no column with completions"):  # found in the file, once it is read
        assert not [name for name in left if name.startswith("out")], "a refused command leaves no output behind"


@pytest.mark.parametrize(
    ("row", "reward"),
    [
        ({"question": "1+1=", "response": "2", "solution": "2"}, 1.0),
        ({"problem": "1+1=", "output": "3", "target": "2"}, 0.0),
        ({"prompt": "1+1=", "completion": "2", "answer": "2", "solution": "3"}, 1.0),
    ],
)
def test_score_reads_the_columns_that_train_reads(row, reward, folder, monkeypatch, capsys):
    (folder / "named.jsonl").write_text(json.dumps(row) + "\n")
    code, printed = run(["score", "named.jsonl", "out.jsonl", "--reward", "math"], monkeypatch, capsys)
    assert code == 0, printed
    assert json.loads((folder / "out.jsonl").read_text())["reward"] == reward


def test_a_short_sum_has_as_many_prompts_as_there_are():
    from guerdon.tasks import load_task

    task = load_task("sums,terms=3-3")
    prompts = {row["prompt"] for row in task.train} | {row["prompt"] for row in task.held_out}
    assert len(prompts) == len(task.train) + len(task.held_out)
    assert 80 <= len(task.train) <= 100 and len(task.held_out) >= 20


def test_version_and_settings(monkeypatch, capsys):
    from guerdon import __version__
    from guerdon.cli.config import CompareConfig

    assert run(["--version"], monkeypatch, capsys) == (0, f"guerdon {__version__}")
    code, printed = run(["train", "--settings"], monkeypatch, capsys)
    assert code == 0
    assert all(name in printed for name in CompareConfig.model_fields)
    assert all(field.description for field in CompareConfig.model_fields.values())
