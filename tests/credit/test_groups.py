"""Group statistics against hand-computed numbers, a plain Python reference and TRL's own arithmetic."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit import group_normalise, group_stats, group_sum, leave_one_out_mean, normalise_then_sum, whiten

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
