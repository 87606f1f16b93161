"""PURE: what the min-form transform is said to do, on random scores (sheet's items 1 and 2) and in the real chain (4, 5)."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit import min_form, suffix_min, suffix_sum

# Scores on a grid of 0.1, so that two of them are equal or clearly different: ties and near-ties have tests of their own.
GRID = st.lists(st.integers(-10, 10), min_size=1, max_size=12)
ANY = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12)


def row(scores: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.tensor([scores], dtype=torch.float64)
    return values, torch.ones_like(values, dtype=torch.bool)


@given(GRID)
def test_at_low_temperature_the_transform_sums_to_the_minimum(grid: list[int]) -> None:
    scores, mask = row([g / 10 for g in grid])
    assert abs(float(min_form(scores, mask, 0.01).sum()) - float(scores.min())) < 1e-3


@given(ANY, st.sampled_from([0.01, 0.1, 1.0]))
def test_whatever_the_scores_the_sum_is_above_the_minimum_by_at_most_t_log_n(scores: list[float], t: float) -> None:
    # Why 1e-3 needs a gap: two scores 0.0128 apart at T = 0.01 sum to 0.0028 above the smaller one. T log n is the general bound.
    values, mask = row(scores)
    excess = float(min_form(values, mask, t).sum() - values.min())
    assert -1e-9 <= excess <= t * math.log(len(scores)) + 1e-9


@given(st.permutations(list(range(-10, 11))), st.integers(1, 12))
def test_without_ties_suffix_sums_at_low_temperature_are_the_min_form_returns(order: list[int], n: int) -> None:
    scores, mask = row([g / 10 for g in order[:n]])
    returns = suffix_sum(min_form(scores, mask, 1e-3), mask)
    worst = int(scores.argmin())
    smallest = suffix_min(scores, mask)[0]
    expected = [float(smallest[t]) if t <= worst else 0.0 for t in range(n)]
    assert torch.allclose(returns[0], torch.tensor(expected, dtype=torch.float64), atol=1e-6)


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8),
    st.integers(1, 12),
    st.integers(0, 100),
    st.sampled_from([(0.1, 0.3), (0.01, 0.9)]),
)
@settings(max_examples=200)
def test_filler_changes_the_sum_but_not_the_min_form(
    scores: list[float], fillers: int, seed: int, setting: tuple[float, float]
) -> None:
    # At the default temperature the answer must have a step that is clearly worse than filler; sharper, any step worse will do.
    temperature, worst = setting
    scores = [*scores, min(worst, *scores)] if len(scores) > 1 else [min(worst, scores[0])]
    places = torch.randint(0, len(scores) + 1, (fillers,), generator=torch.Generator().manual_seed(seed))
    longer = list(scores)
    for place in sorted(places.tolist(), reverse=True):
        longer.insert(place, 0.9)
    plain, plain_mask = row(scores)
    padded, padded_mask = row(longer)
    change = min_form(padded, padded_mask, temperature).sum() - min_form(plain, plain_mask, temperature).sum()
    assert abs(float(change)) < 0.05
    assert abs(float(padded.sum() - plain.sum()) - 0.9 * fillers) < 1e-9
