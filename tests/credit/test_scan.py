"""Suffix scans against plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon import ConfigError
from guerdon.credit import gae, suffix_min, suffix_sum

grids = st.integers(0, 9).flatmap(
    lambda t: st.lists(
        st.tuples(
            st.lists(st.floats(-5, 5, width=32), min_size=t, max_size=t),
            st.lists(st.floats(-5, 5, width=32), min_size=t, max_size=t),
            st.lists(st.booleans(), min_size=t, max_size=t),
        ),
        min_size=1,
        max_size=3,
    )
)


def tensors(rows):
    rewards = torch.tensor([r for r, _, _ in rows], dtype=torch.float64).reshape(len(rows), -1)
    values = torch.tensor([v for _, v, _ in rows], dtype=torch.float64).reshape(len(rows), -1)
    return rewards, values, torch.tensor([m for _, _, m in rows], dtype=torch.bool).reshape(len(rows), -1)


@settings(deadline=None)
@given(grids, st.sampled_from([0.0, 0.5, 0.97, 1.0]))
def test_suffix_sum(rows, gamma):
    rewards, _, mask = tensors(rows)
    returns = suffix_sum(rewards, mask, gamma)
    for row in range(len(rewards)):
        running = 0.0
        for t in reversed(range(rewards.shape[1])):
            if mask[row, t]:
                running = rewards[row, t].item() + gamma * running
                assert returns[row, t].item() == pytest.approx(running, abs=1e-9)
            else:
                assert returns[row, t] == 0


@settings(deadline=None)
@given(grids)
def test_suffix_min(rows):
    rewards, _, mask = tensors(rows)
    for padding, outside in (("ignore", math.inf), ("zero", 0.0)):
        found = suffix_min(rewards, mask, padding=padding)
        for row in range(len(rewards)):
            running = math.inf
            for t in reversed(range(rewards.shape[1])):
                running = min(running, rewards[row, t].item() if mask[row, t] else outside)
                assert found[row, t].item() == (running if mask[row, t] else 0.0)


@settings(deadline=None)
@given(grids, st.sampled_from([(1.0, 0.95), (0.9, 0.9), (1.0, 1.0), (0.99, 0.0)]))
def test_gae_skips_masked_positions(rows, discounts):
    gamma, lam = discounts
    rewards, values, mask = tensors(rows)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row in range(len(rewards)):
        following, running, total = 0.0, 0.0, 0.0
        for t in reversed(range(rewards.shape[1])):
            if not mask[row, t]:
                assert advantages[row, t] == 0 and returns[row, t] == 0
                continue
            running = rewards[row, t].item() + gamma * following - values[row, t].item() + gamma * lam * running
            following, total = values[row, t].item(), rewards[row, t].item() + gamma * total
            assert advantages[row, t].item() == pytest.approx(running, abs=1e-9)
            assert returns[row, t].item() == pytest.approx(total, abs=1e-9)


@settings(deadline=None)
@given(grids, st.sampled_from([(1.0, 0.95), (0.9, 0.9), (1.0, 1.0), (0.99, 0.0)]))
def test_a_hole_can_be_a_step_without_value_and_reward(rows, discounts):
    """PAR's code: values and rewards times the mask, then every position is a step."""
    gamma, lam = discounts
    rewards, values, mask = tensors(rows)
    advantages, returns = gae(rewards, values, mask, gamma, lam, holes="zero")
    for row in range(len(rewards)):
        following, running, total = 0.0, 0.0, 0.0
        for t in reversed(range(rewards.shape[1])):
            r, v = (rewards[row, t].item(), values[row, t].item()) if mask[row, t] else (0.0, 0.0)
            running = r + gamma * following - v + gamma * lam * running
            following, total = v, r + gamma * total
            assert advantages[row, t].item() == pytest.approx(running if mask[row, t] else 0.0, abs=1e-9)
            assert returns[row, t].item() == pytest.approx(total if mask[row, t] else 0.0, abs=1e-9)


def test_the_two_readings_of_a_hole_differ_only_where_there_is_one():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 9.0, 0.25]])
    whole, hole = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[True, False, True]])
    for mask, same in ((whole, True), (hole, False)):
        first, second = (gae(rewards, values, mask, holes=holes)[0] for holes in ("skipped", "zero"))
        assert torch.allclose(first, second) == same
    # skipped: 0.25 - 0.5 + 0.95 * 0.75; zero: -0.5 + 0.95 (0.25 + 0.95 * 0.75)
    assert gae(rewards, values, hole)[0][0].tolist() == pytest.approx([0.4625, 0.0, 0.75])
    assert gae(rewards, values, hole, holes="zero")[0][0].tolist() == pytest.approx([0.414375, 0.0, 0.75])
    with pytest.raises(ConfigError, match="holes"):
        gae(rewards, values, hole, holes="filled")


def test_long_rows_are_exact_and_quick():
    mask = torch.ones(4, 5000, dtype=torch.bool)
    returns = suffix_sum(torch.ones(4, 5000), mask, 0.999)
    assert returns[0, 0].item() == pytest.approx((1 - 0.999**5000) / 0.001, rel=1e-5)
    assert suffix_sum(torch.full((4, 5000), 0.1), mask)[0, 0].item() == pytest.approx(500.0, rel=1e-6)


def test_a_failed_cell_stays_in_its_row():
    rewards = torch.tensor([[1.0, float("nan"), 2.0], [1.0, 1.0, 1.0]])
    returns = suffix_sum(rewards, torch.ones(2, 3, dtype=torch.bool))
    assert returns[0].isnan().tolist() == [True, True, False]
    assert returns[1].tolist() == [3, 2, 1]
