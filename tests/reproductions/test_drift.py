"""The drifting Gaussian policy: densities, the true reward's peak, and training that repeats."""

import math

import pytest
import torch

from guerdon import System
from guerdon.credit import GroupNorm, KLPenalty, On, Scale, ToTokens, Whiten
from guerdon.rollouts import Clock
from guerdon.systems import par
from guerdon.systems.reproductions.drift import ProxyRewardModel, log_density, to_rollouts, train, true_reward


def test_true_reward_peaks_where_the_sheet_says() -> None:
    s = torch.linspace(0, 12, 1201)
    best = int(true_reward(s).argmax())
    assert float(s[best]) == pytest.approx(6.25, abs=0.01)
    assert float(true_reward(s)[best]) == pytest.approx(3.125, abs=1e-3)


def test_rollouts_carry_the_densities_of_policy_and_reference() -> None:
    s = torch.tensor([2.0, 3.5])
    rollouts = to_rollouts(s, 3.0, [1.0, 2.0], Clock(training=True))
    normal = torch.distributions.Normal(3.0, 1.0)
    assert torch.allclose(rollouts.logprob("old").values[:, 0], normal.log_prob(s))
    assert float(rollouts.logprob("reference").values[0, 0]) == pytest.approx(-0.5 * math.log(2 * math.pi))
    assert torch.allclose(log_density(s, 3.0), normal.log_prob(s))


def test_an_uncentred_unbounded_reward_drifts_and_the_run_repeats() -> None:
    def run() -> list[float]:
        system = System({"rm": ProxyRewardModel()}, [ToTokens("rm"), KLPenalty("rm", 0.005, "k1", None), Whiten("rm")])
        return train(system, seed=1, updates=40).mean

    first = run()
    assert first == run()
    # whitened advantages move a mean of unit variance by lr a step in expectation, whatever the scale of the reward
    assert first[-1] == pytest.approx(2 + 40 * 0.05, abs=0.5)


def test_the_kl_term_is_the_trainer_s_and_pulls_to_the_reference() -> None:
    """Without a reward only the term is left; its expected slope is mean - 2, as that of KL(reference || policy)."""
    flat = System(
        {"rm": ProxyRewardModel()}, [GroupNorm("rm", std=None), On("rm", Scale(0.0)), ToTokens("rm", "whole")]
    )
    pulled = train(flat, seed=1, updates=1, batch=200_000, lr=1.0, beta=1.0)
    assert pulled.mean[0] == pytest.approx(2.0, abs=0.02), "the policy is the reference"
    held = train(par(rm=ProxyRewardModel()), seed=0, updates=300, lr=0.2, beta=0.005)
    divided = train(par(rm=ProxyRewardModel(), carrier="grpo"), seed=0, updates=300)
    assert max(held.mean) < 7.5 < 10 < divided.mean[-1], "the default carrier levels off where division drifts on"
