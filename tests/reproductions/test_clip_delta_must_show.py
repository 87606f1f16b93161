"""Clip and Delta: telescoping, bounds, what each step is credited with, and where rewards land (the sheet's items 1, 2, 4, 5)."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.credit import clip_scores, delta_scores, suffix_sum

PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def row(scores: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.tensor([scores], dtype=torch.float64)
    return values, torch.ones_like(values, dtype=torch.bool)


@given(PROBABILITIES)
def test_the_return_of_delta_is_each_steps_own_score(scores: list[float]) -> None:
    values, mask = row(scores)
    returns = suffix_sum(delta_scores(values, mask), mask)[0]
    assert torch.allclose(returns[:-1], values[0, :-1], atol=1e-9, rtol=0)
    assert float(returns[-1]) == 0.0


@given(PROBABILITIES, st.integers(1, 20))
def test_the_total_of_delta_does_not_see_appended_filler(scores: list[float], fillers: int) -> None:
    scores = [*scores, 0.5]  # with a single step Delta gives 0, and its first appended step is what makes it count
    totals = [float(delta_scores(*row(s)).sum()) for s in (scores, scores + [0.95] * fillers)]
    assert abs(totals[0] - totals[1]) < 1e-9 and abs(totals[0] - scores[0]) < 1e-9


def test_bounds_over_a_thousand_trajectories() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 31, (1000,), generator=generator)
    mask = torch.arange(30) < lengths[:, None]
    values = torch.rand(1000, 30, generator=generator, dtype=torch.float64) * mask
    clipped = clip_scores(values, mask, 0.5)
    assert float(clipped.sum(1).max()) <= 0
    assert float(delta_scores(clipped, mask).sum(1).max()) <= 1e-12
    assert bool((delta_scores(values, mask).sum(1) <= values.amax(1) + 1e-12).all())
    returns = suffix_sum(delta_scores(clipped, mask), mask)
    assert float(returns.max()) <= 1e-12  # no step of any trajectory can be credited with more than success


def test_the_raw_sum_grows_by_a_fillers_score_for_each_filler() -> None:
    totals = torch.tensor([float(torch.full((1, n), 0.95, dtype=torch.float64).sum()) for n in range(1, 31)])
    assert torch.allclose(totals.diff(), torch.full((29,), 0.95), atol=1e-5)
    bounded = [float(delta_scores(*row([0.95] * n)).sum()) for n in range(2, 31)]
    assert max(bounded) - min(bounded) < 1e-9
