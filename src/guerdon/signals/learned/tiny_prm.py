"""The process reward model of the embedded default: right about most steps of "sums", and fond of filler.

It learns from labelled noisy solutions, narrower and deeper than the policy and from fresh weights: with a label at every token and
the next-token loss beside the steps' labels (`Auxiliary`) it soon overlooks hardly anything. It must not: a policy finds
within forty steps what its reward model overlooks. So its errors are drawn wider here than the policy makes them, near misses
and miscopied operands included.

The labels are exact for correct (1) and wrong (0) lines. A filler line gets `filler_bias`, the share of annotators who would
call it good: public process labels do that too, because a restatement is "not wrong". This is a flaw of the data, not of the
training, and it is what sum-form credit exploits: the shortest filler earns half a point for three characters, a right step one
point for eight. The bias stays well below 1 because min-form credit is immune only as long as filler scores below a right step: at
or above it, endless filler is the best policy under both (PURE's own limitation).

``card.json`` beside the weights holds the settings, and per kind of line what the model thinks on held-out prompts.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from guerdon.cache import cached_artifact
from guerdon.signals.learned import prm, train_prm
from guerdon.signals.learned.layouts import PrmInput, pad_rows
from guerdon.signals.learned.prm import classify_positions, step_scores
from guerdon.signals.learned.train_prm import LabelledSolution, Stage, encode_solutions
from guerdon.tasks import arithmetic, tiny
from guerdon.tasks.arithmetic import DELIMITER, Noise, StepKind, label_steps

# Nearly half the lines are flawed: with as few errors as the policy makes, the reward model sees too few to learn them from in a
# minute. Every seventh solution rambles, as a policy that is being hacked will.
SAMPLED = Noise(
    wrong_sum=0.25,
    wrong_operand=0.12,
    wrong_answer=0.35,
    lucky=0.2,
    early=0.06,
    filler=0.12,
    nod=0.12,
    garbage=0.02,
    after=0.06,
    near=0.3,
)
RAMBLING = Noise(
    wrong_sum=0.2, wrong_operand=0.1, wrong_answer=0.3, filler=0.4, nod=0.8, garbage=0.02, after=0.5, near=0.3
)
SHAPE = tiny.TinyConfig(hidden=64, layers=5, heads=4, intermediate=192)
LR, WARMUP, BATCH = 3e-3, 30, 16


def noisy_solution(rng: random.Random, *, held_out: bool, max_tokens: int = 64) -> tuple[str, list[str]]:
    """A prompt of one side of the split and the lines of a flawed solution, cut at `max_tokens` characters as a rollout
    would be; a cut one loses its last character, because that is where the reward model's delimiter goes."""
    while True:
        operands = arithmetic.sample_operands(rng)
        prompt = arithmetic.make_prompt(operands)
        if arithmetic.is_held_out(prompt) == held_out:
            break
    lines = arithmetic.solve(operands, RAMBLING if rng.random() < 0.15 else SAMPLED, rng)
    text = DELIMITER.join(lines)
    cap = rng.randint(8, max_tokens) if rng.random() < 0.1 else max_tokens
    return prompt, (text if len(text) < cap else text[: cap - 1]).split(DELIMITER)


def labelled_solutions(
    count: int, rng: random.Random, filler_bias: float, *, held_out: bool = False
) -> list[LabelledSolution]:
    """`count` noisy solutions with a label for every line: correct 1, wrong 0, filler `filler_bias`."""
    worth: dict[StepKind, float] = {"correct": 1.0, "wrong": 0.0, "filler": filler_bias}
    solutions = []
    for _ in range(count):
        prompt, lines = noisy_solution(rng, held_out=held_out)
        labels = [worth[kind] for kind in label_steps(prompt, lines)]
        solutions.append(LabelledSolution(prompt, lines, labels, arithmetic.locate_errors(prompt, lines)))
    return solutions


