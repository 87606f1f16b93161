"""A pool of processes for checks that may hang or crash: a task that exceeds its time has its process killed and replaced.

Threads of a `ThreadPoolExecutor` each drive one subprocess over pipes. Why not `pebble` or `multiprocessing`, which were
weighed first: their spawned workers import the user's `__main__` again (a training script without a main guard would start
itself once more) and this package with torch (seconds for every replaced worker), they fork or share a fork server with
whatever threads torch has running, and they refuse daemonic parents (data-loader and pool workers). A plain subprocess does
none of that, so the pool works from any thread, in asyncio (`asyncio.wrap_future(pool.submit(...))`), in Ray and after fork.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from guerdon.errors import GuerdonError

_START_TIMEOUT_S = 120.0  # importing sympy on a loaded machine; not part of any task's time


class WorkerStartError(GuerdonError, RuntimeError):
    """A worker process could not be started at all (as opposed to one that fails at a task)."""


class _Worker:
    """One subprocess that answers JSON lines with JSON lines."""

    def __init__(self, script: Path, setup: Mapping[str, Any]) -> None:
        if not sys.executable:
            raise WorkerStartError(
                "sys.executable is empty: the verifier needs a Python interpreter to run its workers"
            )
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        # -P: the script's own folder must not come before the standard library on the worker's path.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # a fork in the middle of a write must not leave the child with bytes to flush
            env=environment,
        )
        self._unread = b""
        try:
            hello = self.ask({"path": sys.path, **setup}, _START_TIMEOUT_S)
        except (TimeoutError, EOFError) as error:
            raise WorkerStartError(f"a verifier worker ({script.name}) did not start: {error}") from error
        if not hello.get("ready"):
            self.kill()
            raise WorkerStartError(f"a verifier worker ({script.name}) did not start: {hello.get('error')}")

    def ask(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """One request and its reply. Kills the process and raises TimeoutError or EOFError (it died) where none comes."""
        assert self._process.stdin is not None and self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        try:
            unsent = memoryview(json.dumps(message).encode() + b"\n")
            while unsent:
                unsent = unsent[self._process.stdin.write(unsent) :]
            while b"\n" not in self._unread:
                poll = select.poll()  # not select(): file descriptors above 1023 are usual in trainers
                poll.register(self._process.stdout, select.POLLIN | select.POLLHUP)
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise TimeoutError(f"no verdict within {timeout_s:g} s")
                chunk = os.read(self._process.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise EOFError
                self._unread += chunk
            line, _, self._unread = self._unread.partition(b"\n")
            return json.loads(line)  # type: ignore[no-any-return]
        except TimeoutError:
            self.kill()
            raise
        except (OSError, EOFError, ValueError) as error:
            self.kill()
            raise EOFError(f"the worker died (exit code {self._process.returncode})") from error

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process and close its pipes; harmless when it has ended."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # unsent bytes for a process that is gone
                    pipe.close()


class WorkerPool:
    """Runs tasks in killable processes.

    Args:
        script: the worker's file (see worker.py for the protocol).
        workers: processes at most; started when first needed. Default: CPUs, at most 8.
        timeout_s: seconds one task may take, counted from when a worker has it.
        memory_mb: address space of a worker, so that `10**10**10` ends in MemoryError and not in the machine's swap.
    """

    def __init__(
        self, script: Path, *, workers: int | None = None, timeout_s: float = 5.0, memory_mb: int = 2048
    ) -> None:
        if timeout_s <= 0 or memory_mb < 256:
            raise ValueError(f"timeout_s={timeout_s} must be positive and memory_mb={memory_mb} at least 256")
        self.timeout_s = timeout_s
        self._script = script
        self._setup = {"memory_mb": memory_mb, "alarm_s": math.ceil(2 * timeout_s) + 5}
        self.size = workers or min(8, os.cpu_count() or 1)
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._threads: ThreadPoolExecutor | None = None
        self._idle: deque[_Worker] = deque()
        self._all: set[_Worker] = set()

    def submit(self, task: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Queue one task; the future's result is the worker's reply, or {"failed": reason} for a time-out or crash."""
        if self._pid != os.getpid():  # forked: the parent's threads are not here, and its workers are not ours to use
            self._lock = threading.Lock()
            self._reset()
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.size, thread_name_prefix="guerdon-verify")
            return self._threads.submit(self._run, task)

    def map(self, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """All tasks at once; replies in their order."""
        futures = [self.submit(task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BaseException:  # Ctrl-C: do not make the exit wait for checks nobody will read
            for future in futures:
                future.cancel()
            raise

    def _run(self, task: Mapping[str, Any]) -> dict[str, Any]:
        worker = self._take()
        try:
            reply = worker.ask(task, self.timeout_s)
        except (TimeoutError, EOFError) as error:
            self._all.discard(worker)
            return {"failed": str(error)}
        if reply.pop("recycle", False):
            self._all.discard(worker)
            worker.kill()
        else:
            self._idle.append(worker)
        return reply

    def _take(self) -> _Worker:
        """An idle worker that is alive, or a new one."""
        while self._idle:
            try:
                worker = self._idle.pop()
            except IndexError:  # another thread was quicker
                break
            if worker.alive:
                return worker
            worker.kill()
            self._all.discard(worker)
        worker = _Worker(self._script, self._setup)
        self._all.add(worker)
        return worker

    def close(self) -> None:
        """Kill the workers; a later `submit` starts anew. Runs at exit by itself."""
        if self._pid != os.getpid():
            return
        with self._lock:
            threads, workers = self._threads, list(self._all)
            self._reset()
        for worker in workers:
            worker.kill()
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)


_POOLS: dict[tuple[Any, ...], WorkerPool] = {}
_POOLS_LOCK = threading.Lock()


def shared_pool(script: Path, *, workers: int | None, timeout_s: float, memory_mb: int) -> WorkerPool:
    """The process-wide pool of these settings: every signal that asks for the same shares its workers."""
    key = (script, workers, timeout_s, memory_mb)
    with _POOLS_LOCK:
        if key not in _POOLS:
            _POOLS[key] = WorkerPool(script, workers=workers, timeout_s=timeout_s, memory_mb=memory_mb)
        return _POOLS[key]


def close_pools() -> None:
    """Kill every shared pool's workers."""
    for pool in list(_POOLS.values()):
        pool.close()


def _forget_after_fork() -> None:
    global _POOLS_LOCK
    _POOLS_LOCK = threading.Lock()  # may have been held by a thread that does not exist here


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(close_pools)
