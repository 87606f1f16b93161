"""Training a policy that is nearly always wrong (`guerdon.tasks.hinted`) under P2S, RLPR's reward and the outcome alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from guerdon.credit import Drop, GroupNorm, ToTokens
from guerdon.segment.reasoning import ChainLayout
from guerdon.signals.likelihood.path_faithfulness import Over
from guerdon.signals.likelihood.reference_likelihood import ReferenceLikelihood
from guerdon.signals.likelihood.splice import TagSplice
from guerdon.system import System
from guerdon.systems.context import TaskReward
from guerdon.systems.outcome import grpo
from guerdon.systems.p2s import p2s
from guerdon.systems.reproductions.arm import kept_run
from guerdon.systems.reproductions.sar_training import Plan, Run, train
from guerdon.tasks.arithmetic import sums
from guerdon.tasks.base import Task
from guerdon.tasks.hinted import HINT, TERMS, hinted_policy
from guerdon.tasks.tiny import TinyConfig

LAYOUT = ChainLayout(answer=("#", ""))
OUTCOME, RLPR = "outcome only", "mean probability (RLPR)"
MEAN, P2S = "P2S, mean over the suffix", "P2S, sum over the suffix (default)"
LINES = (
    TERMS[0] - 1
)  # of a solution; as many pieces, so that a piece is a line: a number is one token, and all lines have seven


def mean_probability() -> System:
    """RLPR's reward alone, on the layout of the task: the mean probability of the reference's tokens after the own reasoning."""
    signal = ReferenceLikelihood(aggregation="mean_prob", splice=TagSplice("#", "", ""))
    drop = Drop(*(f"prob.{name}" for name in signal.subs if name != "score"))
    return System(
        {"prob": signal}, [drop, GroupNorm("prob.score", eps=1e-6), ToTokens("prob.score", "whole")], name="mean_prob"
    )


def process(suffix: Over) -> Callable[[Task], System]:
    """P2S with the task's verifier as the outcome."""

    def build(task: Task) -> System:
        return p2s(
            verifier=TaskReward(task),
            layout=LAYOUT,
            hint=HINT,
            format_warmup=0.0,
            max_steps=LINES,
            suffix_reduction=suffix,
        )

    return build


ARMS: dict[str, Callable[[Task], System]] = {
    OUTCOME: lambda task: grpo(verifier=TaskReward(task), eps=1e-6),
    RLPR: lambda task: mean_probability(),
    MEAN: process("mean"),
    P2S: process("sum"),
}
PLAN = Plan(steps=20, prompts=12, group=4, lr=2e-4, every=5, samples=512, tokens=36)
SMOKE = Plan(steps=2, prompts=2, group=2, every=1, samples=8, tokens=36)


def starting_policy(smoke: bool) -> str:
    """The policy; a far smaller, hardly trained one for a smoke run."""
    return (
        hinted_policy(3, config=TinyConfig(hidden=16, layers=1, heads=2, intermediate=16)) if smoke else hinted_policy()
    )


def task_of() -> Task:
    """Sums of five digits; a fifth of them held out."""
    return sums(terms=TERMS, train_size=80, held_out_size=20)


def run_arm(arm: str, seed: int, plan: Plan, policy: str, folder: Path | None = None) -> Run:
    """One training run; taken from `folder` if it was finished there before with the same plan and policy."""
    task = task_of()
    system = ARMS[arm](task)
    asked = {"arm": str(system), "seed": seed, "plan": asdict(plan), "policy": Path(policy).name}
    make = partial(train, system, task, seed, plan, policy)
    return Run(**kept_run(folder, f"{arm}-{seed}", asked, lambda: asdict(make())))
