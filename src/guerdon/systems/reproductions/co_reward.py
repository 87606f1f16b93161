"""Co-rewarding's claim: labels from another view of the question do not collapse as labels from one's own majority do.

Trained: a tiny policy on sums in two templates through the real trainer, `co_reward_training`, both views meeting in each generation batch.
Beside it tables of logits, `co_reward_tabular`. Finished runs are kept in the budget's folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guerdon.systems.reproduction import Budget, Claim, Reproduction
from guerdon.systems.reproductions import co_reward_tabular as tabular
from guerdon.systems.reproductions.co_reward_task import starting_policy
from guerdon.systems.reproductions.co_reward_training import ARMS, CROSS, OWN, SMOKE, TEACHER, Plan, Run, run_arm
from guerdon.systems.reproductions.short_answers import SMOKE_START, Start
from guerdon.systems.reproductions.summary import enough, held_in, over_seeds
from guerdon.threads import one_thread


def reproduce(budget: Budget) -> Reproduction:
    """About eight minutes on one core."""
    with one_thread():
        seeds, runs = budget.seed_list(5), _trained(budget)
        tables = _tables(budget)
    first, plan = runs[OWN][0], Plan()
    return Reproduction(
        slug="co_reward",
        claim="Without labels, the other view's majority teaches what one's own majority does not: it does not certify itself.",
        claims=[
            _keeps_claim(CROSS, runs),
            _keeps_claim(TEACHER, runs),
            _better_claim(CROSS, runs),
            _better_claim(TEACHER, runs),
            _collapse_claim(runs),
            *_table_claims(tables),
        ],
        seeds=seeds,
        table=[_row(arm, found) for arm, found in runs.items()]
        + [_table_row(arm, found) for arm, found in tables.items()],
        curves={arm: {"x": first.x, "y": [run.accuracy for run in found]} for arm, found in runs.items()},
        axes=("step", "accuracy, both templates"),
        notes=[
            f"Trained: mean [least, greatest] over seeds after {plan.steps} steps of {plan.prompts // 2} questions x 2 views x {plan.group} "
            f"rollouts, no label used; measured on the same 196 questions in both views, eight answers each. All runs start from one policy "
            f"(accuracy {first.accuracy[0]:.3f}, {first.hard[0]:.3f} in the hard quarter); seeds differ in prompts and samples.",
            "'own answer' is the share of the answer that a template suggests where the policy does not know; in the hard quarter it is the "
            "most frequent one, another in each view. 'hard vote' is how often the majority of eight new answers is right there.",
            "Tables: 60 questions, 6 answers, 8 rollouts, 150 updates; accuracy is the mean probability of the right answer.",
            "The rewriting is a template here, not a model's; the questions' views have the same answer by construction.",
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


def _tables(budget: Budget) -> dict[str, list[list[float]]]:
    budget.say("tables")
    size = tabular.Table(questions=6, updates=10) if budget.smoke else tabular.Table()
    return {arm: [tabular.run(arm, size, seed) for seed in budget.seed_list(5)] for arm in ARMS}


def _row(arm: str, found: Sequence[Run]) -> dict[str, Any]:
    return {
        "label": arm,
        "accuracy": over_seeds([run.accuracy[-1] for run in found], 3),
        "hard quarter": over_seeds([run.hard[-1] for run in found], 3),
        "hard vote": over_seeds([run.vote[-1] for run in found], 3),
        "own answer": over_seeds([run.own[-1] for run in found], 3),
        "reward at the end": over_seeds([sum(run.reward[-10:]) / len(run.reward[-10:]) for run in found]),
    }


def _table_row(arm: str, found: Sequence[Sequence[float]]) -> dict[str, Any]:
    blank = dict.fromkeys(("hard quarter", "hard vote", "own answer", "reward at the end"), "-")
    return {"label": f"table: {arm}", "accuracy": over_seeds([run[-1] for run in found], 3), **blank}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _keeps_claim(arm: str, runs: Mapping[str, Sequence[Run]]) -> Claim:
    kept = [run.accuracy[-1] >= run.accuracy[0] for run in runs[arm]]
    gains = over_seeds([run.accuracy[-1] - run.accuracy[0] for run in runs[arm]], 3)
    return Claim(
        f"{arm}: accuracy ends at least where it began, in at least 4 of 5 seeds",
        enough(kept),
        f"{held_in(kept)}; gain {gains}",
    )


def _better_claim(arm: str, runs: Mapping[str, Sequence[Run]]) -> Claim:
    ends = {name: _mean([run.accuracy[-1] for run in runs[name]]) for name in (arm, OWN)}
    pairs = [a.accuracy[-1] > b.accuracy[-1] for a, b in zip(runs[arm], runs[OWN], strict=True)]
    return Claim(
        f"{arm}: mean accuracy at the end above that of the {OWN}",
        ends[arm] > ends[OWN],
        f"{ends[arm]:.3f} against {ends[OWN]:.3f}; above in {held_in(pairs)}",
    )


def _collapse_claim(runs: Mapping[str, Sequence[Run]]) -> Claim:
    ends = {name: [run.vote[-1] for run in runs[name]] for name in (OWN, CROSS)}
    lower = [a < b for a, b in zip(ends[OWN], ends[CROSS], strict=True)]
    paid = _mean([_mean(run.reward[-10:]) for run in runs[OWN]])
    return Claim(
        f"{OWN}: votes in the hard quarter are less often right than with the {CROSS}, in at least 4 of 5 seeds",
        enough(lower),
        f"{held_in(lower)}; {over_seeds(ends[OWN], 3)} against {over_seeds(ends[CROSS], 3)}, while the policy is paid {paid:.2f} of 1",
    )


def _table_claims(tables: Mapping[str, Sequence[Sequence[float]]]) -> list[Claim]:
    claims = []
    for arm in (CROSS, TEACHER):
        pairs = [a[-1] > b[-1] for a, b in zip(tables[arm], tables[OWN], strict=True)]
        ends = {name: over_seeds([run[-1] for run in tables[name]]) for name in (arm, OWN)}
        mean = {name: _mean([run[-1] for run in tables[name]]) for name in (arm, OWN)}
        claims.append(
            Claim(
                f"tables: the {arm} ends above the {OWN} on average",
                mean[arm] > mean[OWN],
                f"{ends[arm]} against {ends[OWN]}, from {over_seeds([run[0] for run in tables[arm]])}; above in {held_in(pairs)}",
            )
        )
    return claims
