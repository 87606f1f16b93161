"""Run folders made up for the tests of the report: what three systems on step-by-step sums would log."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STEPS = 60


def _lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records))


def _curve(kind: str, step: int, rng: random.Random) -> dict[str, float]:
    """True success, reward, length, share cut off and KL of a made-up run."""
    done = 1 - math.exp(-step / 20)
    noise = rng.gauss(0, 0.02)
    if kind == "sum":
        collapse = 1 / (1 + math.exp(-(step - 18) / 4))
        length = 22 + 74 * collapse
        return {
            "true": 0.66 * (1 - collapse),
            "reward": 1.6 + 9.4 * collapse,
            "length": length,
            "cut": collapse,
            "kl": 0.9 * collapse,
        }
    gain = {"outcome": 0.30, "min": 0.2}[kind]
    true = min(1.0, 0.66 + gain * done + noise)
    reward = true if kind == "outcome" else 0.15 + 0.5 * done + noise
    return {"true": true, "reward": reward, "length": 22 + noise * 20, "cut": 0.01, "kl": 0.05 * done}


def _rollout(
    kind: str, prompt: str, progress: float, rng: random.Random, step: int, split: str, group: int
) -> dict[str, Any]:
    a, b, c = (int(x) for x in prompt.rstrip("=").split("+"))
    right = rng.random() < (0.66 + 0.3 * progress if kind != "sum" else 0.66 * (1 - progress))
    lines = [f"{a}+{b}={a + b}", f"{a + b}+{c}={a + b + c + (0 if right else 1)}"]
    filler = int(progress * 7) if kind == "sum" else 0
    lines = lines[:1] + ["ok so far"] * filler + lines[1:]
    cut = kind == "sum" and progress > 0.5
    text = "\n".join(lines) + ("" if cut else f"\n#{a + b + c + (0 if right else 1)}")
    tokens = [*text] + ([] if cut else [""])
    ends = [i for i, ch in enumerate(text) if ch == "\n"] + [len(tokens) - 1]
    spans = [[s, e] for s, e in zip([0, *[e + 1 for e in ends[:-1]]], ends, strict=True)]
    values: list[float | None] = [
        0.5 if "ok" in text[s : e + 1] else round(rng.uniform(-0.9, 0.95), 3) for s, e in spans
    ]
    credit = [v if v is not None else 0.0 for v in values]
    if kind == "outcome":
        advantages = [0.8 if right else -1.1] * len(tokens)
    elif kind == "sum":
        advantages = [sum(credit[k:]) - 1.5 for k, (s, e) in enumerate(spans) for _ in range(s, e + 1)]
    else:
        worst = credit.index(min(credit))
        advantages = [
            (min(credit) if k <= worst else 0.0) - 0.1 for k, (s, e) in enumerate(spans) for _ in range(s, e + 1)
        ]
    failed = rng.random() < 0.08
    if failed:
        values[0] = None
    answer: dict[str, Any] = {
        "level": "sequence",
        "unit": "token",
        "values": [float(right)],
        "spans": [[0, len(tokens) - 1]],
    }
    scores = (
        {"answer": answer}
        if kind == "outcome"
        else {"answer": answer, "steps": {"level": "steps", "unit": "token", "values": values, "spans": spans}}
    )
    reasons = {} if right else {"answer": "no answer found" if cut else f"expected {a + b + c}"}
    if failed and kind != "outcome":
        reasons["steps"] = "the model returned no score for step 1"
    return {
        "step": step, "split": split, "prompt": prompt, "completion": text, "tokens": tokens, "advantages": [round(x, 4) for x in advantages],
        "mask": [True] * len(tokens), "reward": round(sum(credit), 3) if kind != "outcome" else float(right), "true": float(right),
        "scores": scores, "reasons": reasons, "group": group, "kept": not failed,
    }  # fmt: skip


def write_run(
    folder: Path, kind: str, seed: int, *, steps: int = STEPS, system: str | None = None, size: int = 4
) -> Path:
    """A complete run folder."""
    rng, draw = random.Random(f"{kind}{seed}"), random.Random(7)
    folder.mkdir(parents=True)
    name = system or {"outcome": "outcome", "sum": "pure:credit=sum", "min": "pure"}[kind]
    manifest = {
        "system": name, "task": "sums", "model": "tiny", "seed": seed, "versions": {"guerdon": "0.1.0", "torch": "2.13.0"},
        "started": "2025-01-01T10:00:00+0000", "finished": "2025-01-01T10:06:30+0000", "status": "done",
        "command": "guerdon compare outcome pure pure:credit=sum --seeds 2 --steps 60",
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text(f"system: {name}\nsteps: {steps}\nseed: {seed}\n")
    metrics, evals, rollouts = [], [], []
    for step in range(1, steps + 1):
        now = _curve(kind, step, rng)
        components = {"answer": {"mean": now["true"], "std": 0.4, "nan": 0.0}}
        if kind != "outcome":
            components["steps"] = {"mean": now["reward"] - now["true"], "std": 0.5, "nan": 0.02}
        metrics.append({"step": step, "reward": now["reward"], "reward_std": 0.5, "components": components, "length": now["length"],
                        "truncated": now["cut"], "kept": 0.97, "kl": None, "loss": 0.01, "grad_norm": 0.3, "seconds": 0.7})  # fmt: skip
    for step in range(0, steps + 1, 5):
        now, n = _curve(kind, step, rng), 128
        spread = math.sqrt(max(1e-9, now["true"] * (1 - now["true"])) / n)
        evals.append({"step": step, "true_success": {"mean": now["true"], "se": spread, "n": n}, "reward": {"mean": now["reward"], "se": 0.08, "n": n},
                      "length": {"mean": now["length"], "se": 0.5, "n": n}, "truncated": {"mean": now["cut"], "se": 0.01, "n": n}, "kl": {"mean": now["kl"], "se": 0.004, "n": n}})  # fmt: skip
        progress = step / steps
        for split in ("train", "held_out"):
            for group in range(2):
                terms = [draw.randint(1, 9) for _ in range(3)] if split == "train" else [[3, 8, 5], [9, 2, 7]][group]
                for _ in range(size):
                    rollouts.append(
                        _rollout(kind, "+".join(map(str, terms)) + "=", progress, rng, step, split, step * 10 + group)
                    )
    _lines(folder / "metrics.jsonl", metrics)
    _lines(folder / "eval.jsonl", evals)
    _lines(folder / "rollouts.jsonl", rollouts)
    return folder


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    return write_run


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three systems, two seeds each."""
    root = tmp_path_factory.mktemp("comparison")
    return [write_run(root / kind / f"seed{seed}", kind, seed) for kind in ("outcome", "min", "sum") for seed in (0, 1)]
