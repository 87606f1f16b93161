"""What path faithfulness says about hand-made chains under a 135M instruct model, and about hand-made wrong solutions under a tiny policy.

`ITEMS`: 20 short reading questions, each with a gold chain of three sentences and another person's reasoning to the same end. Each reasoning
is scored against the gold chain of its own question, and so is the reasoning of the next question in its place.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from guerdon.rollouts import Rollouts
from guerdon.segment.reasoning import LAYOUTS, EqualPieces
from guerdon.signals.likelihood.gold_chain import ChainColumn
from guerdon.signals.likelihood.path_faithfulness import Baseline, PathFaithfulness, placeholder
from guerdon.systems.p2s import p2s
from guerdon.systems.reproductions.p2s_training import LAYOUT
from guerdon.tasks.arithmetic import NO_NOISE, parse_prompt, sample_prompts, solve
from guerdon.tasks.hinted import TERMS

INSTRUCTION = "\nReason between <think> and </think>, then give only the answer between <answer> and </answer>."
GENERIC = ("That is all we need to know.", "So this settles the question.", "Now we can give the answer.")


@dataclass(frozen=True)
class Item:
    """A question, a gold chain, another reasoning of two sentences, and the answer."""

    question: str
    gold: str
    steps: str
    answer: str


# (question, gold chain, another reasoning, answer) by kind; {a} and {b} are numbers, {n} and {m} names, {o} a thing.
_KINDS = (
    (
        "{n} picked {a} {o} in the morning and {b} {o} after lunch. How many {o} did {n} pick?",
        "In the morning {n} picked {a} {o}. After lunch {n} picked {b} more. Together that is {a} + {b} = {r} {o}.",
        "The morning gave {n} {a} {o}. The time after lunch gave {b} {o} more.",
        lambda a, b: a + b,
    ),
    (
        "{n} is {a} years old and {m} is {b} years younger. How old is {m}?",
        "{n} is {a} years old. {m} is {b} years younger than {n}. So {m} is {a} - {b} = {r} years old.",
        "The age of {n} is {a}. The age of {m} is lower by {b} years.",
        lambda a, b: a - b,
    ),
    (
        "The train from {p} left with {a} passengers, and {b} of them got off in {q}. How many were still on the train?",
        "The train left {p} with {a} passengers. In {q}, {b} of them got off. So {a} - {b} = {r} passengers stayed.",
        "There were {a} passengers when the train left {p}. Then {b} got off in {q}.",
        lambda a, b: a - b,
    ),
    (
        "In {p} there are {a} streets with {b} {o} in each. How many {o} are there in {p}?",
        "{p} has {a} streets. Each street has {b} {o}. So there are {a} * {b} = {r} {o} in {p}.",
        "There are {a} streets in {p}. In every street we find {b} {o}.",
        lambda a, b: a * b,
    ),
)  # fmt: skip
_NAMES = ("Maya", "Oscar", "Lena", "Ravi", "Tessa", "Boris", "Nadia", "Kofi", "Elin", "Hugo")
_THINGS = ("apples", "lamps", "trees", "pears", "benches", "cherries", "shops", "roses", "gates", "melons")
_PLACES = ("Lisbon", "Oslo", "Geneva", "Porto", "Turin", "Bergen", "Malmo", "Ghent", "Cork", "Split")


def items(count: int = 20) -> list[Item]:
    """`count` different items, the kinds in turn."""
    rng = random.Random(0)
    found = []
    for i in range(count):
        question, gold, steps, total = _KINDS[i % len(_KINDS)]
        a, b = rng.randint(12, 40), rng.randint(2, 9)
        words = {"n": _NAMES[i % 10], "m": _NAMES[(i + 3) % 10], "o": _THINGS[(i // 2) % 10], "p": _PLACES[i % 10]}
        words |= {"q": _PLACES[(i + 4) % 10], "a": str(a), "b": str(b), "r": str(total(a, b))}
        found.append(Item(question.format(**words), gold.format(**words), steps.format(**words), words["r"]))
    return found


def as_rollouts(asked: Sequence[Item]) -> Rollouts:
    """Two rows an item: its own reasoning, and that of the next item; column "gold" holds the item's gold chain."""
    prompts, texts, golds, answers = [], [], [], []
    for i, item in enumerate(asked):
        for reasoning in (item.steps, asked[(i + 1) % len(asked)].steps):
            prompts.append([{"role": "user", "content": item.question + INSTRUCTION}])
            texts.append(f"<think>{reasoning}</think>\n<answer>{item.answer}</answer>")
            golds.append(item.gold)
            answers.append(item.answer)
    groups = [i // 2 for i in range(len(texts))]
    return Rollouts.from_texts(prompts, texts, {"gold": golds, "answer": answers}, group_ids=groups)


def gains(model: Any, asked: Sequence[Item], baseline: Baseline = "masked", pieces: int = 3) -> tuple[Tensor, Tensor]:
    """[N], [N]: the mean path faithfulness (nats a token) of the steps before the last, of the own and of the other question's reasoning.

    model: a LocalModel.
    """
    layout = LAYOUTS["think"]
    chains = ChainColumn("gold", layout)
    signal = PathFaithfulness(chains=chains, layout=layout, pieces=pieces, baseline=baseline, suffix_reduction="mean")
    signal.bind("policy", model)
    rollouts = as_rollouts(asked)
    rollouts = rollouts.with_spans(steps=EqualPieces(pieces, layout, model.tokenizer)(rollouts))
    values = signal(rollouts)["steps"].values[:, :-1].mean(1)
    return values[0::2], values[1::2]


def generic_gains(model: Any, asked: Sequence[Item], baseline: Baseline = "masked") -> Tensor:
    """[N] nats a token: what an item's own reasoning adds to the log-probability of a sentence that says nothing."""
    from guerdon.lm.encode import encode_continuation, encode_prompt
    from guerdon.lm.scorer import SpanScorer

    tokenizer = model.tokenizer
    contexts, targets = [], []
    for i, item in enumerate(asked):
        prompt = encode_prompt(tokenizer, [{"role": "user", "content": item.question + INSTRUCTION}])
        before = torch.cat([prompt, encode_continuation(tokenizer, "<think>")])
        own = encode_continuation(tokenizer, item.steps)
        stands_in = {
            "masked": torch.full((len(own),), placeholder(tokenizer), dtype=torch.long),
            "empty": own[:0],
            "other": encode_continuation(tokenizer, asked[(i + 1) % len(asked)].steps),
        }
        contexts += [torch.cat([before, own]), torch.cat([before, stands_in[baseline]])]
        targets += [encode_continuation(tokenizer, " " + GENERIC[i % len(GENERIC)])] * 2
    means = SpanScorer(model).score(contexts, targets).mean().cpu()
    return means[0::2] - means[1::2]


# --- wrong solutions of sums -------------------------------------------------------------------------------------------


def wrong_solution(prompt: str, right: int, rng: random.Random) -> str:
    """A solution whose answer is wrong, and whose first `right` lines are right and the others wrong."""
    value, *others = parse_prompt(prompt)
    total, lines = value + sum(others), []

    def off(number: int) -> int:
        return rng.choice([n for n in range(1, 30) if abs(n - number) >= 3])

    for i, (letter, n) in enumerate(zip("bcdefghi", others, strict=False)):
        result = value + n if i < right else off(value + n)
        lines.append(f"{value}+{letter}{n}={result}")
        value = result
    answer = value
    while answer == total:
        answer = off(value)
    return "\n".join([*lines, f"#{answer}"])


def right_chain(prompt: str) -> str:
    """The lines of the right solution."""
    lines = solve(parse_prompt(prompt), NO_NOISE, random.Random(0))
    return "".join(f"{line}\n" for line in lines[:-1])


def ordering(model: Any, count: int, seed: int = 0, **options: Any) -> tuple[float, Tensor]:
    """Groups of wrong solutions with no, one, two ... right lines: the share of pairs that P2S's reward orders by right lines, and its
    advantages [count x (lines of a solution + 1)].

    model: a LocalModel of the task. options: of `p2s`.
    """
    rng = random.Random(seed)
    prompts = sample_prompts(count, rng, held_out=False, terms=TERMS)
    size = TERMS[0]  # no line right, ..., all right and the answer wrong
    texts = [wrong_solution(prompt, right, rng) for prompt in prompts for right in range(size)]
    repeated = [prompt for prompt in prompts for _ in range(size)]
    columns = {"answer": [str(sum(parse_prompt(p))) for p in repeated], "gold": [right_chain(p) for p in repeated]}
    rollouts = Rollouts.from_texts(repeated, texts, columns, group_ids=[i // size for i in range(len(texts))])
    system = p2s(layout=LAYOUT, gold="gold", format_warmup=0.0, tokenizer=model.tokenizer, **options)
    system.bind("policy", model)
    scores = system(rollouts)
    assert scores.reward is not None
    rewards = scores.reward.reshape(-1, size)
    pairs = torch.stack([rewards[:, j] > rewards[:, i] for i, j in combinations(range(size), 2)])
    return float(pairs.double().mean()), scores.advantages[:, 0]
