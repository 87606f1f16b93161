"""Bradley-Terry and ODIN losses by hand, and on the official vectors."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.objectives.reward_model import bradley_terry_loss, odin_losses, pearson, pointwise_loss
from guerdon.signals.learned import split_steps

VECTORS = Path(__file__).parents[1] / "vectors"


def cases(system, function):
    path = VECTORS / f"{system}.json"
    if not path.exists():
        return []
    return [c for v in json.loads(path.read_text())["vectors"] if v["function"] == function for c in v["cases"]]


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def test_bradley_terry_by_hand():
    losses = bradley_terry_loss(f64([1.0, 0.0, 20.0]), f64([0.0, 0.0, -20.0]))
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(2), math.exp(-40)])
    assert bradley_terry_loss(f64([2.0]), f64([-1.0]), reg=0.1).item() == pytest.approx(
        math.log(1 + math.exp(-3)) + 0.5
    )
    assert bradley_terry_loss(f64([-1000.0]), f64([1000.0])).item() == 2000.0
    with pytest.raises(ValueError, match=r"\[N\]"):
        bradley_terry_loss(f64([1.0, 2.0]), f64([1.0]))


@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(-10, 10))
def test_bradley_terry_sees_only_the_difference(chosen, rejected, shift):
    one = bradley_terry_loss(f64([chosen]), f64([rejected]))
    torch.testing.assert_close(
        one, bradley_terry_loss(f64([chosen + shift]), f64([rejected + shift])), atol=1e-9, rtol=1e-9
    )


def test_odin_by_hand():
    losses = odin_losses(
        f64([2.0, 1.0]), f64([0.5, 0.5 + 1e-3]), f64([10.0, 20.0]), f64([[1.0, 0.0]]), f64([[1.0, 1.0]])
    )
    assert losses.length.item() == pytest.approx(1.0 - 1.0)  # two points correlate perfectly: |-1| - 1
    assert losses.orthogonal.item() == pytest.approx(1 / math.sqrt(2), abs=1e-5)
    assert losses.ranking.tolist() == pytest.approx([math.log(1 + math.exp(-(2.5 - 1.501)))])
    with pytest.raises(ValueError, match="halves"):
        odin_losses(f64([1.0] * 3), f64([1.0] * 3), f64([1.0] * 3), f64([[1.0]]), f64([[1.0]]))


def test_pearson():
    assert pearson(f64([1.0, 2.0, 3.0]), f64([2.0, 4.0, 7.0])).item() == pytest.approx(0.9933992678)
    assert pearson(f64([1.0, 1.0]), f64([1.0, 2.0])).isnan()


@pytest.mark.parametrize("case", cases("par", "reward_model_loss"), ids=lambda c: c["name"])
def test_official_reward_model_loss(case):
    given_, expected = case["inputs"], case["expected"]
    losses = bradley_terry_loss(f64(given_["chosen_rewards"]), f64(given_["rejected_rewards"]), given_["reg"])
    assert losses.tolist() == pytest.approx(expected["losses"], rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("case", cases("par", "odin_losses"), ids=lambda c: c["name"])
def test_official_odin_losses(case):
    names = ("quality_rewards", "length_rewards", "response_lengths", "quality_head", "length_head")
    losses = odin_losses(*(f64(case["inputs"][name]) for name in names))
    assert losses.ranking.tolist() == pytest.approx(case["expected"]["ranking_losses"], rel=1e-5)
    assert losses.length.item() == pytest.approx(case["expected"]["length_loss"], rel=1e-5, abs=1e-6)
    assert losses.orthogonal.item() == pytest.approx(case["expected"]["orthogonal_loss"], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("case", cases("pure", "split_steps"), ids=lambda c: c["name"])
def test_official_split_steps(case):
    given_ = case["inputs"]
    got = split_steps(
        torch.tensor(given_["responses"]),
        torch.tensor(given_["response_mask"]),
        given_["separator_ids"],
        count_final_separator_twice=True,
    )
    assert got.step_end_mask.int().tolist() == case["expected"]["step_end_mask"]
    assert got.step_ends.tolist() == case["expected"]["step_ends"]
    assert got.num_steps.tolist() == case["expected"]["num_steps"]


def test_pointwise_by_hand():
    assert pointwise_loss(f64([0.9, 0.3, -1.0]), f64([1.0, 0.0, 0.0])).tolist() == pytest.approx([0.01, 0.09, 1.0])
    with pytest.raises(ValueError, match=r"\[N\]"):
        pointwise_loss(f64([0.9]), f64([1.0, 0.0]))
