"""CSR's claim: agreement among samples becomes a calibrated confidence, where correctness alone leaves a policy over-confident.

Trained: a tiny policy on look-ups with and without evidence, through the real trainer, `csr_training`. Beside it one wrong mode on a
table, `csr_tabular`. Finished runs are kept in the budget's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from guerdon.systems.reproduction import Budget, Claim, Reproduction
from guerdon.systems.reproductions.csr_tabular import mode_mass
from guerdon.systems.reproductions.csr_task import starting_policy
from guerdon.systems.reproductions.csr_training import (
    ARMS,
    CORRECT,
    CSR,
    DIVIDED_CORRECT,
    DIVIDED_CSR,
    SMOKE,
    SPOKEN,
    Plan,
    Run,
    run_arm,
)
from guerdon.systems.reproductions.short_answers import SMOKE_START, Start
from guerdon.systems.reproductions.summary import enough, held_in, over_seeds
from guerdon.threads import one_thread

PAIRS = ((CSR, CORRECT), (DIVIDED_CSR, DIVIDED_CORRECT))  # an arm and its baseline
Masses = Mapping[tuple[bool, float], Sequence[float]]


def reproduce(budget: Budget) -> Reproduction:
    """About ten minutes on one core."""
    with one_thread():
        runs, masses = _trained(budget), _masses(budget)
    first, plan = runs[CORRECT][0], Plan()
    return Reproduction(
        slug="csr",
        claim="Paid for agreeing where right and fined where wrong, a policy is sure of what it knows and unsure of the rest.",
        claims=[
            *[_lower("ECE", lambda run: run.ece[-1], runs, *pair) for pair in PAIRS],
            *[_lower("AUROC", lambda run: -run.auroc[-1], runs, *pair) for pair in PAIRS],
            *[_accuracy(runs, *pair) for pair in PAIRS],
            *[_mode(masses, by_std) for by_std in (False, True)],
        ],
        seeds=budget.seed_list(5),
        table=[_row(arm, found) for arm, found in runs.items()],
        curves={arm: {"x": first.x, "y": [run.ece for run in found]} for arm, found in runs.items()},
        axes=("step", "ECE of the most frequent answer's share, held out"),
        notes=[
            f"Table: mean [least, greatest] over seeds after {plan.steps} steps of {plan.prompts} prompts x {plan.group} rollouts, on 200 held-out "
            f"questions with ten answers each; ten bins. All runs start from one policy (accuracy with evidence {first.accuracy[0]:.3f}, "
            f"ECE {first.ece[0]:.3f}, AUROC {first.auroc[0]:.3f}); seeds differ in prompts and samples.",
            "ECE, AUROC and Brier take the share of the most frequent answer as its confidence, for every arm; 'spoken' takes the digit the policy "
            "writes beside its answer, which only RLCR's arm is paid for. 'habit' is the mass of the habitual answer without evidence.",
            "Where all of a group is wrong, division by the group's std makes the fine for agreement as loud as a right answer, whatever lam is (0.2 in place "
            "of 0.5 cost as much accuracy on a pilot seed). Those steps reach the questions that have evidence through shared weights. So all arms but one pair "
            "are not divided, as in RLCR's configurations; the division was this library's default until it had lost accuracy in two records.",
            "The spoken arm is paid (form + right + Brier reward) / 2 as RLCR is, in the look-ups' own layout; a digit says how sure, so 0.9 is not among "
            "its values.",
            "The paper's formulas are not public: the agreement, its weight 0.5 and its peers are guesses at them; answers are equal as strings.",
            "No model of entailment or embedder was needed: answers here are digits. The paper's questions and its 3B to 8B policies were not run.",
        ],
    )


def _trained(budget: Budget) -> dict[str, list[Run]]:
    plan = SMOKE if budget.smoke else Plan()
    policy = starting_policy(SMOKE_START if budget.smoke else Start())
    runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
    for seed in budget.seed_list(5):
        for arm in ARMS:
            budget.say(f"{arm}, seed {seed}")
            runs[arm].append(run_arm(arm, seed, plan, policy, budget.folder))
    return runs


def _masses(budget: Budget) -> Masses:
    budget.say("one wrong mode")
    updates = 5 if budget.smoke else 300
    return {
        (by_std, lam): [mode_mass(lam, seed, norm_by_std=by_std, updates=updates) for seed in budget.seed_list(5)]
        for by_std in (True, False)
        for lam in (0.0, 0.5)
    }


def _row(arm: str, found: Sequence[Run]) -> dict[str, Any]:
    return {
        "reward": arm,
        "accuracy, evidence": over_seeds([run.accuracy[-1] for run in found], 3),
        "habit": over_seeds([run.habit[-1] for run in found]),
        "ECE": over_seeds([run.ece[-1] for run in found], 3),
        "AUROC": over_seeds([run.auroc[-1] for run in found], 3),
        "Brier": over_seeds([run.brier[-1] for run in found], 3),
        "spoken ECE": over_seeds([run.spoken_ece[-1] for run in found], 3),
        "spoken AUROC": over_seeds([run.spoken_auroc[-1] for run in found], 3),
    }


def _lower(name: str, of: Callable[[Run], float], runs: Mapping[str, Sequence[Run]], ours: str, baseline: str) -> Claim:
    """`of` is lower under CSR than under its baseline."""
    better = [of(a) < of(b) for a, b in zip(runs[ours], runs[baseline], strict=True)]
    ends = {arm: over_seeds([abs(of(run)) for run in runs[arm]], 3) for arm in ARMS}
    word = "lower" if name == "ECE" else "higher"
    spoken = f"; spoken confidence's arm {ends[SPOKEN]}" if ours == CSR else ""
    return Claim(
        f"{_how(ours)}held-out {name} is {word} under CSR than under correctness only, in at least 4 of 5 seeds",
        enough(better),
        f"{held_in(better)}; {ends[ours]} against {ends[baseline]}{spoken}",
    )


def _accuracy(runs: Mapping[str, Sequence[Run]], ours: str, baseline: str) -> Claim:
    gaps = [a.accuracy[-1] - b.accuracy[-1] for a, b in zip(runs[ours], runs[baseline], strict=True)]
    mean = sum(gaps) / len(gaps)
    return Claim(
        f"{_how(ours)}accuracy where there is evidence is within 2 points of correctness only, on average",
        abs(mean) <= 0.02,
        f"difference {over_seeds(gaps, 3)}",
    )


def _how(arm: str) -> str:
    return "advantages divided by the std: " if arm == DIVIDED_CSR else ""


def _mode(masses: Masses, by_std: bool) -> Claim:
    lower = [a < b for a, b in zip(masses[by_std, 0.5], masses[by_std, 0.0], strict=True)]
    how = "with" if by_std else "without"
    return Claim(
        f"table, {how} division by the std: a wrong mode of mass 0.7 is smaller under CSR than under correctness only, in every seed",
        all(lower),
        f"{held_in(lower)}; {over_seeds(masses[by_std, 0.5])} against {over_seeds(masses[by_std, 0.0])}",
    )
