"""Group statistics against hand-computed numbers, a plain Python reference and TRL's own arithmetic."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit import (
    DropUniformGroups,
    GroupNorm,
    LeaveOneOut,
    PerRewardNorm,
    RunningMoments,
    StdEMAFilter,
    ToTokens,
    WeightedAdvantages,
    Whiten,
    apply_moments,
    early_advantages,
    group_normalise,
    group_stats,
    group_sum,
    leave_one_out_mean,
    normalise_then_sum,
    update_moments,
    whiten,
)
from guerdon.credit.likelihood import JensenAdvantage
from guerdon.rewards import Rewards
from guerdon.rollouts import Rollouts
from guerdon.system import System

NAN = float("nan")


def test_groups_need_not_be_adjacent_or_of_one_size():
    stats = group_stats(torch.tensor([1.0, 10.0, 3.0, 20.0, 30.0]), torch.tensor([7, -2, 7, -2, -2]))
    assert stats.mean.tolist() == [2, 20, 2, 20, 20]
    assert stats.std.tolist() == pytest.approx([math.sqrt(2), 10, math.sqrt(2), 10, 10])
    assert stats.size.tolist() == [2, 3, 2, 3, 3]
    population = group_stats(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]), std="population")
    assert population.std.tolist() == [1, 1]


def test_masked_nan_and_infinite_rows_are_in_no_statistic():
    values = torch.tensor([1.0, NAN, 3.0, float("-inf"), 5.0, 100.0])
    stats = group_stats(values, torch.zeros(6, dtype=torch.long), torch.tensor([1, 1, 1, 1, 1, 0]).bool())
    assert stats.mean[0] == 3 and stats.std[0] == 2 and stats.size[0] == 3
    nobody = group_stats(torch.tensor([NAN, NAN, 1.0]), torch.tensor([0, 0, 1]))
    assert nobody.mean.isnan().tolist() == [True, True, False] and nobody.size.tolist() == [0, 0, 1]


@pytest.mark.parametrize(("rule", "mean", "std"), [("zero", 4.0, 0.0), ("raw", 0.0, 1.0), ("nan", 4.0, NAN)])
def test_singleton_rules(rule, mean, std):
    stats = group_stats(torch.tensor([4.0, NAN]), torch.tensor([0, 0]), singleton=rule)
    assert stats.mean[0] == mean
    assert stats.std[0].isnan() if math.isnan(std) else stats.std[0] == std


def test_rows_of_one_sample_count_once():
    # one session of three rows (reward 9) beside two plain rows: the mean is over 3 samples, not 5 rows
    values, groups = torch.tensor([9.0, 0.0, 9.0, 3.0, 9.0]), torch.zeros(5, dtype=torch.long)
    samples = torch.tensor([5, 1, 5, 2, 5])
    stats = group_stats(values, groups, sample_ids=samples)
    assert stats.mean[0] == 4 and stats.size[0] == 3
    assert stats.std[0].item() == pytest.approx(statistics.stdev([9, 0, 3]))
    others = leave_one_out_mean(values, groups, sample_ids=samples)
    assert others.tolist() == [1.5, 6, 1.5, 4.5, 1.5]
    # the same sample id in another group is another sample
    assert group_stats(values, torch.tensor([0, 0, 0, 1, 1]), sample_ids=samples).size.tolist() == [2, 2, 2, 2, 2]


def test_leave_one_out_and_sums():
    values, groups = torch.tensor([1.0, 2.0, 6.0, 5.0]), torch.tensor([1, 1, 1, 0])
    assert leave_one_out_mean(values, groups).tolist()[:3] == [4.0, 3.5, 1.5]
    assert leave_one_out_mean(values, groups)[3].isnan(), "nobody else: no baseline"
    masked = leave_one_out_mean(values, groups, torch.tensor([True, True, False, True]))
    assert masked.tolist()[:3] == [2.0, 1.0, 1.5], "a row that does not count sees the mean of all that do"
    assert group_sum(values, groups).tolist() == [9, 9, 9, 5]


def test_empty_batches():
    empty, ids = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    assert group_stats(empty, ids).mean.shape == (0,)
    assert group_normalise(empty, ids).shape == (0,)
    assert leave_one_out_mean(empty, ids).shape == (0,)
    assert whiten(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool)).shape == (0, 3)


rows = st.lists(
    st.tuples(st.one_of(st.floats(-1e6, 1e6), st.just(NAN)), st.integers(-3, 3), st.booleans()),
    max_size=24,
)


@settings(deadline=None)
@given(rows)
def test_agrees_with_plain_python(cells):
    values = torch.tensor([v for v, _, _ in cells], dtype=torch.float64)
    groups = torch.tensor([g for _, g, _ in cells], dtype=torch.long)
    mask = torch.tensor([m for _, _, m in cells], dtype=torch.bool)
    stats = group_stats(values, groups, mask)
    others = leave_one_out_mean(values, groups, mask)
    for i, (_, group, _) in enumerate(cells):
        live = [j for j, (v, g, m) in enumerate(cells) if g == group and m and not math.isnan(v)]
        numbers = [cells[j][0] for j in live]
        assert stats.size[i] == len(numbers)
        if numbers:
            assert stats.mean[i].item() == pytest.approx(statistics.fmean(numbers), rel=1e-9, abs=1e-6)
            deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
            assert stats.std[i].item() == pytest.approx(deviation, rel=1e-6, abs=1e-4)
        rest = [cells[j][0] for j in live if j != i]
        if rest:
            assert others[i].item() == pytest.approx(statistics.fmean(rest), rel=1e-6, abs=1e-4)
        else:
            assert others[i].isnan()


# -- TRL's numbers, to the last bit -------------------------------------------------------------------------------------


def trl_std(rewards, dim=None):
    """GRPOTrainer's std: sample std that leaves NaN out."""
    mean = torch.nanmean(rewards, dim=dim, keepdim=True)
    variance = torch.nanmean((rewards - mean) ** 2, dim=dim, keepdim=True)
    count = torch.sum(~torch.isnan(rewards), dim=dim, keepdim=True)
    correction = torch.where(count > 1, count / (count - 1), NAN)
    std = torch.sqrt(variance * correction)
    return std.squeeze(dim) if dim is not None else std.squeeze()


