"""CDR's claims: the ratio of two models ranks the better the further they are apart, and pairs annotated by it teach a policy.

Trained: families of tiny models, and a tiny policy tuned by SimPO, `cdr_family`. Measured: a 135M instruct model over a damaged copy, `cdr_probe`.
Finished seeds are kept in the budget's folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guerdon.systems.reproduction import Budget, Claim, Reproduction
from guerdon.systems.reproductions import cdr_family as tiny_family
from guerdon.systems.reproductions.arm import kept_run
from guerdon.systems.reproductions.cdr_family import SMOKE, UNITS, Size
from guerdon.systems.reproductions.cdr_probe import NOISE, damaged, flips, helpful_pairs, rankings
from guerdon.systems.reproductions.summary import enough, held_in, over_seeds
from guerdon.tasks.arithmetic import Noise
from guerdon.threads import one_thread

FLAWS = Noise(wrong_sum=0.25, wrong_answer=0.1, filler=0.1)  # of the policy that is tuned
STRONG, WEAK = 16, 2  # units of the pair that annotates


@dataclass
class Seed:
    """One seed: true rewards by units; (gap, accuracy) of every ordered pair; accuracies of equal pairs; true rewards of the policy as it
    was, tuned on annotated and on random pairs; share of annotated pairs whose chosen response is truly better, and truly worse."""

    truth: list[float]
    gaps: list[float]
    accuracies: list[float]
    equal: list[float]
    before: float
    annotated: float
    random: float
    better: float
    worse: float

    @property
    def rank_correlation(self) -> float:
        return tiny_family.spearman(self.gaps, self.accuracies)


def reproduce(budget: Budget) -> Reproduction:
    """About eight minutes on one core, one of them for the 135M model."""
    with one_thread():
        found = _seeds(budget)
        claims = [_law(found), _equals(found), _tuning(found), *_measured(budget)]
    return Reproduction(
        slug="cdr",
        claim="The density ratio of two models ranks the better the further the strong one is ahead, and its pairs teach a policy.",
        claims=claims,
        seeds=budget.seed_list(5),
        table=[
            {"policy": name, "true reward on held-out prompts": over_seeds([getattr(seed, field) for seed in found], 3)}
            for name, field in (
                ("before tuning", "before"),
                ("SimPO on random pairs", "random"),
                ("SimPO on annotated pairs", "annotated"),
            )
        ],
        curves={
            "pairs of models, by their gap": {
                "x": list(range(len(found[0].gaps))),
                "y": [_by_gap(seed) for seed in found],
            }
        },
        axes=("ordered pairs of models, from the widest negative gap to the widest positive one", "pair accuracy"),
        notes=[
            f"A family: one tiny model, copies after {', '.join(map(str, UNITS))} units of {Size().unit} optimiser steps on right solutions; true reward "
            "= share of right lines in samples on held-out prompts: "
            + "; ".join(f"{u} units {over_seeds([s.truth[k] for s in found])}" for k, u in enumerate(UNITS))
            + ". Pairs: a right and a flawed solution of a held-out prompt. An equal pair is two models of the same units and different seeds, "
            "neither ahead by plan.",
            f"Tuning: {Size().responses} responses of each of {Size().prompts} training prompts, annotated by the {STRONG}-unit over the {WEAK}-unit "
            "model, the best against a random other one; SimPO through TRL with the paper's beta and gamma. Annotated pairs: "
            f"chosen truly better in {over_seeds([s.better for s in found])}, truly worse in {over_seeds([s.worse for s in found])}.",
            f"The 135M model has no base checkpoint at hand: the weak model is the same with Gaussian noise of {NOISE} standard deviations on every "
            "weight matrix, chosen before it was measured.",
        ],
    )


def _by_gap(seed: Seed) -> list[float]:
    """Accuracies of the ordered pairs, the widest negative gap first."""
    return [accuracy for _, accuracy in sorted(zip(seed.gaps, seed.accuracies, strict=True))]


def _seeds(budget: Budget) -> list[Seed]:
    size = SMOKE if budget.smoke else Size()
    found = []
    for seed in budget.seed_list(5):
        budget.say(f"seed {seed}: a family of models, annotation, tuning")
        found.append(_kept(seed, size, budget.folder))
    return found


def _kept(seed: int, size: Size, folder: Path | None) -> Seed:
    """One seed, read back where it was finished before."""
    asked = {"size": asdict(size), "flaws": asdict(FLAWS), "pair": [STRONG, WEAK]}
    return Seed(**kept_run(folder, f"seed-{seed}", asked, lambda: asdict(run_seed(seed, size))))


def run_seed(seed: int, size: Size) -> Seed:
    """Two families, all ordered pairs of the first, equal pairs across; annotation and tuning."""
    models, twins = tiny_family.family(seed, size), tiny_family.family(seed + 1000, size)
    truth = [tiny_family.held_out_reward(models[unit], size.samples) for unit in UNITS]
    scored = tiny_family.scored_pairs([models[unit] for unit in UNITS], size.pairs)
    others = tiny_family.scored_pairs([twins[unit] for unit in UNITS], size.pairs)
    ordered = [(i, j) for i in range(len(UNITS)) for j in range(len(UNITS)) if i != j]
    tuned = _tuned(seed, size, models)
    return Seed(
        truth,
        [truth[i] - truth[j] for i, j in ordered],
        [tiny_family.ranked(scored[i], scored[j]) for i, j in ordered],
        [tiny_family.ranked(a, b) for a, b in zip(scored, others, strict=True)],
        **tuned,
    )


def _tuned(seed: int, size: Size, models: dict[int, Any]) -> dict[str, float]:
    """True rewards before and after tuning on both kinds of pairs."""
    from guerdon.io import read_rows
    from guerdon.preference import annotate_file
    from guerdon.signals.likelihood.density_ratio import DensityRatio
    from guerdon.tasks.tiny import EOS

    steps = UNITS[-1] * size.unit
    policy = tiny_family.train(seed + 2000, steps, FLAWS, size)[steps]
    found = {"before": tiny_family.held_out_reward(policy, 2 * size.samples)}
    with tempfile.TemporaryDirectory() as scratch:
        responses = Path(scratch) / "responses.jsonl"
        tiny_family.sampled_responses(policy, size, seed, responses)
        rewards = {
            "annotated": DensityRatio(models[STRONG], models[WEAK], end=EOS),
            "random": tiny_family.RandomReward(seed),
        }
        for name, reward in rewards.items():
            file = Path(scratch) / f"{name}.jsonl"
            annotate_file(responses, file, reward, seed=seed)
            tuned = tiny_family.tune(policy, file, size, seed, Path(scratch) / name)
            found[name] = tiny_family.held_out_reward(tuned, 2 * size.samples)
        rows = [row for batch in read_rows(Path(scratch) / "annotated.jsonl", 256) for row in batch]
    prompts = [row["prompt"] for row in rows]
    chosen = tiny_family.true_rewards(prompts, [row["chosen"] for row in rows])
    rejected = tiny_family.true_rewards(prompts, [row["rejected"] for row in rows])
    found["better"] = sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(rows)
    found["worse"] = sum(a < b for a, b in zip(chosen, rejected, strict=True)) / len(rows)
    return found


# --- claims ----------------------------------------------------------------------------------------------------------------


def _law(found: Sequence[Seed]) -> Claim:
    values = [seed.rank_correlation for seed in found]
    held = [value >= 0.7 for value in values]
    return Claim(
        "over all ordered pairs of a family, the rank correlation of the gap in true reward and the accuracy on pairs is at least 0.7, in at "
        "least 4 of 5 seeds",
        enough(held),
        f"{held_in(held)}; {over_seeds(values)}",
    )


def _equals(found: Sequence[Seed]) -> Claim:
    values = [sum(seed.equal) / len(seed.equal) for seed in found]
    mean = sum(values) / len(values)
    return Claim(
        "two equally trained models rank no better than a coin: mean accuracy over seeds within 0.1 of 0.5",
        abs(mean - 0.5) <= 0.1,
        over_seeds(values),
    )


def _tuning(found: Sequence[Seed]) -> Claim:
    gains = [seed.annotated - seed.random for seed in found]
    held = [gain > 0 for gain in gains]
    return Claim(
        "a policy tuned on annotated pairs has a higher true reward than the same tuned on random pairs, in at least 4 of 5 seeds",
        enough(held),
        f"{held_in(held)}; higher by {over_seeds(gains, 3)}",
    )


def _measured(budget: Budget) -> list[Claim]:
    from guerdon.lm import LocalModel

    budget.say("the 135M model over a damaged copy")
    strong = LocalModel("smollm2")
    weak = damaged(strong)
    asked = helpful_pairs(6 if budget.smoke else 60)
    shares = rankings(strong, weak, asked)
    count = 2 if budget.smoke else 20
    moved = flips(strong, weak, count)
    by_mean = flips(strong, weak, count, "mean")
    return [
        Claim(
            f"135M model over its damaged copy, {len(asked)} pairs of a helpful and an off-topic answer: ranked right in at least 75 %",
            shares["all"] >= 0.75,
            f"{100 * shares['all']:.0f} % (the strong model's likelihood alone {100 * shares['likelihood_all']:.0f} %)",
        ),
        Claim(
            "where the two differ in length, ranked right in at least 55 %, and more often than by the strong model's likelihood alone",
            shares["mismatched"] >= 0.55 and shares["mismatched"] > shares["likelihood"],
            f"{100 * shares['mismatched']:.0f} % against {100 * shares['likelihood']:.0f} %",
        ),
        Claim(
            f"two opposite criteria (brief, detailed) flip the preferred answer on at least 60 % of {count} prompts",
            moved["flipped"] >= 0.6,
            f"{100 * moved['flipped']:.0f} % flip, {100 * moved['moved']:.0f} % move that way (mean over tokens: "
            f"{100 * by_mean['flipped']:.0f} %, {100 * by_mean['moved']:.0f} %)",
        ),
    ]
