"""The command itself: exit codes, one-paragraph errors, and the contracts that other tools rely on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def guerdon(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "guerdon.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
    )


def test_conform_prints_a_line_per_function_and_exits_1_on_a_wrong_value(tmp_path):
    source = ROOT / "tests" / "vectors" / "clip_delta.json"
    good = guerdon("conform", source)
    assert good.returncode == 0, good.stderr
    lines = [line for line in good.stdout.splitlines() if line.strip()]
    functions = [vector["function"] for vector in json.loads(source.read_text())["vectors"]]
    assert len(lines) == len(functions)
    for function, line in zip(functions, lines, strict=True):
        assert function in line and "/" in line

    data = json.loads(source.read_text())
    data["vectors"] = data["vectors"][:1]
    data["vectors"][0]["cases"][0]["expected"]["shaped"][0] += 1.0
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(data))
    assert guerdon("conform", wrong).returncode == 1
    data["vectors"][0]["function"] = "no_such_function"
    wrong.write_text(json.dumps(data))
    unknown = guerdon("conform", wrong)
    assert unknown.returncode == 1 and "no_such_function" in unknown.stdout


def test_systems_json_lists_the_published_systems_with_their_state():
    rows = json.loads(guerdon("systems", "--json").stdout)
    by_slug = {row["slug"]: row for row in rows}
    assert {"pure", "rlpr", "clip_delta", "par"} <= set(by_slug)
    for row in rows:
        assert {"slug", "title", "arxiv", "kinds", "vectors", "reproduction"} <= set(row)
    for slug in ("pure", "rlpr", "clip_delta", "par"):
        vectors = by_slug[slug]["vectors"]
        assert vectors["passed"] == vectors["total"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "in.jsonl", "out.jsonl", "--reward", "maths"], "no reward 'maths'"),
        (["systems", "nothere"], "no system 'nothere'"),
        (["train", "--set", "foo=1"], "foo: Extra inputs"),
        (["bench", "nothere"], "no benchmark 'nothere'"),
        (["train", "--nothere"], "No such option"),
    ],
)
def test_what_was_asked_wrongly_is_one_paragraph_and_exit_code_2(arguments, message, tmp_path):
    result = guerdon(*arguments)
    assert result.returncode == 2
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


def test_annotate_turns_responses_into_pairs_and_says_what_it_left_out(tmp_path):
    rows = [
        {"id": 1, "prompt": "1+1?", "answer": "2", "responses": ["2", "3", "It is 2."]},
        {"id": 2, "prompt": "2+2?", "answer": "4", "responses": ["4", "4.0"]},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = guerdon("annotate", source, target, "--reward", "numeric")
    assert result.returncode == 0, result.stderr
    said = result.stderr
    assert "1 pairs" in said and "1 prompts without one" in said and "note: '2+2?'" in said
    (pair,) = [json.loads(line) for line in target.read_text().splitlines()]
    assert pair["id"] == 1 and pair["rejected"] == "3" and pair["chosen"] in ("2", "It is 2.") and pair["margin"] == 1.0
    unclear = guerdon("annotate", source, tmp_path / "b.jsonl", "--reward", "rlpr")
    assert unclear.returncode != 0 and "Traceback" not in unclear.stderr


def test_score_keeps_every_column_and_tells_wrong_from_unknown(tmp_path):
    rows = [
        {"prompt": "2+2=", "completion": "\\boxed{4}", "answer": "4", "id": 1},
        {"prompt": "2+3=", "completion": "no idea", "answer": "5", "id": 2},
        {"prompt": "2+4=", "completion": "\\boxed{6}", "answer": None, "id": 3},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = guerdon("score", source, target, "--reward", "math")
    assert result.returncode == 0, result.stderr
    scored = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["id"] for row in scored] == [1, 2, 3]
    assert [row["reward"] for row in scored] == [1.0, 0.0, None]
    assert scored[1]["reward_reason"] and scored[2]["reward_reason"]
    assert all(row["reward_level"] == "sequence" for row in scored)


def test_every_benchmark_can_be_loaded():
    from guerdon.cli.catalogue import _module
    from guerdon.repository import find_root

    root = find_root()
    assert root is not None
    found = [_module(path) for path in sorted((root / "benchmarks").glob("bench_*.py"))]
    assert {"bench_engine", "bench_math", "bench_prefix", "bench_verdicts"} <= {module.__name__ for module in found}
    assert all(callable(module.run) for module in found)
