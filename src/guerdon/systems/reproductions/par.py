"""PAR's claim: where a proxy reward model is wrong far away, a bounded and centred reward stops the policy where it is right.

World: `drift`, a Gaussian policy whose proxy score keeps rising while the true reward turns. Every shaping runs under the default carrier,
what the trainer runs: minus the group's mean, KL 0.005 in the loss. Four of them also run under "ppo", the paper's (KL 0.005 in the reward,
whitening), with a critic that says 0: with one token an answer and one problem, any constant critic cancels in the whitening, which makes
this REINFORCE with whitened advantages. And PAR under "grpo", whose division by the std undoes it. Beside it: WARM's weight average, and
ODIN's quality head against a single head (`length_bias`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from guerdon.signals.learned.merge import average_weights
from guerdon.systems import par
from guerdon.systems.reproduction import Budget, Claim, Reproduction
from guerdon.systems.reproductions.drift import Drift, ProxyRewardModel, train
from guerdon.systems.reproductions.length_bias import HeadScores, single_head_and_odin
from guerdon.systems.reproductions.summary import enough, held_in, over_seeds

ARMS = {
    "vanilla": "vanilla",
    "meanstd": "meanstd",
    "clip": "clip",
    "minmax": "minmax",
    "sigmoid": "uncentred sigmoid",
    "ceil": "ceil 4",
    "lsc": "log-sigmoid-centred",
    "par": "PAR",
}
CUT = -8.0
BEATEN = ("vanilla", "meanstd", "minmax")
Runs = Mapping[tuple[str, str], list[Drift]]  # by shaping and carrier
DEFAULT = "group_mean"
# Every shaping under the default carrier; PAR and what it has to beat under the paper's; PAR divided by the std.
PLANNED = (
    *((shaping, DEFAULT) for shaping in ARMS),
    *((shaping, "ppo") for shaping in ("par", *BEATEN)),
    ("par", "grpo"),
)
CARRIERS = {DEFAULT: "", "ppo": ", ppo", "grpo": ", divided by the std"}
DRAWN = (  # the others lie on top of one of these
    ("par", DEFAULT), ("par", "ppo"), ("par", "grpo"), ("sigmoid", DEFAULT), ("minmax", DEFAULT), ("meanstd", DEFAULT), ("vanilla", DEFAULT),
)  # fmt: skip


def run_shaping(shaping: Any, seed: int, updates: int, carrier: Any = DEFAULT) -> Drift:
    """One training run: batch 64, ten reference answers, KL 0.005; step 0.05 where advantages have a std of 1, else 0.2.

    Undivided advantages of PAR are about a quarter of divided ones: with a step of 0.05 nothing has settled after 800 updates.
    """
    system = par(rm=ProxyRewardModel(), shaping=shaping, carrier=carrier, kl_coef=0.005)
    lr, beta = 0.2 if carrier == DEFAULT else 0.05, 0.0 if carrier == "ppo" else 0.005
    return train(system, seed=seed, updates=updates, lr=lr, beta=beta)


def warm_error(seed: int, models: int = 5, inputs: int = 32) -> float:
    """How far the average of linear reward models is from the mean of their scores, over 256 random answers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        single = [nn.Linear(inputs, 1) for _ in range(models)]
        answers = torch.randn(256, inputs)
    merged = nn.Linear(inputs, 1)
    merged.load_state_dict(average_weights([model.state_dict() for model in single]))
    with torch.no_grad():
        mean = torch.stack([model(answers) for model in single]).mean(0)
        return float((merged(answers) - mean).abs().max())


