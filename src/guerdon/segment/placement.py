"""From characters to tokens: where a piece of text stands among the sampled tokens. Vectorised; no text is re-tokenised.

Everything rests on `rollouts.offsets`: characters [start, end) of each token in our own decoding, never decreasing along
a row, zero width for special tokens. Two questions are answered differently on purpose:

- `to_token_spans`: which tokens touch this text? A token that straddles a border touches both sides (BPE merges).
- `tile_tokens`: which step does this token belong to? Exactly one: the one that holds the token's FIRST character.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from guerdon.errors import CapabilityError, ShapeError
from guerdon.rollouts import Rollouts
from guerdon.spans import Spans

CharSpan = tuple[int, int]


def to_token_spans(spans: Spans, rollouts: Rollouts) -> Spans:
    """Character spans to the tokens that share at least one character with them.

    Token i belongs iff char_start_i < span_end and char_end_i > span_start (half-open ends), so a merge across the border
    belongs to both neighbours and every token that holds part of a multi-byte character belongs. Zero-width tokens
    (special ones) belong only where they stand between two tokens that do.

    Args:
        spans: unit "char"; token spans are given back as they are.
        rollouts: with `offsets`.

    Returns:
        Spans of the same shape [B, S] and mask. A span that touches no token (empty, or past the text) stays, empty
        (end = start - 1), standing where its first character would be.

    Raises:
        CapabilityError: the rollouts have no offsets.
    """
    if spans.unit == "token":
        return spans
    begins, ends = _monotone_offsets(rollouts)
    if len(spans) != begins.shape[0]:
        raise ShapeError(f"spans {spans.name!r} have {len(spans)} rows for {begins.shape[0]} rollouts")
    char_start = spans.start.to(begins.device).contiguous()
    char_last = spans.end.to(begins.device).contiguous()
    first = torch.searchsorted(ends, char_start, right=True)  # first token that ends after the span starts
    last = torch.searchsorted(begins, char_last, right=True) - 1  # last token that starts before the span ends
    first = torch.minimum(first, rollouts.lengths.to(begins.device)[:, None])
    mask = spans.mask.to(begins.device)
    nonempty = (char_last >= char_start) & (last >= first)
    end = torch.where(nonempty, last, first - 1)
    return Spans(torch.where(mask, first, 0), torch.where(mask, end, -1), mask, "token", spans.name)


def author_ends(rollouts: Rollouts) -> Tensor:
    """[B, T] bool: the last token of each run of tokens that one side wrote, the policy or the world around it.

    Nowhere in rows of one author. A step never holds words of both, so that it can be paid or left out as a whole.
    """
    mask, policy = rollouts.mask, rollouts.policy_mask
    assert policy is not None
    if not mask.shape[1]:
        return mask
    changes = (policy[:, 1:] != policy[:, :-1]) & mask[:, 1:] & mask[:, :-1]
    return torch.nn.functional.pad(changes, (0, 1))


def written_by_policy(spans: Spans, rollouts: Rollouts) -> Tensor:
    """[B, S] bool: spans in which the policy wrote something, or that are empty (writing nothing is its doing, too).

    Args:
        spans: token spans, or character spans of rollouts with offsets.
    """
    mask, policy = rollouts.mask.to(spans.mask.device), rollouts.policy_mask
    assert policy is not None
    policy = policy.to(mask.device)
    if bool((policy == mask).all()):
        return spans.mask
    places = to_token_spans(spans, rollouts)

    def tokens(of: Tensor) -> Tensor:
        """[B, S] int64: tokens of a mask within each span."""
        before = torch.nn.functional.pad(of.long().cumsum(1), (1, 0))
        start, stop = places.start.clamp(0, of.shape[1]), (places.end + 1).clamp(0, of.shape[1])
        return before.gather(1, stop) - before.gather(1, start)

    foreign = (places.end >= places.start) & (tokens(mask) > 0) & (tokens(policy & mask) == 0)
    return spans.mask & ~foreign


def tile_tokens(rows: Sequence[Sequence[CharSpan]], rollouts: Rollouts, name: str) -> Spans:
    """Tiling character spans to tiling token spans: every valid token lies in exactly one.

    A token belongs to the span that holds its first character. A span none of whose characters begins a token vanishes
    (it lies inside a merge). What follows the last character (EOS) belongs to the last span.

    Args:
        rows: for each rollout, (start, end) inclusive characters of spans that tile its text, in order.
        rollouts: with `offsets`.
        name: the segmentation's name.
    """
    begins, _ = _monotone_offsets(rollouts)
    mask = rollouts.mask.to(begins.device)
    spans = Spans.from_lists(rows, unit="char", name=name)
    count = spans.counts[:, None]
    inner = torch.arange(spans.mask.shape[1])[None] < count - 1  # the last one ends where the row does, below
    last = torch.searchsorted(begins, spans.end.to(begins.device).contiguous(), right=True) - 1
    inner = inner.to(begins.device) & (last >= 0)
    end_mask = torch.zeros_like(mask, dtype=torch.long)
    if mask.shape[1]:
        end_mask.scatter_add_(1, last.clamp(min=0), inner.long())
    authors = author_ends(rollouts).to(mask.device)
    return Spans.from_ends((end_mask > 0) | authors | last_valid(mask), mask, name)


def place(rows: Sequence[Sequence[CharSpan]], rollouts: Rollouts, name: str, *, tiling: bool) -> Spans:
    """Character spans as token spans where the rollouts have tokens, as character spans where they are texts only.

    Args:
        rows: (start, end) inclusive characters for each rollout.
        tiling: the spans cut the whole text into pieces (see `tile_tokens`); otherwise each stands alone, and one that
            touches no token is dropped.
    """
    if not rollouts.has_tokens:
        return Spans.from_lists(rows, unit="char", name=name)
    if tiling:
        return tile_tokens(rows, rollouts, name)
    spans = to_token_spans(Spans.from_lists(rows, unit="char", name=name), rollouts)
    if bool((spans.mask & (spans.end < spans.start)).any()):
        kept = [[(s, e) for s, e in row if e >= s] for row in spans.to_lists()]
        return Spans.from_lists(kept, unit="token", name=name)
    return spans


def _monotone_offsets(rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """Token begins and ends [B, T], never decreasing, padding standing past the end."""
    if rollouts.offsets is None:
        raise CapabilityError(
            "cutting text into token spans needs rollouts.offsets (the characters each token covers); make them and the "
            "completions together with guerdon.lm.offsets.decode_offsets_batch(tokenizer, completion_ids, completion_mask)"
        )
    mask = rollouts.mask.to(rollouts.offsets.device)
    # Padding may hold anything: the running maximum puts it at the end of the text, with no width.
    begins = rollouts.offsets[..., 0].masked_fill(~mask, 0)
    ends = rollouts.offsets[..., 1].masked_fill(~mask, 0)
    if not mask.shape[1]:
        return begins, ends
    ends = ends.cummax(1).values
    begins = torch.where(mask, begins, ends).cummax(1).values
    return begins.contiguous(), ends.contiguous()


def last_valid(mask: Tensor) -> Tensor:
    """[B, T] bool: True at the last valid token of each row; nowhere in an empty row."""
    index = torch.arange(1, mask.shape[1] + 1, device=mask.device) * mask
    return mask & (index == index.amax(1, keepdim=True)) if mask.shape[1] else mask