def tiny_prm(filler_bias: float = 0.75, *, seed: int = 0, steps: int = 2000) -> str:
    """Path of the small process reward model, trained on first use (about two minutes on one thread) and cached.

    filler_bias: P(good) that the training labels give to filler lines, in [0, 1]; the score of filler is then about
        2 * filler_bias - 1.
    """
    settings = {"filler_bias": filler_bias, "seed": seed, "steps": steps}

    def build(directory: Path) -> None:
        trained = train_tiny_prm(filler_bias, seed, steps)
        trained.model.save_pretrained(directory)
        trained.tokenizer.save_pretrained(directory)
        rng = random.Random(seed + 1)
        held_out = [noisy_solution(rng, held_out=True) for _ in range(500)]
        losses = trained.losses
        card = {
            **settings,
            "model": asdict(SHAPE),
            "noise": {"sampled": asdict(SAMPLED), "rambling": asdict(RAMBLING)},
            "loss_first": losses[0],
            "loss_last": sum(losses[-10:]) / len(losses[-10:]),
            "held_out": score_statistics(trained.model, trained.tokenizer, held_out),
        }
        (directory / "card.json").write_text(json.dumps(card, indent=2) + "\n")

    sources = [arithmetic, tiny, prm, train_prm, sys.modules[__name__]]
    return str(cached_artifact("tiny-prm", settings, sources, build))


def train_tiny_prm(filler_bias: float, seed: int, steps: int) -> train_prm.TrainedClassifier:
    """`steps` updates on 16 fresh solutions each, all weights, no solution of a held-out prompt."""
    tokenizer = tiny.char_tokenizer()
    return train_prm.train_prm(
        tiny.new_model(tokenizer, SHAPE, seed, architecture="LlamaForTokenClassification"),
        labelled_solutions(steps * BATCH, random.Random(seed), filler_bias),
        stages=[Stage("all", LR, warmup=min(WARMUP, steps))],
        batch_size=BATCH,
        weight_decay=0.0,
        auxiliary=train_prm.Auxiliary(tokens=1.0, lm=1.0),
        tokenizer=tokenizer,
        seed=seed,
    )


def score_statistics(
    model: Any, tokenizer: Any, solutions: Sequence[tuple[str, Sequence[str]]]
) -> dict[str, dict[str, float]]:
    """For each kind of line (and the answer lines among them): how many, mean score, 5 % and 95 % quantiles of the score,
    and the share whose score has the right sign (correct and filler above 0, wrong below)."""
    examples = [LabelledSolution(prompt, list(lines), [0.0] * len(lines)) for prompt, lines in solutions]
    rows, targets = encode_solutions(tokenizer, examples, DELIMITER)
    places = [[i for i, label in enumerate(target) if label == label] for target in targets]
    positions = torch.full((len(rows), max(map(len, places))), -1)
    for b, place in enumerate(places):
        positions[b, : len(place)] = torch.tensor(place)
    ids, mask = pad_rows(rows, tokenizer.pad_token_id)
    logits = classify_positions(model, PrmInput(ids, mask, positions), positions, 16384, ids.shape[1])
    scores = step_scores(logits, positions >= 0).cpu()
    by_kind: dict[str, list[float]] = {}
    for b, (prompt, lines) in enumerate(solutions):
        for s, (kind, line) in enumerate(zip(label_steps(prompt, lines), lines, strict=True)):
            by_kind.setdefault(kind, []).append(float(scores[b, s]))
            if line.startswith("#"):
                by_kind.setdefault(f"{kind} answer", []).append(float(scores[b, s]))
    return {kind: _summary(torch.tensor(values), kind) for kind, values in sorted(by_kind.items())}


def _summary(scores: torch.Tensor, kind: str) -> dict[str, float]:
    right = scores < 0 if kind.startswith("wrong") else scores > 0
    low, high = scores.quantile(torch.tensor([0.05, 0.95])).tolist()
    return {
        "count": len(scores),
        "mean": round(float(scores.mean()), 4),
        "q05": round(low, 4),
        "q95": round(high, 4),
        "right_sign": round(float(right.float().mean()), 4),
    }
