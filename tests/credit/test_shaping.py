"""Shaping functions: hand-computed numbers and the identities they were made for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit import clip_scores, delta_scores, min_form, relative_reward, shaping_function, squash, suffix_sum
from guerdon.credit.reference import fitted_polynomial, log_sigmoid_centred, pad_references
from guerdon.credit.running import RunningMoments, apply_moments, update_moments
from guerdon.errors import ConfigError, DataError

scores = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12)


def row(values):
    tensor = torch.tensor([values], dtype=torch.float64).reshape(1, -1)
    return tensor, torch.ones_like(tensor, dtype=torch.bool)


def test_masks_with_holes():
    values = torch.tensor([[0.9, 99.0, 0.2, 99.0, 0.5]])
    mask = torch.tensor([[True, False, True, False, True]])
    assert clip_scores(values, mask, 0.5)[0].tolist() == pytest.approx([0, 0, -0.3, 0, 0])
    assert delta_scores(values, mask)[0].tolist() == pytest.approx([0.7, 0, 0.2, 0, 0])
    assert delta_scores(values, torch.zeros_like(mask)).abs().sum() == 0
    weights = torch.softmax(torch.tensor([-9.0, -2.0, -5.0]), 0)
    expected = [0.9 * weights[0], 0, 0.2 * weights[1], 0, 0.5 * weights[2]]
    assert min_form(values, mask, 0.1)[0].tolist() == pytest.approx([float(x) for x in expected], rel=1e-5)


def test_rows_without_spans_give_zeros():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    values = torch.rand(2, 3)
    assert min_form(values, nothing).tolist() == [[0, 0, 0]] * 2
    assert min_form(values, nothing, weighted=False).tolist() == [[0, 0, 0]] * 2
    for function in (lambda v, m: clip_scores(v, m, 0.5), delta_scores, min_form):
        assert function(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0)
    with pytest.raises(ConfigError, match="above 0"):
        min_form(values, nothing, 0.0)


@settings(deadline=None)
@given(scores)
def test_delta_telescopes(values):
    returns = suffix_sum(delta_scores(*row(values)), row(values)[1])[0]
    assert returns.tolist() == pytest.approx([*values[:-1], 0.0], abs=1e-9)


@settings(deadline=None)
@given(scores, st.floats(0, 1))
def test_clip_then_delta_is_bounded(values, eta):
    clipped = clip_scores(*row(values), eta)
    assert float(clipped.sum()) <= 0
    assert float(delta_scores(clipped, row(values)[1]).sum()) <= 1e-12


@settings(deadline=None)
@given(scores)
def test_min_form_is_the_minimum_when_cold(values):
    cold = float(min_form(*row(values), 1e-3).sum())
    assert cold == pytest.approx(min(values), abs=len(values) * 1e-3)
    filler = float(min_form(*row([*values, *[0.9] * 20]), 0.1).sum())
    plain = float(min_form(*row(values), 0.1).sum())
    if min(values) < 0.3:
        assert filler == pytest.approx(plain, abs=0.06), "twenty filler steps change next to nothing"


def test_huge_scores_do_not_overflow():
    assert min_form(*row([1e30, -1e30, 3.0]), 0.1)[0].tolist() == [0, -1e30, 0]
    assert squash(*row([1e30, -1e30])).tolist() == [[1, 0]]


def test_a_failed_last_score_does_not_reach_the_step_before_it():
    shaped = delta_scores(*row([0.5, 0.7, float("nan")]))[0]
    assert shaped[:2].tolist() == pytest.approx([-0.2, 0.7])


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("one_minus", 0.25, 0.75),
        ("threshold_0", -0.0, 0.0),
        ("leaky_0.05", 0.05, 0.05),
        ("sigmoid_0", 1.0, 1 / (1 + math.exp(-1))),
        ("comp_threshold_0.6_sigmoid_6", 0.5, 0.0),
        ("comp_threshold_0.5_sigmoid_6", 0.5, 0.5),
        ("comp_threshold_0.2_tanh_4", 0.75, (math.tanh(1) + 1) / 2),
        ("comp_threshold_0.9_tanh_4", 0.5, 0.0),
        ("comp_threshold_0_sigmoidv2fixed_2", 0.0, 0.0),
    ],
)
def test_named_shapings(name, x, expected):
    assert float(shaping_function(name)(torch.tensor(x, dtype=torch.float64))) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["", "sigmoid", "threshold_x", "comp_threshold_0.1_linear_2", "sigmoid_6_7"])
def test_unknown_shapings_are_refused(name):
    with pytest.raises(ConfigError, match="no shaping named"):
        shaping_function(name)


# -- relative to references ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.floats(-20, 20), st.lists(st.floats(-20, 20), min_size=1, max_size=5), st.floats(-50, 50))
def test_par_is_a_bounded_invariant_win_probability(reward, references, shift):
    def par(r, refs):
        return float(relative_reward(torch.tensor([r], dtype=torch.float64), *pad_references([refs])))

    value = par(reward, references)
    assert 0 <= value <= 1
    assert par(reward + shift, [r + shift for r in references]) == pytest.approx(value, abs=1e-9)
    assert (par(reward + 1e-4, references) - value) / 1e-4 <= 0.25 + 1e-6
    assert par(reward, references[:1]) == pytest.approx(1 / (1 + math.exp(references[0] - reward)), rel=1e-9)
    moved = log_sigmoid_centred(
        torch.tensor([reward + shift]).double(), *pad_references([[r + shift for r in references]])
    )
    still = log_sigmoid_centred(torch.tensor([reward]).double(), *pad_references([references]))
    assert float(moved) == pytest.approx(float(still), abs=1e-4)


def test_no_reference_is_an_error_that_says_which_row():
    with pytest.raises(DataError, match=r"rows \[1\]"):
        pad_references([[1.0], []])


def test_polynomial_ends():
    ends = fitted_polynomial(torch.tensor([-5.0, -4.999, 0.0, 4.999, 5.0, 1e9]))
    assert ends[0] == 0 and ends[4] == 1 and ends[5] == 1
    assert float(ends[2]) == pytest.approx(0.5, abs=1e-4) and 0 < float(ends[3]) < 1.1


# -- running statistics -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-100, 100), max_size=5), min_size=1, max_size=5))
def test_running_moments_equal_those_of_everything_seen(batches):
    moments, seen = RunningMoments(), []
    for batch in batches:
        moments = update_moments(moments, torch.tensor(batch, dtype=torch.float64))
        seen += batch
    assert moments.size == len(seen)
    if seen:
        everything = torch.tensor(seen, dtype=torch.float64)
        assert moments.mean == pytest.approx(float(everything.mean()), abs=1e-9)
        assert moments.std == pytest.approx(float(everything.std(unbiased=False)), abs=1e-6)
        assert (moments.least, moments.greatest) == (min(seen), max(seen))


def test_minmax_of_equal_scores_is_one_half():
    moments = update_moments(RunningMoments(), torch.tensor([2.0, 2.0]))
    assert apply_moments(torch.tensor([2.0]), moments, "minmax").tolist() == [0.5]
    assert apply_moments(torch.tensor([2.0]), moments, "meanstd").tolist() == [0.0]
