"""The pool: hangs, crashes, threads, asyncio, fork, daemonic processes, unguarded scripts."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from guerdon.signals.verifiable import MathOptions, check_math, verify_math
from guerdon.signals.verifiable.pool import WorkerPool, WorkerStartError

OPTIONS = MathOptions(fast=False, timeout_s=10.0, workers=2)
WORKER = """
import json, os, sys, time
setup = json.loads(sys.stdin.readline())
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if task["do"] == "exit":
        os._exit(7)
    if task["do"] == "hang":
        while True:
            pass
    if task["do"] == "garbage":
        print("not json", flush=True)
        continue
    print(json.dumps({"pid": os.getpid(), "echo": task["do"]}), flush=True)
"""


@pytest.fixture
def pool(tmp_path: Path):  # type: ignore[no-untyped-def]
    script = tmp_path / "scripted_worker.py"
    script.write_text(WORKER)
    made = WorkerPool(script, workers=2, timeout_s=0.5)
    yield made
    made.close()


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_crash_is_reported_and_the_worker_replaced(pool: WorkerPool) -> None:
    assert pool.map([{"do": "exit"}]) == [{"failed": "the worker died (exit code 7)"}]
    assert pool.map([{"do": "hello"}])[0]["echo"] == "hello"


def test_a_hang_is_killed_in_time_and_others_go_on(pool: WorkerPool) -> None:
    first = pool.map([{"do": "a"}])[0]["pid"]
    start = time.monotonic()
    replies = pool.map([{"do": "hang"}, *({"do": str(i)} for i in range(20)), {"do": "hang"}])
    assert time.monotonic() - start < 10
    assert [reply.get("echo") for reply in replies[1:-1]] == [str(i) for i in range(20)]
    assert replies[0] == replies[-1] == {"failed": "no verdict within 0.5 s"}
    again = pool.map([{"do": "b"}])[0]["pid"]
    assert running(again) and (first == again or not running(first)), (
        "a hung worker must be gone, not left burning a core"
    )


def test_a_broken_reply_is_a_crash_and_an_idle_death_is_nobodys_failure(pool: WorkerPool) -> None:
    assert "the worker died" in pool.map([{"do": "garbage"}])[0]["failed"]
    pid = pool.map([{"do": "a"}])[0]["pid"]
    os.kill(pid, 9)
    time.sleep(0.2)
    assert pool.map([{"do": "b"}])[0]["echo"] == "b"


def test_close_ends_the_workers_and_the_pool_starts_anew(pool: WorkerPool) -> None:
    pid = pool.map([{"do": "a"}])[0]["pid"]
    pool.close()
    assert not running(pid)
    assert pool.map([{"do": "b"}])[0]["echo"] == "b"


def test_a_worker_that_cannot_start_is_an_error_not_a_score(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit(3)")
    with pytest.raises(WorkerStartError, match=r"broken\.py"):
        WorkerPool(script, workers=1).map([{"do": "a"}])


def test_from_two_threads_at_once() -> None:
    results: dict[int, list[float]] = {}

    def work(number: int) -> None:
        answers = [f"${number}^2 + {i}$" for i in range(10)]
        results[number] = [v.value for v in check_math(answers, [number**2 + 3] * 10, OPTIONS)]

    threads = [threading.Thread(target=work, args=(n,)) for n in (5, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [1.0 if i == 3 else 0.0 for i in range(10)] for n in (5, 6)}


def test_inside_a_running_event_loop() -> None:
    async def main() -> list[float]:
        inside = verify_math("$2^5$", "32", OPTIONS)
        beside = await asyncio.to_thread(verify_math, "$2^6$", "32", OPTIONS)
        reply = await asyncio.wrap_future(OPTIONS.pool().submit({"answer": "$2^7$", "reference": "128", "bare": False}))
        return [inside.value, beside.value, float(reply["value"])]

    assert asyncio.run(main()) == [1.0, 0.0, 1.0]


def _in_child(queue: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    queue.put(verify_math("$2^8$", "256", OPTIONS).value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_after_fork_in_a_daemonic_process() -> None:
    """What a data loader's or a pool's worker is: forked from a process that has used the pool, and not allowed children."""
    assert verify_math("$2^8$", "256", OPTIONS).value == 1.0
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,), daemon=True)
    child.start()
    assert queue.get(timeout=60) == 1.0
    child.join(30)
    assert verify_math("$2^8$", "255", OPTIONS).value == 0.0, "the parent's pool must survive its child's exit"


def test_a_script_without_main_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            print("started", flush=True)
            from guerdon.signals import verify_math
            print(verify_math("$2^9$", "512").value, flush=True)
            """
        )
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["started", "1.0"]


def test_repeated_pairs_are_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = WorkerPool.map

    def counting(self: WorkerPool, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        asked.append(len(tasks))
        return original(self, tasks)

    monkeypatch.setattr(WorkerPool, "map", counting)
    verdicts = check_math(["$2^3$", "$3^2$"] * 8, ["8"] * 16, OPTIONS)
    assert [v.value for v in verdicts] == [1.0, 0.0] * 8
    assert asked == [2]


def test_a_worker_out_of_memory_is_an_instrument_failure() -> None:
    verdict = verify_math("$\\binom{4000000000}{400000000}$", "5", MathOptions(timeout_s=3.0, workers=1, memory_mb=512))
    assert math.isnan(verdict.value) and verdict.reason
