"""Sums with remarks: a policy that slips often and talks in between, so that its wrong solutions are no less probable than its right ones.

The prompts and the verifier are the built-in task's ("sums", four operands). The demonstrations differ: every line states a total that is
five too large one time in four, and before every second line stands a remark of three random letters, which says nothing and costs more
probability than a slip does. The mean log-probability of such a solution is a poor guide to whether it is right, as wording makes it for
language models.

A policy cannot be taught in a few dozen steps to check what it has never seen checked. Language models have read marked work; so has this
one: half of the later demonstrations begin with a question mark, and in these every line is followed by y or n. The prompts of the task have
no question mark, and solutions no marks.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict
from pathlib import Path

from guerdon.cache import cached_artifact
from guerdon.tasks import arithmetic, tiny
from guerdon.tasks.arithmetic import LETTERS, sums
from guerdon.tasks.base import Task
from guerdon.tasks.tiny import TinyConfig

TERMS = (4, 4)
SLIP, REMARK = 0.25, 0.5
OFF = 5  # by how much a slip is too large; always the same, so that a slip is one token away and as likely as a habit
MARKED = "?"  # what a prompt of marked work begins with
SHAPE = TinyConfig(hidden=96, layers=3, heads=4, intermediate=256)


def remarked_sums() -> Task:
    """The task, with every prompt of four operands: 0.8 of them to train on."""
    return sums(terms=TERMS, train_size=440, held_out_size=110)


def demonstration(rng: random.Random, slip: float, marked: bool = False) -> tuple[str, str]:
    """A training prompt and a solution whose lines slip with probability `slip` each; `marked` = with y or n after each line."""
    while True:
        operands = arithmetic.sample_operands(rng, TERMS)
        prompt = arithmetic.make_prompt(operands)
        if not arithmetic.is_held_out(prompt):
            return (MARKED if marked else "") + prompt, "\n".join(_lines(operands, slip, marked, rng))


def _lines(operands: list[int], slip: float, marked: bool, rng: random.Random) -> list[str]:
    lines: list[str] = []
    value = operands[0]
    for letter, operand in zip(LETTERS[1:], operands[1:], strict=False):
        lines += _remark(rng)
        slipped = rng.random() < slip
        total = value + operand + OFF * int(slipped)
        lines.append(f"{value}+{letter}{operand}={total}" + ("ny"[not slipped] if marked else ""))
        value = total
    right = value == sum(operands)
    return [*lines, *_remark(rng), f"#{value}" + ("ny"[right] if marked else "")]


def _remark(rng: random.Random) -> list[str]:
    return ["(" + "".join(rng.choices("klmnopqrstuvwxyz", k=3)) + ")"] if rng.random() < REMARK else []


def remarking_policy(steps: int = 900, seed: int = 0, config: TinyConfig | None = None) -> str:
    """Path of the warm-started policy, trained on first use (about three minutes on one thread) and cached."""
    config = config or SHAPE
    settings = {
        "seed": seed,
        "steps": steps,
        "model": asdict(config),
        "slip": SLIP,
        "remark": REMARK,
        "marked": MARKED,
        "off": OFF,
    }

    def build(directory: Path) -> None:
        tokenizer = tiny.char_tokenizer()
        model = tiny.new_model(tokenizer, config, seed)
        rng = random.Random(seed)

        def drawn(step: int) -> tuple[str, str]:
            late = step >= 0.4 * steps  # slips and marks make the arithmetic slow to learn
            return demonstration(rng, SLIP if late else 0.0, marked=late and rng.random() < 0.5)

        losses = tiny.teach(
            model, tokenizer, drawn, steps=steps, rows=8, width=192, description="warm-starting the remarking policy"
        )
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        card = {**settings, "loss_first": losses[0], "loss_last": sum(losses[-20:]) / len(losses[-20:])}
        (directory / "card.json").write_text(json.dumps(card, indent=2) + "\n")

    return str(cached_artifact("remarking-policy", settings, [arithmetic, tiny, sys.modules[__name__]], build))
