"""Run the commands of scoring.md and put what they print under them: `python docs/scoring/rerun.py`.

A command is a line that begins with "$ " in a `console` block; what follows it in the block is its output. They run in this
folder, with results in a folder that is thrown away. The endpoint is a stand-in on this machine: the tests' server, which
speaks the completions protocol with the weights of `smollm2`; on its port + 1 stands one that only chats.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "scoring.md"
PORT = 8000
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def output_of(command: str, folder: Path) -> str:
    """What a command prints, without bars, warnings of other libraries and trailing spaces."""
    scripts = Path(sys.executable).parent
    options = {"PATH": f"{scripts}:{os.environ['PATH']}", "COLUMNS": "160", "OPENAI_API_KEY": "none"}
    options |= {"GUERDON_CACHE": os.environ.get("GUERDON_CACHE", ""), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(command, shell=True, cwd=folder, env=os.environ | options, capture_output=True, text=True)
    lines = [line.rstrip() for line in (found.stdout + found.stderr).splitlines()]
    kept = [line for line in lines if line and not re.search(r"Warning|warn\(|it/s\]|\d:\d\d:\d\d$", line)]
    return "".join(f"{line}\n" for line in kept)


def rerun(block: str, folder: Path) -> str:
    commands = [line for line in block.splitlines() if line.startswith("$ ")]
    return "".join(f"{line}\n{output_of(line[2:], folder)}" for line in commands)


def serve() -> None:
    """The stand-ins, until the process ends."""
    sys.path.insert(0, str(HERE.parents[1] / "tests" / "lm"))
    from local_server import Scores, Server, status

    from guerdon.lm import load_model

    Server(PORT).script = Scores(*load_model("smollm2"))
    Server(PORT + 1).script = lambda body, nth: status(404, "there are only chat completions here")


def main() -> None:
    serve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(HERE / "rollouts.jsonl", folder)
        shutil.copy(HERE / "show.py", folder)
        text = PAGE.read_text()
        PAGE.write_text(BLOCK.sub(lambda found: f"```console\n{rerun(found[1], folder)}```", text))


if __name__ == "__main__":
    main()
