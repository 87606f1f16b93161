"""A policy that can drift: answers are numbers, the proxy reward model is right near the reference and wrong far away.

An answer is a latent score s. The proxy reward model says s; what is truly wanted is s - 0.08 s^2, which peaks at 6.25. The
policy is a Gaussian N(mu, 1) that starts at the reference N(2, 1) and moves by REINFORCE. A softmax over a few answers would
not do: whitened advantages make all monotone shapings alike there; what tells them apart is how long a shaping goes on
paying for drift.

One answer is one token, whose log-probability is that of s. The proxy reads s from a data column, as a reward model reads text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Clock, LogProbs, Rollouts
from guerdon.system import System

REFERENCE_MEAN = 2.0


def true_reward(s: Tensor) -> Tensor:
    """s - 0.08 s^2."""
    return s - 0.08 * s.square()


def log_density(s: Tensor, mean: Tensor | float) -> Tensor:
    """log N(s; mean, 1)."""
    return -0.5 * (s - mean) ** 2 - 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class ProxyRewardModel:
    """Signal: the proxy score of each answer, unbounded."""

    scope: ClassVar[str] = "row"
    level: ClassVar[str] = "sequence"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        return Rewards.sequence(torch.tensor(rollouts.column("s")), rollouts)


def to_rollouts(s: Tensor, mean: float, references: list[float], clock: Clock) -> Rollouts:
    """Answers s [B] of a policy N(mean, 1), all to one prompt, whose reference answers scored `references`.

    The critic's values are 0: with one prompt and one token a constant critic cancels when advantages are whitened.
    """
    size = len(s)
    return Rollouts(
        ["the problem"] * size,
        [f"{value:.3f}" for value in s.tolist()],
        completion_ids=torch.zeros(size, 1, dtype=torch.long),
        completion_mask=torch.ones(size, 1, dtype=torch.bool),
        finished=torch.ones(size, dtype=torch.bool),
        logprobs={
            "old": LogProbs(log_density(s, mean)[:, None], 1.0),
            "reference": LogProbs(log_density(s, REFERENCE_MEAN)[:, None], 1.0),
        },
        values=torch.zeros(size, 1),
        group_ids=torch.zeros(size, dtype=torch.long),
        columns={"s": s.tolist(), "ref_rewards": [references] * size},
        clock=clock,
    )


class Drift(NamedTuple):
    """For each update: the policy's mean, which is its expected proxy score, and its expected true reward."""

    mean: list[float]
    true: list[float]


def train(
    system: System,
    *,
    seed: int,
    updates: int = 800,
    batch: int = 64,
    lr: float = 0.05,
    references: int = 10,
    beta: float = 0.0,
) -> Drift:
    """REINFORCE on the system's advantages; the reference answers are drawn once, the same for every system of a seed.

    beta: coefficient of the trainer's own KL term, exp(d) - d - 1 with d = log reference - log policy, differentiated as TRL does; for
        systems without a KL penalty in the reward.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = (REFERENCE_MEAN + torch.randn(references, generator=generator)).tolist()
    mean, trace = REFERENCE_MEAN, Drift([], [])
    for step in range(updates):
        s = mean + torch.randn(batch, generator=generator)
        scores = system(to_rollouts(s, mean, drawn, Clock(step, updates, True, seed)))
        system.commit(scores)
        slope = s - mean  # d log N(s; mean, 1) / d mean
        gradient = (scores.advantages[:, 0] * slope).mean()
        if beta:
            to_reference = log_density(s, REFERENCE_MEAN) - log_density(s, mean)
            gradient = gradient - beta * ((1 - to_reference.exp()) * slope).mean()
        mean += lr * float(gradient)
        trace.mean.append(mean)
        trace.true.append(mean - 0.08 * (mean**2 + 1))  # E[s^2] = mean^2 + 1
    return trace
