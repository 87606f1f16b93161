"""A run that was stopped - by Ctrl-C, by kill -9, in the middle of writing a checkpoint - goes on as if it never had been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from engine_kit import lines, parameters, same
from resume_run import make

from guerdon.engines.trl import newest_complete_checkpoint
from guerdon.engines.trl.checkpoint import MARKER, STATE, is_complete
from guerdon.engines.trl.runlog import cut
from guerdon.errors import ChainError, ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
STEPS = 10


@pytest.fixture(scope="module")
def whole(policy_path: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The uninterrupted run: folder, parameters and logs."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = make(policy_path, folder, STEPS)
    trainer.train(resume_from_checkpoint=True)  # there is nothing to resume: it starts
    assert trainer.status == "finished"
    return folder, parameters(trainer)


def without_time(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def check_same_run(whole: Any, folder: Path, trainer: Any) -> None:
    reference, weights = whole
    assert same(parameters(trainer), weights)
    for name in ("metrics.jsonl", "eval.jsonl", "rollouts.jsonl"):
        assert without_time(lines(folder / name)) == without_time(lines(reference / name)), name
    assert [record["step"] for record in lines(folder / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert [record["step"] for record in lines(folder / "eval.jsonl")] == list(range(0, STEPS + 1, 2))


def test_ctrl_c_saves_at_the_boundary_and_resumes(policy_path: str, whole: Any, tmp_path: Path) -> None:
    trainer = make(policy_path, tmp_path, STEPS)

    def press(rollouts: Any, scores: Any) -> None:
        if rollouts.clock.step == 4:  # the generation of steps 5 and 6
            os.kill(os.getpid(), signal.SIGINT)

    trainer.monitors.append(press)
    before = signal.getsignal(signal.SIGINT)
    output = trainer.train()
    assert trainer.status == "interrupted" and output.global_step == 6
    assert signal.getsignal(signal.SIGINT) is before
    newest = newest_complete_checkpoint(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "checkpoint-6"
    again = make(policy_path, tmp_path, STEPS)
    again.train(resume_from_checkpoint=True)
    assert again.status == "finished"
    check_same_run(whole, tmp_path, again)


def test_a_second_ctrl_c_stops_at_once(policy_path: str, tmp_path: Path) -> None:
    trainer = make(policy_path, tmp_path, STEPS)

    def press_twice(rollouts: Any, scores: Any) -> None:
        if rollouts.clock.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    trainer.monitors.append(press_twice)
    trainer.train()
    assert trainer.status == "interrupted"
    assert newest_complete_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "checkpoint-4"


def test_half_written_checkpoints_do_not_count(policy_path: str, whole: Any, tmp_path: Path) -> None:
    """The newest folder lacks its marker, the one before lost a byte: the run goes on from the third, exactly."""
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoints"
    assert newest_complete_checkpoint(folder) == folder / "checkpoint-10"
    (folder / "checkpoint-10" / MARKER).unlink()
    damaged = folder / "checkpoint-8" / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert newest_complete_checkpoint(folder) == folder / "checkpoint-6"
    with pytest.raises(ConfigError, match=r"newest complete one beside it is .*checkpoint-6"):
        make(policy_path, tmp_path, STEPS).train(resume_from_checkpoint=str(folder / "checkpoint-8"))
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 11, "rew')  # what a kill leaves behind
    again = make(policy_path, tmp_path, STEPS)
    again.train(resume_from_checkpoint=True)
    check_same_run(whole, tmp_path, again)
    assert is_complete(folder / "checkpoint-8")


def test_a_finished_run_takes_no_further_step(policy_path: str, whole: Any, tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    again = make(policy_path, tmp_path, STEPS)
    assert again.train(resume_from_checkpoint=True).global_step == STEPS
    check_same_run(whole, tmp_path, again)


def test_old_checkpoints_go_only_when_a_newer_one_is_complete(policy_path: str, tmp_path: Path) -> None:
    trainer = make(policy_path, tmp_path, 4, save_total_limit=1)
    folder = tmp_path / "checkpoints"
    seen: list[Any] = []
    rotate = trainer._save_rng_state

    def watched(output_dir: str) -> None:
        seen.append(newest_complete_checkpoint(folder))
        rotate(output_dir)

    trainer._save_rng_state = watched
    trainer.train()
    assert seen == [None, folder / "checkpoint-2"], "while checkpoint-4 was being written, checkpoint-2 was still there"
    assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_checkpoint_of_another_system_or_trainer_is_refused(policy_path: str, whole: Any, tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    trainer = make(policy_path, tmp_path, STEPS + 2)
    trainer.system.chain.append(lambda scores, rollouts: scores)
    with pytest.raises(ChainError, match="another chain"):
        trainer.train(resume_from_checkpoint=True)
    newest = newest_complete_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    marker = json.loads((newest / MARKER).read_text())
    del marker["files"][STATE]
    (newest / MARKER).write_text(json.dumps(marker))
    (newest / STATE).unlink()
    with pytest.raises(DataError, match="not saved by this engine"):
        make(policy_path, tmp_path, STEPS + 2).train(resume_from_checkpoint=True)


def test_logs_are_cut_where_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\nnot json\n{"step": 3}\n{"step": 2}')
    cut(path, lambda record: record["step"] <= 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.slow
def test_kill_9_and_resume(policy_path: str, whole: Any, tmp_path: Path) -> None:
    """The process dies at once, some time after its second checkpoint; a new one ends as the uninterrupted run did."""
    program = [
        sys.executable,
        str(Path(__file__).with_name("resume_run.py")),
        policy_path,
        str(tmp_path),
        str(STEPS),
        "0.3",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log.txt").open("wb") as log:
        process = subprocess.Popen(program, stdout=log, stderr=log, env=environment)
    waiting_for = tmp_path / "checkpoints" / "checkpoint-4" / MARKER
    deadline = time.monotonic() + 90
    while not waiting_for.exists():
        assert process.poll() is None, (tmp_path / "log.txt").read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)  # somewhere inside the next generation
    process.kill()
    process.wait()
    assert 4 <= lines_whole(tmp_path / "metrics.jsonl") < STEPS
    again = make(policy_path, tmp_path, STEPS)
    again.train(resume_from_checkpoint=True)
    check_same_run(whole, tmp_path, again)


def lines_whole(path: Path) -> int:
    return path.read_text().count("\n")