def trl_advantages(rewards, size, scale):
    """scale_rewards = "group" | "batch" | "none", sum_then_normalize."""
    advantages = rewards - torch.nanmean(rewards.view(-1, size), dim=1).repeat_interleave(size)
    if scale == "group":
        advantages = advantages / (trl_std(rewards.view(-1, size), 1).repeat_interleave(size) + 1e-4)
    if scale == "batch":
        advantages = advantages / (trl_std(rewards) + 1e-4)
    return torch.nan_to_num(advantages, nan=0.0)


OPTIONS = {"group": {}, "batch": {"std_over": "batch"}, "none": {"std": None}}


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("size", [2, 4, 7, 8])
@pytest.mark.parametrize("broken", [False, True])
def test_equals_trl_bit_for_bit(scale, size, broken):
    generator = torch.Generator().manual_seed(size)
    rewards = torch.rand(12 * size, generator=generator) * 3 - 1
    rewards[:size] = 0.3  # a flat group
    rewards[size : 2 * size] = torch.randint(0, 2, (size,), generator=generator).float()
    if broken:
        rewards[torch.rand(len(rewards), generator=generator) < 0.15] = NAN
    groups = torch.arange(12).repeat_interleave(size)
    ours = group_normalise(rewards, groups, **OPTIONS[scale])
    assert ours.dtype == torch.float32
    theirs = trl_advantages(rewards, size, scale)
    assert float(theirs[:size].abs().max()) < 1e-3
    theirs[:size] = 0.0  # the rounding of equal rewards, over its own std: theirs is noise, ours is exactly 0
    assert torch.equal(torch.nan_to_num(ours, nan=0.0), theirs)
    assert torch.equal(ours.isnan(), rewards.isnan()), "an instrument's failure stays visible"


