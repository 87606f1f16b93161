"""PURE's claim: under a sum of step scores a policy fills its answers with filler, under their minimum it answers.

World, reward model and pass criteria are stated in `step_chain.FillerOrAnswer` and in the claims. Both arms are the same
published system, `pure(credit="min")` and `pure(credit="sum")`, with its default estimator (RLOO on token returns, whitening,
KL 0.001 to the starting policy).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.systems import pure
from guerdon.systems.reproduction import Budget, Claim, Reproduction
from guerdon.systems.reproductions.step_chain import (
    FillerOrAnswer,
    ScriptedPRM,
    TabularPolicy,
    Trace,
    Training,
    TransformerPolicy,
    Verifier,
    sample,
    to_rollouts,
    train,
)
from guerdon.systems.reproductions.summary import enough, held_in, over_seeds

START = (0.0, -1.0, 0.0)  # filler, right, wrong
LAST = 20  # "ends with": mean over the last updates
POLICIES = {"table": (TabularPolicy, 0.1), "transformer": (TransformerPolicy, 3e-3)}  # class, learning rate of Adam


def run_arm(policy: str, credit: Any, task: FillerOrAnswer, seed: int, updates: int) -> Trace:
    """One training run: K = 16 answers to one problem each update."""
    kind, lr = POLICIES[policy]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = kind(task, START)
    system = pure(prm=ScriptedPRM(task), credit=credit, padded_length="batch")
    return train(fresh, task, system, Training(updates, batch=16, group_size=16, lr=lr), seed)


# --- few long steps ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EqualScores:
    """Signal: every step scores the same."""

    score: float = 0.6
    scope: ClassVar[str] = "row"
    level: ClassVar[str] = "steps"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        spans = rollouts.segment("steps")
        return Rewards(torch.where(spans.mask, self.score, 0.0), spans)


def character_rollouts(texts: list[str]) -> Rollouts:
    """Answers to one problem with one token a character."""
    width = max(map(len, texts))
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor([ord(c) for c in text])
    mask = torch.arange(width) < torch.tensor([len(text) for text in texts])[:, None]
    starts = torch.arange(width).expand(ids.shape)
    return Rollouts(
        ["sum the numbers"] * len(texts),
        texts,
        completion_ids=ids,
        completion_mask=mask,
        offsets=torch.stack([starts, starts + 1], -1),
        group_ids=torch.zeros(len(texts), dtype=torch.long),
    )


def advantage_gap(baseline: Any) -> float:
    """How much better one eight-step answer looks once its delimiters are removed: the difference of the two answers' credit.

    An answer's credit is what its first token receives, the sum over all its steps. Two ordinary answers of four steps share
    the group.
    """
    lines = [f"{i}+{i}={2 * i}" for i in range(1, 9)]
    others = ["\n".join(["so we get 12"] * 4), "\n".join(["that is  7"] * 4)]
    system = pure(
        prm=EqualScores(), delimiter="\n", baseline=baseline, adv_norm=False, mask_separators=False, kl_coef=0.0,
        padded_length="batch",
    )  # fmt: skip
    advantages = system(character_rollouts(["\n".join(lines), "".join(lines), *others])).advantages
    return float(advantages[1, 0] - advantages[0, 0])


# --- a verifier for one prompt in ten ------------------------------------------------------------------------------------


def verifier_advantages(baseline: Any, seed: int, prompts: int = 10, group_size: int = 16) -> tuple[Tensor, Tensor]:
    """What the verifier adds to the advantages when only the first of `prompts` prompts has an answer.

    Both modes score the same rollouts, before whitening, which would shift and scale all rows alike.

    Returns:
        |advantage of PRM+VR - advantage of PRM| [B, T] and which rows have an answer [B] bool.
    """
    task = FillerOrAnswer()
    episodes = sample(TabularPolicy(task, START), task, prompts * group_size, torch.Generator().manual_seed(seed))
    rollouts = to_rollouts(episodes, task, group_size)
    answered = rollouts.groups == 0
    rollouts.columns["answer"] = ["a" if known else None for known in answered.tolist()]
    # a step is one token here, so masking step ends would leave nothing to look at
    options: dict[str, Any] = {
        "prm": ScriptedPRM(task), "baseline": baseline, "adv_norm": False, "kl_coef": 0.0, "mask_separators": False,
        "padded_length": "batch",
    }  # fmt: skip
    both = pure(verifier=Verifier(task), **options)(rollouts).advantages
    steps_only = pure(**options)(rollouts).advantages
    return (both - steps_only).abs(), answered


# --- the record ----------------------------------------------------------------------------------------------------------


def reproduce(budget: Budget) -> Reproduction:
    """About two minutes on one core."""
    seeds = budget.seed_list(5)
    updates = 4 if budget.smoke else 300
    tasks = {"": FillerOrAnswer(), ", reward model prefers filler": FillerOrAnswer(scores=(0.9, 0.8, -0.8))}
    plan = [("table", "sum", ""), ("table", "min", ""), ("transformer", "sum", ""), ("transformer", "min", "")]
    plan.append(("table", "min", ", reward model prefers filler"))
    runs: dict[tuple[str, str, str], list[Trace]] = {}
    for policy, credit, world in plan:
        budget.say(f"{credit}-form, {policy} policy{world}")
        runs[policy, credit, world] = [run_arm(policy, credit, tasks[world], seed, updates) for seed in seeds]
    claims = [_filler_claim(policy, runs) for policy in POLICIES]
    claims += [_limit_claim(runs["table", "min", ", reward model prefers filler"]), *_estimator_claims(seeds)]
    table = [
        {
            "credit": f"{credit}-form",
            "policy": policy + world,
            "fillers in an answer": over_seeds([run.final("fillers", LAST) for run in traces]),
            "solved": over_seeds([run.final("solved", LAST) for run in traces]),
        }
        for (policy, credit, world), traces in runs.items()
    ]
    curves = {
        f"{credit}-form, {policy}": {"x": list(range(updates)), "y": [run.fillers for run in runs[policy, credit, ""]]}
        for policy in POLICIES
        for credit in ("sum", "min")
    }
    return Reproduction(
        slug="pure",
        claim="Summed step scores teach a policy to write filler up to the cap; their minimum teaches it to answer.",
        claims=claims,
        seeds=seeds,
        table=table,
        curves=curves,
        axes=("update", "filler steps in an answer (cap 12)"),
        notes=[
            "Table: mean [least, greatest] over seeds of the last 20 updates. Scripted reward model: filler 0.5, right 0.8, wrong -0.8.",
            "Simulated steps, one token each; the official runs train a 7B model against a 7B process reward model.",
            "The table policy cannot tell one step from another. The transformer can, so an answer in the last slot would pay it "
            "more than a twelfth filler; in these runs it stops trying answers long before it finds that.",
        ],
    )


def _filler_claim(policy: str, runs: dict[tuple[str, str, str], list[Trace]]) -> Claim:
    summed = [run.final("fillers", LAST) > 10 and run.final("solved", LAST) < 0.1 for run in runs[policy, "sum", ""]]
    smallest = [run.final("fillers", LAST) < 1 and run.final("solved", LAST) > 0.9 for run in runs[policy, "min", ""]]
    return Claim(
        f"{policy} policy: sum-form ends with more than 10 fillers and under 0.1 solved, min-form with less than 1 filler and "
        "over 0.9 solved, each in at least 4 of 5 seeds",
        enough(summed) and enough(smallest),
        f"sum-form in {held_in(summed)}, min-form in {held_in(smallest)}",
    )


def _limit_claim(traces: list[Trace]) -> Claim:
    filled = [run.final("fillers", LAST) > 10 for run in traces]
    return Claim(
        "limit: a reward model that scores filler (0.9) above the right answer (0.8) makes min-form fill too, in at least 4 of 5 seeds",
        enough(filled),
        f"more than 10 fillers in {held_in(filled)}",
    )


def _estimator_claims(seeds: list[int]) -> list[Claim]:
    step, token = advantage_gap("openrlhf_step"), advantage_gap("openrlhf_token")
    quiet, heard = [], []
    for baseline in ("verl", "openrlhf_token"):
        for seed in seeds:
            added, answered = verifier_advantages(baseline, seed)
            quiet.append(float(added[~answered].max()))
            heard.append(float(added[answered].max()))
    return [
        Claim(
            "few long steps: removing an answer's delimiters changes its credit by more than 1 under the per-step baseline and "
            "by less than 0.05 under the per-token baseline",
            abs(step) > 1 and abs(token) < 0.05,
            f"per step {step:+.3f}, per token {token:+.3f}",
        ),
        Claim(
            "one prompt in ten has an answer: the others get exactly zero verifier advantage, under both estimators",
            max(quiet) == 0.0 and min(heard) > 0,
            f"largest verifier advantage without an answer {max(quiet):g}, with one {max(heard):.2f}",
        ),
    ]
