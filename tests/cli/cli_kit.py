"""Runs of the command in a few seconds: a policy of a few thousand weights that answers 1 or 2, and sums whose answer is one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

TASK = "task.jsonl"


def make_policy(folder: Path) -> Path:
    """A policy that answers every sum with 1 or 2, at odds of about one: rewards vary. Its task lies beside it."""
    tokenizer = char_tokenizer()
    model = new_model(tokenizer, TinyConfig(hidden=16, layers=1, heads=2, intermediate=32), seed=0)
    sums = [(f"{a}+{b}=", a + b) for a in range(10) for b in range(10)]
    texts = [prompt + answer for prompt, _ in sums for answer in "12"]
    ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts])
    labels = ids.clone()
    labels[:, :-2] = -100
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(120):
        optimiser.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = [{"prompt": prompt, "answer": str(1 + total % 2)} for prompt, total in sums]
    (folder / TASK).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def options(policy: Path) -> list[str]:
    sets = ["save_every=1", "eval_prompts=8", "max_completion_length=4", "learning_rate=1e-3", "log_rollouts_every=1"]
    words = ["--model", policy, "--task", policy / TASK, "--prompts-per-step", 4, "--group-size", 2, "--eval-every", 3]
    return [*map(str, words), "--threads", "1", *(word for pair in sets for word in ("--set", pair))]


def start(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "guerdon.cli.main", *map(str, arguments)],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finished(arguments: list[str], cwd: Path, code: int = 0) -> str:
    """Run a command to its end; what it said."""
    process = start(arguments, cwd)
    _, error = process.communicate(timeout=300)
    assert process.returncode == code, error
    return " ".join(error.split())


def wait_for(ready: Any, process: subprocess.Popen[str], what: str, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if ready():
            return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise AssertionError(f"{what}: did not come, code {process.poll()}")


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    log = folder / "metrics.jsonl"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= step, process, f"step {step}")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def numbers(folder: Path) -> dict[str, Any]:
    """What a run measured and made, without clocks."""
    logs = {name: lines(folder / name) for name in ("metrics.jsonl", "eval.jsonl", "rollouts.jsonl")}
    plain = {name: [{k: v for k, v in line.items() if k != "seconds"} for line in log] for name, log in logs.items()}
    return {**plain, "weights": (folder / "policy" / "model.safetensors").read_bytes()}