def test_gdpo_equals_trl_normalise_then_sum():
    generator = torch.Generator().manual_seed(0)
    size, weights = 4, [1.0, 0.5]
    sources = [torch.rand(32, generator=generator), torch.randint(0, 2, (32,), generator=generator).float()]
    grouped = torch.stack(sources, 1).view(-1, size, 2)
    normed = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
    total = (normed.view(-1, 2) * torch.tensor(weights)).sum(1)
    expected = (total - total.mean()) / (total.std() + 1e-4)
    masks = [torch.ones(32, dtype=torch.bool)] * 2
    ours = normalise_then_sum(sources, weights, torch.arange(8).repeat_interleave(size), masks)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_flat_groups_and_whitening_by_hand():
    tiny = torch.tensor([0.5, 0.5 + 1e-8, 1.0, 0.0])
    assert group_normalise(tiny, torch.tensor([0, 0, 1, 1]), flat_below=1e-6, eps=1e-6)[:2].tolist() == [0, 0]
    assert group_normalise(torch.ones(3), torch.zeros(3, dtype=torch.long), eps=0.0).tolist() == [0, 0, 0]
    mask = torch.tensor([[True, True, False], [True, True, True]])
    values = torch.tensor([[1.0, 2.0, 99.0], [3.0, 4.0, 5.0]])
    assert whiten(values, mask)[0, 2] == 0
    assert whiten(values, mask)[mask].tolist() == pytest.approx([x / math.sqrt(2.5) for x in (-2, -1, 0, 1, 2)])
    assert whiten(values, mask, std="population")[0, 0].item() == pytest.approx(-math.sqrt(2))
    one = torch.tensor([[True, False, False], [False, False, False]])
    assert whiten(values, one).abs().sum() == 0, "one cell alone has no spread"


# -- equal rewards have no spread, whatever float arithmetic says -----------------------------------------------------------

EQUAL = [0.35, 0.1, -0.7, 3.3, 17.37, 100.1, -1234.7, 5000.3]


def noisy(value, size, dtype=torch.float32):
    """`value` as it arrives by different routes: off by one unit in the last place in every other row."""
    values = torch.full((size,), value, dtype=dtype)
    values[::2] = torch.nextafter(values[::2], torch.tensor(math.inf, dtype=dtype))
    return values


