"""The density ratio of a 135M instruct model over a damaged copy of itself, on hand-made answers.

Only one checkpoint of that size is at hand, so the weak model is the strong one with Gaussian noise on its weight matrices: a model that has
lost some of what alignment gave it, among other things. It is no base model, and its ratio is not what a base model's would be.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guerdon.lm import LocalModel
from guerdon.rollouts import Rollouts
from guerdon.signals.likelihood.customise import Customisation
from guerdon.signals.likelihood.density_ratio import DensityRatio, Reduction
from guerdon.systems.reproductions.helpful_pairs import THINGS

NOISE = 0.3  # of each matrix' own standard deviation


@torch.no_grad()
def damaged(model: LocalModel, noise: float = NOISE, seed: int = 0) -> LocalModel:
    """A copy with Gaussian noise of `noise` standard deviations of each matrix on it."""
    worse: Any = copy.deepcopy(model.model)
    generator = torch.Generator().manual_seed(seed)
    for parameter in worse.parameters():
        if parameter.dim() > 1:
            parameter += noise * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return LocalModel(worse.eval(), model.tokenizer)


@dataclass(frozen=True)
class Pair:
    """A question, a helpful answer and one that is off topic. kind: "alike" in length, "long" or "short" helpful answer."""

    question: str
    helpful: str
    other: str
    kind: str


_LONGER = " You will come across one sooner or later, and then you know what it is good for."
_OFF = ("The weather was fine.", "I like cheese.", "Cats sleep a lot.", "It is Tuesday.")


def helpful_pairs(count: int = 60) -> list[Pair]:
    """A third each: lengths alike, helpful longer, helpful shorter."""
    rng = random.Random(0)
    found = []
    for i in range(count):
        name, meaning = THINGS[i % len(THINGS)]
        other_name, other = rng.choice([thing for thing in THINGS if thing[0] != name])
        helpful, off = f"A {name} is {meaning}.", f"A {other_name} is {other}."
        kind = ("alike", "long", "short")[i % 3]
        if kind == "long":
            helpful, off = helpful + _LONGER, rng.choice(_OFF)
        elif kind == "short":
            off += _LONGER
        found.append(Pair(f"What is a {name}?", helpful, off, kind))
    return found


def chat(question: str) -> list[dict[str, str]]:
    """One user message."""
    return [{"role": "user", "content": question}]


def ratios(signal: DensityRatio, prompts: Sequence[Any], texts: Sequence[str], **columns: Any) -> dict[str, Tensor]:
    """[N] float64 of "ratio" and "strong" for each response."""
    found = signal(Rollouts.from_texts(list(prompts), list(texts), columns))
    return {name: found[name].values[:, 0].double() for name in ("ratio", "strong")}


def rankings(strong: LocalModel, weak: LocalModel, asked: Sequence[Pair]) -> dict[str, float]:
    """Shares of pairs ranked right: "all" and "mismatched" by the ratio, "likelihood" mismatched ones by the strong model alone."""
    prompts = [chat(pair.question) for pair in asked] * 2
    found = ratios(DensityRatio(strong, weak), prompts, [p.helpful for p in asked] + [p.other for p in asked])
    right = {name: values[: len(asked)] > values[len(asked) :] for name, values in found.items()}
    uneven = torch.tensor([pair.kind != "alike" for pair in asked])

    def share(flags: Tensor) -> float:
        return float(flags.double().mean())

    return {
        "all": share(right["ratio"]),
        "mismatched": share(right["ratio"][uneven]),
        "likelihood": share(right["strong"][uneven]),
        "likelihood_all": share(right["strong"]),
    }


# --- customisation -----------------------------------------------------------------------------------------------------

BRIEF = "Answer with one short sentence. A good answer is brief. Long answers are bad."
DETAILED = (
    "Answer with several detailed sentences. A good answer is long and explains everything. Short answers are bad."
)


def criterion(text: str) -> Customisation:
    """The same criterion for every prompt, without an exemplar."""
    return Customisation(
        router=lambda prompts: ["REASONING"] * len(prompts), criteria={"REASONING": text}, exemplars={}, vanilla=()
    )


def flips(strong: LocalModel, weak: LocalModel, count: int = 20, reduction: Reduction = "sum") -> dict[str, float]:
    """Of `count` prompts, each with a brief and a detailed answer: the share where the brief criterion prefers the brief one and the detailed
    criterion the detailed one ("flipped"), and where the preference at least moves that way ("moved")."""
    things = THINGS[:count]
    prompts = [chat(f"What is a {name}?") for name, _ in things]
    brief = [f"A {name} is {meaning}." for name, meaning in things]
    detailed = [
        f"A {name} is {meaning}. It has been known for a long time, and it comes in many forms. Its main use follows from what it is: "
        f"{meaning}. Whoever sees a {name} for the first time understands it best by looking at it closely."
        for name, meaning in things
    ]
    margins = []
    for text in (BRIEF, DETAILED):
        signal = DensityRatio(strong, weak, reduction=reduction, customise=criterion(text))
        values = ratios(signal, prompts * 2, brief + detailed)["ratio"]
        margins.append(values[:count] - values[count:])  # for the brief one
    return {
        "flipped": float(((margins[0] > 0) & (margins[1] < 0)).double().mean()),
        "moved": float((margins[0] > margins[1]).double().mean()),
    }
