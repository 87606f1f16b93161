"""CRF's claim: multiplied into the outcome, conciseness removes filler; added to it, it removes the reasoning.

Four measurements: a tabular policy that may skip steps, be exact, or pad (`crm_behaviours`); the variance of both rewards against their
formulas; a small CRM trained on filtered pairs (`signals.learned.tiny_crm`); and an over-long tiny policy trained with that CRM, through
the real trainer (`sar_training`). Finished training runs are kept in the budget's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from guerdon.credit.conciseness import Form, conciseness_function, reward_variance
from guerdon.signals.learned.tiny_crm import scored, tiny_crm, written_pairs
from guerdon.signals.learned.train_crm import SolutionPair, discriminative
from guerdon.system import System
from guerdon.systems.crm import crm
from guerdon.systems.outcome import grpo
from guerdon.systems.reproduction import Budget, Claim, Reproduction
from guerdon.systems.reproductions.crm_behaviours import (
    ADDED,
    ARMS,
    CRF,
    DECAYING,
    NECESSARY,
    OUTCOME,
    Trace,
    run_arm,
)
from guerdon.systems.reproductions.sar_training import SMOKE, Plan, Run, starting_policy
from guerdon.systems.reproductions.sar_training import run_arm as train_arm
from guerdon.systems.reproductions.summary import enough, held_in, over_seeds
from guerdon.threads import one_thread

CHANCES = (0.1, 0.3, 0.7)
TRAINED_SEEDS = 3
PLAN = replace(Plan(), every=40)
Solution = tuple[str, str]  # question, text


def reproduce(budget: Budget) -> Reproduction:
    """Ten to twenty minutes on one core, most of them for training the CRM and the policies."""
    with one_thread():
        return _reproduce(budget)


def _reproduce(budget: Budget) -> Reproduction:
    seeds = budget.seed_list(5)
    updates = 5 if budget.smoke else 300
    traces: dict[str, list[Trace]] = {}
    for arm in ARMS:
        budget.say(f"policy under {arm}")
        traces[arm] = [run_arm(arm, seed, updates) for seed in seeds]
    budget.say("variances")
    draws = 20_000 if budget.smoke else 1_000_000
    small_crm = _small_crm(budget)
    trained = _trained(budget, small_crm)
    claims = [_crf_claim(traces), _added_claim(traces), *_variance_claims(seeds, draws)]
    claims += [*_crm_claims(budget, small_crm), _trained_claim(trained)]
    shown = [arm for arm in ARMS if arm not in DECAYING]
    return Reproduction(
        slug="crm",
        claim="Multiplied into the outcome, conciseness removes filler; added to it with the same factor, it removes the reasoning.",
        claims=claims,
        seeds=seeds,
        table=[_row(arm, found) for arm, found in traces.items()] + _trained_table(trained),
        curves={arm: {"x": list(range(updates)), "y": [t.length for t in traces[arm]]} for arm in shown},
        axes=("update", f"expected length in steps ({NECESSARY} are necessary)"),
        notes=[
            "Table: mean [least, greatest] over seeds after 300 updates. Three behaviours: skip (right 35 % of the time, 1 step, conciseness 1.0), "
            "exact (95 %, 4 steps, 0.7), filler (95 %, 8 steps, 0.3); 16 groups of 8 rollouts, learning rate 0.3, d = exp(share right).",
            "alpha is 1, far above the default 0.2, with s constant: at 0.2 the additive form does no harm in this world, and with s decaying to 0 "
            "it survives alpha 1. What the multiplied form buys is that alpha need not be found with care.",
            "The variance of the raw reward is not smaller under CRF in general: it scales the outcome up. What is smaller is the share "
            "of the variance that has nothing to do with being right.",
            f"Trained: an over-long tiny policy on sums of three terms, {len(trained[OUTCOME])} seeds, {PLAN.steps} steps of {PLAN.prompts} prompts x {PLAN.group} rollouts, with the "
            f"small CRM; accuracy and length on {PLAN.samples} held-out rollouts. That policy has never seen a solution that skips a step.",
            "The CRM is a tiny model on synthetic sums, its writer and judge are scripts; the pipeline is the published one, its size is not.",
        ],
    )


def _row(arm: str, found: Sequence[Trace]) -> dict[str, Any]:
    return {
        "policy": "table",
        "reward": arm,
        "accuracy": over_seeds([trace.accuracy[-1] for trace in found], 3),
        "length": over_seeds([trace.length[-1] for trace in found], 1) + " steps",
        "share that skips": over_seeds([trace.skips[-1] for trace in found]),
    }


# --- behaviour -------------------------------------------------------------------------------------------------------


def _crf_claim(traces: dict[str, list[Trace]]) -> Claim:
    pairs = list(zip(traces[CRF], traces[OUTCOME], strict=True))
    cuts = [100 * (1 - ours.length[-1] / plain.length[-1]) for ours, plain in pairs]
    drops = [100 * (plain.accuracy[-1] - ours.accuracy[-1]) for ours, plain in pairs]
    held = [cut >= 15 and drop <= 2 for cut, drop in zip(cuts, drops, strict=True)]
    return Claim(
        "CRF (alpha 1) is at least 15 % shorter than outcome only and at most 2 points less accurate in at least 4 of 5 seeds",
        enough(held),
        f"{held_in(held)}; shorter by {over_seeds(cuts, 1)} %, accuracy lower by {over_seeds(drops, 2)} points",
    )


def _added_claim(traces: dict[str, list[Trace]]) -> Claim:
    pairs = list(zip(traces[ADDED], traces[OUTCOME], strict=True))
    drops = [100 * (plain.accuracy[-1] - ours.accuracy[-1]) for ours, plain in pairs]
    held = [drop >= 10 or ours.length[-1] < 0.4 * NECESSARY for drop, (ours, _) in zip(drops, pairs, strict=True)]
    return Claim(
        "the additive form with the same alpha loses at least 10 points of accuracy or falls below 40 % of the necessary length in at least "
        "3 of 5 seeds",
        sum(held) >= 0.6 * len(held),
        f"{held_in(held)}; accuracy lower by {over_seeds(drops, 1)} points, {over_seeds([t.length[-1] for t, _ in pairs], 1)} steps",
    )


# --- variance --------------------------------------------------------------------------------------------------------


def _variance_claims(seeds: Sequence[int], draws: int) -> list[Claim]:
    alpha, s, d = 0.5, 0.8, 1.4
    weight, mean, variance = alpha * (s + d), 0.55, 0.81 / 12  # c uniform in [0.1, 1]
    errors, wrong, higher = [], [], []
    for p in CHANCES:
        shares: dict[Form, float] = {}
        for form in ("multiplied", "added"):
            expected = reward_variance(p, weight, mean, variance, form=form)  # type: ignore[arg-type]
            for seed in seeds:
                generator = torch.Generator().manual_seed(1000 * seed + int(10 * p))
                outcomes = (torch.rand(draws, generator=generator, dtype=torch.float64) < p).double()
                scores = 0.1 + 0.9 * torch.rand(draws, generator=generator, dtype=torch.float64)
                rewards = conciseness_function(outcomes, scores, alpha, s, d, form=form)  # type: ignore[arg-type]
                errors.append(abs(float(rewards.var()) / expected.total - 1))
                if form == "multiplied":
                    wrong.append(float(rewards[outcomes == 0].var()))
            shares[form] = expected.share  # type: ignore[index]
        higher.append((p, shares["multiplied"], shares["added"]))
    return [
        Claim(
            "simulated variances of both rewards are within 3 % of their formulas at p = 0.1, 0.3 and 0.7, and CRF has none among wrong answers",
            max(errors) <= 0.03 and max(wrong) == 0,
            f"largest error {100 * max(errors):.2f} %, largest variance among wrong answers under CRF {max(wrong):g}",
        ),
        Claim(
            "correctness explains a larger share of the reward's variance under CRF than under the additive form, at every p",
            all(ours > theirs for _, ours, theirs in higher),
            "; ".join(f"p = {p}: {ours:.3f} against {theirs:.3f}" for p, ours, theirs in higher),
        ),
    ]


# --- the reward model ------------------------------------------------------------------------------------------------


def _small_crm(budget: Budget) -> str:
    budget.say("the small CRM")
    return tiny_crm(pairs=40, base=starting_policy(True)) if budget.smoke else tiny_crm()


def _crm_claims(budget: Budget, path: str) -> list[Claim]:
    from guerdon.lm import LocalModel

    written = written_pairs(40 if budget.smoke else 1000, 1, held_out=True)
    held_out = discriminative(written)
    model = LocalModel(path)
    same = [((pair.question, pair.concise), (pair.question, pair.redundant)) for pair in held_out[:300]]
    across = longer_concise(held_out)[:300]
    own, other = (
        ordered(scored(model, [a for a, _ in both]), scored(model, [b for _, b in both])) for both in (same, across)
    )
    only = [p.concise_score >= 0.8 and p.redundant_score <= 0.5 for p in held_out]
    return [
        Claim(
            "the data builder keeps discriminative pairs only, and drops some",
            all(only) and 0 < len(held_out) < len(written),
            f"{len(held_out)} of {len(written)} kept",
        ),
        Claim(
            "the small CRM orders concise over redundant on at least 90 % of held-out pairs",
            own >= 0.9,
            f"{100 * own:.1f} % of {len(same)}, ties as half",
        ),
        Claim(
            "also where the concise solution is the LONGER text (of a longer sum), on at least 90 %: it does not only count tokens",
            other >= 0.9,
            f"{100 * other:.1f} % of {len(across)}",
        ),
    ]


def longer_concise(pairs: Sequence[SolutionPair]) -> list[tuple[Solution, Solution]]:
    """Each concise solution beside the longest redundant one that is still the shorter text; that is one of another question."""
    found: list[tuple[Solution, Solution]] = []
    by_length = sorted(pairs, key=lambda pair: len(pair.redundant))
    for pair in pairs:
        shorter = [other for other in by_length if len(other.redundant) < len(pair.concise)]
        if shorter:
            found.append(((pair.question, pair.concise), (shorter[-1].question, shorter[-1].redundant)))
    return found


def ordered(concise: Tensor, redundant: Tensor) -> float:
    """Share of pairs whose concise solution scores higher, ties as half; a score that is missing counts against it."""
    if not len(concise):
        return float("nan")
    return float(((concise > redundant).double() + 0.5 * (concise == redundant).double()).mean())


# --- trained ---------------------------------------------------------------------------------------------------------


def _arms(path: str) -> dict[str, Callable[[Any], System]]:
    def crf(form: Form) -> Callable[[Any], System]:
        return lambda verifier: crm(verifier=verifier, crm=path, alpha=1.0, schedule="constant", form=form)

    return {OUTCOME: lambda verifier: grpo(verifier=verifier), CRF: crf("multiplied"), ADDED: crf("added")}


def _trained(budget: Budget, path: str) -> Mapping[str, list[Run]]:
    policy, plan, arms = starting_policy(budget.smoke), SMOKE if budget.smoke else PLAN, _arms(path)
    runs: dict[str, list[Run]] = {arm: [] for arm in arms}
    for seed in range(2 if budget.smoke else TRAINED_SEEDS):
        for arm in arms:
            budget.say(f"tiny policy under {arm}, seed {seed}")
            runs[arm].append(train_arm(arm, seed, plan, policy, budget.folder, arms))
    return runs


def _trained_claim(runs: Mapping[str, list[Run]]) -> Claim:
    pairs = list(zip(runs[CRF], runs[OUTCOME], strict=True))
    cuts = [100 * (1 - ours.length[-1] / plain.length[-1]) for ours, plain in pairs]
    drops = [100 * (plain.accuracy[-1] - ours.accuracy[-1]) for ours, plain in pairs]
    held = [cut >= 15 and drop <= 2 for cut, drop in zip(cuts, drops, strict=True)]
    return Claim(
        "an over-long tiny policy trained with the small CRM: CRF (alpha 1) is at least 15 % shorter than outcome only and at most 2 points "
        "less accurate, in every seed",
        all(held),
        f"{held_in(held)}; shorter by {over_seeds(cuts, 1)} %, accuracy lower by {over_seeds(drops, 2)} points",
    )


def _trained_table(runs: Mapping[str, list[Run]]) -> list[dict[str, Any]]:
    return [
        {
            "policy": "tiny transformer",
            "reward": arm,
            "accuracy": over_seeds([run.accuracy[-1] for run in found], 3),
            "length": over_seeds([run.length[-1] for run in found], 1) + " tokens",
            "share that skips": "",
        }
        for arm, found in runs.items()
    ]
