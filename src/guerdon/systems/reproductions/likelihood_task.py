"""Sums of three digits modulo ten, with references of one token or of some fifty: where likelihood rewards come apart.

    prompt        3+5+4=\n
    a completion  3+5=8 8+4=2 #2.                                        a scratchpad, "#", the answer
    reference     2                                                      regime "short", 1 token
                  2 because 3 and 5 make 8, and 8 and 4 make 2           regime "long", 44 tokens, one for each character

The last digit can hardly be seen from the prompt and follows from the scratchpad. The starting policy has learned from
demonstrations whose sums are sometimes wrong, and has never seen an answer in the long form.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from guerdon.signals.likelihood import TagSplice
from guerdon.signals.verifiable.verdict import Verdict
from guerdon.tasks.base import Row, Task

Regime = Literal["short", "long"]
REGIMES: tuple[Regime, Regime] = ("short", "long")
SPLICE = TagSplice("#", before="", after=".")


def make_prompt(a: int, b: int, c: int) -> str:
    return f"{a}+{b}+{c}=\n"


def digits_of(prompt: str) -> tuple[int, int, int]:
    a, b, c = (int(digit) for digit in prompt[:5:2])
    return a, b, c


def reference_of(prompt: str, regime: Regime) -> str:
    """The reference answer of a prompt."""
    a, b, c = digits_of(prompt)
    first, last = (a + b) % 10, (a + b + c) % 10
    return (
        str(last) if regime == "short" else f"{last} because {a} and {b} make {first}, and {first} and {c} make {last}"
    )


def demonstration(prompt: str, slip: float, rng: random.Random) -> str:
    """A scratchpad and a short answer; each sum is wrong with probability `slip`, and the answer follows the scratchpad."""
    a, b, c = digits_of(prompt)

    def total(x: int, y: int) -> int:
        wrong = rng.randint(1, 9) if rng.random() < slip else 0
        return (x + y + wrong) % 10

    first = total(a, b)
    last = total(first, c)
    return f"{a}+{b}={first} {first}+{c}={last} #{last}."


def digit_sums(regime: Regime, *, train_size: int = 600, held_out_size: int = 200, seed: int = 0) -> Task:
    """The task in one regime; the same prompts in both."""
    prompts = [make_prompt(a, b, c) for a in range(10) for b in range(10) for c in range(10)]
    random.Random(seed).shuffle(prompts)
    rows: list[Row] = [{"prompt": prompt, "answer": reference_of(prompt, regime)} for prompt in prompts]

    def verify(completions: Sequence[str], asked: Sequence[Row]) -> list[Verdict]:
        verdicts = []
        for text, row in zip(completions, asked, strict=True):
            answer = text.partition("#")[2].partition(".")[0]
            verdicts.append(Verdict(float(answer == row["answer"]), f"answered {answer!r}"))
        return verdicts

    return Task(
        name=f"digit-sums-{regime}",
        train=rows[:train_size],
        held_out=rows[train_size : train_size + held_out_size],
        verify=verify,
        max_completion_length=20 if regime == "short" else 64,
        delimiter=" ",
    )


@dataclass(frozen=True)
class Start:
    """The starting policy: `steps` of supervised learning, the last 30 % of them with sums that are wrong at a rate of `slip`."""

    steps: int = 2500
    slip: float = 0.2
    hidden: int = 64
    layers: int = 2
    rows: int = 8
    row_tokens: int = 128
    lr: float = 4e-3


def starting_policy(settings: Start = Start(), seed: int = 0) -> str:
    """Path of the starting policy, trained on first use (a minute on one core) and cached."""
    from guerdon.cache import cached_artifact
    from guerdon.tasks import tiny

    def build(directory: Path) -> None:
        tokenizer = tiny.char_tokenizer()
        model = _warm_start(tokenizer, settings, seed)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        (directory / "card.json").write_text(json.dumps(asdict(settings), indent=2) + "\n")

    return str(
        cached_artifact("digit-sums-policy", {"seed": seed, **asdict(settings)}, [tiny, sys.modules[__name__]], build)
    )


def _warm_start(tokenizer: Any, settings: Start, seed: int) -> Any:
    from guerdon.tasks import tiny

    rng = random.Random(seed)
    config = tiny.TinyConfig(settings.hidden, settings.layers, 4, 3 * settings.hidden, 256)
    model = tiny.new_model(tokenizer, config, seed)
    prompts = [row["prompt"] for row in digit_sums("short").train]

    def drawn(step: int) -> tuple[str, str]:
        prompt = rng.choice(prompts)
        return prompt, demonstration(prompt, settings.slip if step >= 0.7 * settings.steps else 0.0, rng)

    tiny.teach(
        model,
        tokenizer,
        drawn,
        steps=settings.steps,
        rows=settings.rows,
        width=settings.row_tokens,
        lr=settings.lr,
        warmup=50,
        description="warm-starting the policy of the digit sums",
    )
    return model
