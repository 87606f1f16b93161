"""What the engine and a chain cost over plain TRL, with a rule reward: paired steps, as a ratio of step times.

    guerdon bench engine --json PATH        or        python benchmarks/bench_engine.py [PATH]

Two trainers live in one process and take turns, one optimiser step each, so that what else the machine does hits both members
of a pair. They do bit-equal work: same seed before each step, same reward, GRPO credit; step i of one is the pair of step i of
the other, and who goes first alternates. The ratio is the median over pairs with a bootstrap interval. Ours also writes
metrics.jsonl at every step and rollouts.jsonl at every tenth, as a run does. What the step calls of ours take is measured by
itself, too (`own_ms`): the ratio's interval is as wide as the machine is busy, this number is not.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

TARGET = 1.05
PAIRS, WARM_UP = 80, 3


def count_letters(text: str) -> float:
    return sum(c in "abcdef" for c in text) + 0.01 * len(text)


class Letters:
    """The rule reward as a signal."""

    scope, level = "row", "sequence"

    def __call__(self, rollouts: Any, scores: Any) -> Any:
        import torch

        from guerdon import Rewards

        return Rewards.sequence(torch.tensor([count_letters(text) for text in rollouts.completions]), rollouts)


def letters_reward(completions: list[str], **_: Any) -> list[float | None]:
    """The same rule as a TRL reward function."""
    return [count_letters(text) for text in completions]


def make(kind: str, policy: str, folder: Path, seed: int) -> Any:
    """A trainer whose steps take about 0.3 s on one core: 32 rollouts of 32 tokens of a policy with 0.86M parameters."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    import guerdon as gd
    from guerdon.credit import GroupNorm, ToTokens
    from guerdon.engines.trl import CreditTrainer

    rows = Dataset.from_list(
        [{"prompt": f"{i % 9 + 1}+{i % 7 + 1}=", "answer": str(i)} for i in range(4 * (PAIRS + WARM_UP))]
    )
    args = GRPOConfig(
        str(folder),
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=32,
        max_steps=PAIRS + WARM_UP,
        learning_rate=1e-5,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        seed=seed,
    )
    if kind == "plain":
        return GRPOTrainer(policy, letters_reward, args, rows)
    system = gd.System({"letters": Letters()}, [GroupNorm("letters"), ToTokens("letters", "whole")])
    return CreditTrainer(policy, system, args, rows, log_dir=folder / "log")


class Turns:
    """Whose step it is: plain, ours, ours, plain, plain, ..."""

    def __init__(self) -> None:
        self.taken = 0
        self.changed = threading.Condition()
        self.ready = threading.Barrier(2)  # a data loader draws a seed when it starts: both have, before the first step

    def wait(self, kind: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: ("plain", "ours")[(self.taken + 1) // 2 % 2] == kind)

    def passed(self) -> None:
        with self.changed:
            self.taken += 1
            self.changed.notify_all()


def timed_steps(kind: str, trainer: Any, turns: Turns, seconds: dict[str, list[tuple[float, float]]]) -> None:
    """Train, noting (wall, CPU) seconds of each optimiser step."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                turns.ready.wait()
            turns.wait(kind)
            torch.manual_seed(state.global_step)
            self.began = time.perf_counter(), time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seconds[kind].append((time.perf_counter() - self.began[0], time.process_time() - self.began[1]))
            turns.passed()

    trainer.add_callback(Clock())  # the last callback: what ours do at the end of a step is inside
    trainer.train()


def own_time(trainer: Any) -> list[float]:
    """CPU seconds spent in the engine's own calls, a list that grows by one a step."""
    spent: list[float] = []
    for owner, name in (
        (trainer, "_calculate_rewards"),
        (trainer, "credit"),
        (trainer, "_log_generation"),
        (trainer.hooks, "on_step_end"),
    ):
        inner = getattr(owner, name)

        def timed(*args: Any, _inner: Any = inner, _last: bool = name == "on_step_end", **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return _inner(*args, **kwargs)
            finally:
                running.append(time.process_time() - began)
                if _last:
                    spent.append(sum(running))
                    running.clear()

        setattr(owner, name, timed)
    running: list[float] = []
    return spent


def ratio_of(pairs: list[tuple[float, float]], rng: random.Random) -> dict[str, float]:
    """Median of ours / plain, with a 95 % bootstrap interval."""
    ratios = [ours / plain for plain, ours in pairs]
    draws = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {"ratio": statistics.median(ratios), "low": draws[50], "high": draws[1949]}


def run(json_path: str | Path | None = None) -> dict[str, Any]:
    """Measure, print a line, return (and write) the numbers."""
    import torch

    from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    seconds: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
    with tempfile.TemporaryDirectory() as scratch, open(os.devnull, "w") as quiet:
        policy = Path(scratch) / "policy"
        tokenizer = char_tokenizer()
        new_model(tokenizer, TinyConfig(), 0).save_pretrained(policy)
        tokenizer.save_pretrained(policy)
        stdout, sys.stdout = sys.stdout, quiet
        try:
            trainers = {kind: make(kind, str(policy), Path(scratch) / kind, 0) for kind in seconds}
            own = own_time(trainers["ours"])
            turns = Turns()
            threads = [threading.Thread(target=timed_steps, args=(k, t, turns, seconds)) for k, t in trainers.items()]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.stdout = stdout
        same = all(
            torch.equal(a, b)
            for a, b in zip(trainers["plain"].model.parameters(), trainers["ours"].model.parameters(), strict=True)
        )
    pairs = list(zip(seconds["plain"], seconds["ours"], strict=True))[WARM_UP:]
    rng = random.Random(0)
    ratio = ratio_of([(plain[0], ours[0]) for plain, ours in pairs], rng)
    result = {
        "name": "engine",
        "what": "CreditTrainer with a rule reward and GRPO credit over plain TRL, step time",
        "wall": ratio,
        "cpu": ratio_of([(plain[1], ours[1]) for plain, ours in pairs], rng),
        "plain_step_s": statistics.median(plain[0] for plain, _ in pairs),
        "own_ms": 1e3 * statistics.median(own[WARM_UP:]),
        "own_share_of_300_ms": statistics.median(own[WARM_UP:]) / 0.3,
        "pairs": len(pairs),
        "bit_equal_work": same,
        "target": TARGET,
        "passed": ratio["ratio"] <= TARGET and same,
    }
    print(
        f"step time over plain TRL: {ratio['ratio']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] at {result['plain_step_s']:.2f} s "
        f"a step ({len(pairs)} pairs); the engine's own calls {result['own_ms']:.1f} ms a step"
    )
    if json_path is not None:
        Path(json_path).parent.mkdir(parents=True, exist_ok=True)
        Path(json_path).write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else None)
