"""Is the sum even? The answer comes first: in its head the policy can only guess it, and the lines that follow show whether it was right.

    prompt      a3+b9+c4+d2+e7+f6=?\n
    solution    #even\n              the answer, before any reasoning; this line is what is verified
                3+b9=2\n
                2+c4=6\n
                6+d2=8\n
                8+e7=5\n
                5+f6=1               the derivation, of last digits; 1 is odd, so the answer was wrong, and whoever reads to the end can see it

The parity of six numbers is out of reach for one forward pass of a small model and easy in writing. So its solutions are as probable
when they are wrong as when they are right, samples of one prompt disagree, and a majority is worth no more than a sample: what a score that
is read after the end is for. Votes on tasks that a policy solves nine times in ten leave nothing to gain.

A policy cannot be taught in a few dozen steps to compare what it has never seen compared. Language models have read marked work; so has this
one: half of the later demonstrations begin with a question mark, have an answer that is wrong half of the time, and end with y or n. The
prompts of the task have no question mark, and solutions no mark. After the end of a demonstration the model learns to expect padding, so that
what it thinks of another token there hardly depends on the solution, as it is with models that have read many documents in a row.
"""

from __future__ import annotations

import json
import random
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from guerdon.cache import cached_artifact
from guerdon.signals.verifiable.verdict import Verdict
from guerdon.tasks import tiny
from guerdon.tasks.base import Row, Task
from guerdon.tasks.tiny import TinyConfig

TERMS = 6
LETTERS = "abcdef"
PARITIES = ("even", "odd")
MARKED = "?"  # what a prompt of marked work begins with
SHAPE = TinyConfig(hidden=96, layers=3, heads=4, intermediate=256)


def make_prompt(operands: Sequence[int]) -> str:
    """``a3+b9+c4+d2+e7+f6=?`` and a newline."""
    return "+".join(f"{letter}{n}" for letter, n in zip(LETTERS, operands, strict=True)) + "=?\n"


def operands_of(prompt: str) -> list[int]:
    """The digits of a prompt."""
    return [int(c) for c in prompt if c.isdigit()]


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the held-out fifth: a property of its text, so the warm-start cannot have seen it."""
    return zlib.crc32(prompt.encode()) % 5 == 0


def sample_prompt(rng: random.Random, held_out: bool) -> str:
    """A prompt of one side of the split, digits from 1 to 9."""
    while is_held_out(prompt := make_prompt([rng.randint(1, 9) for _ in range(TERMS)])) != held_out:
        pass
    return prompt


def answer_of(text: str) -> str | None:
    """The answer of a solution: what its first line says after #."""
    first = text.split("\n", 1)[0]
    return first[1:] if first[:1] == "#" and first[1:] in PARITIES else None


def parities(train_size: int = 1000, held_out_size: int = 110, seed: int = 0) -> Task:
    """The task. Same seed, same rows."""
    rng = random.Random(seed)

    def rows(count: int, held_out: bool) -> list[Row]:
        found: dict[str, Row] = {}
        while len(found) < count:
            prompt = sample_prompt(rng, held_out)
            found[prompt] = {"prompt": prompt, "answer": PARITIES[sum(operands_of(prompt)) % 2]}
        return list(found.values())

    def verify(completions: Sequence[str], asked: Sequence[Row]) -> list[Verdict]:
        found = [answer_of(text) for text in completions]
        return [
            Verdict(1.0) if answer == row["answer"] else Verdict(0.0, f"the first line answers {answer}")
            for answer, row in zip(found, asked, strict=True)
        ]

    return Task(
        name="parities",
        train=rows(train_size, False),
        held_out=rows(held_out_size, True),
        verify=verify,
        max_completion_length=48,
        delimiter="\n",
    )


def demonstration(rng: random.Random, marked: bool = False) -> tuple[str, str]:
    """A training prompt and its solution; `marked`: the answer is wrong half of the time, and y or n stands at the end."""
    prompt = sample_prompt(rng, held_out=False)
    value, *others = operands_of(prompt)
    lines = []
    for letter, operand in zip(LETTERS[1:], others, strict=True):
        lines.append(f"{value}+{letter}{operand}={(value + operand) % 10}")
        value = (value + operand) % 10
    if not marked:
        return prompt, "\n".join([f"#{PARITIES[value % 2]}", *lines])
    wrong = rng.random() < 0.5
    return MARKED + prompt, "\n".join([f"#{PARITIES[(value + wrong) % 2]}", *lines, "ny"[not wrong]])


def guessing_policy(steps: int = 1200, seed: int = 0, config: TinyConfig | None = None) -> str:
    """Path of the warm-started policy, trained on first use (about three minutes on one thread) and cached."""
    config = config or SHAPE
    settings = {"seed": seed, "steps": steps, "model": asdict(config), "terms": TERMS, "marked": MARKED}

    def build(directory: Path) -> None:
        tokenizer = tiny.char_tokenizer()
        model = tiny.new_model(tokenizer, config, seed)
        rng = random.Random(seed)
        losses = tiny.teach(
            model,
            tokenizer,
            lambda step: demonstration(rng, marked=step >= 0.4 * steps and rng.random() < 0.5),
            steps=steps,
            rows=8,
            width=144,
            after_end=tokenizer.pad_token_id,
            description="warm-starting the guessing policy",
        )
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        card = {**settings, "loss_first": losses[0], "loss_last": sum(losses[-20:]) / len(losses[-20:])}
        (directory / "card.json").write_text(json.dumps(card, indent=2) + "\n")

    return str(cached_artifact("guessing-policy", settings, [tiny, sys.modules[__name__]], build))
