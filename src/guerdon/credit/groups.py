"""Group statistics, in one place: mean, standard deviation, sums and leave-one-out means over rows that share a group id.

Group ids are arbitrary integers, rows of a group need not be adjacent and groups may differ in size. Rows that share a sample id
(a multi-turn session cut into rows) count once. Cells outside the mask and non-finite numbers are in no statistic. Four
choices differ between papers and are always arguments: which std, which epsilon (at the caller), what a group of one gets, and
the precision. Nothing here loops over rows.

Equal rewards have no spread. Float arithmetic says otherwise: eight times 100.1 has a float32 mean beside 100.1, and a std of
rounding residue turns into an advantage when something is divided by it. A group whose values differ by rounding alone is
therefore *flat*: its std is exactly 0, and each of its rows is its own mean, so that what is centred is exactly 0.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from guerdon.errors import ShapeError
from guerdon.options import checked

SingletonStats = Literal["zero", "raw", "nan"]


class GroupStats(NamedTuple):
    """Statistics of each row's group, spread back over the rows.

    Attributes:
        mean: [B]; NaN where no row of the group counts. In a flat group each row that counts gets its own value.
        std: [B]; exactly 0 in a flat group, and only there; NaN where no row of the group counts.
        size: [B] int64, samples that counted.
    """

    mean: Tensor
    std: Tensor
    size: Tensor


class _Samples(NamedTuple):
    """One entry per sample: its value, its group (0..G-1), whether it counts; and each row's group and sample.

    `flat` is [G] bool, `equal_up_to_rounding` of the group's values that count.
    """

    values: Tensor
    group: Tensor
    counted: Tensor
    row_group: Tensor
    row_sample: Tensor
    groups: int
    flat: Tensor


ROUNDING_ULPS = 4


def rounding(size: Tensor, dtype: torch.dtype) -> Tensor:
    """How far apart numbers of this size [...] may be and still be one number: 4 units in the last place of `dtype`.

    That much a reward gathers on its way: a weighted sum, a sum over steps in another order. bfloat16 and float16 are taken as
    float32, because their steps are so coarse that one step is a difference.
    """
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    return ROUNDING_ULPS * eps * size.abs()


def equal_up_to_rounding(low: Tensor, high: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether a least and a greatest value [...], low <= high, are one number in the resolution of `dtype`."""
    return high - low <= rounding(torch.maximum(low.abs(), high.abs()), dtype)


