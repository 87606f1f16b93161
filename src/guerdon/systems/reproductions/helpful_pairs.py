"""A pointwise reward model on the 135M model: a scalar head on the last token's state, regressed on helpful 1 and unhelpful 0.

The pairs are made up: a question about a thing, the answer that defines it, and an unhelpful one that dodges, defines another thing
or only repeats the question. Things of the held-out pairs do not occur in training. Simplification: the language model is frozen and only the
head is trained (the paper trains all weights, at 1e-6), so that its states are computed once for all seeds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.objectives.reward_model import pointwise_loss

_THINGS = """kettle|a pot with a spout for boiling water
bridge|a structure that carries a road over a river or a valley
violin|a small instrument with four strings that is played with a bow
volcano|a mountain that opens to melted rock below the ground
passport|a document that shows who you are when you cross a border
telescope|an instrument that makes distant things look nearer
compass|a tool with a needle that points to the north
bakery|a shop where bread and cakes are made and sold
umbrella|a folding cover that keeps off the rain
anchor|a heavy hook that holds a ship in its place
candle|a stick of wax with a wick that gives light when it burns
ladder|two long bars with rungs that you climb on
pillow|a soft cushion for the head while sleeping
thermometer|an instrument that measures temperature
helmet|a hard hat that protects the head
library|a building where books are kept and lent
desert|a dry land where very little grows
glacier|a large mass of ice that moves slowly down a slope
wallet|a small folding case for money and cards
hammer|a tool with a heavy head for driving nails
island|a piece of land with water all around it
pharmacy|a shop where medicines are sold
mirror|a glass that shows what stands in front of it
needle|a thin pointed piece of steel for sewing
orchard|a piece of land where fruit trees grow
piano|a large instrument played by pressing keys
rainbow|an arch of colours in the sky after rain
scissors|a tool with two blades for cutting paper or cloth
tunnel|a passage under the ground or through a mountain
windmill|a mill whose sails are turned by the wind
battery|a device that stores electricity
calendar|a list of the days and months of a year
dictionary|a book that explains what words mean
elevator|a cabin that carries people between the floors of a building
fountain|a jet of water that rises into a basin
garage|a building in which a car is kept
harbour|a place on the coast where ships are safe
kitchen|a room in which food is cooked
lantern|a lamp with a case that protects its flame
museum|a building where valuable things are shown to visitors"""
THINGS: tuple[tuple[str, str], ...] = tuple(
    (a, b) for a, _, b in (line.partition("|") for line in _THINGS.splitlines())
)
_QUESTIONS = ("What is a {}?", "Please explain the word {}.", "A child asks what a {} is. What do you say?")
_DODGES = ("That is hard to say.", "I do not know, ask somebody else.", "It depends on many things.")


class HelpfulPairs(NamedTuple):
    """Pairs as indices into texts; `thing` tells which thing a pair is about, so that splits share none."""

    texts: list[tuple[str, str]]
    helpful: Tensor
    unhelpful: Tensor
    thing: Tensor


def helpful_pairs(things: Sequence[tuple[str, str]] = THINGS, seed: int = 0) -> HelpfulPairs:
    """Three questions a thing, three unhelpful answers a question."""
    rng = random.Random(seed)
    texts: list[tuple[str, str]] = []
    better, worse, about = [], [], []
    for index, (name, meaning) in enumerate(things):
        for question in _QUESTIONS:
            prompt = question.format(name) + "\n"
            other = rng.choice([m for n, m in things if n != name])
            texts.append((prompt, f"A {name} is {meaning}."))
            good = len(texts) - 1
            for text in (rng.choice(_DODGES), f"A {name} is {other}.", f"You ask what a {name} is."):
                texts.append((prompt, text))
                better.append(good)
                worse.append(len(texts) - 1)
                about.append(index)
    return HelpfulPairs(texts, torch.tensor(better), torch.tensor(worse), torch.tensor(about))


def last_states(texts: Sequence[tuple[str, str]], model: str = "smollm2") -> Tensor:
    """[N, D] float32: the model's last hidden state at the last token of prompt and answer."""
    from guerdon.lm import LocalModel
    from guerdon.signals.learned.layouts import pad_rows
    from guerdon.signals.learned.scalar import encode_pair

    local = LocalModel(model)
    ids, mask = pad_rows([encode_pair(local.tokenizer, *text) for text in texts], local.tokenizer.pad_token_id)
    return local.hidden_states(ids, mask, positions=mask.sum(1, keepdim=True) - 1)[:, 0].float()


class Checkpoint(NamedTuple):
    """accuracy: share of held-out pairs ranked right. variance: of the held-out scores."""

    step: int
    accuracy: float
    variance: float


def train_head(
    states: Tensor,
    pairs: HelpfulPairs,
    seed: int,
    *,
    steps: int = 600,
    lr: float = 1e-3,
    start: float = 0.2,
    held_out: float = 0.3,
) -> list[Checkpoint]:
    """Adam on the pointwise loss of batches of 32 pairs, each response on its own.

    The head starts at random, as new heads do, with scores of std about `start` around 1/2. From 0 it would not do: the very first step
    points from unhelpful to helpful answers on average, so every checkpoint would rank nearly all pairs right.

    states: [N, D], standardised here by the training pairs' own mean and std.
    """
    generator = torch.Generator().manual_seed(seed)
    things = torch.randperm(int(pairs.thing.max()) + 1, generator=generator)
    test = torch.isin(pairs.thing, things[: max(1, int(held_out * len(things)))])
    train = (~test).nonzero()[:, 0]
    seen = states[torch.cat([pairs.helpful[train], pairs.unhelpful[train]])]
    features = (states - seen.mean(0)) / (seen.std(0) + 1e-6)
    weight = start * torch.randn(states.shape[1], generator=generator) / states.shape[1] ** 0.5
    weight.requires_grad_()
    bias = torch.full((), 0.5, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=lr / states.shape[1] ** 0.5)
    checkpoints = []
    for step in range(1, steps + 1):
        rows = train[torch.randint(len(train), (32,), generator=generator)]
        index = torch.cat([pairs.helpful[rows], pairs.unhelpful[rows]])
        loss = pointwise_loss(features[index] @ weight + bias, (torch.arange(len(index)) < len(rows)).float()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            better, worse = (features[part[test]] @ weight + bias for part in (pairs.helpful, pairs.unhelpful))
            accuracy = float(((better > worse).float() + 0.5 * (better == worse).float()).mean())
            checkpoints.append(Checkpoint(step, accuracy, float(torch.cat([better, worse]).var())))
    return checkpoints


def first_reaching(checkpoints: Sequence[Checkpoint], levels: Sequence[float]) -> list[Checkpoint | None]:
    """For each level of accuracy the first checkpoint that reaches it."""
    return [next((c for c in checkpoints if c.accuracy >= level), None) for level in levels]


def spread_grows(checkpoints: Sequence[Checkpoint | None]) -> bool:
    """Whether these are all there, are different ones of a run, and each is more accurate AND has a larger variance than the one before."""
    there = [c for c in checkpoints if c is not None]
    return len(there) == len(checkpoints) and all(
        a.step < b.step and a.accuracy < b.accuracy and a.variance < b.variance for a, b in pairwise(there)
    )
