"""What asks a process to stop: Ctrl-C, TERM from a scheduler, HUP from a terminal that is closed. All three mean "save and stop".

A signal that is ignored when it would be taken over (`nohup` ignores HUP) stays ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

HUP = getattr(signal, "SIGHUP", None)
STOPS = tuple(number for number in (signal.SIGINT, signal.SIGTERM, HUP) if number is not None)
SAME_S = 1.0  # a closed terminal sends HUP twice, a scheduler TERM to a process and to its group: one request


def raise_on_stop() -> None:
    """From here on TERM and HUP raise KeyboardInterrupt, as Ctrl-C does. In the main thread only."""
    terminals = open_terminals()

    def stop(number: int, frame: FrameType | None) -> None:
        if number == HUP:
            leave(terminals)
        raise KeyboardInterrupt

    for number in STOPS[1:]:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)


class Interrupt:
    """A stop as a request: the first is remembered, a second one raises. Does nothing outside the main thread.

    Attributes:
        requested: somebody asked.
        obeyed: the run has stopped for it.
    """

    def __init__(self) -> None:
        self.requested = self.obeyed = False
        self._previous: dict[int, Any] = {}
        self._terminals: list[int] = []
        self._asked_at = 0.0

    def __enter__(self) -> Interrupt:
        self.requested = self.obeyed = False
        if threading.current_thread() is threading.main_thread():
            self._terminals = open_terminals()
            for number in STOPS:
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == HUP:
            leave(self._terminals)
        repeated = number != signal.SIGINT and time.monotonic() - self._asked_at < SAME_S
        if self.requested and not repeated:
            raise KeyboardInterrupt
        self.requested, self._asked_at = True, time.monotonic()


def open_terminals() -> list[int]:
    """The file descriptors of standard output and error that are terminals."""
    return [fd for fd in (1, 2) if _is_terminal(fd)]


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def leave(terminals: list[int]) -> None:
    """Let what is still printed go nowhere: the terminal has gone, and writing to it would be an error in the middle of saving."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        for fd in terminals:
            os.dup2(null, fd)
        os.close(null)
