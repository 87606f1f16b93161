"""IGPO's claim: where most groups of rollouts fail together, information gain still teaches, and the F1 alone does not.

The world of hops is in `retrieval_chain`. All arms are the same published system with the paper's normalisation: `igpo()`,
`igpo(rewards="gain")` and `igpo(rewards="outcome")`, the last of which is GRPO.
"""

from __future__ import annotations

from typing import Any

from guerdon.systems.igpo import igpo
from guerdon.systems.reproduction import Budget, Claim, Reproduction
from guerdon.systems.reproductions.retrieval_chain import Hops, KnownGain, Outcome, Setting, Trace, train
from guerdon.systems.reproductions.summary import enough, held_in, over_seeds

ARMS: dict[str, Any] = {"F1 alone (GRPO)": "outcome", "gain alone": "gain", "IGPO (gain and F1)": "both"}
BOTH, ALONE = "IGPO (gain and F1)", "F1 alone (GRPO)"
FIRST, LAST, SOLVED = 20, 20, 0.8


def known_arm(arm: str, seed: int, setting: Setting) -> Trace:
    """One run in which the gains are those of the world's own confidences."""
    system = igpo(rewards=ARMS[arm], information_gain=KnownGain(setting.world), outcome=Outcome())
    return train(system, setting, seed)


def reproduce(budget: Budget) -> Reproduction:
    """Under a minute on one core."""
    seeds = budget.seed_list(8)
    setting = Setting(updates=4 if budget.smoke else 150)
    runs: dict[str, list[Trace]] = {}
    for arm in ARMS:
        budget.say(f"{arm}, confidences of the world")
        runs[arm] = [known_arm(arm, seed, setting) for seed in seeds]
    return Reproduction(
        slug="igpo",
        claim="Information gain teaches from groups in which every rollout fails; the final F1 alone does not.",
        claims=claims_of(runs, "confidences of the world"),
        seeds=seeds,
        table=table_of(runs, "the world"),
        curves={arm: {"x": list(range(setting.updates)), "y": [t.success for t in runs[arm]]} for arm in ARMS},
        axes=("update (one group of 8)", "probability of a right answer"),
        notes=[
            f"Table: mean [least, greatest] over seeds; success is the mean of the last {LAST} updates. Start: uniform over seven actions.",
            f"World: {Hops().states - 1} hops, six queries and an answer, at most {Hops().cap} turns; Adam 0.1 on a softmax for each number of hops found.",
            "A group teaches nothing under gain only if no rollout found a hop before its last turn, since the last turn has no gain.",
        ],
    )


def claims_of(runs: dict[str, list[Trace]], where: str) -> list[Claim]:
    """What is asked of every world: signal in the first groups, and success in the end."""
    both, alone = runs[BOTH], runs[ALONE]
    full = [trace.share_taught(FIRST) == 1.0 for trace in both]
    sparse = [trace.share_taught(FIRST) < 0.7 for trace in alone]
    solved = [trace.final(LAST) > SOLVED for trace in both]
    solved_alone = [trace.final(LAST) > SOLVED for trace in alone]
    return [
        Claim(
            f"{where}: the share of the first {FIRST} groups with an advantage that is not zero is 1.0 with gain in at least 4 of 5 seeds, "
            "and under 0.7 with the outcome alone in all",
            enough(full) and all(sparse),
            f"with gain {over_seeds([t.share_taught(FIRST) for t in both])}, exactly 1.0 in {held_in(full)}; "
            f"without {over_seeds([t.share_taught(FIRST) for t in alone])}",
        ),
        Claim(
            f"{where}: gain and outcome end with success over {SOLVED} in every seed, the outcome alone in fewer",
            all(solved) and sum(solved_alone) < len(solved_alone),
            f"gain and outcome in {held_in(solved)} ({over_seeds([t.final(LAST) for t in both])}), "
            f"outcome alone in {held_in(solved_alone)} ({over_seeds([t.final(LAST) for t in alone])})",
        ),
    ]


def table_of(runs: dict[str, list[Trace]], where: str) -> list[dict[str, Any]]:
    return [
        {
            "confidences of": where,
            "reward": arm,
            "first groups that teach": over_seeds([trace.share_taught(FIRST) for trace in traces]),
            "success": over_seeds([trace.final(LAST) for trace in traces]),
        }
        for arm, traces in runs.items()
    ]
