"""What the self-aligned reward says about hand-made responses to word problems, under a real 135M instruct model.

`problems()` gives 30 short problems, each with a concise right solution; the same with three generic sentences put in; the same
reasoning with a wrong number at its end; and a text about something else. Each is scored as a response to its own question, the concise
one also as a response to another problem's question.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guerdon.rewards import Rewards
from guerdon.rollouts import Rollouts
from guerdon.signals.likelihood.relative_perplexity import RelativePerplexity

SYSTEM = "You are an expert in reasoning. You explain briefly and give correct answers."
INSTRUCTION = "\nExplain first. Give only the final number in the last line, after 'Answer:'."

# (question, reasoning, total of the numbers a, b, c); {n} is a name, {o} a thing.
_KINDS = (
    (
        "{n} has {a} {o}. {n} buys {b} more {o} and gives away {c} of them. How many {o} does {n} have now?",
        "{n} starts with {a} {o} and buys {b}, which makes {a} + {b} = {ab} {o}. After giving away {c}, {ab} - {c} = {r} {o} are left.",
        lambda a, b, c: (a + b, a + b - c),
    ),
    (
        "{n} packs {o} into {a} boxes with {b} {o} in each box. Then {n} finds {c} more {o}. How many {o} are there in all?",
        "The {a} boxes hold {a} * {b} = {ab} {o}. With the {c} that {n} finds there are {ab} + {c} = {r} {o}.",
        lambda a, b, c: (a * b, a * b + c),
    ),
    (
        "{n} sells {a} {o} on Monday, {b} on Tuesday and {c} on Friday. How many {o} does {n} sell altogether?",
        "On Monday and Tuesday {n} sells {a} + {b} = {ab} {o}. With Friday that is {ab} + {c} = {r} {o}.",
        lambda a, b, c: (a + b, a + b + c),
    ),
)
_NAMES = ("Maya", "Oscar", "Lena", "Ravi", "Tessa", "Boris", "Nadia", "Kofi", "Elin", "Hugo")
_THINGS = ("marbles", "pencils", "stickers", "oranges", "postcards", "candles", "buttons", "muffins", "shells", "coins")
FILLER = (
    "Let me think about this carefully.",
    "It is always a good idea to read the problem again.",
    "We should make sure that every step is correct.",
    "Now let us take a moment to look at what we have so far.",
    "Working step by step helps to avoid mistakes.",
    "I want to double check my work before I continue.",
)
UNRELATED = (
    "The garden behind the old church is open in summer. Visitors can walk along the river and sit under the trees.\nAnswer: {r}",
    "A bicycle needs some care. The chain should be cleaned and oiled, and the tyres need enough air.\nAnswer: {r}",
    "Volcanoes form where melted rock rises from below. Some of them sleep for hundreds of years.\nAnswer: {r}",
    "The orchestra tuned its instruments while the audience took their seats. Then the lights went down.\nAnswer: {r}",
    "To bake bread one mixes flour, water, salt and yeast. The dough has to rest in a warm place.\nAnswer: {r}",
)


@dataclass(frozen=True)
class Problem:
    """A question and four responses to it."""

    question: str
    concise: str
    padded: str
    partial: str
    unrelated: str


def problems(count: int = 30, seed: int = 0) -> list[Problem]:
    """`count` different problems; the same seed gives the same ones."""
    rng = random.Random(seed)
    found = []
    for i in range(count):
        question, reasoning, results = _KINDS[i % len(_KINDS)]
        a, b, c = rng.randint(11, 29), rng.randint(12, 19), rng.randint(3, 9)
        words = {"n": _NAMES[i % len(_NAMES)], "o": _THINGS[(i + i // 10) % len(_THINGS)], "a": a, "b": b, "c": c}
        middle, right = results(a, b, c)
        wrong = right + rng.choice((-1, 1)) * rng.randint(2, 9)
        filler = rng.sample(FILLER, 3)
        concise = reasoning.format(**words, ab=middle, r=right)
        wronged = reasoning.format(**words, ab=middle, r=wrong)
        unrelated = UNRELATED[i % len(UNRELATED)].format(r=rng.randint(20, 90))
        found.append(
            Problem(
                question.format(**words),
                f"{concise}\nAnswer: {right}",
                f"{filler[0]} {concise} {filler[1]} {filler[2]}\nAnswer: {right}",
                f"{wronged}\nAnswer: {wrong}",
                unrelated,
            )
        )
    return found


def chat(question: str) -> list[dict[str, str]]:
    """The question as the official prompt asks it: a system text, then question and instruction."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question + INSTRUCTION}]


KINDS = ("concise", "padded", "partial", "unrelated", "shuffled")


def scores(model: object, asked: Sequence[Problem]) -> dict[str, Tensor]:
    """{kind: [N] self-aligned rewards}; "shuffled" is the concise response after the next problem's question. model: a LocalModel."""
    prompts, texts = [], []
    for i, problem in enumerate(asked):
        other = asked[(i + 1) % len(asked)]
        for kind in KINDS:
            prompts.append(chat(other.question if kind == "shuffled" else problem.question))
            texts.append(problem.concise if kind == "shuffled" else getattr(problem, kind))
    signal = RelativePerplexity()
    signal.bind("policy", model)
    rewards = signal(Rollouts.from_texts(prompts, texts))
    assert isinstance(rewards, Rewards)
    values = rewards.values[:, 0].view(len(asked), len(KINDS))
    return {kind: values[:, column] for column, kind in enumerate(KINDS)}


def share_above(better: Tensor, worse: Tensor) -> float:
    """Share of items where the first score is the higher one."""
    return float((better > worse).double().mean()) if len(better) else float("nan")


def rankings(found: dict[str, Tensor]) -> dict[str, float]:
    """The shares the claims are about."""
    return {
        "concise above padded": share_above(found["concise"], found["padded"]),
        "own question above another": share_above(found["concise"], found["shuffled"]),
        "partly right above unrelated": share_above(found["partial"], found["unrelated"]),
    }


def mean(values: Tensor) -> float:
    """The mean as a float."""
    return float(torch.as_tensor(values, dtype=torch.float64).mean())
