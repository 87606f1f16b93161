"""A family of tiny language models, each further in its training on right solutions: what the gap between two of them says of their ratio.

One model is trained on right solutions of short sums; copies are kept after 1, 2, 4, 8 and 16 units. The true reward of a model is the share of
the lines it should write that it writes rightly. Pairs to rank are a right and a flawed solution of one held-out prompt.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guerdon.lm import LocalModel
from guerdon.tasks import arithmetic, tiny
from guerdon.tasks.arithmetic import NO_NOISE, Noise
from guerdon.tasks.tiny import TinyConfig

UNITS = (1, 2, 4, 8, 16)
TERMS = (2, 3)
FLAWED = Noise(wrong_sum=0.4, wrong_answer=0.15, filler=0.1)


SHAPE = TinyConfig(hidden=64, layers=2, heads=4, intermediate=192)


@dataclass(frozen=True)
class Size:
    """The size of a run: `unit` optimiser steps a unit, `pairs` to rank, `samples` for a model's true reward; for the tuning `prompts` with
    `responses` each, `epochs`, `lr`."""

    config: TinyConfig = SHAPE
    unit: int = 8
    pairs: int = 200
    samples: int = 256
    prompts: int = 96
    responses: int = 8
    epochs: int = 3
    lr: float = 1e-4


SMOKE = Size(
    TinyConfig(hidden=16, layers=1, heads=2, intermediate=16),
    unit=1,
    pairs=6,
    samples=4,
    prompts=4,
    responses=3,
    epochs=1,
)


def train(seed: int, steps: int, noise: Noise, size: Size, keep: Sequence[int] = ()) -> dict[int, LocalModel]:
    """Models after `keep` steps (default: the last) of training on solutions with `noise`, none of a held-out prompt."""
    tokenizer = tiny.char_tokenizer()
    model: Any = tiny.new_model(tokenizer, size.config, seed)
    rng, found = random.Random(seed), {}

    def demonstration(how: Noise) -> tuple[str, str]:
        while arithmetic.is_held_out(prompt := arithmetic.make_prompt(arithmetic.sample_operands(rng, TERMS))):
            pass
        return prompt, arithmetic.DELIMITER.join(arithmetic.solve(arithmetic.parse_prompt(prompt), how, rng))

    optimizer = tiny.adamw(model.parameters(), 3e-3, 0.01)
    for step in range(1, steps + 1):
        how = noise if step > 0.6 * steps else NO_NOISE
        packed = tiny.pack_rows(tokenizer, partial(demonstration, how), 8, 128)
        model.train()
        tiny.update_on(model, optimizer, packed)
        if step in (keep or (steps,)):
            found[step] = LocalModel(copy.deepcopy(model).eval(), tokenizer)
    return found


def family(seed: int, size: Size) -> dict[int, LocalModel]:
    """The model after each number of units, trained at a constant rate on right solutions."""
    found = train(seed, UNITS[-1] * size.unit, NO_NOISE, size, [unit * size.unit for unit in UNITS])
    return {unit: found[unit * size.unit] for unit in UNITS}


def true_rewards(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """For each solution the share of the lines it should have that it has, rightly."""
    found = []
    for prompt, text in zip(prompts, texts, strict=True):
        kinds = arithmetic.label_steps(prompt, arithmetic.split_solution(text))
        found.append(min(1.0, kinds.count("correct") / len(arithmetic.parse_prompt(prompt))))
    return found


def held_out_reward(model: LocalModel, samples: int, seed: int = 0) -> float:
    """Mean true reward of samples on held-out prompts at temperature 1."""
    prompts = arithmetic.sample_prompts(20, random.Random(1), held_out=True, terms=TERMS)
    asked = [prompts[i % len(prompts)] for i in range(samples)]
    found = model.generate(asked, max_new_tokens=40, temperature=1.0, seed=seed)
    return sum(true_rewards(asked, found.texts)) / samples


def pairs(count: int, seed: int = 0) -> tuple[list[str], list[str], list[str]]:
    """Prompts, right solutions, solutions with a wrong line."""
    rng = random.Random(seed)
    prompts = arithmetic.sample_prompts(20, random.Random(1), held_out=True, terms=TERMS)
    asked: list[str] = []
    right: list[str] = []
    flawed: list[str] = []
    while len(asked) < count:
        prompt = prompts[len(asked) % len(prompts)]
        operands = arithmetic.parse_prompt(prompt)
        lines = arithmetic.solve(operands, FLAWED, rng)
        if "wrong" not in arithmetic.label_steps(prompt, lines):
            continue
        asked.append(prompt)
        right.append(arithmetic.DELIMITER.join(arithmetic.solve(operands, Noise(filler=FLAWED.filler), rng)))
        flawed.append(arithmetic.DELIMITER.join(lines))
    return asked, right, flawed


def ranked(strong: Tensor, weak: Tensor) -> float:
    """Share of pairs in which the ratio of the right one is greater, ties half. strong, weak: [2, N] log-probabilities, right ones first."""
    difference = (strong - weak)[0] - (strong - weak)[1]
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank; NaN where one side is constant."""

    def ranks(values: Sequence[float]) -> Tensor:
        v = torch.tensor(values, dtype=torch.float64)
        return ((v[:, None] > v[None]).double().sum(1) + (v[:, None] == v[None]).double().sum(1) / 2)[None]

    both = torch.cat([ranks(xs), ranks(ys)])
    return float(torch.corrcoef(both)[0, 1])


