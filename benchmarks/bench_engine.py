"""What the engine and a chain cost over plain TRL, with a rule reward: paired runs, as a ratio of step times.

    guerdon bench engine --json PATH        or        python benchmarks/bench_engine.py [PATH]

Both trainers do bit-equal work (same seed, same reward, GRPO credit), so step i of one is the pair of step i of the other:
same samples, same lengths, same updates. Rounds alternate which of the two goes first, and the ratio is the median over
pairs, with a bootstrap interval; a process that shares its machine disturbs single pairs, not the median. CPU time is given
beside wall time. Ours also writes metrics.jsonl at every step and rollouts.jsonl at every tenth, as a run does.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TARGET = 1.05
ROUNDS, STEPS = 6, 6


def count_letters(text: str) -> float:
    return sum(c in "abcdef" for c in text) + 0.01 * len(text)


class Letters:
    """The rule reward as a signal."""

    scope, level = "row", "sequence"

    def __call__(self, rollouts: Any, scores: Any) -> Any:
        import torch

        from guerdon import Rewards

        return Rewards.sequence(torch.tensor([count_letters(text) for text in rollouts.completions]), rollouts)


def letters_reward(completions: list[str], **_: Any) -> list[float]:
    """The same rule as a TRL reward function."""
    return [count_letters(text) for text in completions]


def make(kind: str, policy: str, folder: Path, seed: int) -> Any:
    """A trainer whose steps take about 0.3 s on one core: 64 rollouts of 40 tokens of a policy with 0.86M parameters."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    import guerdon as gd
    from guerdon.credit import GroupNorm, ToTokens
    from guerdon.engines.trl import CreditTrainer

    rows = Dataset.from_list([{"prompt": f"{i % 9 + 1}+{i % 7 + 1}=", "answer": str(i)} for i in range(64)])
    args = GRPOConfig(
        str(folder), per_device_train_batch_size=64, num_generations=8, max_completion_length=40, max_steps=STEPS + 1, learning_rate=1e-4, logging_steps=10,
        save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, bf16=False, gradient_checkpointing=False, seed=seed,
    )  # fmt: skip
    if kind == "plain":
        return GRPOTrainer(policy, letters_reward, args, rows)
    system = gd.System({"letters": Letters()}, [GroupNorm("letters"), ToTokens("letters", "whole")])
    return CreditTrainer(policy, system, args, rows, log_dir=folder / "log")


def timed_steps(trainer: Any) -> list[tuple[float, float]]:
    """(wall, CPU) seconds of each optimiser step, the first (warm-up) left out."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began = time.perf_counter(), time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            taken.append((time.perf_counter() - self.began[0], time.process_time() - self.began[1]))

    taken: list[tuple[float, float]] = []
    # First in the list to begin and last to end: everything that our own callbacks do at a step is inside.
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return taken[1:]


def ratio_of(pairs: list[tuple[float, float]], rng: random.Random) -> dict[str, float]:
    """Median of ours / plain, with a 95 % bootstrap interval."""
    ratios = [ours / plain for plain, ours in pairs]
    draws = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {"ratio": statistics.median(ratios), "low": draws[50], "high": draws[1949]}


def run(json_path: str | Path | None = None) -> dict[str, Any]:
    """Measure, print nothing, return (and write) the numbers."""
    import torch

    from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    wall: list[tuple[float, float]] = []
    cpu: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as scratch, open(os.devnull, "w") as quiet:
        policy = Path(scratch) / "policy"
        tokenizer = char_tokenizer()
        new_model(tokenizer, TinyConfig(), 0).save_pretrained(policy)
        tokenizer.save_pretrained(policy)
        stdout, sys.stdout = sys.stdout, quiet
        try:
            for turn in range(ROUNDS):
                order = ("plain", "ours") if turn % 2 == 0 else ("ours", "plain")
                times = {
                    kind: timed_steps(make(kind, str(policy), Path(scratch) / f"{turn}{kind}", turn)) for kind in order
                }
                for plain, ours in zip(times["plain"], times["ours"], strict=True):
                    wall.append((plain[0], ours[0]))
                    cpu.append((plain[1], ours[1]))
        finally:
            sys.stdout = stdout
    rng = random.Random(0)
    result = {
        "name": "engine",
        "what": "CreditTrainer with a rule reward and GRPO credit over plain TRL, step time",
        "wall": ratio_of(wall, rng),
        "cpu": ratio_of(cpu, rng),
        "plain_step_s": statistics.median(plain for plain, _ in wall),
        "pairs": len(wall),
        "target": TARGET,
    }
    result["passed"] = result["cpu"]["ratio"] <= TARGET  # type: ignore[index]
    if json_path is not None:
        Path(json_path).parent.mkdir(parents=True, exist_ok=True)
        Path(json_path).write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1] if len(sys.argv) > 1 else None), indent=1))
