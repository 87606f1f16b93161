"""Whole runs through the command: killed, interrupted, continued, compared. A random policy of a few thousand weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

STEPS = 6


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = char_tokenizer()
    new_model(tokenizer, TinyConfig(hidden=16, layers=1, heads=2, intermediate=32), seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def options(policy: Path) -> list[str]:
    sets = ["save_every=1", "eval_prompts=8", "max_completion_length=8", "learning_rate=1e-3", "log_rollouts_every=1"]
    pairs = [word for pair in sets for word in ("--set", pair)]
    return [
        "--model",
        str(policy),
        "--prompts-per-step",
        "2",
        "--group-size",
        "2",
        "--eval-every",
        "3",
        "--threads",
        "1",
        *pairs,
    ]


def start(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "guerdon.cli.main", *arguments],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        log = folder / "metrics.jsonl"
        if log.exists() and len(log.read_text().splitlines()) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached: {process.communicate()[1][-2000:]}")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "code", "status"), [(signal.SIGKILL, -9, "running"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_stopped_run_goes_on_with_the_same_command(stop, code, status, policy, tmp_path):
    command = ["train", "--system", "outcome", "--steps", str(STEPS), "--out", "run", *options(policy)]
    process = start(command, tmp_path)
    wait_for_step(tmp_path / "run", 2, process)
    process.send_signal(stop)
    _, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == status

    process = start(command, tmp_path)
    _, error = process.communicate(timeout=180)
    assert process.returncode == 0, error
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "done"
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines(tmp_path / "run" / "eval.jsonl")] == [0, 3, 6]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "run" / "policy" / "config.json").exists()

    counts = json.loads((tmp_path / "run" / "manifest.json").read_text())["questions"]
    assert (
        f"{counts['train']} questions to train on, {counts['held_out']} held out" in error
        and "more than once" not in error
    )


@pytest.mark.slow
def test_a_comparison_writes_table_json_and_report_and_a_failing_arm_is_told(policy, tmp_path):
    arguments = [
        "compare",
        "outcome",
        "rloo",
        "--seeds",
        "1",
        "--steps",
        "2",
        "--out",
        "cmp",
        "--json",
        "out.json",
        *options(policy),
    ]
    process = start(arguments, tmp_path)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    record = json.loads((tmp_path / "out.json").read_text())
    assert [system["system"] for system in record["systems"]] == ["outcome", "rloo"]
    for system in record["systems"]:
        assert system["true_start"]["mean"] is not None and system["verdict"] in (
            "hacked",
            "not hacked",
            "inconclusive",
        )
    assert "outcome" in (tmp_path / "cmp" / "report.html").read_text()
    assert "verdict" in error and "report:" in error

    wrong = start(
        ["compare", "outcome", "pure:credit=median", "--steps", "2", "--out", "bad", *options(policy)], tmp_path
    )
    _, error = wrong.communicate(timeout=120)
    assert wrong.returncode == 2
    assert not (tmp_path / "bad" / "outcome").exists(), "a wrong spec ends the comparison before any run starts"
