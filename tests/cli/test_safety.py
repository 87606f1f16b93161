"""Whole commands: nothing of others is lost, one writer a place, and a rerun gives the numbers of an undisturbed run of its settings."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_kit import TASK, files, finished, lines, numbers, options, start, wait_for, wait_for_step

STEPS = 8


@pytest.fixture(scope="module")
def whole(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An undisturbed run: where, and its numbers."""
    folder = tmp_path_factory.mktemp("whole")
    finished(["train", "--steps", STEPS, "--out", "run", "-q", *options(policy)], folder)
    return folder / "run", numbers(folder / "run")


def train(policy: Path, *more: Any) -> list[Any]:
    return ["train", "--steps", STEPS, "--out", "run", "-q", *options(policy), *more]


def alive(pattern: str) -> list[int]:
    """Processes whose command line names a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if pattern in (place / "cmdline").read_text() and (place / "stat").read_text().split()[2] != "Z":
                found.append(int(place.name))
        except OSError:
            continue
    return found


# -- --restart and refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_restart_touches_only_what_a_run_wrote_and_only_after_everything_was_checked(policy, whole, tmp_path):
    run = tmp_path / "run"
    finished(train(policy), tmp_path)
    own = {
        "notes.txt": "mine",
        "data.jsonl": (policy / TASK).read_text(),
        "my.yaml": "steps: 5\n",
        "policy/mine.txt": "x",
    }
    for name, text in own.items():
        (run / name).write_text(text)
    before = files(run)
    refused = [
        (["--system", "outcom"], "no system 'outcom'"),
        (["--task", "nothere.jsonl"], "nothere.jsonl"),
        (["--model", str(tmp_path / "nomodel")], "nomodel"),
        (["--set", "micro_batch=3"], "micro_batch=3"),
        (["--set", "grpo.loss_type=nothere"], "loss_type='nothere'"),
        (["--set", "nothere=1"], "nothere"),
    ]
    for words, said in refused:
        assert said in finished(train(policy, *words, "--restart"), tmp_path, code=2), words
        assert files(run) == before, words
    assert "stays: data.jsonl, my.yaml, notes.txt, policy" in finished(train(policy, "--restart"), tmp_path)
    assert {name: (run / name).read_text() for name in own} == own
    assert numbers(run) == whole[1]


@pytest.mark.slow
def test_a_folder_that_is_no_runs_is_refused_and_a_refused_command_leaves_nothing(policy, tmp_path):
    mine = tmp_path / "run"
    mine.mkdir()
    (mine / "metrics.jsonl").write_text('{"step": 1}\n')
    before = files(mine)
    assert "no run of Guerdon wrote it" in finished(train(policy), tmp_path, code=2)
    assert "holds no run of Guerdon" in finished(train(policy, "--restart"), tmp_path, code=2)
    assert files(mine) == before
    (mine / "metrics.jsonl").unlink()
    mine.rmdir()
    for words in (["--system", "igpo"], ["--set", "micro_batch=3"]):
        finished(train(policy, *words), tmp_path, code=2)
        assert not mine.exists()
    finished(train(policy), tmp_path)
    assert "learning_rate: 0.001 -> 1e-05" in finished(train(policy, "--set", "learning_rate=1e-5"), tmp_path, code=2)


# -- one writer ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_two_trains_on_one_folder_the_second_is_refused(policy, whole, tmp_path):
    first = start(train(policy), tmp_path)
    wait_for_step(tmp_path / "run", 1, first)
    first.send_signal(signal.SIGSTOP)  # it shall not be done before the others have looked
    for words in ([], ["--restart", "--set", "learning_rate=1e-5"]):
        assert f"run is being written by process {first.pid} on" in finished(train(policy, *words), tmp_path, code=2)
    first.send_signal(signal.SIGCONT)
    _, error = first.communicate(timeout=240)
    assert first.returncode == 0, error
    assert numbers(tmp_path / "run") == whole[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "step"), [(n, s) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL) for s in (0, 1, 3)]
)
def test_a_train_that_was_stopped_is_gone_on_with_exactly(number, step, policy, whole, tmp_path):
    process = start(train(policy), tmp_path)
    if step:
        wait_for_step(tmp_path / "run", step, process)
    else:
        wait_for(lambda: (tmp_path / "run").exists(), process, "the folder")
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    if step:
        assert "other settings" in finished(train(policy, "--set", "learning_rate=1e-5"), tmp_path, code=2)
    finished(train(policy), tmp_path)
    assert numbers(tmp_path / "run") == whole[1]


@pytest.mark.slow
def test_a_closed_terminal_saves_the_run(policy, whole, tmp_path):
    words = [word for word in train(policy) if word != "-q"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-m", "guerdon.cli.main", *map(str, words)])
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    os.set_blocking(terminal, False)
    while not (log.exists() and log.read_text().count("\n") >= 2) and time.monotonic() < deadline:
        try:
            os.read(terminal, 65536)
        except BlockingIOError:
            time.sleep(0.02)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "interrupted"
    finished(train(policy), tmp_path)
    assert numbers(tmp_path / "run") == whole[1]


# -- comparisons -------------------------------------------------------------------------------------------------------------------


def compare(policy: Path, *more: Any) -> list[Any]:
    return [
        "compare",
        "outcome",
        "rloo",
        "--seeds",
        1,
        "--jobs",
        2,
        "--steps",
        STEPS,
        "--out",
        "cmp",
        "-q",
        *options(policy),
        *more,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_arms_end_with_their_comparison_and_a_rerun_has_its_own_numbers(number, policy, whole, tmp_path):
    arm = tmp_path / "cmp" / "outcome" / "seed0"
    first = start(compare(policy, "--out", tmp_path / "cmp"), tmp_path)
    wait_for_step(arm, 1, first)
    for pid in alive(str(arm)):
        os.kill(pid, signal.SIGSTOP)
    again = compare(policy, "--out", tmp_path / "cmp")
    assert "is being written by process" in finished([*again, "--restart"], tmp_path, code=2)
    first.send_signal(number)
    for pid in alive(str(arm)):
        os.kill(pid, signal.SIGCONT)
    first.communicate(timeout=120)
    if number == signal.SIGKILL:  # the orphans may still be saving: the rerun waits for them and begins anew
        other = finished([*again, "--restart", "--set", "learning_rate=1e-5"], tmp_path)
        assert "failed" not in other and lines(arm / "metrics.jsonl")[-1]["lr"] == 1e-5
        finished([*again, "--restart"], tmp_path)
    else:
        deadline = time.monotonic() + 60
        while alive(str(arm)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(str(arm))
        finished(again, tmp_path)
    assert numbers(arm) == whole[1]


def test_a_run_ends_when_the_comparison_that_started_it_dies(tmp_path):
    child = (
        "import time\nfrom guerdon.cli.lifeline import end_with_parent\nfrom guerdon.interrupt import raise_on_stop\n"
    )
    child += "raise_on_stop()\nassert end_with_parent()\nprint('up', flush=True)\n"
    child += f"try:\n  time.sleep(60)\nexcept KeyboardInterrupt:\n  open({str(tmp_path / 'saved')!r}, 'w').close()\n"
    parent = "import os, subprocess, sys, time\nfrom guerdon.cli.lifeline import PARENT\n"
    parent += "p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], env={**os.environ, PARENT: str(os.getpid())}, start_new_session=True)\n"
    parent += "time.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", parent, child], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while not (tmp_path / "saved").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- the machine -------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_the_machine_refuses_is_one_sentence(policy, whole, tmp_path):
    (tmp_path / "file").write_text("x")
    said = finished(train(policy, "--out", tmp_path / "file" / "run"), tmp_path, code=1)
    assert "Traceback" not in said and "Not a directory; a part of the path is a file" in said
    limited = "import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\nfrom guerdon.cli.main import main\nmain()"
    full = subprocess.run(
        [sys.executable, "-c", limited, *map(str, train(policy))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=240,
    )
    assert (
        full.returncode == 1
        and "Traceback" not in full.stderr
        and "goes on from there" in " ".join(full.stderr.split())
    )
    finished(train(policy), tmp_path)
    assert numbers(tmp_path / "run") == whole[1]


@pytest.mark.slow
def test_an_empty_manifest_and_a_damaged_checkpoint_are_said_and_gone_around(policy, whole, tmp_path):
    process = start(train(policy), tmp_path)
    wait_for_step(tmp_path / "run", 3, process)
    process.kill()
    process.communicate()
    run = tmp_path / "run"
    (run / "manifest.json").write_text("")
    newest = sorted(run.glob("checkpoints/checkpoint-*/COMPLETE"))[-1].parent
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    said = finished(train(policy), tmp_path)
    assert (
        "manifest.json cannot be read" in said and "does not count" in said and "model.safetensors is not what" in said
    )
    assert numbers(run) == whole[1]


def test_credentials_in_settings_are_neither_shown_nor_saved(tmp_path):
    said = finished(["train", "--system", "outcome:judge=http://me:hunter2@host/v1", "--out", "run"], tmp_path, code=2)
    assert "OPENAI_API_KEY" in said and "hunter2" not in said and not (tmp_path / "run").exists()
