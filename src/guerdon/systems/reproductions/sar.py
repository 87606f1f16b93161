"""SAR's claim: paid for what the question explains, a policy that pads drops the padding and stays right.

Trained: an over-long tiny policy through the real trainer, `sar_training`. Measured: an instruct model of 135M parameters on hand-made
responses, `sar_probe`. Finished runs are kept in the budget's folder, so an interrupted reproduction goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guerdon.systems.reproduction import Budget, Claim, Reproduction
from guerdon.systems.reproductions.sar_probe import mean, problems, rankings, scores
from guerdon.systems.reproductions.sar_training import (
    ARMS,
    LENGTH,
    OUTCOME,
    SAR,
    SMOKE,
    Plan,
    Run,
    run_arm,
    starting_policy,
)
from guerdon.systems.reproductions.summary import enough, held_in, over_seeds
from guerdon.threads import one_thread


def reproduce(budget: Budget) -> Reproduction:
    """About ten minutes on one core, three of them for the 135M model."""
    with one_thread():
        runs = _trained(budget)
        claims = [_shorter_claim(runs), _penalty_claim(runs), *_measured(budget)]
    first, plan = runs[SAR][0], Plan()
    return Reproduction(
        slug="sar",
        claim="Paid for what the question explains, a policy that pads its solutions drops the padding and stays right.",
        claims=claims,
        seeds=budget.seed_list(5),
        table=[_row(arm, found) for arm, found in runs.items()],
        curves={arm: {"x": first.x, "y": [run.length for run in found]} for arm, found in runs.items()},
        axes=("step", "held-out mean length, tokens"),
        notes=[
            f"Table: mean [least, greatest] over seeds, after {plan.steps} steps of {plan.prompts} prompts x {plan.group} rollouts; accuracy and "
            f"length on {plan.samples} held-out rollouts at temperature 1. All arms and seeds start from one warm-started policy "
            f"(accuracy {first.accuracy[0]:.3f}, {first.length[0]:.1f} tokens); seeds differ in prompts and samples.",
            "The policy knows solutions with and without filler, and one demonstration in five had its question taken out, so that it can say "
            "how probable a solution is when nobody knows the question. The necessary solution has 18 to 20 tokens.",
            "Filler here lies between the lines and never changes an answer. That a length penalty makes a policy skip steps that it needs, as "
            "the paper finds at scale, cannot show on this task; what shows is that SAR needs no penalty to be as short.",
            "An earlier starting policy, with a shorter warm start, slipped more often behind filler. Correctness alone then taught it to drop the filler, "
            "and SAR had little left to cut. This one is trained until filler changes little about the answer.",
            "The 135M model only measures: the responses were written by hand, the question-less prompt is the official one.",
        ],
    )


def _row(arm: str, found: Sequence[Run]) -> dict[str, Any]:
    return {
        "reward": arm,
        "accuracy": over_seeds([run.accuracy[-1] for run in found], 3),
        "length": over_seeds([run.length[-1] for run in found], 1),
    }


# --- trained ---------------------------------------------------------------------------------------------------------


def _trained(budget: Budget) -> dict[str, list[Run]]:
    policy = starting_policy(budget.smoke)
    plan = SMOKE if budget.smoke else Plan()
    runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
    for seed in budget.seed_list(5):  # seeds outermost: what is done when interrupted is whole seeds
        for arm in ARMS:
            budget.say(f"seed {seed}: {arm}")
            runs[arm].append(run_arm(arm, seed, plan, policy, budget.folder))
    return runs


def _shorter_claim(runs: dict[str, list[Run]]) -> Claim:
    pairs = list(zip(runs[SAR], runs[OUTCOME], strict=True))
    cuts = [100 * (1 - ours.length[-1] / plain.length[-1]) for ours, plain in pairs]
    drops = [100 * (plain.accuracy[-1] - ours.accuracy[-1]) for ours, plain in pairs]
    held = [cut >= 20 and drop <= 1 for cut, drop in zip(cuts, drops, strict=True)]
    return Claim(
        "SAR's mean length is at least 20 % below that of correctness only, with accuracy at most 1 point lower, in at least 4 of 5 seeds",
        enough(held),
        f"{held_in(held)}; shorter by {over_seeds(cuts, 1)} %, accuracy lower by {over_seeds(drops, 2)} points",
    )


def _penalty_claim(runs: dict[str, list[Run]]) -> Claim:
    """Against the measurement of the length-penalty run whose length is nearest to where SAR ended."""
    gaps = []
    for ours, penalty in zip(runs[SAR], runs[LENGTH], strict=True):
        nearest = min(range(len(penalty.x)), key=lambda i: abs(penalty.length[i] - ours.length[-1]))
        gaps.append(100 * (ours.accuracy[-1] - penalty.accuracy[nearest]))
    held = [gap >= -1 for gap in gaps]
    return Claim(
        "at comparable length SAR's accuracy is not below the length penalty's (by more than the 1 point that sampling may make), in at "
        "least 4 of 5 seeds",
        enough(held),
        f"{held_in(held)}; SAR's accuracy higher by {over_seeds(gaps, 2)} points",
    )


# --- measured --------------------------------------------------------------------------------------------------------


def _measured(budget: Budget) -> list[Claim]:
    from guerdon.lm import LocalModel

    budget.say("ranking hand-made responses under the 135M model")
    asked = problems(2 if budget.smoke else 30)
    found = scores(LocalModel("smollm2"), asked)
    shares = rankings(found)
    levels = {kind: f"{mean(values):.2f}" for kind, values in found.items()}
    bars = {"concise above padded": 0.9, "own question above another": 0.95, "partly right above unrelated": 0.9}
    texts = {
        "concise above padded": (
            "a concise right solution scores above the same with three generic sentences",
            f"mean {levels['concise']} against {levels['padded']}",
        ),
        "own question above another": (
            "a solution scores higher after its own question than after another one",
            f"mean {levels['concise']} against {levels['shuffled']}",
        ),
        "partly right above unrelated": (
            "right reasoning that ends in a wrong number scores above an unrelated text",
            f"mean {levels['partial']} against {levels['unrelated']}",
        ),
    }
    return [
        Claim(
            f"135M model, {len(asked)} word problems: {texts[name][0]}, in at least {100 * bar:.0f} % of them",
            shares[name] >= bar,
            f"{100 * shares[name]:.0f} %; {texts[name][1]}",
        )
        for name, bar in bars.items()
    ]
