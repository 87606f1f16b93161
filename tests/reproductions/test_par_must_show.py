"""PAR: what it is invariant to and its rivals are not, the Bradley-Terry identity, the bound of its slope (sheet's items 2, 3)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon import Clock, Rewards, Rollouts, Scores
from guerdon.credit import pad_references, relative_reward
from guerdon.objectives.reward_model import bradley_terry_loss
from guerdon.systems import par


class Column:
    """A signal that reads its scores from a data column."""

    scope, level = "row", "sequence"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        return Rewards.sequence(torch.tensor(rollouts.column("rm"), dtype=torch.float64), rollouts)


ROLLOUTS = Rollouts(
    ["p", "p", "q", "q"],
    ["a", "b", "c", "d"],
    group_ids=torch.tensor([0, 0, 1, 1]),
    columns={"rm": [1.0, -0.5, 2.0, 0.3], "ref_rewards": [[0.2, 0.9], [0.2, 0.9], [1.5], [1.5]]},
    clock=Clock(training=True),
)


def shaped(shaping: str, shift: float) -> torch.Tensor:
    """The shaped rewards when `shift` is added to every score of prompt q, references included."""
    moved = {
        "rm": [r + shift * (i > 1) for i, r in enumerate(ROLLOUTS.column("rm"))],
        "ref_rewards": [[r + shift * (i > 1) for r in refs] for i, refs in enumerate(ROLLOUTS.column("ref_rewards"))],
    }
    return par(rm=Column(), shaping=shaping)(replace(ROLLOUTS, columns=moved)).reward


@pytest.mark.parametrize("shaping", ["par", "lsc", "centred"])
def test_a_constant_on_a_prompts_scores_and_references_changes_nothing(shaping: str) -> None:
    assert torch.allclose(shaped(shaping, 0.0), shaped(shaping, 3.0), atol=1e-9)


@pytest.mark.parametrize("shaping", ["meanstd", "minmax", "sigmoid", "vanilla"])
def test_the_others_change(shaping: str) -> None:
    assert float((shaped(shaping, 0.0) - shaped(shaping, 3.0)).abs().max()) > 0.05


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_with_one_reference_par_is_the_reward_models_own_probability(score: float, reference: float) -> None:
    value = relative_reward(torch.tensor([score]).double(), *pad_references([[reference]]))
    loss = bradley_terry_loss(torch.tensor([score]).double(), torch.tensor([reference]).double())
    assert torch.allclose(value, torch.exp(-loss), atol=1e-12)


@given(st.floats(-30, 30), st.lists(st.floats(-30, 30), min_size=1, max_size=10))
def test_the_slope_of_par_is_at_most_a_quarter(score: float, references: list[float]) -> None:
    r = torch.tensor([score], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(relative_reward(r, *pad_references([references])).sum(), r)
    assert 0 <= float(slope) <= 0.25 + 1e-12


def test_the_bound_of_the_slope_is_reached_at_the_reference() -> None:
    r = torch.tensor([1.3], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(relative_reward(r, *pad_references([[1.3]])).sum(), r)
    assert float(slope) == pytest.approx(0.25)
