"""Run several training runs as processes of their own, a few at once, and show how far each is.

A process per run: a crash, an out-of-memory kill or a leak in one cannot touch the others, and one thread each is faster
on small models than all threads in turn. What a run knows about itself is in its folder; this file only starts processes,
reads `metrics.jsonl` to see progress, and passes Ctrl-C on, waiting until every run has saved. A run whose comparison dies
saves and ends as well (`lifeline`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from guerdon.cli import lifeline
from guerdon.cli.config import CONFIG_NAME, RunConfig, slug
from guerdon.cli.runfolder import last_record, read_manifest

SAVE_TIMEOUT_S = 90.0  # how long a run may take to save after Ctrl-C before it is left to itself


@dataclass
class Arm:
    """One run and its process."""

    config: RunConfig
    process: subprocess.Popen[bytes] | None = None
    task: TaskID | None = None
    error: str | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return f"{self.config.system} · seed {self.config.seed}"

    @property
    def log(self) -> Path:
        return self.config.folder / "log.txt"

    @property
    def done(self) -> bool:
        return read_manifest(self.config.folder).get("status") == "done"

    @property
    def built(self) -> bool:
        """Whether everything this run's system is made of exists (it may have to train a reward model first)."""
        return "description" in read_manifest(self.config.folder)

    def start(self, threads: int, environment: dict[str, str]) -> None:
        self.config.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "guerdon.cli.main", "train", "--config", str(self.config.folder / CONFIG_NAME)]
        command += ["--quiet", "--threads", str(threads)]
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches this process only, which then passes it on once.
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, env=environment
            )
        self.started = time.monotonic()

    def poll(self) -> bool:
        """True when the process has ended; `error` then says whether it failed."""
        if self.process is None or self.process.poll() is None:
            return False
        if not self.done:
            tail = self.log.read_text(errors="replace").strip().splitlines()[-12:] if self.log.exists() else []
            self.error = f"ended with code {self.process.returncode}\n    " + "\n    ".join(tail)
        return True


def run_arms(
    configs: Sequence[RunConfig], *, jobs: int, threads: int, console: Console, quiet: bool = False
) -> list[Arm]:
    """Run every configuration whose folder does not hold it finished already.

    Args:
        configs: the runs; each folder must already hold its `config.yaml`.
        jobs: processes at once.
        threads: CPU threads of each.
        console: where the bars go.
        quiet: no bars.

    Returns:
        The arms, in order; those that failed have `error`. Raises KeyboardInterrupt after every running arm has saved.
    """
    arms = [Arm(config) for config in configs]
    waiting = [arm for arm in arms if not arm.done]
    running: list[Arm] = []
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        lifeline.PARENT: str(os.getpid()),
    }
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=quiet) as progress:
        for arm in arms:
            arm.task = progress.add_task(arm.name, total=max(1, arm.config.steps), state="waiting", start=False)
            if arm.done:
                progress.update(arm.task, completed=max(1, arm.config.steps), state="done before")
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    arm = waiting.pop(_next(waiting, running, arms))
                    arm.start(threads, environment)
                    assert arm.task is not None
                    progress.start_task(arm.task)
                    running.append(arm)
                time.sleep(0.3)
                for arm in running:
                    _show(arm, progress)
                for arm in [arm for arm in running if arm.poll()]:
                    running.remove(arm)
                    assert arm.task is not None
                    progress.update(
                        arm.task,
                        state="failed" if arm.error else "done",
                        completed=None if arm.error else arm.config.steps,
                    )
                    progress.stop_task(arm.task)
        except KeyboardInterrupt:
            _stop(running, progress)
            raise
    return arms


def _next(waiting: Sequence[Arm], running: Sequence[Arm], arms: Sequence[Arm]) -> int:
    """Which waiting arm to start: the first, but not one that might only wait for what a running arm is still making."""
    if all(arm.built for arm in running):
        return 0
    known = {arm.config.system for arm in arms if arm.built}
    return next((i for i, arm in enumerate(waiting) if arm.config.system in known), 0)


def _show(arm: Arm, progress: Progress) -> None:
    assert arm.task is not None
    step = last_record(arm.config.folder / "metrics.jsonl").get("step", 0)
    measured = last_record(arm.config.folder / "eval.jsonl").get("true_success") or {}
    truth = f"  true success {measured['mean']:.2f}" if measured.get("mean") is not None else ""
    progress.update(
        arm.task,
        completed=step,
        state=f"step {step}/{arm.config.steps}{truth}" if step else "starting" if arm.built else "making its models",
    )


def _stop(running: Sequence[Arm], progress: Progress) -> None:
    """Ask every running arm to save and stop, and wait for them."""
    for arm in running:
        assert arm.process is not None and arm.task is not None
        progress.update(arm.task, state="saving")
        if arm.process.poll() is None:
            os.killpg(arm.process.pid, signal.SIGINT)
    deadline = time.monotonic() + SAVE_TIMEOUT_S
    for arm in running:
        assert arm.process is not None
        try:
            arm.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            arm.process.terminate()


def default_jobs(count: int) -> int:
    """One run per core, never more than there are runs."""
    return max(1, min(count, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


__all__ = ["Arm", "default_jobs", "run_arms", "slug"]
