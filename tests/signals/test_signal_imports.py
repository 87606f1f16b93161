"""Every module of the signals can be the first one that is imported: no import cycle depends on who comes first."""

import pkgutil
import subprocess
import sys

import guerdon.signals

LIGHT = ["guerdon.signals.text", "guerdon.signals.verdict", "guerdon.signals.verifiable.verdict"]


def test_any_module_can_come_first() -> None:
    names = [m.name for m in pkgutil.iter_modules(guerdon.signals.__path__, "guerdon.signals.")]
    assert "guerdon.signals.text" in names
    purge = "[sys.modules.pop(m) for m in list(sys.modules) if m.startswith('guerdon')]"
    code = "import importlib, sys\n" + "".join(
        f"{purge}\nimportlib.import_module({name!r})\n" for name in dict.fromkeys([*LIGHT, *names])
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
