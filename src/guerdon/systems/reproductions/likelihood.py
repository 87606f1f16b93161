"""The likelihood family's claim: only log-probabilities work for references of any length; a probability vanishes with theirs.

Every member trains the same tiny policy through the real trainer, once with references of one token and once with references of some
fifty, beside a verifier that compares the sampled answer (`likelihood_training`). Finished runs are kept in the budget's folder,
so an interrupted reproduction goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from guerdon.systems.reproduction import Budget, Claim, Reproduction
from guerdon.systems.reproductions.likelihood_task import REGIMES, Regime, Start, starting_policy
from guerdon.systems.reproductions.likelihood_training import ARMS, BASE, LOGPROB, SMOKE, VERIFREE, Plan, Run, run_arm
from guerdon.systems.reproductions.summary import enough, held_in, interval, over_seeds
from guerdon.threads import one_thread

Runs = dict[tuple[str, Regime], list[Run]]
SMOKE_START = Start(steps=3, hidden=16, layers=1, rows=2)


def reproduce(budget: Budget) -> Reproduction:
    """See `Plan` for the size of a run."""
    with one_thread():
        runs = _trained(budget)
    first = runs[LOGPROB, "long"][0]
    return Reproduction(
        slug="likelihood",
        claim="The log-probability of the reference teaches whatever its length; its probability is flat at zero once it is long.",
        claims=[
            _improves(runs),
            _vanishes(runs),
            _as_good_when_short(runs),
            _as_right_as_a_verifier(runs),
            _likelier_than_a_verifier(runs),
        ],
        seeds=budget.seed_list(5),
        table=[_row(arm, regime, runs[arm, regime]) for regime in REGIMES for arm in ARMS],
        curves={arm: {"x": first.x, "y": [run.mean_logprob for run in runs[arm, "long"]]} for arm in ARMS},
        axes=("step", "held-out log-probability of long references, per token"),
        notes=_notes(runs),
    )


def _trained(budget: Budget) -> Runs:
    policy = starting_policy(SMOKE_START if budget.smoke else Start())
    plan = SMOKE if budget.smoke else Plan()
    runs: Runs = {(arm, regime): [] for regime in REGIMES for arm in ARMS}
    for seed in budget.seed_list(5):  # seeds outermost: what is done when interrupted is whole seeds
        for regime in REGIMES:
            for arm in ARMS:
                budget.say(f"seed {seed}, {regime} references: {arm}")
                runs[arm, regime].append(run_arm(arm, regime, seed, plan, policy, budget.folder))
    return runs


def _row(arm: str, regime: Regime, found: Sequence[Run]) -> dict[str, Any]:
    return {
        "references": regime,
        "reward": arm,
        "log-probability": over_seeds([run.logprob[-1] for run in found]),
        "per token": over_seeds([run.mean_logprob[-1] for run in found]),
        "accuracy": over_seeds([run.accuracy[-1] for run in found]) if regime == "short" else "",
        "with an answer": over_seeds([run.marked[-1] for run in found]),
        "reasoning, tokens": over_seeds([run.reasoning[-1] for run in found], 1),
        "flat groups": over_seeds([_mean(run.flat) for run in found]),
    }


def _notes(runs: Runs) -> list[str]:
    plan, short, long = Plan(), runs[LOGPROB, "short"][0], runs[LOGPROB, "long"][0]
    return [
        f"Table: mean [least, greatest] over seeds, after {plan.steps} steps of {plan.prompts} prompts x {plan.group} rollouts; "
        f"log-probabilities in nats, of the reference after a reasoning sampled at temperature 1 for each of {plan.samples} held-out prompts (and "
        "the mark of an answer, where the policy wrote none); accuracy of the answers sampled with it. Flat groups: share of training "
        "groups whose rewards were all the same.",
        f"All arms and seeds start from one warm-started policy: log-probability {short.logprob[0]:.2f} of short and {long.logprob[0]:.1f} of "
        f"long references, accuracy {short.accuracy[0]:.2f}; seeds differ in prompts and samples. It has never seen an answer in the "
        "long form, so no sampled answer equals a long reference, and the 0/1 verifier has nothing to reward there.",
        "On-policy, RLOO, both terms of the gradient, no KL, the same learning rate for all. Rewards of whole references are sums over tokens: in "
        "the long regime the log-probability's steps are held by the gradient's clipping to norm 1.",
        "A policy of a hundred thousand parameters with a token for each character; the paper trains 3B models on MATH, DeepScaleR, Alpaca and "
        "proofs. NOVER's format reward asks for a place for the reference here, not for tags, which this policy does not know; its proxy "
        "is synchronised every 100 steps, so in so few it is the starting policy.",
    ]


# --- claims ----------------------------------------------------------------------------------------------------------


def _gains(found: Sequence[Run]) -> list[float]:
    """How much the held-out log-probability of the whole reference rose over a run, by seed."""
    return [run.logprob[-1] - run.logprob[0] for run in found]


def _improves(runs: Runs) -> Claim:
    gains = {regime: _gains(runs[LOGPROB, regime]) for regime in REGIMES}
    return Claim(
        "log-prob raises the held-out log-probability of the reference in every seed, short references and long",
        all(gain > 0 for found in gains.values() for gain in found),
        f"by {over_seeds(gains['short'])} nats on short references, by {over_seeds(gains['long'], 1)} on long ones",
    )


def _vanishes(runs: Runs) -> Claim:
    ours, theirs = _gains(runs[LOGPROB, "long"]), _gains(runs[VERIFREE, "long"])
    rewards = [max(run.prob) for run in runs[VERIFREE, "long"]]
    held = [reward < 1e-4 and abs(b) < 0.1 * abs(a) for reward, a, b in zip(rewards, ours, theirs, strict=True)]
    return Claim(
        "with long references VeriFree's reward, the probability, stays below 1e-4 and moves the log-probability by less than 10 % of "
        "log-prob's gain, in at least 4 of 5 seeds",
        enough(held),
        f"{held_in(held)}; greatest mean reward {max(rewards):.1e}, log-probability moved by {over_seeds(theirs, 1)} nats, log-prob's by "
        f"{over_seeds(ours, 1)}",
    )


def _as_good_when_short(runs: Runs) -> Claim:
    ours, theirs = ([run.accuracy[-1] for run in runs[arm, "short"]] for arm in (LOGPROB, VERIFREE))
    return _alike(
        "with short references VeriFree's accuracy is within noise of log-prob's (95 % interval of the paired difference over seeds)",
        [100 * (b - a) for a, b in zip(ours, theirs, strict=True)],
        "VeriFree's minus log-prob's",
    )


def _as_right_as_a_verifier(runs: Runs) -> Claim:
    gaps = [100 * (a.accuracy[-1] - b.accuracy[-1]) for a, b in _pairs(runs, "short")]
    low, high = interval(gaps)
    return Claim(
        "with short references log-prob's accuracy is not below that of the 0/1 verifier (95 % interval of the paired difference over seeds)",
        high >= 0,
        f"log-prob's minus the verifier's {over_seeds(gaps, 1)} points, interval [{low:.1f}, {high:.1f}]",
    )


def _likelier_than_a_verifier(runs: Runs) -> Claim:
    gaps = {regime: [a.logprob[-1] - b.logprob[-1] for a, b in _pairs(runs, regime)] for regime in REGIMES}
    held = [short > 0 and long > 0 for short, long in zip(gaps["short"], gaps["long"], strict=True)]
    return Claim(
        "the reference ends likelier under log-prob than under the 0/1 verifier, short and long, in at least 4 of 5 seeds",
        enough(held),
        f"{held_in(held)}; by {over_seeds(gaps['short'])} nats on short references, by {over_seeds(gaps['long'], 1)} on long ones",
    )


def _pairs(runs: Runs, regime: Regime) -> list[tuple[Run, Run]]:
    return list(zip(runs[LOGPROB, regime], runs[BASE, regime], strict=True))


def _alike(text: str, differences: Sequence[float], what: str) -> Claim:
    low, high = interval(differences)
    return Claim(
        text, low <= 0 <= high, f"{what} {over_seeds(differences, 1)} points, interval [{low:.1f}, {high:.1f}]"
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
