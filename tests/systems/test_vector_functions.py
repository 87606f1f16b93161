"""The vector functions beyond the given cases: empty, single, ragged, duplicated, extreme."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import ConfigError, DataError
from guerdon.systems.clip_delta import VECTORS as CLIP_DELTA
from guerdon.systems.clip_delta import eta_from_scores
from guerdon.systems.par import VECTORS as PAR
from guerdon.systems.pure import VECTORS as PURE
from guerdon.systems.rlpr import VECTORS as RLPR

scores = st.lists(st.floats(-1, 1), max_size=8)


def test_pure_on_nothing():
    assert PURE["min_form_returns"]([])["returns"].tolist() == []
    out = PURE["transform_process_rewards"](
        [[[0.0, 1.0], [3.0, 0.0]], [[5.0, 0.0], [0.0, 5.0]]], [[0, 0], [0, 1]], 0.1, True
    )
    assert out["process_rewards"][0].tolist() == [0, 0] and out["outcome_rewards"][0] == 0
    assert PURE["transform_process_rewards"]([[], []], [[], []])["outcome_rewards"].tolist() == [0, 0]
    single = PURE["rloo_token_baseline_advantages"]([[0.0, 1.0]], [[1, 1]], ["only"], adv_norm=False)
    assert single["advantages"].tolist() == [[1, 1]], "a group of one has baseline 0"
    empty_row = PURE["rloo_token_baseline_advantages"](
        [[1.0, 1.0], [9.0, 9.0]], [[1, 1], [0, 0]], [0, 0], adv_norm=False
    )
    assert empty_row["returns"].tolist() == [[2, 1], [0, 0]]
    cut = PURE["split_steps"]([[1, 0], [5, 6]], [[0, 0], [1, 1]], [])
    assert cut["num_steps"].tolist() == [0, 1] and cut["step_ends"].tolist() == [[-1], [1]]


def test_a_response_cut_at_a_separator_is_listed_twice_as_in_the_official_code():
    cut = PURE["split_steps"]([[5, 1, 6, 1]], [[1, 1, 1, 1]], [1])
    assert cut["step_ends"].tolist() == [[1, 3, 3]] and cut["num_steps"].tolist() == [3]
    assert cut["step_end_mask"].tolist() == [[0, 1, 0, 1]]


@settings(deadline=None)
@given(scores)
def test_min_form_returns(values):
    returns = PURE["min_form_returns"](values)["returns"].tolist()
    if values:
        worst = values.index(min(values))
        assert returns == [min(values)] * (worst + 1) + [0.0] * (len(values) - worst - 1)
    else:
        assert returns == []


def test_openrlhf_estimator_singletons_and_modes():
    inputs = dict(
        process_rewards=[[0.0, -0.5, 0.0, 0.25]],
        step_end_mask=[[0, 1, 0, 1]],
        num_tokens_per_step=[[1, 1]],
        step_mask=[[1, 1]],
        response_mask=[[1, 1, 1, 1]],
        solved=[0],
        have_answers=[1],
        kl=[[0.0] * 4],
        n_samples=1,
        kl_coef=0.0,
    )
    alone = PURE["openrlhf_group_advantages"](**inputs, mask_separators=False)
    assert alone["rewards_after_baseline"].tolist() == [[0, -0.5, 0, 0.25 - 1]]
    assert alone["advantages"].tolist() == [[-1.25, -1.25, -0.75, -0.75]]
    assert alone["match"].tolist() == [1] and alone["outcome_rewards"].tolist() == [-0.25]
    answers_only = PURE["openrlhf_group_advantages"](**inputs, reward_mode="VR")
    assert answers_only["rewards_after_baseline"].tolist() == [[0, 0, 0, -1]]


def test_clip_delta_on_nothing_and_out_of_range():
    assert CLIP_DELTA["clip_step_rewards"]([], 0.5)["shaped"].tolist() == []
    assert CLIP_DELTA["delta_step_rewards"]([])["shaped"].tolist() == []
    assert CLIP_DELTA["step_returns"]([], 0.9)["returns"].tolist() == []
    nothing = CLIP_DELTA["combine_with_success"]([], 1, 1.0, 1.0, 0.5, "pr_clip_delta")
    assert nothing["rewards"].tolist() == [] and nothing["return"] == 0
    length = CLIP_DELTA["combine_with_success"]([0.5, 1.0], 0, 1.0, 1.0, 0.5, "pr_length_norm")
    assert length["rewards"].tolist() == [0.25, 0.5]
    penalty = CLIP_DELTA["combine_with_success"]([0.5, 1.0], 1, 2.0, 3.0, 0.5, "pr_step_penalty", step_penalty=0.1)
    assert penalty["rewards"].tolist() == pytest.approx([0.8, 1.8 + 3])
    with pytest.raises(ConfigError, match="mode"):
        CLIP_DELTA["combine_with_success"]([0.5], 1, mode="delta_clip")


def test_step_ends_beyond_the_mask_and_twice():
    place = CLIP_DELTA["step_to_token_rewards"]
    assert place([1.0, 2.0, 4.0], [1, 1, 3], [1, 1, 1, 0])["token_rewards"].tolist() == [0, 3, 0, 0]
    assert place([1.0, 2.0], [-1, 9], [1, 1])["token_rewards"].tolist() == [0, 0]
    assert place([1.0], [0], [])["token_rewards"].tolist() == []


@settings(deadline=None)
@given(scores, st.floats(0, 1))
def test_step_returns_equal_the_recursion(values, gamma):
    returns = CLIP_DELTA["step_returns"](values, gamma)["returns"].tolist()
    following = 0.0
    for value, found in zip(reversed(values), reversed(returns), strict=True):
        following = value + gamma * following
        assert found == pytest.approx(following, abs=1e-9)


def test_eta_leaves_most_steps_at_zero():
    correct = torch.linspace(0.2, 1.0, 101)
    eta = eta_from_scores(correct)
    assert (CLIP_DELTA["clip_step_rewards"](correct.tolist(), eta)["shaped"] == 0).double().mean() == pytest.approx(
        0.7, abs=0.02
    )
    with pytest.raises(ConfigError):
        eta_from_scores([])


def test_par_functions_at_the_edges():
    assert PAR["par_reward"]([], [])["shaped"].tolist() == []
    with pytest.raises(DataError):
        PAR["par_reward"]([1.0], [[]])
    far = PAR["par_reward"]([1e6, -1e6], [[0.0], [0.0]])["shaped"].tolist()
    assert far == [1, 0]
    assert PAR["lsc_reward"]([-1e6], [[0.0]])["shaped"][0].item() == pytest.approx(-1e6, rel=1e-9)
    assert PAR["minmax_reward_stream"]([[2.0, 2.0], []])["shaped"][0].tolist() == [0.5, 0.5]
    assert PAR["meanstd_reward_stream"]([[], [1.0]])["shaped"][1].tolist() == [0]
    assert PAR["token_level_rewards"]([1.0], [[0.0, 0.0]], [[0.0, 0.0]], [[0, 0]])["token_rewards"].tolist() == [[0, 0]]
    holes = PAR["ppo_gae_advantages"]([[0.5, 9.0, 0.5]], [[0.0, 9.0, 1.0]], [[1, 0, 1]])
    assert holes["advantages"][0, 1] == 0 and holes["returns"].tolist() == [[1, 0, 1]]
    raw = torch.tensor([0.414375, 0.0, 0.75], dtype=torch.float64)  # V = r = 0 in the hole, as in the official code
    mean, mask = raw.sum() / 2, torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    expected = (raw - mean) * mask * torch.rsqrt(((raw - mean) ** 2 * mask).sum() / 2 + 1e-8)
    hole = PAR["ppo_gae_advantages"]([[0.5, 9.0, 0.25]], [[0.0, 9.0, 1.0]], [[1, 0, 1]])
    torch.testing.assert_close(hole["advantages"][0], expected)
    assert PAR["grpo_advantages"]([0.3], 1, [[1, 1]])["advantages"].tolist() == [[0, 0]]


def test_rlpr_functions_at_the_edges():
    score = RLPR["reference_probability_score"]
    assert float(score([], [], "mean_prob", False)) == 0
    assert float(score([-math.inf, 0.0], [1, 1], "mean_prob", False)) == 0.5
    assert float(score([-math.inf, 0.0], [1, 1], "geo_mean_prob", False)) == 0
    assert float(score([math.nan, -1.0], [0, 1], "mean_logprob", False)) == -1, (
        "what is outside the mask does not matter"
    )
    with pytest.raises(ConfigError):
        score([0.0], [1], "median", False)
    assert float(RLPR["rlpr_reward"](0.5, 0.25, 0, 0.0, "identity", 2)) == 0.0, "0.5 rounds to even"
    flat = RLPR["grpo_outcome_advantages"]([0.4, 0.4, 0.4, 0.0, 1.0], ["a", "a", "a", "b", "b"], [[1]] * 5)
    assert flat["filter_rate"] == 0.6, "a share of rows, not of groups"
    assert RLPR["grpo_outcome_advantages"]([], [], [])["filter_rate"] == 0
    steps = RLPR["std_filter_ema"]([[0.2], [], [math.nan, 0.1, 1e7]], 1, 3, 0.9, 0.5)
    assert steps[1] == {"threshold": 0.0, "keep": pytest.approx([])} or steps[1]["keep"].tolist() == []
    assert steps[2]["threshold"] == pytest.approx(0.1) and steps[2]["keep"].tolist() == [False, True, False]
    assert [s["threshold"] for s in RLPR["std_filter_ema"]([[], []], 1, 1, 0.9, 0.5)] == [0, 0]


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_rlpr_reward_is_bounded(b, a, good):
    assert 0 <= float(RLPR["rlpr_reward"](b, a, float(good))) <= 1
