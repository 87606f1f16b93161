"""A per-token KL penalty inside the reward (PPO, RLOO, PURE), as opposed to a KL term in the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guerdon.credit.link import Levels, LinkBase, planned_name, require_level, source_of
from guerdon.errors import ChainError, ConfigError
from guerdon.options import checked, require_range
from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts

Estimator = Literal["k1", "k2", "k3"]


@checked
def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: Estimator = "k1", clamp: float | None = None) -> Tensor:
    """Per-token estimates of KL(policy || reference) from sampled tokens (Schulman, "Approximating KL divergence", 2020).

    d = reference - logprobs:   k1 = -d ;  k2 = d^2 / 2 ;  k3 = exp(d) - d - 1

    Args:
        logprobs: [B, T] of the sampling policy.
        reference: [B, T].
        estimator: k1 is unbiased and may be negative; k3 is unbiased and not negative.
        clamp: limit of the absolute value (verl: 10 with k3); None = none.

    Returns:
        [B, T].
    """
    difference = reference - logprobs
    if estimator == "k1":
        kl = -difference
    elif estimator == "k2":
        kl = difference**2 / 2
    elif estimator == "k3":
        kl = torch.expm1(difference) - difference
    else:
        raise ConfigError(f"estimator={estimator!r}: use k1, k2 or k3")
    return kl if clamp is None else kl.clamp(-clamp, clamp)


@dataclass(frozen=True, repr=False)
class KLPenalty(LinkBase):
    """r_t - coef * kl_t on every token the policy sampled.

    The optimised scalar that logs and reports show is read off before: it is the reward, not the reward minus a regulariser.

    Attributes:
        name: a token-level source; None = the only one.
        coef: weight.
        estimator, clamp: see `kl_estimate`.
    """

    name: str | None = None
    coef: float = 0.001
    estimator: Estimator = "k3"
    clamp: float | None = 10.0

    needs: ClassVar[frozenset[str]] = frozenset({"logprobs.old", "logprobs.reference"})

    def __post_init__(self) -> None:
        require_range(0, coef=self.coef, clamp=self.clamp)

    def plan(self, levels: Levels) -> Levels:
        name = planned_name(self.name, levels)
        require_level(name, levels, "token", f"a per-token KL penalty needs tokens: ToTokens({name!r}) first")
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        name = source_of(self.name, scores)
        rewards = scores[name]
        old, reference = rollouts.logprob("old"), rollouts.logprob("reference")
        if old.temperature != reference.temperature:
            raise ChainError(
                f"old log-probabilities are at temperature {old.temperature}, the reference's at {reference.temperature}: they do not compare"
            )
        kl = kl_estimate(old.values, reference.values, self.estimator, self.clamp).to(rewards.values)
        counts = (
            rewards.mask
            if rollouts.policy_mask is None
            else rewards.mask & rollouts.policy_mask.to(rewards.mask.device)
        )
        kl = torch.where(counts, kl, torch.zeros_like(kl))
        kept = counts & scores.keep.to(counts.device)[:, None]
        mean = float(torch.where(kept, kl, torch.zeros_like(kl)).sum() / kept.sum().clamp(min=1))
        scores = scores.with_metrics(**{"kl": mean})
        return scores.with_source(name, rewards.remembering().with_values(rewards.values - self.coef * kl))
