"""Sums of two small numbers in two templates, and a policy that does not always know and then answers what the template suggests.

    view 0   7+12=\\n        #19
    view 1   l & g?\\n       #19          the same sum, its numbers as letters, the operands the other way round

Three tiers of difficulty, by the question alone: half of the questions are easy, a quarter middling, a quarter hard. The policy is made
by supervised learning of answers drawn from `TIERS`: right, the template's own answer (5 in view 0, 21 in view 1), or a near miss. In the
hard quarter the template's own answer is the more frequent one, so a vote within one view is usually wrong there.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from guerdon.signals.verifiable.verdict import Verdict
from guerdon.tasks.base import Row, Task
from guerdon.tasks.views import Rewrite, paired_rows

LARGEST = 13
OWN_ANSWER = ("5", "21")  # of each template
TIERS = {
    "easy": (0.7, 0.1),
    "middling": (0.45, 0.3),
    "hard": (0.2, 0.45),
}  # right, the template's own; the rest near misses


def make_prompt(a: int, b: int, view: int) -> str:
    return f"{a}+{b}=\n" if view == 0 else f"{chr(97 + b)} & {chr(97 + a)}?\n"


def tier(a: int, b: int) -> str:
    """A property of the question, the same in both views."""
    return ("easy", "easy", "middling", "hard")[random.Random(100 * a + b).randrange(4)]


def two_templates() -> Task:
    """All 196 questions in both templates, to train on without their answers, and to measure on: nothing is learned from a label."""
    rows: list[Row] = []
    second: list[Rewrite] = []
    for a in range(LARGEST + 1):
        for b in range(LARGEST + 1):
            rows.append({"prompt": make_prompt(a, b, 0), "answer": str(a + b), "tier": tier(a, b)})
            second.append(Rewrite(make_prompt(a, b, 1)))

    def verify(completions: Sequence[str], asked: Sequence[Row]) -> list[Verdict]:
        return [
            Verdict(float(text.strip() == f"#{row['answer']}"), f"answered {text[:8]!r}")
            for text, row in zip(completions, asked, strict=True)
        ]

    # A task needs a held-out row; the measurements of this reproduction are on the training questions.
    held_out = [{"prompt": "0+0=?", "answer": "0"}]
    return Task("two-templates", paired_rows(rows, second), held_out, verify, max_completion_length=5, notes={"extract": "after:#"})  # fmt: skip


def draw_answer(row: Row, rng: random.Random) -> str:
    """What the policy is taught to answer, by tier and view."""
    right, own = TIERS[row["tier"]]
    luck, total = rng.random(), int(row["answer"])
    if luck < right:
        return f"#{total}"
    if luck < right + own:
        return f"#{OWN_ANSWER[row['view']]}"
    return f"#{max(0, total + rng.choice((-3, -2, -1, 1, 2, 3)))}"


@dataclass(frozen=True)
class Start:
    """The starting policy: `steps` of supervised learning on packed answers."""

    steps: int = 1200
    hidden: int = 64
    layers: int = 2
    rows: int = 8
    row_tokens: int = 128
    lr: float = 4e-3


def starting_policy(settings: Start = Start(), seed: int = 0) -> str:
    """Path of the starting policy, trained on first use (half a minute on one core) and cached."""
    from guerdon.tasks import tiny
    from guerdon.tasks.cache import cached_artifact

    def build(directory: Path) -> None:
        tokenizer = tiny.char_tokenizer()
        model = _warm_start(tokenizer, settings, seed)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        (directory / "card.json").write_text(json.dumps(asdict(settings), indent=2) + "\n")

    return str(
        cached_artifact(
            "two-templates-policy", {"seed": seed, **asdict(settings)}, [tiny, sys.modules[__name__]], build
        )
    )


def _warm_start(tokenizer: Any, settings: Start, seed: int) -> Any:
    from guerdon.tasks.tiny import Schedule, TinyConfig, adamw, new_model, pack_rows, progress

    rng = random.Random(seed)
    model = new_model(tokenizer, TinyConfig(settings.hidden, settings.layers, 4, 3 * settings.hidden, 64), seed)
    schedule = Schedule(settings.lr, settings.steps, min(50, settings.steps))
    optimizer = adamw(model.parameters(), settings.lr, 0.01)
    rows = two_templates().train
    model.train()

    def draw() -> tuple[str, str]:
        row = rng.choice(rows)
        return row["prompt"], draw_answer(row, rng)

    for step in progress(settings.steps, "warm-starting the policy of the two templates"):
        packed = pack_rows(tokenizer, draw, settings.rows, settings.row_tokens)
        schedule.apply(optimizer, step)
        logits = model(
            input_ids=packed.ids, attention_mask=packed.attention, position_ids=packed.positions, use_cache=False
        ).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), packed.targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()
