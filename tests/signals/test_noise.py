"""Reward noise: the share and the unit of flips, what is never touched, what keys the draws, and noise inside other systems."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon import Clock, ConfigError, Rewards, Rollouts, Scores, Spans, System, systems
from guerdon.credit import GroupNorm, ToTokens
from guerdon.signals import Math, Noisy
from guerdon.signals.noise import flip_scores, noise_draws


class Column:
    """A signal that reads its scores from a data column."""

    scope, level = "row", "sequence"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        return Rewards.sequence(torch.tensor(rollouts.column("s"), dtype=torch.float64), rollouts)


def batch(groups: int, size: int, score: float = 1.0, *, step: int = 0, seed: int = 0) -> Rollouts:
    ids = torch.arange(groups).repeat_interleave(size)
    return Rollouts(
        [f"question {i}" for i in ids.tolist()],
        ["x"] * (groups * size),
        group_ids=ids,
        columns={"s": [score] * (groups * size)},
        clock=Clock(step, 10, True, seed),
    )


def flips(rollouts: Rollouts, p: float, **options) -> torch.Tensor:
    """[B] bool: which rewards of 1 became 0."""
    return Noisy(Column(), p, **options)(rollouts, Scores.empty(rollouts)).values[:, 0] == 0


def test_the_share_of_flips_and_whole_groups() -> None:
    groups, size = 5000, 4
    hit = flips(batch(groups, size), 0.3).view(groups, size)
    assert bool((hit.all(1) == hit.any(1)).all()), "every group as a whole"
    assert float(hit[:, 0].double().mean()) == pytest.approx(0.30, abs=0.02)
    alone = flips(batch(groups, size), 0.3, unit="rollout").view(groups, size)
    assert float(alone.double().mean()) == pytest.approx(0.30, abs=0.02)
    assert float((alone.any(1) & ~alone.all(1)).double().mean()) == pytest.approx(1 - 0.7**4 - 0.3**4, abs=0.03)


def test_draws_follow_question_step_seed_and_name_and_nothing_else() -> None:
    rollouts = batch(60, 2)
    first = flips(rollouts, 0.5)
    assert torch.equal(first, flips(rollouts, 0.5))
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    assert torch.equal(flips(rollouts.select(order), 0.5), first[order]), "the order of rows changes nothing"
    assert torch.equal(flips(rollouts.select(range(30)), 0.5), first[:30]), "nor does who else is in the batch"
    for other in (batch(60, 2, step=1), batch(60, 2, seed=1)):
        assert not torch.equal(flips(other, 0.5), first)
    assert not torch.equal(flips(rollouts, 0.5, name="second"), first)


def test_persistent_noise_is_a_property_of_the_prompt() -> None:
    first = flips(batch(200, 1), 0.5, persistent=True)
    assert torch.equal(flips(batch(200, 1, step=7), 0.5, persistent=True), first)
    renamed = replace(batch(200, 1, step=7), group_ids=torch.arange(200) + 1000)
    assert torch.equal(flips(renamed, 0.5, persistent=True), first)
    assert not torch.equal(flips(batch(200, 1, seed=1), 0.5, persistent=True), first)


@given(st.floats(0, 1), st.booleans(), st.floats(-3, 0), st.floats(1, 5))
def test_a_flip_is_its_own_inverse_and_stays_in_range(share: float, flipped: bool, low: float, high: float) -> None:
    score = torch.tensor(low + share * (high - low), dtype=torch.float64)
    once = flip_scores(score, torch.tensor(flipped), low, high)
    assert low - 1e-9 <= float(once) <= high + 1e-9
    assert float(flip_scores(once, torch.tensor(flipped), low, high)) == pytest.approx(float(score))


def test_one_sided_noise_makes_false_negatives_only() -> None:
    rollouts = replace(batch(2000, 2), columns={"s": [1.0, 0.0] * 2000})
    noisy = Noisy(Column(), 0.35, only="high")(rollouts, Scores.empty(rollouts)).values[:, 0].view(-1, 2)
    assert float(noisy[:, 1].max()) == 0 and float(noisy[:, 0].mean()) == pytest.approx(0.65, abs=0.03)
    noisy = Noisy(Column(), 0.35, only="low")(rollouts, Scores.empty(rollouts)).values[:, 0].view(-1, 2)
    assert float(noisy[:, 0].min()) == 1 and float(noisy[:, 1].mean()) == pytest.approx(0.35, abs=0.03)


def test_what_failed_what_does_not_apply_and_what_is_spared_stay() -> None:
    nan = float("nan")
    rollouts = replace(batch(4, 1), columns={"s": [1.0, nan, 1.0, 1.0]})
    rewards = Noisy(Column(), 1.0, spare=lambda r: [text == "x" and i == 2 for i, text in enumerate(r.completions)])(
        rollouts, Scores.empty(rollouts)
    )
    assert rewards.values[[0, 2, 3], 0].tolist() == [0, 1, 0] and rewards.failed[:, 0].tolist() == [0, 1, 0, 0]
    assert rewards.reasons[0, 0] == "noise: flip" and (2, 0) not in rewards.reasons
    assert flips(batch(50, 1), 0.0).sum() == 0 and flips(batch(50, 1), 1.0).sum() == 50


def test_other_kinds() -> None:
    rollouts = batch(4000, 1, 0.5)
    scores = Scores.empty(rollouts)
    uniform = Noisy(Column(), 1.0, kind="uniform", low=-1)(rollouts, scores).values
    assert float(uniform.mean()) == pytest.approx(0.0, abs=0.05) and -1 <= float(uniform.min()) < -0.95
    normal = Noisy(Column(), 1.0, kind="normal", scale=2.0)(rollouts, scores).values
    assert float(normal.mean()) == pytest.approx(0.5, abs=0.1) and float(normal.std()) == pytest.approx(2.0, abs=0.1)


def test_step_rewards_too_and_clean_values_beside() -> None:
    rollouts = batch(3, 1)
    spans = Spans(torch.zeros(3, 2).long(), torch.zeros(3, 2).long(), torch.tensor([[True, True], [True, False], [True, True]]), "token", "steps")  # fmt: skip

    class Steps:
        level = "steps"

        def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
            return Rewards(torch.tensor([[1.0, 0.2], [0.4, 0.0], [0.0, 1.0]]), spans)

    noisy = Noisy(Steps(), 1.0)(rollouts, Scores.empty(rollouts))
    assert noisy.values.flatten().tolist() == pytest.approx([0.0, 0.8, 0.6, 0.0, 1.0, 0.0]), "the masked cell stays"
    both = Noisy(Column(), 1.0, keep_clean=True)
    assert both.level == {"score": "sequence", "clean": "sequence"}
    given = both(rollouts, Scores.empty(rollouts))
    assert given["score"].values.sum() == 0 and given["clean"].values.sum() == 3
    still = replace(rollouts, clock=Clock())
    assert Noisy(Column(), 1.0, training_only=True)(still, Scores.empty(still)).values.sum() == 3


def test_around_the_verifier_of_another_system() -> None:
    """A flipped group has exactly the opposite advantages."""
    rollouts = Rollouts(
        ["1+1="] * 2 + ["2+2="] * 2, ["\\boxed{2}", "\\boxed{3}", "\\boxed{4}", "\\boxed{5}"],
        group_ids=torch.tensor([0, 0, 1, 1]), columns={"answer": ["2", "2", "4", "4"]},
    )  # fmt: skip
    clean = systems.outcome(verifier=Math())(rollouts).advantages
    noisy = systems.outcome(verifier=Noisy(Math(), 1.0))(rollouts).advantages
    assert torch.allclose(noisy, -clean) and float(clean.abs().sum()) > 0
    system = System({"a": Noisy(Math(), 0.5)}, [GroupNorm("a", std=None), ToTokens("a", "whole")])
    assert system.scope == "group" and "Noisy(math(" in str(system)


def test_bad_options_are_refused() -> None:
    for wrong in (
        {"p": 1.5},
        {"p": 0.1, "low": 1.0},
        {"p": 0.1, "kind": "salt"},
        {"p": 0.1, "unit": "token"},
        {"p": 0.1, "only": "x"},
    ):
        with pytest.raises(ConfigError):
            Noisy(Column(), **wrong)
    assert noise_draws(Rollouts.from_texts([], []), "n").shape == (0, 2)
