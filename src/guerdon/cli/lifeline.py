"""The runs of a comparison end with it, whatever it dies of: each gets TERM then, which means "save and stop"."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

PARENT = "GUERDON_PARENT"  # in the environment of a run that a comparison has started: the comparison's process
PATIENCE_S = 90.0  # a run of a killed comparison may take as long to save: the next comparison's run waits for it
_PR_SET_PDEATHSIG = 1
_state = {"arm": False}


def patience_s() -> float:
    """Seconds to wait for another process that writes the run's folder: none for a person, who is told who it is."""
    return PATIENCE_S if _state["arm"] else 0.0


def end_with_parent() -> bool:
    """If a comparison started this process: get TERM when it dies, also of kill -9. Returns whether one did."""
    asked = os.environ.pop(PARENT, "")  # not handed on to processes of our own
    if not asked.isdigit():
        return False
    parent, _state["arm"] = int(asked), True
    if not _signal_at_death():
        threading.Thread(target=_watch, args=(parent,), name="guerdon-parent", daemon=True).start()
    if os.getppid() != parent:  # it died before we asked to be told
        os.kill(os.getpid(), signal.SIGTERM)
    return True


def _signal_at_death() -> bool:
    """Linux tells a process of its parent's death; whether that could be asked for."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        import ctypes

        return ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def _watch(parent: int, every_s: float = 0.5) -> None:
    while os.getppid() == parent:
        time.sleep(every_s)
    os.kill(os.getpid(), signal.SIGTERM)
