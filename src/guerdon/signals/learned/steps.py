"""Cutting a response into steps the way PURE does, on token ids.

A step ends at every token whose text *ends with* the delimiter (with a real vocabulary that is many ids: "\\n\\n", ".\\n\\n",
")\\n\\n", ...) and at the last valid token, which is normally the end-of-sequence token. So m delimiters make m + 1 steps.

Source: PURE (arXiv 2504.15275), verl branch, `ProcessRewardModelWorker._split_steps`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.segment import separator_ids as find_separator_ids

__all__ = ["StepEnds", "find_separator_ids", "split_steps"]


class StepEnds(NamedTuple):
    """Where steps end.

    step_end_mask: [B, T] bool, True at the last token of each step.
    step_ends: [B, S] int64, its positions in ascending order, padded with -1; S is the most steps of any row.
    num_steps: [B] int64.
    """

    step_end_mask: Tensor
    step_ends: Tensor
    num_steps: Tensor


def split_steps(
    responses: Tensor,
    response_mask: Tensor,
    separator_ids: Tensor | Iterable[int],
    *,
    count_final_separator_twice: bool = False,
) -> StepEnds:
    """Step ends of a batch of responses.

    responses: [B, T] token ids. response_mask: [B, T], nonzero on valid tokens; separators elsewhere are ignored.
    separator_ids: [D] ids that end a step (`find_separator_ids`).
    count_final_separator_twice: what the official code does to a response whose last valid token is itself a separator
        (cut at the length limit just there): the position is listed twice and counted as two steps. Off, it is one step.

    A row without valid tokens has no steps.
    """
    if responses.shape != response_mask.shape or responses.dim() != 2:
        raise ValueError(
            f"responses {tuple(responses.shape)} and response_mask {tuple(response_mask.shape)} must both be [B, T]"
        )
    valid = response_mask.bool()
    if not isinstance(separator_ids, Tensor):
        separator_ids = torch.tensor(list(separator_ids), dtype=torch.long)
    separators = torch.isin(responses, separator_ids.to(responses)) & valid
    position = torch.arange(responses.shape[1], device=responses.device).expand(responses.shape)
    last = torch.where(valid, position, -1).amax(1) if responses.shape[1] else responses.new_full((len(responses),), -1)
    ends = separators | (position == last[:, None])
    num_steps = ends.sum(1)
    twice = (separators & ends & (position == last[:, None])).any(1) & count_final_separator_twice
    total = num_steps + twice
    width = int(total.max()) if len(total) else 0

    # Order the ends before everything else; a row's surplus columns repeat its last end or become padding.
    beyond = responses.shape[1]
    ordered = torch.where(ends, position, beyond).sort(1).values
    ordered = torch.nn.functional.pad(ordered, (0, max(0, width - beyond)), value=beyond)[:, :width]
    column = torch.arange(width, device=responses.device)[None]
    ordered = torch.where((column == num_steps[:, None]) & twice[:, None], last[:, None], ordered)
    step_ends = torch.where(column < total[:, None], ordered, -1)
    return StepEnds(ends, step_ends, total)
