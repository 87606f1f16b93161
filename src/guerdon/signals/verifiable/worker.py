"""The process that compares expressions. Started as a script; of Guerdon it loads the few modules that need neither torch nor user code.

Protocol, one JSON object a line: in, first {"path": sys.path, "memory_mb": n, "alarm_s": n}, then tasks {"answer", "reference"},
both expressions as `location` finds them; out, first {"ready": true}, then for each task {"value": 0 or 1, "reason"} or
{"failed": reason, "recycle": replace me}.
math-verify's own time-outs are off: they raise out of a SIGALRM handler, which long C calls and `except Exception` defeat,
and work in a main thread only. The parent kills this process instead; should the parent itself be gone, the kernel does
(an alarm without a handler).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

_PACKAGES = ("guerdon", "guerdon.signals", "guerdon.signals.verifiable")


def _without_package_imports() -> None:
    """Make this folder's modules importable without what `guerdon/__init__` and the others import."""
    folder = Path(__file__).resolve().parent
    for name, path in zip(reversed(_PACKAGES), (folder, folder.parent, folder.parent.parent), strict=True):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package


def judge(answer: str, reference: str) -> dict[str, Any]:
    """Compare one answer with one reference."""
    from guerdon.signals.verifiable.equality import same
    from guerdon.signals.verifiable.symbolic import TooLarge, Unreadable

    try:
        right = same(reference, answer)
    except Unreadable:
        return {"failed": f"the reference {reference[:60]!r} cannot be parsed as mathematics"}
    except TooLarge as error:
        if error.args and not _is_about(str(error), reference):
            return {"value": 0, "reason": f"{str(error)!r} is too large to be evaluated"}
        return {"failed": f"the reference {reference[:60]!r} is too large to be evaluated"}
    except Exception as error:  # an instrument that raised has not said "wrong"
        name = type(error).__name__
        return {
            "failed": f"{name} while comparing: {' '.join(str(error).split())[:120]}",
            "recycle": name in ("MemoryError", "RecursionError"),
        }
    return {"value": int(right), "reason": None if right else f"read {answer[:60]!r}, which is not {reference[:60]!r}"}


def _is_about(part: str, reference: str) -> bool:
    """Whether a part that could not be evaluated is the reference's."""
    from guerdon.signals.verifiable.symbolic import TooLarge, parsed

    try:
        parsed(part)
    except TooLarge:
        from guerdon.signals.verifiable.equality import canonical

        return canonical(part) in canonical(reference)
    except Exception:
        return False
    return False


def _limit_memory(megabytes: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    except (ImportError, ValueError, OSError):  # not available on this system: the time-out still holds
        pass


def main() -> None:
    """Serve tasks from stdin until it closes."""
    # Whatever sympy or a parser prints must not get into the protocol: keep the real stdout, point fd 1 elsewhere.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    setup = json.loads(sys.stdin.readline())
    sys.path[:] = setup["path"]
    try:
        import logging

        import math_verify  # noqa: F401

        logging.disable(logging.CRITICAL)
        _without_package_imports()
        # Regular expressions, parser tables, and the parts of sympy that are imported late: before a clock runs.
        for answer, reference in _WARM_UP:
            judge(answer, reference)
    except Exception as error:
        reply({"ready": False, "error": f"{type(error).__name__}: {error}"})
        return
    _limit_memory(setup["memory_mb"])
    reply({"ready": True})
    for line in sys.stdin:
        task = json.loads(line)
        signal.alarm(setup["alarm_s"])
        outcome = judge(task["answer"], task["reference"])
        signal.alarm(0)
        reply(outcome)
        if outcome.get("recycle"):  # after a MemoryError or RecursionError the next task deserves a clean process
            return


_WARM_UP = (
    ("\\sqrt{-1}", "2e^{5}"),
    ("\\{1, \\frac{1}{2}\\}", "\\{1, x\\}"),
    ("x < 1.5", "(-\\infty, \\frac{3}{2})"),
    ("\\frac{\\sqrt{x}}{2}", "\\sin(x)"),
    ("2x + y = 1", "x + y = 3"),
    ("(x+1)^2", "x^2 + 2x + 1"),
    ("(x+12)^{2}(x-y)", "x^2 + 18x + 81"),
    ("\\frac{\\sqrt{13}}{7}", "\\sqrt{13}/5"),
    ("17\\pi + 3", "4 + \\pi \\cdot 17"),
    ("-\\frac{a+b}{2c}", "\\frac{1}{2}(a - b)c^{-1}"),
    ("\\log_{2}{9}", "\\ln 3 + e^{x}"),
    ("\\cos^{2} x", "\\tan(2x)"),
    ("5! + \\binom{5}{2}", "|x - 1|"),
)

if __name__ == "__main__":
    main()
