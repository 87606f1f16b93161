"""What the sheet of the likelihood family asks to see, on a policy small enough to enumerate: exact gradients, variance, JEPO's and
NOVER's properties. What needs training is in results/likelihood.json."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from guerdon.credit.likelihood import jensen_advantages, jensen_weights
from guerdon.objectives.answer_likelihood import weighted_log_likelihood
from guerdon.signals.likelihood import aggregate
from guerdon.signals.likelihood.aggregate import token_weights
from guerdon.signals.likelihood.group import efficiency_rewards, rank_rewards
from guerdon.systems.likelihood import rloo_advantages

THOUGHTS, LENGTH, WORDS = 4, 2, 3  # reasonings, tokens of an answer, vocabulary
REFERENCE = torch.tensor([2, 0])
FORMS = ("prob", "logprob", "mean_logprob", "mean_prob", "geo_mean_prob")


class Table:
    """A policy over one token of reasoning and two of answer, all logits linear in ONE parameter vector.

    Shared parameters are what makes the second term matter: moving p(z) moves p(a given z), too.
    """

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.theta = torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_()
        self.thought = 0.5 * torch.randn(THOUGHTS, 6, dtype=torch.float64, generator=generator)
        self.answer = 0.5 * torch.randn(THOUGHTS, LENGTH, WORDS, 6, dtype=torch.float64, generator=generator)

    def thoughts(self) -> Tensor:
        """[THOUGHTS] log p(z)."""
        return (self.thought @ self.theta).log_softmax(0)

    def answers(self) -> Tensor:
        """[THOUGHTS, LENGTH, WORDS] log p(a_j given z); tokens are independent of each other."""
        return (self.answer @ self.theta).log_softmax(-1)

    def reference(self) -> Tensor:
        """[THOUGHTS, LENGTH] log-probabilities of the reference's tokens."""
        return self.answers()[:, torch.arange(LENGTH), REFERENCE]

    def gradient(self, value: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(value, self.theta, retain_graph=True)
        return found


def value_of(table: Table, form: str) -> Tensor:
    """[THOUGHTS] f(p(a* given z)), with its graph."""
    logprobs = table.reference()
    return aggregate(logprobs, torch.ones_like(logprobs, dtype=torch.bool), form)


def draws(samples: int) -> list[Tensor]:
    """Every way to draw `samples` reasonings."""
    return [torch.tensor(choice) for choice in itertools.product(range(THOUGHTS), repeat=samples)]


def probability(table: Table, choice: Tensor) -> Tensor:
    return table.thoughts()[choice].sum().exp()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("samples", [2, 3])
def test_the_two_terms_are_the_gradient_of_the_objective(form: str, samples: int) -> None:
    table = Table()
    exact = table.gradient((table.thoughts().exp() * value_of(table, form)).sum())
    estimate = torch.zeros_like(exact)
    for choice in draws(samples):
        logprobs = torch.cat([table.thoughts()[choice, None], table.reference()[choice]], 1)
        reasoning = torch.tensor([[True] + [False] * LENGTH]).expand(samples, -1)
        inside = torch.ones(samples, LENGTH, dtype=torch.bool)
        rewards = aggregate(logprobs[:, 1:].detach(), inside, form)
        weights = torch.cat([torch.zeros(samples, 1), token_weights(logprobs[:, 1:], inside, form)], 1)
        first = weighted_log_likelihood(logprobs, reasoning, rloo_advantages(rewards, samples))
        loss = -(first + weighted_log_likelihood(logprobs, ~reasoning, weights)).mean()
        estimate -= probability(table, choice).detach() * table.gradient(loss)
    torch.testing.assert_close(estimate, exact, atol=1e-6, rtol=0)
    assert float(exact.abs().max()) > 1e-3


@pytest.mark.parametrize("form", ["prob", "logprob"])
def test_without_the_second_term_it_is_another_direction(form: str) -> None:
    table = Table()
    exact = table.gradient((table.thoughts().exp() * value_of(table, form)).sum())
    first = table.gradient((table.thoughts().exp() * value_of(table, form).detach()).sum())
    assert float((first - exact).norm()) > 0.1 * float(exact.norm())


@pytest.mark.parametrize("samples", [2, 3])
def test_jepo_is_the_gradient_of_its_bound(samples: int) -> None:
    table = Table(seed=1)
    bound, estimate = torch.zeros((), dtype=torch.float64), torch.zeros_like(table.theta)
    group = torch.zeros(samples, dtype=torch.long)
    for choice in draws(samples):
        likelihoods = table.reference()[choice].sum(1)
        bound = bound + probability(table, choice) * (likelihoods.logsumexp(0) - math.log(samples))
        advantages, _ = jensen_advantages(likelihoods.detach(), group)
        weights = jensen_weights(likelihoods.detach(), group)
        terms = (advantages * table.thoughts()[choice]).sum() + (weights * likelihoods).sum()
        estimate += probability(table, choice).detach() * table.gradient(terms)
    torch.testing.assert_close(estimate, table.gradient(bound), atol=1e-6, rtol=0)


def test_more_samples_tighten_jepos_bound() -> None:
    table = Table(seed=1)

    def bound(samples: int) -> float:
        values = [
            probability(table, choice) * (table.reference()[choice].sum(1).logsumexp(0) - math.log(samples))
            for choice in draws(samples)
        ]
        return float(torch.stack(values).sum().detach())

    marginal = float((table.thoughts() + table.reference().sum(1)).logsumexp(0).detach())
    assert bound(1) < bound(2) < bound(4) < marginal


def test_verifree_varies_less_than_a_sampled_answer_judged_right_or_wrong() -> None:
    table, generator = Table(), torch.Generator().manual_seed(0)
    thoughts, answers = table.thoughts().exp().detach(), table.answers().exp().detach()
    probability = table.reference().sum(1).exp()  # of the reference
    # Both estimators take few values: one for each reasoning, or 0.
    smooth = torch.stack(
        [
            probability[z].detach() * table.gradient(table.thoughts()[z] + table.reference()[z].sum())
            for z in range(THOUGHTS)
        ]
    )
    judged = torch.stack([table.gradient(table.thoughts()[z] + table.reference()[z].sum()) for z in range(THOUGHTS)])
    drawn = torch.multinomial(thoughts, 2000, replacement=True, generator=generator)
    tokens = torch.stack([torch.multinomial(answers[z], 1, generator=generator)[:, 0] for z in drawn])
    right = (tokens == REFERENCE).all(1).double()
    ours, theirs = smooth[drawn], right[:, None] * judged[drawn]
    assert 20 < right.sum() < 1980
    assert ours.var(0).sum() < 0.5 * theirs.var(0).sum()
    exact = table.gradient((table.thoughts().exp() * table.reference().sum(1).exp()).sum())
    for found in (ours, theirs):  # both aim at the same gradient
        assert bool(((found.mean(0) - exact).abs() <= 4 * found.std(0) / 2000**0.5).all())


@given(st.floats(-3000, 0), st.floats(-3000, 0))
@settings(max_examples=50, deadline=None)
def test_two_samples_of_jepo_are_the_log_of_their_mean_over_the_other(first: float, second: float) -> None:
    advantages, _ = jensen_advantages(
        torch.tensor([first, second], dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    )
    top = max(first, second)
    mean = top + math.log((math.exp(first - top) + math.exp(second - top)) / 2)
    assert advantages.tolist() == pytest.approx([mean - second, mean - first], abs=1e-9)


PERPLEXITIES = st.lists(st.floats(1, 1e4, allow_nan=False), min_size=2, max_size=8, unique=True)


@given(PERPLEXITIES, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_novers_ranks_know_only_the_order(perplexities: list[float], rng) -> None:
    values = torch.tensor(perplexities, dtype=torch.float64)
    valid = torch.tensor([rng.random() < 0.8 for _ in perplexities])
    group = torch.zeros(len(values), dtype=torch.long)
    ranks = rank_rewards(values, valid, group)
    order = values.argsort().argsort().double()  # the finest monotone transform there is
    for other in (order, order**3 - 50, -1 / (order + 1)):
        assert rank_rewards(other, valid, group).equal(ranks)


@given(PERPLEXITIES, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_novers_efficiency_is_0_for_the_longest_and_for_the_worst(perplexities: list[float], rng) -> None:
    values = torch.tensor(perplexities, dtype=torch.float64)
    lengths = torch.tensor([float(rng.randint(1, 20)) for _ in perplexities])
    valid = torch.ones(len(values), dtype=torch.bool)
    efficiency = efficiency_rewards(values, lengths, valid, torch.zeros(len(values), dtype=torch.long))
    assert bool((efficiency[lengths == lengths.max()] == 0).all()) and efficiency[values.argmax()] == 0
    best = int(values.argmin())
    assert float(efficiency[best]) == pytest.approx(float((lengths > lengths[best]).sum()) / (len(values) - 1))


# --- the reproduction ------------------------------------------------------------------------------------------------


def test_references_follow_from_the_scratchpad_and_are_short_or_long() -> None:
    import random

    from guerdon.systems.reproductions.likelihood_task import (
        SPLICE,
        demonstration,
        digit_sums,
        make_prompt,
        reference_of,
    )

    prompt = make_prompt(7, 5, 9)
    assert demonstration(prompt, 0.0, random.Random(0)) == "7+5=2 2+9=1 #1."
    assert reference_of(prompt, "short") == "1"
    assert reference_of(prompt, "long") == "1 because 7 and 5 make 2, and 2 and 9 make 1"
    spliced = SPLICE("7+5=2 2+9=1 #3.", "1")
    assert "7+5=2 2+9=1 #3."[: spliced.kept] == "7+5=2 2+9=1 #" and spliced.text == "1."
    task = digit_sums("short")
    row = {"prompt": prompt, "answer": "1"}
    assert [v.value for v in task.true_success(["x #1.", "x #2.", "x 1."], [row] * 3)] == [1.0, 0.0, 0.0]
    assert len(task.train) == 600 and len(task.held_out) == 200
    assert [r["prompt"] for r in task.train] == [r["prompt"] for r in digit_sums("long").train]


def test_a_smoke_run_records_every_arm_and_goes_on_where_it_was(tmp_path) -> None:
    pytest.importorskip("trl")
    from guerdon.systems.reproduction import Budget
    from guerdon.systems.reproductions.likelihood import reproduce
    from guerdon.systems.reproductions.likelihood_training import ARMS

    first = reproduce(Budget(seeds=1, smoke=True, folder=tmp_path))
    assert [(row["references"], row["reward"]) for row in first.table] == [
        (regime, arm) for regime in ("short", "long") for arm in ARMS
    ]
    assert len({tuple(row) for row in first.table}) == 1 and len(first.claims) == 5
    for curve in first.curves.values():
        assert [len(line) for line in curve["y"]] == [len(curve["x"])]
    assert len(list(tmp_path.glob("*.json"))) == 2 * len(ARMS)
    assert reproduce(Budget(seeds=1, smoke=True, folder=tmp_path)).table == first.table
