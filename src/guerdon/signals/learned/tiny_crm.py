"""The conciseness reward model of the embedded default: says how much of a solution of "sums" is needed.

It goes through the whole published pipeline (`train_crm`) in small: a scripted writer solves each question tersely and redundantly (and is now
and then not terse, or hardly redundant, as real writers are), a rule judges by the share of needed lines, the filter keeps what
teaches something, and a tiny causal model learns to say the score. Longer sums need longer solutions, so length alone does not tell.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from guerdon.cache import cached_artifact
from guerdon.signals.learned import conciseness, train_crm
from guerdon.signals.learned.conciseness import HIGHEST, LOWEST, ask_scores, conciseness_prompt
from guerdon.signals.learned.train_crm import SolutionPair, discriminative, examples
from guerdon.tasks import arithmetic, tiny
from guerdon.tasks.arithmetic import DELIMITER, NO_NOISE

TEMPLATE = "{question}{solution}\n?"
TERMS = (2, 5)


def rule_score(question: str, solution: str) -> float:
    """The judge: the share of lines that are needed, in [0.1, 1]. Repeats, filler and steps that lead nowhere are wasted lines."""
    lines = arithmetic.split_solution(solution)
    due = arithmetic.solve(arithmetic.parse_prompt(question), NO_NOISE, random.Random(0))
    needed = 0
    for line in lines:
        needed += needed < len(due) and line == due[needed]
    return min(HIGHEST, max(LOWEST, needed / max(1, len(lines))))


def with_waste(lines: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """The solution with `count` wasted lines put in before its answer: repeats of a step made before, filler, irrelevant sums."""
    wasted = list(lines)
    for _ in range(count):
        at = rng.randint(0, len(wasted) - 1)
        before = [line for line in wasted[:at] if "+" in line]
        value = rng.randint(2, 9)
        choices = ["ok so far", f"{value}+i{rng.randint(1, 5)}={value + 5}", *before]
        wasted.insert(at, rng.choice(choices))
    return wasted


def written_pair(rng: random.Random, *, held_out: bool) -> SolutionPair:
    """One question of one side of the split, solved twice and judged."""
    while True:
        operands = arithmetic.sample_operands(rng, TERMS)
        question = arithmetic.make_prompt(operands)
        if arithmetic.is_held_out(question) == held_out:
            break
    lines = arithmetic.solve(operands, NO_NOISE, rng)
    terse = with_waste(lines, rng.choice((0, 0, 0, 1, 2)), rng)
    wordy = with_waste(lines, rng.randint(1, 2 * len(lines)), rng)
    first, second = (DELIMITER.join(text) for text in (terse, wordy))
    return SolutionPair(question, first, second, rule_score(question, first), rule_score(question, second))


def written_pairs(count: int, seed: int, *, held_out: bool) -> list[SolutionPair]:
    """`count` judged pairs, not filtered."""
    rng = random.Random(seed)
    return [written_pair(rng, held_out=held_out) for _ in range(count)]


def tiny_crm(*, seed: int = 0, pairs: int = 4000, base: str | None = None) -> str:
    """Path of the small CRM, trained on first use (one to two minutes on one thread) and cached.

    pairs: written before filtering. base: path of the causal model it starts from; default: `tiny_policy(0)`.
    """
    base = base or tiny.tiny_policy(0)
    settings = {"seed": seed, "pairs": pairs, "base": Path(base).name}

    def build(directory: Path) -> None:
        kept = discriminative(written_pairs(pairs, seed, held_out=False))
        trained = train_crm.train_crm(
            base, examples(kept), template=TEMPLATE, lr=1e-3, batch_size=16, seed=seed, output=directory
        )
        losses = trained.losses
        card = {
            **settings,
            "kept": len(kept),
            "loss_first": losses[0],
            "loss_last": sum(losses[-10:]) / len(losses[-10:]),
        }
        (directory / "card.json").write_text(json.dumps(card, indent=2) + "\n")

    sources = [arithmetic, tiny, conciseness, train_crm, sys.modules[__name__]]
    return str(cached_artifact("tiny-crm", settings, sources, build))


def scored(model: Any, solutions: Sequence[tuple[str, str]]) -> Tensor:
    """[N] scores a CRM trained here gives to (question, solution) pairs; NaN where it wrote no number. model: a LocalModel."""
    prompts = [conciseness_prompt(question, solution, TEMPLATE) for question, solution in solutions]
    return ask_scores(model, prompts)[0]