def scored_pairs(models: Sequence[LocalModel], count: int) -> list[Tensor]:
    """For each model [2, N] log-probabilities of the right and of the flawed solutions, the end of sequence included."""
    from guerdon.lm.scorer import SpanScorer

    prompts, right, flawed = pairs(count)
    found = []
    for model in models:
        targets = [f"{text}{tiny.EOS}" for text in [*right, *flawed]]
        found.append(SpanScorer(model).score([*prompts, *prompts], targets).sum().reshape(2, -1).double())
    return found


# --- tuning on annotated pairs -----------------------------------------------------------------------------------------


def sampled_responses(policy: LocalModel, size: Size, seed: int, path: Path) -> None:
    """A file of prompts with responses of the policy, on training prompts."""
    from guerdon.io import RowWriter

    prompts = arithmetic.sample_prompts(size.prompts, random.Random(2), held_out=False, terms=TERMS)
    found = policy.generate(prompts, n=size.responses, max_new_tokens=40, temperature=1.0, seed=seed)
    n = size.responses
    with RowWriter(path) as out:
        out.write([{"prompt": p, "responses": found.texts[i * n : (i + 1) * n]} for i, p in enumerate(prompts)])


class RandomReward:
    """A reward that knows nothing: the pairs a coin would make."""

    scope, level = "row", "sequence"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __repr__(self) -> str:
        return f"RandomReward({self.seed})"

    def __call__(self, rollouts: Any, scores: Any = None) -> Any:
        from guerdon.rewards import Rewards

        values = [random.Random(f"{self.seed}|{p}|{i}").random() for i, p in enumerate(rollouts.prompts)]
        return Rewards.sequence(values, rollouts)


def tune(policy: LocalModel, file: Path, size: Size, seed: int, scratch: Path) -> LocalModel:
    """SimPO on a file of pairs, through TRL's trainer: beta 2.5, gamma 1.375, as the paper's Llama-3-8B-Instruct."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    from guerdon.io import read_rows
    from guerdon.lm.load import load_model, save_model

    rows = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for batch in read_rows(file, 256) for row in batch]
    folder = save_model(policy.model, policy.tokenizer, scratch / "policy")
    model, tokenizer = load_model(folder)
    args = CPOConfig(
        str(scratch),
        loss_type="simpo",
        cpo_alpha=0.0,
        beta=2.5,
        simpo_gamma=1.375,
        learning_rate=size.lr,
        lr_scheduler_type="constant",
        num_train_epochs=size.epochs,
        per_device_train_batch_size=16,
        max_length=128,
        seed=seed,
        save_strategy="no",
        logging_steps=1000,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        remove_unused_columns=False,
    )
    trainer = CPOTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return LocalModel(model.eval(), tokenizer)
