"""EndoRM's claims: a model trained on its own endogenous reward loses less to errors that compound than an imitator; a second extraction adds
nothing; the reward of an instruct model of 135M parameters prefers fluent answers and follows a criterion (`endogenous_probe`).

The token world is `endogenous_mdp`. Finished worlds are kept in the budget's folder, so an interrupted reproduction goes on where it was.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from guerdon.systems.reproduction import Budget, Claim, Reproduction
from guerdon.systems.reproductions.arm import kept_run
from guerdon.systems.reproductions.endogenous_mdp import SMOKE, Plan, run
from guerdon.systems.reproductions.endogenous_probe import PAIRS, STYLES, probe
from guerdon.systems.reproductions.summary import enough, held_in, interval, over_seeds
from guerdon.threads import one_thread

HORIZONS = (5, 10, 20)
POLICIES = {
    "imitator": "imitation",
    "trained": "trained on its endogenous reward",
    "again": "extracted and trained again",
    "longer": "trained twice as long, extracted once",
}


def reproduce(budget: Budget) -> Reproduction:
    """About eight minutes on one core, two of them for the 135M model."""
    with one_thread():
        found = _worlds(budget)
        claims = [_return_claim(found), _gap_claim(found), _again_claim(found), *_measured(budget)]
    plan, seeds = Plan(), budget.seed_list(5)
    return Reproduction(
        slug="endogenous",
        claim="Trained on the reward inside its own frozen copy, an imitator loses less to errors that compound.",
        claims=claims,
        seeds=seeds,
        table=[
            _row(found, horizon, name)
            for horizon in found
            for name in ("expert", *POLICIES)
            if name in found[horizon][0]
        ],
        curves={
            POLICIES[name]: {
                "x": list(found),
                "y": [[found[h][i]["expert"] - found[h][i][name] for h in found] for i in range(len(seeds))],
            }
            for name in ("imitator", "trained")
        },
        axes=("horizon, tokens", "expert's return minus policy's"),
        notes=[
            f"Table: mean [least, greatest] over worlds, one a seed. The expert is soft-optimal at temperature {plan.temperature}, so it errs, too, and a "
            f"policy can pass it. The imitator saw {plan.demos} of its trajectories; returns are means over {plan.samples} sampled ones.",
            f"Training: {plan.steps} steps of {plan.prompts} prompts x {plan.group} rollouts on the sum of token rewards, normalised in the group, KL 0.01 "
            "inside the reward; episodes have a fixed length, so being short cannot pay.",
            "A second extraction takes the policy for the model: its reward, and the reference of its KL, are those of the sharper policy. The last row has as "
            "many steps without it. A first record of 3 seeds had not told the two gains from noise.",
            "What the training does here is to make the likeliest trajectories certain: they are those the demonstrations covered. The paper's "
            "bound on the regret is about the worst case, and this is one kind of world.",
            "The 135M model only measures: pairs and replies were written by hand.",
        ],
    )


def _worlds(budget: Budget) -> dict[int, list[dict[str, float]]]:
    """{horizon: true returns of each seed's world}."""
    plan = SMOKE if budget.smoke else Plan()
    horizons = HORIZONS[:2] if budget.smoke else HORIZONS
    found: dict[int, list[dict[str, float]]] = {horizon: [] for horizon in horizons}
    for seed in budget.seed_list(5):
        for horizon in horizons:
            budget.say(f"seed {seed}: horizon {horizon}")
            found[horizon].append(_world(horizon, seed, plan, horizon == max(horizons), budget.folder))
    return found


def _world(horizon: int, seed: int, plan: Plan, again: bool, folder: Path | None) -> dict[str, float]:
    asked: dict[str, Any] = {"horizon": horizon, "seed": seed, "plan": asdict(plan), "again": again}
    return kept_run(folder, f"world-{horizon}-{seed}", asked, lambda: run(horizon, seed, plan, again=again))


def _row(found: dict[int, list[dict[str, float]]], horizon: int, name: str) -> dict[str, Any]:
    worlds = found[horizon]
    return {
        "horizon": horizon,
        "policy": POLICIES.get(name, "expert"),
        "true return": over_seeds([world[name] for world in worlds]),
        "expert's minus its own": over_seeds([world["expert"] - world[name] for world in worlds]),
    }


def _return_claim(found: dict[int, list[dict[str, float]]]) -> Claim:
    longest = found[max(found)]
    gains = [world["trained"] - world["imitator"] for world in longest]
    held = [gain >= 0 for gain in gains]
    return Claim(
        f"at horizon {max(found)} the policy trained on its endogenous reward has at least the imitator's true return, in at least 4 of 5 worlds",
        enough(held),
        f"{held_in(held)}; higher by {over_seeds(gains)}",
    )


def _gap_claim(found: dict[int, list[dict[str, float]]]) -> Claim:
    shortest, longest = found[min(found)], found[max(found)]

    def growth(name: str) -> list[float]:
        pairs = zip(shortest, longest, strict=True)
        return [(b["expert"] - b[name]) - (a["expert"] - a[name]) for a, b in pairs]

    ours, theirs = growth("trained"), growth("imitator")
    held = [a < b for a, b in zip(ours, theirs, strict=True)]
    return Claim(
        f"what the policy lacks of the expert's return grows less from horizon {min(found)} to {max(found)} than what the imitator lacks, in at least 4 of 5 worlds",
        enough(held),
        f"{held_in(held)}; growth {over_seeds(ours)} against {over_seeds(theirs)}",
    )


def _again_claim(found: dict[int, list[dict[str, float]]]) -> Claim:
    longest = found[max(found)]
    gains = [world["again"] - world["trained"] for world in longest]
    low, high = interval(gains)
    steps = [world["again"] - world["longer"] for world in longest]
    return Claim(
        f"a second extraction, from the trained policy, does not raise the true return at horizon {max(found)}: the mean change over worlds is below its 95 % half-width",
        low <= 0,
        f"change {over_seeds(gains)}, half-width {(high - low) / 2:.2f}; against as many steps with one extraction {over_seeds(steps)}",
    )


def _measured(budget: Budget) -> list[Claim]:
    from guerdon.lm import LocalModel

    budget.say("hand-made pairs under the 135M model")
    count = 3 if budget.smoke else len(PAIRS)
    found = probe(LocalModel("smollm2"), PAIRS[:count], STYLES[:count])
    accuracy = (found.scrambled + found.irrelevant) / 2
    return [
        Claim(
            f"135M model, {2 * count} pairs of equal token length: the fluent, relevant answer has the larger reward in at least 85 % of them",
            accuracy >= 0.85,
            f"{100 * accuracy:.0f} %; against scrambled words {100 * found.scrambled:.0f} %, against the answer to another question {100 * found.irrelevant:.0f} %",
        ),
        Claim(
            f"135M model, {count} pairs of a formal and a casual reply: the preferred one follows the instruction both times in at least 60 % of them",
            found.flips >= 0.6,
            f"{100 * found.flips:.0f} %; the instruction moves the difference of the rewards the right way in {100 * found.shift:.0f} %",
        ),
    ]
