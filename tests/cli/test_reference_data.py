"""(question, reference) files, one reference a row or several, with no code: trained on and scored under the likelihood systems.

What people ask for in a run's log (raw score, baseline, shaped reward, format, share kept) has to be there without an option.
"""

import json
from pathlib import Path

import pytest

pytest.importorskip("trl")
from typer.testing import CliRunner

from guerdon.cli.main import app
from guerdon.cli.score import reward_by_name
from guerdon.errors import ConfigError
from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

SYSTEMS = ("rlpr:format_mode=R1_nothink", "likelihood", "sar")
# What metrics.jsonl holds of each system: components (what signals gave) and numbers of the chain.
LOGGED = {
    "rlpr": (
        {"prob.score", "prob.baseline", "format", "repetition"},
        {"shaped/mean", "shaped/zero", "std_filter/kept", "std_filter/threshold", "std_filter/std"},
    ),
    "likelihood": (
        {"likelihood.score", "likelihood.logprob", "likelihood.answered", "likelihood.reasoning"},
        {"likelihood/baseline", "likelihood/answered", "likelihood/flat_groups", "likelihood/reasoning_tokens"},
    ),
    "sar": ({"answer", "sar.score", "sar.nll_question", "sar.nll_alone"}, {"length/mean"}),
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = char_tokenizer()
    new_model(tokenizer, TinyConfig(hidden=16, layers=1, heads=2, intermediate=32), 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def written(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        from datasets import Dataset

        Dataset.from_list(rows).to_parquet(str(path))
    return path


def ran(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output + str(result.exception)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_question_and_reference_files_train(policy: str, tmp_path: Path, system: str, ending: str) -> None:
    several = [{"question": f"{i}+{i}=", "references": [str(2 * i), f"it is {2 * i}"], "note": "x"} for i in range(12)]
    path = written(tmp_path / f"questions.{ending}", several)
    ran("train", "--system", system, "--task", path, "--model", policy, "--steps", 2, "--out", tmp_path / "run", "--group-size", 2,
        "--set", "prompts_per_step=2", "--set", "eval_prompts=2", "--set", "max_completion_length=8", "--set", "columns.verifier=qa",
        "--quiet")  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    components, chain = LOGGED[system.partition(":")[0]]
    assert len(lines) == 2
    for line in lines:
        assert components <= line["components"].keys() and chain <= line["chain"].keys()
        assert line["kept"] == 1.0 and line["true"] == 0.0
        assert all(cell["nan"] == 0.0 for cell in line["components"].values())
    if system.startswith("rlpr"):
        assert 0 < lines[0]["components"]["prob.baseline"]["mean"] < 0.1  # an untrained policy knows no reference


COMPLETION = "<think>6+6</think> <answer> 12 </answer>"
FILE = [
    {"prompt": "6+6=", "completion": COMPLETION, "answer": answer, "id": i}
    for i, answer in enumerate((["12"], ["it is 12"], ["it is 12", "12"], [], [None, "12"]))
]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("reward", "source"), [("rlpr", "prob.score"), ("likelihood:form=mean_prob,splice=R1", "likelihood.score")]
)
def test_several_references_are_scored_as_the_best_of_them(
    policy: str, tmp_path: Path, ending: str, reward: str, source: str
) -> None:
    path = written(tmp_path / f"rollouts.{ending}", FILE)
    ran("score", path, tmp_path / "out.jsonl", "--reward", reward, "--model", policy, "--quiet")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    short, long, both, none, other = (row["reward_parts"][source]["values"][0] for row in rows)
    assert short != long and both == max(short, long) and other == short
    assert none is None and rows[3]["reward"] is None and "no reference" in rows[3]["reward_reason"]
    assert [row["id"] for row in rows] == list(range(5)) and all(
        row["reward"] is not None for row in rows if row["answer"]
    )


def test_sar_scores_a_file_with_a_named_verifier(policy: str, tmp_path: Path) -> None:
    path = written(tmp_path / "rollouts.jsonl", [{**row, "completion": "it is 12"} for row in FILE[:3]])
    ran("score", path, tmp_path / "out.jsonl", "--reward", "sar:verifier=qa", "--model", policy, "--quiet")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row in rows:
        parts = {name: part["values"][0] for name, part in row["reward_parts"].items()}
        assert row["reward"] == pytest.approx(parts["answer"] + 0.2 * parts["sar.score"], abs=1e-6)
    assert [row["reward_parts"]["answer"]["values"][0] for row in rows][1:] == [1.0, 1.0]
    for wrong, message in (("sar", "sar:verifier=math"), ("sar:verifier=vibes", "use one of math")):
        with pytest.raises(ConfigError, match=message):
            reward_by_name(wrong)
