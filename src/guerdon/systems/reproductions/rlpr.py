"""RLPR's claim: for references of several words, the mean of their token probabilities is a better reward than the product.

Trained: a tiny policy through the real trainer, `rlpr_training`. Measured: an instruct model of 135M parameters on hand-made
completions, `rlpr_probe`. Finished runs are kept in the budget's folder, so an interrupted reproduction goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from guerdon.systems.reproduction import Budget, Claim, Reproduction
from guerdon.systems.reproductions.rlpr_probe import GUESSABLE, ITEMS, NEEDS_REASONING, debiased, separation
from guerdon.systems.reproductions.rlpr_training import (
    ARMS,
    MEAN,
    PRODUCT,
    SMOKE,
    UNFILTERED,
    Plan,
    Run,
    run_arm,
    starting_policy,
)
from guerdon.systems.reproductions.summary import enough, held_in, over_seeds
from guerdon.systems.rlpr import std_filter_ema
from guerdon.threads import one_thread

BETAS = (0.5, 0.7, 0.9, 1.0)


def reproduce(budget: Budget) -> Reproduction:
    """See `Plan` for the size of a run; all of it takes about a quarter of an hour on one core."""
    with one_thread():
        runs, claims = _trained(budget)
        claims += _measured(budget)
    seeds = budget.seed_list(5)
    first = runs[MEAN][0]
    return Reproduction(
        slug="rlpr",
        claim="With a word in the references that nobody can foresee, the mean of their token probabilities teaches what their product does not.",
        claims=claims,
        seeds=seeds,
        table=[_row(arm, found) for arm, found in runs.items()],
        curves={arm: {"x": first.x, "y": [run.long for run in found]} for arm, found in runs.items()},
        axes=("step", "held-out exact match, references with a word"),
        notes=[*_notes(first), _unfiltered(runs)],
    )


def _notes(first: Run) -> list[str]:
    plan = Plan()
    return [
        f"Table: mean [least, greatest] over seeds, after {plan.steps} steps of {plan.prompts} prompts x {plan.group} rollouts; exact match up to "
        f"the word on {plan.samples} held-out rollouts at temperature 1. All arms and seeds start from one warm-started policy "
        f"({first.short[0]:.2f} and {first.long[0]:.2f}); seeds differ in prompts and samples.",
        "Half of the references are a number, half two numbers and a word that the policy would never write and the prompt does not tell. "
        "A dozen improbable characters put the product below the 1e-6 at which GRPO's own epsilon calls a group flat, so the product's arm "
        "learns from the numbers' half alone.",
        "Where the product stays above that epsilon it teaches as well: in two earlier versions of the task, whose references were worded "
        "in one of six ways the policy itself uses, RLPR was not above the product (-1.4 [-6.2, 4.4] points over 5 seeds where many words "
        "stood around one number, 0.84 and 0.86 on one seed where two numbers stood before a unit), because a group's advantages divide by "
        "the std of its rewards, which undoes the product's scale. The task was changed after that was seen; seeds 91 and 92 were the pilots.",
        "The filter drops what its one threshold calls flat, and a reference with many tokens that do not depend on the reasoning has a "
        "small std however much there is to learn from it: nearly all that is kept are numbers. TRL cannot draw again for a group that the "
        "filter drops, so RLPR trains on the share of rows in the last column; the third arm has no filter.",
        "The advantage of a rollout falls on its own answer, too, which the reward never reads. A policy that is unsure of its answers therefore "
        "drifts there under either reward; the starting policy copies its conclusion, and the learning rate is half of what the library's "
        "verifier-driven runs of this size use.",
        "A policy of 0.9M parameters with a token for each character, references of 1 to 12 tokens; the official runs train 7B models "
        "on general questions. The 135M model only measures: right and wrong reasoning were written by hand.",
    ]


def _unfiltered(runs: dict[str, list[Run]]) -> str:
    gains = [100 * (a.long[-1] - b.long[-1]) for a, b in zip(runs[UNFILTERED], runs[PRODUCT], strict=True)]
    return (
        f"Not a claim of the paper's, and looked at after the others: without the filter the mean probability is {over_seeds(gains, 1)} points "
        "above the product where references have a word."
    )


def _row(arm: str, found: Sequence[Run]) -> dict[str, Any]:
    return {
        "reward": arm,
        "exact match": over_seeds([run.both[-1] for run in found]),
        "references with a word": over_seeds([run.long[-1] for run in found]),
        "numbers": over_seeds([run.short[-1] for run in found]),
        "kept in the last third": over_seeds([_mean(run.kept[2 * len(run.kept) // 3 :]) for run in found]),
    }


# --- trained ---------------------------------------------------------------------------------------------------------


def _trained(budget: Budget) -> tuple[dict[str, list[Run]], list[Claim]]:
    policy = starting_policy(budget.smoke)
    plan = SMOKE if budget.smoke else Plan()
    runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
    for seed in budget.seed_list(5):  # seeds outermost: what is done when interrupted is whole seeds
        for arm in ARMS:
            budget.say(f"seed {seed}: {arm}")
            runs[arm].append(run_arm(arm, seed, plan, policy, budget.folder))
    return runs, [*_gain_claims(runs), _filter_claim(runs[MEAN], budget.smoke)]


def _gain_claims(runs: dict[str, list[Run]]) -> list[Claim]:
    better = [a.both[-1] >= b.both[-1] for a, b in zip(runs[MEAN], runs[PRODUCT], strict=True)]
    gains = [100 * (a.long[-1] - b.long[-1]) for a, b in zip(runs[MEAN], runs[PRODUCT], strict=True)]
    return [
        Claim(
            "RLPR ends with an exact match at least the product's in at least 4 of 5 seeds",
            enough(better),
            f"not below in {held_in(better)}",
        ),
        Claim(
            "and is on average 5 points or more above it where references have a word",
            _mean(gains) >= 5,
            f"gain {over_seeds(gains, 1)} points",
        ),
    ]


def _filter_claim(runs: Sequence[Run], smoke: bool) -> Claim:
    """The rule on the group stds that training recorded, without the training that another beta would have changed."""
    late = 0 if smoke else 10
    shares = []
    for beta in BETAS:
        kept = [step["keep"].float().mean() for run in runs for step in std_filter_ema(run.stds, beta=beta)[late:]]
        shares.append(float(torch.stack(kept).mean()))
    follows = all(_follows(run.stds) for run in runs)
    return Claim(
        "on the group stds recorded in training, the filter's threshold follows the moving average, and it keeps fewer groups the higher "
        "beta is, from 0.5 to 1.0",
        follows and shares == sorted(shares, reverse=True) and shares[0] > shares[-1],
        "kept " + ", ".join(f"{share:.2f} at beta {beta}" for beta, share in zip(BETAS, shares, strict=True)),
    )


def _follows(stds: Sequence[Sequence[float]], beta: float = 0.5) -> bool:
    """The thresholds, computed again: the mean of steps 6 to 10, then 0.99 of what it was plus 0.01 of the step before."""
    means = [_mean([std for std in step if std == std]) for step in stds]
    average = _mean(means[5:10]) if len(means) > 10 else 0.0
    for step, found in enumerate(std_filter_ema(stds, beta=beta), start=1):
        if step > 11:
            average = 0.99 * average + 0.01 * means[step - 2]
        if abs(found["threshold"] - (beta * average if step >= 11 else 0.0)) > 1e-6:
            return False
    return True


# --- measured --------------------------------------------------------------------------------------------------------


def _measured(budget: Budget) -> list[Claim]:
    from guerdon.lm import LocalModel

    budget.say("ranking and debiasing under the 135M model")
    model = LocalModel("smollm2")
    items, few = (ITEMS[:2], 1) if budget.smoke else (ITEMS, None)
    found = separation(model, items)
    plain, worded = found["plain"], found["worded"]
    guessed, thought = debiased(model, GUESSABLE[:few]), debiased(model, NEEDS_REASONING[:few])
    return [
        Claim(
            f"135M model, {len(items)} questions: the mean probability ranks right reasoning above wrong with an AUC of at least 0.8",
            min(plain["mean_prob"], worded["mean_prob"]) >= 0.8,
            f"{plain['mean_prob']:.3f} where all references are a single value (the product: {plain['prod_prob']:.3f}, which is better there), "
            f"{worded['mean_prob']:.3f} where half of them have a few more words",
        ),
        Claim(
            "with references of mixed length (a few more words in half of them) its AUC is at least 0.02 above the product's",
            worded["mean_prob"] >= worded["prod_prob"] + 0.02,
            f"{worded['mean_prob']:.3f}, product {worded['prod_prob']:.3f}",
        ),
        Claim(
            "where the reference can be guessed without reasoning, the mean debiased reward is at most 0.1 while the raw mean probability is "
            "at least 0.5",
            guessed["reward"] <= 0.1 and guessed["raw"] >= 0.5,
            f"debiased {guessed['reward']:.3f}, raw {guessed['raw']:.3f}, without reasoning {guessed['baseline']:.3f}; sums that need "
            f"reasoning: debiased {thought['reward']:.3f}, raw {thought['raw']:.3f}, without reasoning {thought['baseline']:.3f}",
        ),
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