def flat_cells(values: Tensor, counts: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether all values [...] that count are equal up to rounding; True where none counts. `dtype`: None = of the values."""
    numbers = values[counts]
    return not len(numbers) or bool(equal_up_to_rounding(numbers.amin(), numbers.amax(), dtype or values.dtype))


def _flat(values: Tensor, group: Tensor, counted: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """[G] bool: all values of the group that count are equal up to rounding; False where none counts."""
    ends = values.new_zeros(groups)
    low = ends.scatter_reduce(0, group, torch.where(counted, values, float("inf")), "amin", include_self=False)
    high = ends.scatter_reduce(0, group, torch.where(counted, values, float("-inf")), "amax", include_self=False)
    return (high >= low) & equal_up_to_rounding(low, high, dtype)


def _samples(
    values: Tensor,
    group_ids: Tensor,
    mask: Tensor | None,
    sample_ids: Tensor | None,
    dtype: torch.dtype,
    resolution: torch.dtype | None = None,
) -> _Samples:
    if values.dim() != 1 or group_ids.shape != values.shape or (mask is not None and mask.shape != values.shape):
        raise ShapeError(
            f"group statistics take values, group_ids and mask of one shape [B]: {tuple(values.shape)}, {tuple(group_ids.shape)}, {None if mask is None else tuple(mask.shape)}"
        )
    # Nothing is sharper than the coarser of what was given and what is computed with.
    resolution = torch.float64 if (resolution or values.dtype) == dtype == torch.float64 else torch.float32
    values = values.to(dtype)
    group_ids = group_ids.to(values.device)
    usable = torch.isfinite(values) if mask is None else mask.bool().to(values.device) & torch.isfinite(values)
    names, group = torch.unique(group_ids, return_inverse=True)
    rows = torch.arange(len(values), device=values.device)

    def found(numbers: Tensor, owner: Tensor, counted: Tensor, row_sample: Tensor) -> _Samples:
        flat = _flat(numbers, owner, counted, len(names), resolution)
        return _Samples(numbers, owner, counted, group, row_sample, len(names), flat)

    if sample_ids is None:
        return found(values, group, usable, rows)
    _, sample = torch.unique(torch.stack([group, sample_ids.to(values.device)]), dim=1, return_inverse=True)
    size = int(sample.max()) + 1 if len(sample) else 0
    if size == len(values):  # every row its own sample: keep the rows' order
        return found(values, group, usable, rows)
    total = values.new_zeros(size).index_add_(0, sample, torch.where(usable, values, 0.0))
    parts = torch.zeros(size, dtype=dtype, device=values.device).index_add_(0, sample, usable.to(dtype))
    owner = torch.zeros(size, dtype=torch.long, device=values.device).scatter_(0, sample, group)
    return found(total / parts.clamp(min=1), owner, parts > 0, sample)


def _own_where_flat(samples: _Samples, values: Tensor) -> Tensor:
    """[B]: `values` [B], and in flat groups each counting row's own value."""
    own = samples.flat[samples.row_group] & samples.counted[samples.row_sample]
    return torch.where(own, samples.values[samples.row_sample], values)


def _moments(samples: _Samples) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [G], population variance [G] and count [G] of each group; NaN where nothing counts."""
    values, group, usable, groups = samples.values, samples.group, samples.counted, samples.groups
    sizes = torch.bincount(group, minlength=groups)
    if groups and bool((sizes == sizes[0]).all()):
        # Equal groups: one matrix, reduced as the trainers do it, so that results agree with theirs to the last bit.
        order = torch.argsort(group, stable=True)
        table = torch.where(usable, values, float("nan"))[order].view(groups, -1)
        mean = torch.nanmean(table, dim=1, keepdim=True)
        return mean[:, 0], torch.nanmean((table - mean) ** 2, dim=1), (~table.isnan()).sum(1)
    zeros = values.new_zeros(groups)
    count = torch.zeros(groups, dtype=torch.long, device=values.device).index_add_(0, group, usable.long())
    mean = zeros.index_add(0, group, torch.where(usable, values, 0.0)) / count
    spread = torch.where(usable, (values - mean[group]) ** 2, 0.0)
    return mean, zeros.index_add(0, group, spread) / count, count


@checked
def group_stats(
    values: Tensor,
    group_ids: Tensor,
    mask: Tensor | None = None,
    *,
    sample_ids: Tensor | None = None,
    std: Literal["sample", "population"] = "sample",
    singleton: SingletonStats = "zero",
    dtype: torch.dtype = torch.float64,
) -> GroupStats:
    """Mean and standard deviation of each row's group.

    mean_g = 1/n sum_i x_i ;  std_g = sqrt( 1/(n-1) sum_i (x_i - mean_g)^2 )   (population: 1/n)

    Args:
        values: [B] float.
        group_ids: [B] int64, any ids in any order.
        mask: [B] bool, rows that count; None = all. Non-finite values never count.
        sample_ids: [B] int64; rows of one group and sample count once, with their mean. None = each row its own.
        std: "sample" divides by n-1 (torch, TRL, verl), "population" by n.
        singleton: a group in which one sample counts. "zero": mean = its value, std = 0 (TRL); "raw": mean 0 and std 1, so that
            normalising leaves the value as it is (verl); "nan": std NaN.
        dtype: float64 by default. float32 and groups of equal size give the trainers' numbers bit for bit.

    Returns:
        GroupStats of [B] tensors in `dtype`.
    """
    samples = _samples(values, group_ids, mask, sample_ids, dtype)
    mean, variance, count = _moments(samples)
    if std == "sample":
        correction = (count / (count - 1).clamp(min=1)).to(dtype)
        variance = variance * correction
    deviation = torch.where(samples.flat, 0.0, torch.sqrt(variance))
    row, alone = samples.row_group, count == 1
    average = _own_where_flat(samples, mean[row])
    if singleton == "raw":
        average, deviation = torch.where(alone[row], 0.0, average), torch.where(alone, 1.0, deviation)
    else:
        deviation = torch.where(alone, 0.0 if singleton == "zero" else float("nan"), deviation)
    return GroupStats(average, deviation[row], count[row])


def group_sum(values: Tensor, group_ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B] float64: the sum over each row's group of the values that count, spread back over the rows."""
    samples = _samples(values, group_ids, mask, None, torch.float64)
    total = samples.values.new_zeros(samples.groups)
    total = total.index_add(0, samples.group, torch.where(samples.counted, samples.values, 0.0))
    return total[samples.row_group]


def leave_one_out_mean(
    values: Tensor,
    group_ids: Tensor,
    mask: Tensor | None = None,
    *,
    sample_ids: Tensor | None = None,
    resolution: torch.dtype | None = None,
) -> Tensor:
    """The mean of the OTHER samples of each row's group (RLOO's baseline, Ahmadian et al. 2024, arXiv 2402.14740).

    b_i = 1/(n-1) sum_{j != i} x_j     for a row that counts;  1/n sum_j x_j for one that does not (nobody is left out)

    Args:
        resolution: dtype the values had before they were widened, which says how far rounding reaches; None = theirs.

    Returns:
        [B] float64; NaN where there are no others. In a flat group a row's own value, so that it pays exactly what it got.
    """
    samples = _samples(values, group_ids, mask, sample_ids, torch.float64, resolution)
    usable = samples.counted
    numbers = torch.where(usable, samples.values, 0.0)
    total = numbers.new_zeros(samples.groups).index_add(0, samples.group, numbers)
    count = numbers.new_zeros(samples.groups).index_add(0, samples.group, usable.double())
    own = samples.group
    others = (total[own] - numbers) / (count[own] - usable.double())
    others = _own_where_flat(samples, others[samples.row_sample])
    alone = count[own] - usable.double() <= 0
    return torch.where(alone[samples.row_sample], float("nan"), others)
