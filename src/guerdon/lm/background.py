"""One event loop in a background thread, so that asynchronous clients can be used from anywhere.

Plain scripts, threads, notebooks and coroutines all call the same synchronous methods; the work happens on this loop. There
is one a process: identical requests of two threads or two clients meet there and are sent once. After a fork the child
starts its own.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
_lock = threading.Lock()
_running: tuple[int, asyncio.AbstractEventLoop, threading.Thread] | None = None


def background_loop() -> asyncio.AbstractEventLoop:
    """The process's background loop, started when first asked for."""
    global _running
    with _lock:
        if _running is None or _running[0] != os.getpid() or not _running[2].is_alive():
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="guerdon-lm", daemon=True)
            thread.start()
            _running = (os.getpid(), loop, thread)
        return _running[1]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop and wait for it. Ctrl-C cancels it.

    Raises:
        RuntimeError: called on the background loop itself, where waiting would never end.
    """
    loop = background_loop()
    if _running is not None and threading.current_thread() is _running[2]:
        work.close()
        raise RuntimeError(
            "a synchronous call inside the background loop would wait for itself: use the a...() method and await it"
        )
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@dataclass
class _Shared:
    task: asyncio.Task[Any]
    waiters: int


def blocking(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """The synchronous twin of a coroutine method: the same arguments, run on the background loop."""

    @functools.wraps(method)
    def waits(*args: P.args, **kwargs: P.kwargs) -> T:
        return run(method(*args, **kwargs))

    return waits


class InFlight:
    """Identical work that is under way is joined, not started again. Lives on one loop."""

    def __init__(self) -> None:
        self._shared: dict[Any, _Shared] = {}

    async def join(self, key: Any, work: Callable[[Callable[[], bool]], Awaitable[T]]) -> tuple[T, bool]:
        """The result of `work` for this key; second: whether it was started by somebody else.

        A waiter that is cancelled does not cancel the work for the others. `work` gets a function that says whether
        anybody still waits, to be asked before anything is paid for.
        """
        joined = key in self._shared
        if not joined:
            self._shared[key] = _Shared(asyncio.ensure_future(work(lambda: self._shared[key].waiters > 0)), 0)  # type: ignore[arg-type]
            self._shared[key].task.add_done_callback(lambda _: self._shared.pop(key, None))
        shared = self._shared[key]
        shared.waiters += 1
        try:
            return await asyncio.shield(shared.task), joined
        finally:
            shared.waiters -= 1
