"""From what TRL sampled to Rollouts, across ranks, and back to the tensors of TRL's loss.

Rollouts live on the CPU: rewards are small, and one device keeps signals simple. Row signals run on a rank's own rows; then
everything is gathered, and group signals and the chain see the global batch on every rank, in the order rank 0, rank 1, ...
Texts are our own decoding of the ids, because TRL's `completions` have special tokens stripped or are parsed messages.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from guerdon.errors import ShapeError
from guerdon.lm.in_step import settle
from guerdon.lm.offsets import decode_offsets_batch
from guerdon.rewards import Reasons, Rewards, Scores
from guerdon.rollouts import Clock, Rollouts, concat_rollouts
from guerdon.signals.around import select_scores
from guerdon.spans import stack_spans


@dataclass(frozen=True)
class Sampled:
    """What TRL's `_generate` returned for this rank's rows, as lists (true lengths; padding comes later).

    Attributes:
        prompt_ids: B lists of token ids.
        completion_ids: B lists of token ids; an end-of-sequence token, where there is one, is the last.
        policy: B lists of 0/1, 1 = sampled by the policy (0 = tool output), or None where everything was sampled.
        completions: B texts or chat messages, as TRL hands them to reward functions.
    """

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    policy: list[list[int]] | None = None
    completions: list[Any] | None = None


def pad_rows(rows: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ragged ids to a tensor [B, T] int64 and its mask [B, T] bool. The mask comes from lengths: pad may equal eos."""
    width = max((len(row) for row in rows), default=0)
    gaps = [[fill] * (width - len(row)) for row in rows]
    filled = [gap + list(row) if left else list(row) + gap for row, gap in zip(rows, gaps, strict=True)]
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)[:, None]
    index = torch.arange(width)
    mask = index >= width - lengths if left else index < lengths
    return torch.tensor(filled, dtype=torch.long).view(len(rows), width), mask


def finished_rows(completion_ids: Sequence[Sequence[int]], stop_ids: set[int], cap: int | None) -> Tensor:
    """[B] bool: ended by itself. From true lengths: a row that stops short of the cap ended, whatever its last token is.

    Without a cap (None) generation ends at the model's own limit, which is nobody's number here: only a stop token is an end.
    """
    return torch.tensor(
        [bool(ids) and (ids[-1] in stop_ids or (cap is not None and len(ids) < cap)) for ids in completion_ids],
        dtype=torch.bool,
    )


def build_rollouts(
    sampled: Sampled,
    prompts: list[Any],
    columns: Mapping[str, list[Any]],
    *,
    tokenizer: Any,
    stop_ids: set[int],
    cap: int | None,
    group_size: int,
    rank: int,
    clock: Clock,
    drop_unfinished: bool = False,
) -> Rollouts:
    """This rank's rollouts.

    Args:
        sampled: ids as TRL returned them.
        prompts: B prompts, a group's prompt repeated for each of its rollouts.
        columns: the data set's other columns and what a rollout function added, lists of B.
        tokenizer: decodes completions and gives the padding id.
        stop_ids: tokens that end a completion.
        cap: the most tokens a completion may have; None = what the model's own limit left.
        group_size: rollouts of each prompt (G). Groups may straddle ranks, so ids count from the global row.
        rank: of this process.
        clock: when.
        drop_unfinished: mark rows cut at the cap as not trainable (TRL's `mask_truncated_completions`).
    """
    size = len(sampled.completion_ids)
    prompt_ids, prompt_mask = pad_rows(sampled.prompt_ids, tokenizer.pad_token_id, left=True)
    completion_ids, completion_mask = pad_rows(sampled.completion_ids, tokenizer.pad_token_id)
    policy_mask = completion_mask
    if sampled.policy is not None:
        policy_mask = completion_mask & pad_rows(sampled.policy, 0)[0].bool()
    texts, offsets = decode_offsets_batch(tokenizer, completion_ids, completion_mask, leave_out=stop_ids)
    finished = finished_rows(sampled.completion_ids, stop_ids, cap)
    row = rank * size + torch.arange(size)
    return Rollouts(
        list(prompts),
        texts,
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=completion_ids,
        completion_mask=completion_mask,
        policy_mask=policy_mask,
        offsets=offsets,
        finished=finished,
        group_ids=row // group_size,
        sample_ids=row,
        trainable=finished.clone() if drop_unfinished else torch.ones(size, dtype=torch.bool),
        columns=dict(columns),
        clock=clock,
        messages=sampled.completions,
    )


# -- ranks -----------------------------------------------------------------------------------------------------------------