@pytest.mark.parametrize("value", EQUAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_get_exactly_zero_at_any_epsilon(value, dtype):
    for size in (2, 3, 5, 6, 7, 8, 16):
        groups = torch.zeros(size, dtype=torch.long)
        for values in (torch.full((size,), value, dtype=dtype), noisy(value, size, dtype)):
            for eps in (1e-4, 1e-6, 1e-12, 0.0):
                for options in (
                    {},
                    {"std": "population"},
                    {"std": None},
                    {"std_over": "batch"},
                    {"dtype": torch.float64},
                ):
                    assert group_normalise(values, groups, eps=eps, **options).abs().max() == 0, (size, eps, options)
            assert group_stats(values, groups, std="population").std.max() == 0
            assert (values - leave_one_out_mean(values, groups)).abs().max() == 0
            mask = torch.ones(1, size, dtype=torch.bool)
            assert whiten(values[None], mask, eps=0.0).abs().max() == 0


def test_equal_rewards_beside_others_failures_and_sessions():
    values = torch.tensor([100.1] * 5 + [NAN, 1.0, 0.0, 1.0])
    groups = torch.tensor([0] * 6 + [1] * 3)
    ours = group_normalise(values, groups, eps=1e-8)
    assert ours[:5].tolist() == [0] * 5 and ours[5].isnan() and ours[6] > 0 > ours[7]
    # ragged groups take another path than equal ones; rows of one session are one sample, whatever each of them got
    sessions = torch.tensor([0, 0, 1, 2])
    centred = group_normalise(torch.tensor([99.1, 101.1, 100.1, 100.1]), torch.zeros(4), sample_ids=sessions, eps=0.0)
    assert centred.tolist() == [0, 0, 0, 0]
    alone = group_normalise(torch.tensor([1.0, 3.0]), torch.zeros(2), sample_ids=torch.zeros(2))
    assert alone.tolist() == [0, 0], "one session alone has no statistic"


def test_what_differs_by_more_than_rounding_is_still_seen():
    groups = torch.zeros(4, dtype=torch.long)
    for values in (
        torch.tensor([1.0, 1.0, 1.0, 1.00001]),
        torch.tensor([1e-30, 1e-30, 1e-30, 2e-30]),
        torch.tensor([1.0, 1.0, 1.0, 1.0 + 1e-12], dtype=torch.float64),
        torch.tensor([1.0, 1.0, 1.0, 1.0078125], dtype=torch.bfloat16),  # one step of bfloat16
        torch.tensor([-1e-12, 0.0, 0.0, 0.0]),
    ):
        assert group_stats(values, groups).std.min() > 0
        spread = group_normalise(values, groups, eps=0.0, dtype=torch.float64)
        assert spread.abs().max().item() == pytest.approx(1.5, abs=0.02)


def link_advantages(links, sources, size):
    """Advantages of rows of three tokens, groups of `size`, from one value a row and source."""
    rows = len(next(iter(sources.values())))
    rollouts = Rollouts(["q"] * rows, ["abc"] * rows, completion_ids=torch.zeros(rows, 3, dtype=torch.long),
                        completion_mask=torch.ones(rows, 3, dtype=torch.bool), group_ids=torch.arange(rows) // size)  # fmt: skip
    signals = {name: lambda r, _, v=values: Rewards.sequence(v.clone(), r) for name, values in sources.items()}
    return System(signals, links)(rollouts)


def test_every_link_over_group_statistics_gives_equal_rewards_zero():
    values = torch.cat([noisy(100.1, 8), noisy(-1234.7, 8)])
    to_tokens = ToTokens("x", "whole")
    for links in (
        [GroupNorm("x", eps=1e-6), to_tokens],
        [LeaveOneOut("x"), to_tokens, Whiten("x", eps=0.0)],
        [PerRewardNorm("x", into="x", eps=1e-8), to_tokens],
        [JensenAdvantage("x"), to_tokens],
    ):
        assert link_advantages(links, {"x": values}, 8).advantages.abs().max() == 0, links
    for link in (PerRewardNorm(into="z", eps=1e-8), WeightedAdvantages(("x", "y"), (1.0, 0.3), into="z", eps=1e-8)):
        both = link_advantages([link, ToTokens("z", "whole")], {"x": values, "y": values / 3}, 8)
        assert both.advantages.abs().max() == 0, link
    cancelling = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    pair = {"x": cancelling, "y": 1 - cancelling}
    assert (
        link_advantages([PerRewardNorm(into="z", eps=1e-8), ToTokens("z", "whole")], pair, 3).advantages.abs().max()
        == 0
    )


def test_filters_see_equal_rewards():
    values = torch.cat([noisy(100.1, 8), torch.tensor([1.0, 0.0] * 4)])
    scores = link_advantages([DropUniformGroups("x"), GroupNorm("x"), ToTokens("x", "whole")], {"x": values}, 8)
    assert scores.keep.tolist() == [False] * 8 + [True] * 8
    assert "same reward" in scores.notes["dropped"][0]
    scores = link_advantages(
        [StdEMAFilter("x", start=1, filter_from=1), GroupNorm("x"), ToTokens("x", "whole")], {"x": values}, 8
    )
    assert scores.metrics["std_filter/std"] == pytest.approx(float(values[8:].double().std()) / 2)


def test_running_and_early_statistics_of_equal_rewards():
    moments = update_moments(update_moments(RunningMoments(), torch.full((7,), 100.1)), noisy(100.1, 8))
    assert moments.std == 0
    assert apply_moments(torch.full((3,), 100.1), moments, "meanstd").abs().max() < 1e-4
    assert apply_moments(noisy(100.1, 2), moments, "minmax").tolist() == [0.5, 0.5]
    returns = torch.full((7, 2), 100.1, dtype=torch.float64)
    groups = torch.zeros(7, dtype=torch.long)
    assert early_advantages(returns, groups, "start", eps=1e-12).abs().max() == 0
    assert early_advantages(returns, groups, "position").abs().max() == 0
