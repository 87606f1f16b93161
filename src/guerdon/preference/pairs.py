"""Best of n against a random other one: pairs from scored responses (CDR, arXiv 2411.02481), and the accuracy of a reward on pairs."""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from guerdon.errors import ShapeError


class BestOfN(NamedTuple):
    """Indices into the responses of one prompt.

    chosen: the first of the greatest rewards. worst: the first of the least. rejected_pool: all but the chosen. usable_rejected: those of it whose
    text is not the chosen one's.
    """

    chosen: int
    worst: int
    rejected_pool: list[int]
    usable_rejected: list[int]


def best_of_n_pair(rewards: Sequence[float], responses: Sequence[str]) -> BestOfN | None:
    """The chosen response and those it may be paired with.

    Args:
        rewards: n numbers; NaN = could not be scored, and then neither chosen nor rejected.
        responses: n texts.

    Returns:
        None where the scored rewards are all equal (a flat group says nothing) or fewer than two.
    """
    if len(rewards) != len(responses):
        raise ShapeError(f"{len(rewards)} rewards for {len(responses)} responses")
    live = [i for i, reward in enumerate(rewards) if not math.isnan(reward)]
    if len(live) < 2:
        return None
    chosen = max(live, key=lambda i: (rewards[i], -i))
    worst = min(live, key=lambda i: (rewards[i], i))
    if rewards[chosen] == rewards[worst]:
        return None
    pool = [i for i in live if i != chosen]
    return BestOfN(chosen, worst, pool, [i for i in pool if responses[i] != responses[chosen]])


def draw_pair(
    rewards: Sequence[float],
    responses: Sequence[str],
    rng: random.Random,
    *,
    length_tolerance: float | None = None,
) -> tuple[int, int] | str:
    """(chosen, rejected): the best one and a random other; or, as a text, why there is no pair.

    Args:
        rewards, responses: as in `best_of_n_pair`.
        rng: draws the rejected one.
        length_tolerance: take only a rejected response whose length in characters differs from the chosen one's by at most this
            share of it (0.1: ten per cent), so that length cannot be what the pair teaches. None = any.
    """
    found = best_of_n_pair(rewards, responses)
    if found is None:
        scored = sum(not math.isnan(reward) for reward in rewards)
        return "all rewards are equal" if scored > 1 else f"{scored} scored response{'s' * (scored != 1)}"
    pool = [i for i in found.usable_rejected if rewards[i] < rewards[found.chosen]]
    if not pool:
        return "every other response has the chosen one's text or reward"
    if length_tolerance is not None:
        size = len(responses[found.chosen])
        pool = [i for i in pool if abs(len(responses[i]) - size) <= length_tolerance * size]
        if not pool:
            return f"no other response is within {length_tolerance:.0%} of the chosen one's length"
    return found.chosen, rng.choice(pool)


def pairwise_accuracy(
    chosen: Sequence[float], rejected: Sequence[float], categories: Sequence[Hashable]
) -> tuple[dict[Hashable, float], float]:
    """Share of pairs with the chosen reward strictly above the rejected one, by category, and the mean over categories.

    Ties and NaN are wrong. No pair: {} and 0.
    """
    if not len(chosen) == len(rejected) == len(categories):
        raise ShapeError(f"{len(chosen)} chosen, {len(rejected)} rejected, {len(categories)} categories: give as many")
    right: dict[Hashable, list[bool]] = {}
    for better, worse, category in zip(chosen, rejected, categories, strict=True):
        right.setdefault(category, []).append(better > worse)
    shares = {category: sum(flags) / len(flags) for category, flags in right.items()}
    return shares, sum(shares.values()) / len(shares) if shares else 0.0