def reproduce(budget: Budget) -> Reproduction:
    """About five minutes on one core."""
    seeds = budget.seed_list(5)
    updates, rm_steps = (5, 5) if budget.smoke else (800, 400)
    runs: dict[tuple[str, str], list[Drift]] = {}
    for shaping, carrier in PLANNED:
        budget.say(f"shaping {shaping}, carrier {carrier}")
        runs[shaping, carrier] = [run_shaping(shaping, seed, updates, carrier) for seed in seeds]
    budget.say("reward models on pairs that favour length")
    heads = [single_head_and_odin(seed, rm_steps) for seed in seeds]
    table = [
        {
            "shaping": _name(arm),
            "true reward at the end": over_seeds([run.true[-1] for run in drifts]),
            "best true reward on the way": over_seeds([max(run.true) for run in drifts]),
            "proxy score at the end": over_seeds([run.mean[-1] for run in drifts], 1),
        }
        for arm, drifts in runs.items()
    ]
    return Reproduction(
        slug="par",
        claim="Under an unbounded proxy reward the true reward rises and then collapses; PAR's bounded, centred reward keeps it.",
        claims=[*_drift_claims(runs, DEFAULT), *_drift_claims(runs, "ppo"), _warm_claim(seeds), _odin_claim(heads)],
        seeds=seeds,
        table=table,
        curves={
            _name(arm): {"x": list(range(updates)), "y": [[max(y, CUT) for y in run.true] for run in runs[arm]]}
            for arm in DRAWN
        },
        axes=("update", f"expected true reward (cut off at {CUT:g})"),
        notes=[
            "Table: mean [least, greatest] over seeds. The policy is N(mu, 1), so the best it can reach is 3.045 at mu = 6.25 "
            "(the peak 3.125 minus 0.08 for its own variance).",
            "Where PAR stops is where the slope of its sigmoid meets the KL penalty, some four units above the references; that truth "
            "turns near there is how this world was made, and a reward model that is wrong nearer would be hacked under PAR too.",
            "Unmarked arms run under the default carrier: advantages are rewards minus the group's mean, KL 0.005 is in the loss as TRL has it, and the step is "
            "0.2 where it is 0.05 for arms whose advantages have a std of 1. With 0.05 (pilot seed 90) PAR and minmax were still on their way after 800 "
            "updates, at 5.7 and 6.0, and both near the best true reward. Divided by the "
            "group's std, as in the official GRPO code, PAR is no longer flat where its sigmoid is, and drifts like an unbounded reward.",
            "Ceil 4 does well because 4 lies below the score at which truth turns. A constant added to every score of the reward "
            "model moves that point away from Ceil and from the uncentred sigmoid, and leaves PAR as it is.",
            "A toy drift, not a language model: it shows the mechanism, not the paper's win rates.",
        ],
    )


def _name(arm: tuple[str, str]) -> str:
    shaping, carrier = arm
    return ARMS[shaping] + CARRIERS[carrier]


def _drift_claims(runs: Runs, carrier: str) -> list[Claim]:
    ours, vanilla = runs["par", carrier], runs["vanilla", carrier]
    better = [
        all(own.true[-1] > runs[other, carrier][row].true[-1] for other in BEATEN) for row, own in enumerate(ours)
    ]
    hacked = [base.mean[-1] > own.mean[-1] for base, own in zip(vanilla, ours, strict=True)]
    how = "with the paper's carrier (ppo) " if carrier == "ppo" else ""
    ends = "; ".join(
        f"{ARMS[shaping]} {over_seeds([run.true[-1] for run in runs[shaping, carrier]])}"
        for shaping in ("par", *BEATEN)
    )
    return [
        Claim(
            f"{how}PAR ends with a higher true reward than vanilla, meanstd and minmax in at least 4 of 5 seeds",
            enough(better),
            f"{held_in(better)}; {ends}",
        ),
        Claim(f"{how}vanilla ends with a higher proxy score than PAR in every seed", all(hacked), held_in(hacked)),
    ]


def _warm_claim(seeds: list[int]) -> Claim:
    error = max(warm_error(seed) for seed in seeds)
    return Claim(
        "WARM: the average of 5 linear reward models scores as the mean of the five, error below 1e-5",
        error < 1e-5,
        f"largest error {error:.1e}",
    )


def _odin_claim(heads: list[tuple[HeadScores, HeadScores]]) -> Claim:
    gaps = [single.length_correlation - odin.length_correlation for single, odin in heads]

    def both(what: str) -> str:
        return " against ".join(over_seeds([getattr(pair[i], what) for pair in heads]) for i in (1, 0))

    return Claim(
        "ODIN: |correlation with length| of the quality head is at least 0.2 below a single-head reward model's, in every seed",
        min(gaps) >= 0.2,
        f"correlation {both('length_correlation')}; agreement with true quality {both('quality_accuracy')}",
    )
