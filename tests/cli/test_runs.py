"""Whole runs through the command: killed, interrupted, continued, compared. A random policy of a few thousand weights."""

import json
import signal

import pytest
from cli_kit import lines, options, start, wait_for_step

STEPS = 6


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
    for system in record["systems"]:  # a row of the table, or the first of a few lines where the terminal is narrow
        assert any(system["system"] in line and system["verdict"] in line for line in error.splitlines()), error
    assert "true success" in error and "optimised reward" in error and "report:" in error

    wrong = start(
        ["compare", "outcome", "pure:credit=median", "--steps", "2", "--out", "bad", *options(policy)], tmp_path
    )
    _, error = wrong.communicate(timeout=120)
    assert wrong.returncode == 2
    assert not (tmp_path / "bad" / "outcome").exists(), "a wrong spec ends the comparison before any run starts"
