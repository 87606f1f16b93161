"""PAR's claim: where a proxy reward model is wrong far away, a bounded and centred reward stops the policy where it is right.

World: `drift`, a Gaussian policy whose proxy score keeps rising while the true reward turns. All arms are the published system
with its carrier "ppo" (KL 0.005 in the reward, whitening) and a critic that says 0: with one token an answer and one problem, any
constant critic cancels in the whitening, which makes this REINFORCE with whitened advantages. Beside it: WARM's weight average,
and ODIN's quality head against a single head (`length_bias`).
"""

from __future__ import annotations

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
DRAWN = ("par", "sigmoid", "minmax", "clip", "vanilla")  # the others lie on top of one of these
CUT = -8.0
BEATEN = ("vanilla", "meanstd", "minmax")


def run_shaping(shaping: Any, seed: int, updates: int) -> Drift:
    """One training run: batch 64, step 0.05, ten reference answers."""
    system = par(rm=ProxyRewardModel(), shaping=shaping, carrier="ppo", kl_coef=0.005)
    return train(system, seed=seed, updates=updates)


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
    """About two minutes on one core."""
    seeds = budget.seed_list(5)
    updates, rm_steps = (5, 5) if budget.smoke else (800, 400)
    runs: dict[str, list[Drift]] = {}
    for shaping in ARMS:
        budget.say(f"shaping {shaping}")
        runs[shaping] = [run_shaping(shaping, seed, updates) for seed in seeds]
    budget.say("reward models on pairs that favour length")
    heads = [single_head_and_odin(seed, rm_steps) for seed in seeds]
    table = [
        {
            "shaping": name,
            "true reward at the end": over_seeds([run.true[-1] for run in runs[shaping]]),
            "best true reward on the way": over_seeds([max(run.true) for run in runs[shaping]]),
            "proxy score at the end": over_seeds([run.mean[-1] for run in runs[shaping]], 1),
        }
        for shaping, name in ARMS.items()
    ]
    return Reproduction(
        slug="par",
        claim="Under an unbounded proxy reward the true reward rises and then collapses; PAR's bounded, centred reward keeps it.",
        claims=[*_drift_claims(runs), _warm_claim(seeds), _odin_claim(heads)],
        seeds=seeds,
        table=table,
        curves={
            ARMS[shaping]: {"x": list(range(updates)), "y": [[max(y, CUT) for y in run.true] for run in runs[shaping]]}
            for shaping in DRAWN
        },
        axes=("update", f"expected true reward (cut off at {CUT:g})"),
        notes=[
            "Table: mean [least, greatest] over seeds. The policy is N(mu, 1), so the best it can reach is 3.045 at mu = 6.25 "
            "(the peak 3.125 minus 0.08 for its own variance).",
            "Where PAR stops is where the slope of its sigmoid meets the KL penalty, some four units above the references; that truth "
            "turns near there is how this world was made, and a reward model that is wrong nearer would be hacked under PAR too.",
            "Ceil 4 does well because 4 lies below the score at which truth turns. A constant added to every score of the reward "
            "model moves that point away from Ceil and from the uncentred sigmoid, and leaves PAR as it is.",
            "A toy drift, not a language model: it shows the mechanism, not the paper's win rates.",
        ],
    )


def _drift_claims(runs: dict[str, list[Drift]]) -> list[Claim]:
    better = [
        all(ours.true[-1] > runs[other][row].true[-1] for other in BEATEN) for row, ours in enumerate(runs["par"])
    ]
    hacked = [base.mean[-1] > ours.mean[-1] for base, ours in zip(runs["vanilla"], runs["par"], strict=True)]
    return [
        Claim(
            "PAR ends with a higher true reward than vanilla, meanstd and minmax in at least 4 of 5 seeds",
            enough(better),
            held_in(better),
        ),
        Claim("vanilla ends with a higher proxy score than PAR in every seed", all(hacked), held_in(hacked)),
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