def gather_rollouts(local: Rollouts, processes: int) -> Rollouts:
    """The global batch on every rank: rows of rank 0, then of rank 1, ... `processes` = 1 returns `local` itself."""
    return local if processes == 1 else concat_rollouts(_gather(local))


def own_scores(scores: Scores, rank: int, size: int) -> Scores:
    """The scores so far of a rank's `size` rows of the global batch, for signals that run there."""
    if size == len(scores):
        return scores
    rows = torch.arange(rank * size, (rank + 1) * size)
    return replace(select_scores(scores, rows), logged={}, texts={})


def gather_scores(local: Scores, processes: int, onto: Scores | None = None) -> Scores:
    """The scores of `gather_rollouts`' rows, reasons moved to their global rows.

    Args:
        local: of a rank's rows.
        processes: ranks; 1 returns `local`.
        onto: scores of the global batch that are there already, of which `local` holds its own rows.
    """
    if processes == 1:
        return local
    before = onto.sources if onto is not None else {}
    fresh = [name for name in local.sources if name not in before]
    sources = {name: local.sources[name] for name in fresh}
    parts = _gather(replace(local, sources=sources, raw=sources))
    whole = _joined(parts, fresh)
    if onto is None:
        return whole
    return replace(
        onto,
        sources={**onto.sources, **whole.sources},
        raw={**onto.raw, **whole.raw},
        logged={**onto.logged, **whole.logged},
        texts={**onto.texts, **whole.texts},
    )


def _joined(parts: Sequence[Scores], names: Sequence[str]) -> Scores:
    local = parts[0]
    joined = {name: concat_rewards([part.sources[name] for part in parts]) for name in names}
    keep = torch.cat([part.keep for part in parts])
    return replace(
        local, sources=joined, raw=dict(joined), keep=keep, logged=_mean_logs(parts), texts=_joined_texts(parts)
    )


def _mean_logs(parts: Sequence[Scores]) -> dict[str, float]:
    """Numbers that signals logged on the ranks, averaged over those that logged them, as TRL does."""
    names = dict.fromkeys(name for part in parts for name in part.logged)
    values = {name: [part.logged[name] for part in parts if name in part.logged] for name in names}
    return {name: sum(column) / len(column) for name, column in values.items()}


def _joined_texts(parts: Sequence[Scores]) -> dict[str, list[Any]]:
    """Columns that signals logged on the ranks, None in the rows of a rank that logged none."""
    names = dict.fromkeys(name for part in parts for name in part.texts)
    return {name: [cell for part in parts for cell in part.texts.get(name, [None] * len(part))] for name in names}


def _gather(part: Any) -> list[Any]:
    from accelerate.utils import gather_object

    settle()
    return gather_object([part])


def concat_rewards(parts: Sequence[Rewards]) -> Rewards:
    """Rewards of several ranks as one, padded to the widest."""
    width = max(part.values.shape[1] for part in parts)
    reasons: Reasons = {}
    offset = 0
    for part in parts:
        reasons |= {(row + offset, span): text for (row, span), text in part.reasons.items()}
        offset += len(part)
    values = torch.cat([nn.functional.pad(part.values, (0, width - part.values.shape[1])) for part in parts])
    return replace(parts[0], values=values, spans=stack_spans([part.spans for part in parts]), reasons=reasons)


def local_part(tensor: Tensor, rank: int, size: int, width: int) -> Tensor:
    """This rank's `size` rows of a global [B, T] tensor, cut or zero-padded to `width` tokens (T differs per rank)."""
    rows = tensor[rank * size : (rank + 1) * size, :width]
    return nn.functional.pad(rows, (0, width - rows.shape[1]))


# -- back to TRL -------------------------------------------------------------------------------------------------------------

# Loss types whose denominator is a number of rows: TRL counts every row, so the share of kept ones is put right in the loss.
ROW_MEAN_LOSSES = frozenset({"grpo", "sapo", "dr_grpo", "luspo"})


def install_credit(output: dict[str, Any], scores: Scores, rollouts: Rollouts, rank: int) -> None:
    """Put [B, T] advantages into TRL's output of a generation, and take dropped rows out of every loss denominator.

    Dropped rows get a zero `tool_mask`: they stay in the forward pass (so nothing becomes infinite) and leave the loss, the KL
    and the entropy; `num_items_in_batch` is counted anew, and `row_share` = rows / kept rows mends row means. Where every row
    is kept nothing but the advantages changes. Only tensors of B rows and 0-d tensors survive TRL's shuffle and split.
    """
    device, dtype = output["completion_mask"].device, output["completion_mask"].dtype
    size, width = output["completion_mask"].shape
    output["advantages"] = local_part(scores.advantages, rank, size, width).to(device)
    keep = scores.keep.cpu()
    if bool(keep.all()):
        return
    assert rollouts.policy_mask is not None
    mask = rollouts.policy_mask & keep[:, None]
    output["tool_mask"] = local_part(mask.long(), rank, size, width).to(device, dtype)
    output["num_items_in_batch"] = mask.sum().to(device)
    output["row_share"] = torch.tensor(len(keep) / max(1, int(keep.sum())), device=device)


