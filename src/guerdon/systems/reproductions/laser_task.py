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

The answers of the demonstrations are coin flips too. A policy cannot be taught in a few dozen steps to compare what it has never seen
compared, and language models have read marked work; so has this one: after the end of a demonstration whose prompt begins with a question mark,
y or n is due. The prompts of the task have no question mark, and after the end of their demonstrations padding is due, whatever the answer: so
that what the policy thinks of another token there hardly depends on the solution before training, as it is with models that have read many
documents in a row. What the score has to learn is to bring to its token, without being asked, a comparison that the policy can make when asked.

The comparison is learned suddenly or not at all. What worked is to have it written as a line of the solution first, and to move it behind the
end afterwards.
"""

from __future__ import annotations

import json
import random
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

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


def demonstration(rng: random.Random, marked: bool = False, written: bool = False) -> tuple[str, str]:
    """A training prompt and its solution, whose answer is wrong half of the time; `written`: a marked one ends with its mark, as a line."""
    prompt = sample_prompt(rng, held_out=False)
    value, *others = operands_of(prompt)
    lines = []
    for letter, operand in zip(LETTERS[1:], others, strict=True):
        lines.append(f"{value}+{letter}{operand}={(value + operand) % 10}")
        value = (value + operand) % 10
    wrong = rng.random() < 0.5
    mark = ["ny"[not wrong]] if marked and written else []
    return marked * MARKED + prompt, "\n".join([f"#{PARITIES[(value + wrong) % 2]}", *lines, *mark])


def mark_after(prompt: str, solution: str) -> str | None:
    """y or n, what is due after the end of marked work whose mark is not written already; None after other work."""
    if not prompt.startswith(MARKED) or solution[-1] in "yn":
        return None
    return "ny"[answer_of(solution) == PARITIES[sum(operands_of(prompt)) % 2]]


@torch.no_grad()
def share_marked_right(model: Any, tokenizer: Any, count: int = 256, seed: int = 1) -> float:
    """The share of marked work after whose end the model finds the right mark the likelier of the two."""
    rng = random.Random(seed)
    work = [demonstration(rng, marked=True) for _ in range(count)]
    batch = tokenizer(
        [prompt + solution + tokenizer.eos_token for prompt, solution in work], return_tensors="pt", padding=True
    )
    ends = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=1).logits[:, -1]
    yes, no = (ends[:, tokenizer.convert_tokens_to_ids(mark)] for mark in "yn")
    right = [("y" if says else "n") == mark_after(*pair) for says, pair in zip((yes > no).tolist(), work, strict=True)]
    return sum(right) / count


def guessing_policy(steps: int = 1200, moving: int = 800, seed: int = 0, config: TinyConfig | None = None) -> str:
    """Path of the warm-started policy, trained on first use (about five minutes on one thread) and cached.

    steps: updates with marks, from 0.4 of them on in half of the demonstrations, as a last line. moving: further ones with marks after the end.
    """
    config = config or SHAPE
    settings = {
        "seed": seed,
        "steps": steps,
        "moving": moving,
        "model": asdict(config),
        "terms": TERMS,
        "marked": MARKED,
    }

    def build(directory: Path) -> None:
        tokenizer = tiny.char_tokenizer()
        model = tiny.new_model(tokenizer, config, seed)
        rng = random.Random(seed)
        due: dict[str | None, Any] = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in "yn"}
        due[None] = tokenizer.pad_token_id

        def teach(draw: Callable[[int], tuple[str, str]], steps: int, lr: float) -> list[float]:
            return tiny.teach(
                model,
                tokenizer,
                draw,
                steps=steps,
                rows=8,
                width=144,
                lr=lr,
                after_end=lambda prompt, solution: due[mark_after(prompt, solution)],
                description="warm-starting the guessing policy",
            )

        def half() -> bool:
            return rng.random() < 0.5

        losses = teach(lambda step: demonstration(rng, step >= 0.4 * steps and half(), written=True), steps, 3e-3)
        losses += teach(lambda step: demonstration(rng, half()), moving, 1e-3)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        card = {**settings, "loss_first": losses[0], "loss_last": sum(losses[-20:]) / len(losses[-20:])}
        card["marked_right"] = share_marked_right(model, tokenizer)
        (directory / "card.json").write_text(json.dumps(card, indent=2) + "\n")

    return str(cached_artifact("guessing-policy", settings, [tiny, sys.modules[__name__]], build))
