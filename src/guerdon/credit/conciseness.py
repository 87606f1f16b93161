"""Conciseness multiplied into the outcome (CRF, arXiv 2511.09158), and the additive form it is compared with.

    multiplied  R = R_o (1 + alpha c (s + d))          added  R = R_o + alpha c (s + d)

c is a conciseness score, s anneals over the run, d says how easy the question is for the policy. Only the first form can pay nothing for
a short wrong answer: dR/dc = 0 where R_o = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from guerdon.credit.groups import group_stats
from guerdon.credit.link import Levels, LinkBase, countable, planned_name, require_level
from guerdon.credit.schedule import Annealing
from guerdon.errors import ConfigError
from guerdon.options import checked
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts

Difficulty = Literal["exp", "exp_neg", "share", "none"]
Form = Literal["multiplied", "added"]


@checked
def question_difficulty(
    outcomes: Tensor, group_ids: Tensor, mask: Tensor | None = None, *, kind: Difficulty = "exp"
) -> Tensor:
    """d_q of each row's question: exp(k/G), exp(-k/G), k/G or 0, with k of its G rollouts right (outcome above 0).

    "exp" runs from 1, nobody solves it, to e, everybody does: the easier the question, the more conciseness is worth. It is known
    from one reading of the paper only, the others are guesses.

    Args:
        outcomes: [B]. group_ids: [B] int64. mask: [B] bool, rollouts that count; None = all.

    Returns:
        [B] float64; NaN where no rollout of the question counts.
    """
    if kind not in ("exp", "exp_neg", "share", "none"):
        raise ConfigError(f"difficulty={kind!r}: use exp, exp_neg, share or none")
    share = group_stats((outcomes > 0).double(), group_ids, mask).mean
    if kind == "share":
        return share
    return torch.zeros_like(share) if kind == "none" else torch.exp(share if kind == "exp" else -share)


@checked
def conciseness_function(
    outcomes: Tensor,
    conciseness: Tensor,
    alpha: float,
    annealing: float | Tensor,
    difficulty: float | Tensor,
    *,
    form: Form = "multiplied",
) -> Tensor:
    """R_o (1 + alpha c (s + d)); or R_o + alpha c (s + d).

    Args:
        outcomes: [B] R_o. Where it is negative the plain formula punishes a concise wrong answer MORE; `ConcisenessReward` leaves such
            outcomes as they are.
        conciseness: [B] c in [0.1, 1]. alpha: at least 0. annealing: s in [0, 1]. difficulty: d, a number or [B].
        form: "multiplied" (CRF) or "added".

    Returns:
        [B] float64.
    """
    if alpha < 0:
        raise ConfigError(f"alpha={alpha}: a negative factor would pay for being long")
    base = outcomes.double()
    bonus = alpha * conciseness.double() * (annealing + difficulty)
    if form == "added":
        return base + bonus
    if form != "multiplied":
        raise ConfigError(f"form={form!r}: use 'multiplied' or 'added'")
    return base * (1.0 + bonus)


class RewardVariance(NamedTuple):
    """Variance of a reward, and how much of it is explained by whether the answer is right."""

    total: float
    by_outcome: float

    @property
    def share(self) -> float:
        return self.by_outcome / self.total if self.total else float("nan")


@checked
def reward_variance(p: float, weight: float, mean: float, variance: float, *, form: Form) -> RewardVariance:
    """Variance of the reward for outcomes in {0, 1} with P(1) = p and independent c with this mean and variance; m = alpha (s + d).

    added: p(1-p) + m^2 v;  multiplied: p(1-p)(1 + m mu)^2 + p m^2 v. The first terms are what the outcome explains.
    """
    flip = p * (1 - p)
    if form == "added":
        return RewardVariance(flip + weight**2 * variance, flip)
    outcome = flip * (1 + weight * mean) ** 2
    return RewardVariance(outcome + p * weight**2 * variance, outcome)


@dataclass(frozen=True, repr=False)
class ConcisenessReward(LinkBase):
    """The conciseness reward function as a link: an outcome source and a conciseness source become one reward.

    A row whose conciseness does not apply (masked: nobody asked for the score of a wrong answer) keeps its outcome. So does, in the
    multiplied form, a row whose outcome is not above 0, whatever its conciseness.

    Attributes:
        outcome, score: sequence sources.
        alpha, difficulty, form: see `conciseness_function` and `question_difficulty`.
        schedule: of s.
        into: name of the result.
    """

    outcome: str = "answer"
    score: str = "concise"
    alpha: float = 0.2
    difficulty: Difficulty = "exp"
    schedule: Annealing = field(default_factory=lambda: Annealing("linear"))
    form: Form = "multiplied"
    into: str = "reward"

    scope: ClassVar[Literal["row", "group", "batch"]] = "group"

    def __post_init__(self) -> None:
        nothing = torch.zeros(1)
        conciseness_function(nothing, nothing, self.alpha, 0.0, 0.0, form=self.form)  # refuses wrong options here
        question_difficulty(nothing, nothing.long(), kind=self.difficulty)

    def plan(self, levels: Levels) -> Levels:
        for name in (self.outcome, self.score):
            planned_name(name, levels)
            require_level(name, levels, "sequence", "and conciseness is rewarded once a row")
        return {**{n: lvl for n, lvl in levels.items() if n not in (self.outcome, self.score)}, self.into: "sequence"}

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        outcome, score = scores[self.outcome], scores[self.score]
        values, counts = outcome.values[:, 0].cpu(), countable(scores, outcome, rollouts)[:, 0].cpu()
        right = outcome.filled()[:, 0].cpu()
        easy = question_difficulty(right, rollouts.groups.cpu(), counts, kind=self.difficulty)
        s = self.schedule.now(rollouts.clock)
        total = conciseness_function(right, score.values[:, 0].cpu(), self.alpha, s, easy, form=self.form)
        paid = score.mask[:, 0].cpu() & counts
        if self.form == "multiplied":
            paid &= right > 0  # the bracket on a negative outcome would punish a concise wrong answer more
        total = torch.where(paid, total, values.double())
        reasons = {**score.reasons, **outcome.reasons}
        result = Rewards.sequence(total.to(outcome.values), rollouts)
        result = Rewards(result.values, result.spans, reasons)
        asked = counts & score.usable[:, 0].cpu() & (right > 0)
        metrics = {"conciseness/annealing": s}
        if bool(counts.any()):
            metrics["conciseness/difficulty"] = float(easy[counts].mean())
        if bool(asked.any()):
            metrics["conciseness/right"] = float(score.values[:, 0].cpu()[asked].mean())
        return scores.with_source(self.into, result, drop=(self.outcome, self.score)).with_metrics(**metrics)