@dataclass(frozen=True)
class ObjectiveBatch:
    """What an auxiliary objective gets: a micro-batch of this rank, in the order of the tensors TRL's loss sees.

    Attributes:
        rollouts: b rollouts (CPU).
        rewards: by source, as the signals gave them, the same b rows.
        keep: [b] bool.
        inputs: TRL's tensors (prompt_ids, prompt_mask, completion_ids, completion_mask, advantages, ...), on the device.
        temperature: the sampling temperature.
        row_scale: [b] what the policy loss multiplies the sum over a row's tokens by, accumulation aside (its length or token
            normalisation). An objective in units of the policy loss multiplies its own sums by it. None = 1/b.
        generation: the whole generation batch these rows are of, on every rank alike, for statistics over it.
    """

    rollouts: Rollouts
    rewards: dict[str, Rewards]
    keep: Tensor
    inputs: dict[str, Any]
    temperature: float
    row_scale: Tensor | None = None
    generation: tuple[Rollouts, Scores] | None = None


def row_scale(
    inputs: Mapping[str, Any], loss_type: str, *, processes: int, generation_steps: int, max_completion_length: int
) -> Tensor:
    """[b]: d loss / d (sum of a row's token losses) in TRL 1.16, before the division by the accumulation steps.

    Args:
        inputs: TRL's tensors of a micro-batch, `install_credit` included.
        loss_type: of the GRPOConfig.
        processes: ranks.
        generation_steps: micro-batches of a generation batch (`steps_per_generation`).
        max_completion_length: of the GRPOConfig.
    """
    mask = inputs["completion_mask"]
    mask = mask * inputs["tool_mask"] if "tool_mask" in inputs else mask
    rows = mask.sum(1)
    share = inputs.get("row_share", 1.0) if loss_type in ROW_MEAN_LOSSES else 1.0
    ones = torch.ones_like(rows, dtype=torch.float32)
    if loss_type in ("grpo", "sapo"):
        return share / rows.clamp(min=1).float() / len(rows)
    if loss_type == "dr_grpo":
        return ones * share / (len(rows) * max_completion_length)
    if loss_type == "luspo":
        return ones * share / len(rows)
    if loss_type == "bnpo":
        return ones / rows.sum().clamp(min=1)
    return ones * generation_steps * processes / torch.as_tensor(inputs["num_items_in_batch"]).clamp(min=1)


def read_truth(answers: Sequence[Any], size: int) -> tuple[Tensor, list[str]]:
    """[B] values and reasons out of what a truth function returned: numbers, or (value, reason) pairs.

    Raises:
        ShapeError: not one answer a rollout.
    """
    if len(answers) != size:
        raise ShapeError(f"truth returned {len(answers)} answers for {size} completions")
    pairs = [tuple(answer) if isinstance(answer, (tuple, list)) else (answer, "") for answer in answers]
    return torch.tensor([float("nan") if v is None else float(v) for v, *_ in pairs]), [
        str(why) if why else "" for _, why, *_ in pairs
    ]


def rows_of(rollouts: Rollouts) -> list[dict[str, Any]]:
    """The data rows behind rollouts, prompt and columns, as a truth function gets them."""
    names = list(rollouts.columns)
    cells = zip(*(rollouts.columns[name] for name in names), strict=True) if names else [()] * len(rollouts)
    return [{"prompt": p, **dict(zip(names, row, strict=True))} for p, row in zip(rollouts.prompts, cells, strict=True)]


# -- leaving the rest of the run untouched -----------------------------------------------------------------------------------


@contextmanager
def forked_rng(seed: int) -> Iterator[None]:
    """Seed every generator for the block and put the old states back, so that one draw in a signal changes nothing else.

    Every rank passes the same seed where it computes on the global batch: ranks must agree, and TRL seeds each differently.
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    cuda = [torch.cuda.get_rng_state(device) for device in devices]
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed would also queue a stack trace for a CUDA that is not there yet, at every call.
    torch.default_generator.manual_seed(seed)
    for device in devices:
        torch.cuda.default_generators[device].manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        for device, state in zip(devices, cuda, strict=True):
            torch.cuda.set_rng_state(state, device)
