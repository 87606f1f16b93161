"""JEPO's advantages, the floor under rows without a log-probability, and what is watched: hand-computed numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon import Rollouts
from guerdon.credit.likelihood import (
    FloorAtGroupMin,
    JensenAdvantage,
    WatchLikelihood,
    jensen_advantages,
    jensen_weights,
)
from guerdon.credit.transforms import Clamp
from guerdon.errors import ChainError
from guerdon.rewards import Rewards, Scores

GROUPS = torch.tensor([5, 2, 5, 2, 9])


def scores_of(groups=GROUPS, **columns) -> tuple[Scores, Rollouts]:
    size = len(groups)
    rollouts = Rollouts.from_texts(["q"] * size, ["a"] * size, group_ids=groups)
    sources = {
        name.replace("__", "."): Rewards.sequence(torch.tensor(values, dtype=torch.float32), rollouts)
        for name, values in columns.items()
    }
    empty = Scores.empty(rollouts)
    return Scores(sources, empty.keep, dict(sources)), rollouts


def test_two_samples_follow_the_sum_rule():
    s = torch.tensor([-0.1, -30.0], dtype=torch.float64)
    advantages, objective = jensen_advantages(s, torch.zeros(2, dtype=torch.long))
    mean = math.log((math.exp(-0.1) + math.exp(-30.0)) / 2)
    assert advantages.tolist() == pytest.approx([mean + 30.0, mean + 0.1], rel=1e-12)
    assert objective.tolist() == pytest.approx([mean] * 2, rel=1e-12)


@given(st.lists(st.floats(-3000, 0), min_size=2, max_size=6))
def test_leave_one_out_is_exact_whatever_dominates(values):
    s = torch.tensor(values, dtype=torch.float64)
    advantages, _ = jensen_advantages(s, torch.zeros(len(values), dtype=torch.long))
    whole = torch.logsumexp(s, 0) - math.log(len(values))
    for k in range(len(values)):
        others = torch.cat([s[:k], s[k + 1 :]])
        expected = whole - (torch.logsumexp(others, 0) - math.log(len(values) - 1))
        assert float(advantages[k]) == pytest.approx(float(expected), rel=1e-9, abs=1e-9)
    weights = jensen_weights(s, torch.zeros(len(values), dtype=torch.long))
    assert float(weights.sum()) == pytest.approx(1.0) and bool((weights >= 0).all())


def test_groups_may_be_scattered_and_rows_left_out():
    s = torch.tensor([-2000.0, -3.0, -2001.0, -3.0, -7.0], dtype=torch.float64)
    advantages, _ = jensen_advantages(s, GROUPS)
    lme = -2000 + math.log((1 + math.exp(-1)) / 2)
    assert advantages.tolist() == pytest.approx([lme + 2001, 0.0, lme + 2000, 0.0, -7.0])
    only = torch.tensor([True, True, False, True, False])
    advantages, _ = jensen_advantages(s, GROUPS, only)
    assert advantages.tolist() == pytest.approx([-2000.0, 0.0, 0.0, 0.0, 0.0])
    assert jensen_weights(s, GROUPS, only).tolist() == pytest.approx([1.0, 0.5, 0.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("singleton", "last", "kept"), [("raw", -7.0, True), ("zero", 0.0, True), ("drop", -7.0, False)]
)
def test_the_link_and_its_singletons(singleton, last, kept):
    scores, rollouts = scores_of(s=[-1.0, -2.0, -1.0, -2.0, -7.0])
    out = JensenAdvantage("s", singleton)(scores, rollouts)
    assert out["s"].values[:, 0].tolist() == pytest.approx([0, 0, 0, 0, last], abs=1e-6)
    assert bool(out.keep[4]) is kept and out["s"].kind == "advantage"
    assert out.metrics["jensen_objective"] == pytest.approx((-1 - 2 - 1 - 2 - 7) / 5)


def test_a_row_without_a_value_gets_the_least_of_its_group():
    scores, rollouts = scores_of(s=[-5.0, -100.0, -9.0, -2.0, -100.0], has=[1, 0, 1, 1, 0])
    out = FloorAtGroupMin("s", by="has")(scores, rollouts)
    assert out["s"].values[:, 0].tolist() == [-5.0, -3.0, -9.0, -2.0, -100.0], "nobody else in the last group"


def test_a_floor_leaves_failed_cells_alone():
    scores, rollouts = scores_of(s=[float("nan"), -4.0], has=[0.0, 1.0], groups=torch.tensor([0, 0]))
    assert math.isnan(float(FloorAtGroupMin("s", by="has")(scores, rollouts)["s"].values[0, 0]))


def test_clamp():
    scores, rollouts = scores_of(s=[-5.0, 0.5, 3.0], groups=torch.zeros(3, dtype=torch.long))
    assert Clamp(-1, 1)(scores["s"], rollouts).values[:, 0].tolist() == [-1.0, 0.5, 1.0]


def test_watch_by_hand():
    scores, rollouts = scores_of(
        x__score=[0.5, 0.2, 0.5, 0.4, 0.0],
        x__logprob=[-1.0, -2.0, -3.0, -100.0, -100.0],
        x__tokens=[2, 4, 2, 0, 0],
        x__reasoning=[3, 5, 7, 9, 1],
        x__answered=[1, 1, 1, 0, 0],
    )
    found = WatchLikelihood("x")(scores, rollouts).metrics
    first = -math.log((math.exp(-1) + math.exp(-3)) / 2) / 2
    second = -math.log(math.exp(-2) / 2) / 4  # one of two reasonings has no place: probability 0
    assert found == {
        "x/answered": pytest.approx(0.6),
        "x/reasoning_tokens": pytest.approx(5.0),
        "x/baseline": pytest.approx((0.5 + 0.3 + 0.5 + 0.3 + 0.0) / 5),
        "x/flat_groups": pytest.approx(2 / 3),  # 5 and 9 are flat, 2 is not
        "x/logprob": pytest.approx(-2.0),
        "x/mean_logprob": pytest.approx((-0.5 - 0.5 - 1.5) / 3),
        "x/perplexity": pytest.approx(math.exp((first + second) / 2)),
    }
    with pytest.raises(ChainError, match="gives no score"):
        WatchLikelihood("y").plan({"x.score": "sequence"})
