"""From spans to tokens: where on the [B, T] grid a span's number goes.

"end" puts it on the span's last token (what a return-based estimator wants), "whole" on every token of the span (what a finished
advantage wants). Spans in characters become tokens through `Rollouts.offsets`, our own decoding; text is never tokenised again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from guerdon.credit.link import Levels, LinkBase, planned_name, source_of
from guerdon.errors import ChainError
from guerdon.options import checked
from guerdon.rewards import Kind, Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.segment.placement import to_token_spans
from guerdon.spans import Spans

Placement = Literal["end", "whole"]


def place_at_ends(values: Tensor, spans: Spans, valid: Tensor) -> Tensor:
    """Each span's value on its last token; coinciding ends add (clip_delta, arXiv 2410.15115, item 8).

    Args:
        values: [B, S].
        spans: in tokens. Masked spans, empty spans and ends on invalid tokens contribute nothing.
        valid: [B, T] bool.

    Returns:
        [B, T].
    """
    spans, valid = spans.to(values.device), valid.to(values.device)
    placed = values.new_zeros(valid.shape)
    if not valid.shape[1] or not values.shape[1]:
        return placed
    end = spans.end.clamp(0, valid.shape[1] - 1)
    lands = (
        spans.mask & (spans.end >= spans.start) & (spans.end >= 0) & (spans.end < valid.shape[1]) & valid.gather(1, end)
    )
    return placed.scatter_add(1, end, torch.where(lands, values, torch.zeros_like(values)))


def place_on_whole(values: Tensor, spans: Spans, valid: Tensor) -> Tensor:
    """Each span's value on all of its tokens; where spans overlap their values add.

    Args:
        values: [B, S].
        spans: in tokens, in any order.
        valid: [B, T] bool; other tokens get 0.

    Returns:
        [B, T].
    """
    spans, valid = spans.to(values.device), valid.to(values.device)
    if not valid.shape[1] or not values.shape[1]:
        return values.new_zeros(valid.shape)
    lives = spans.mask & (spans.end >= spans.start)
    if values.shape[1] == 1:
        index = torch.arange(valid.shape[1], device=values.device)
        inside = lives & (index >= spans.start) & (index <= spans.end)
        return torch.where(inside & valid, values, torch.zeros_like(values))
    return torch.where(valid, _cover(values, spans, lives, valid.shape[1]), values.new_zeros(()))


def _cover(values: Tensor, spans: Spans, lives: Tensor, width: int) -> Tensor:
    """[B, T]: the values of the spans that cover each token, summed."""
    start = torch.where(lives, spans.start, width)
    start, order = start.sort(dim=1, stable=True)
    end = torch.where(lives, spans.end, width).gather(1, order)
    value = torch.where(lives, values, torch.zeros_like(values)).gather(1, order)
    index = torch.arange(width, device=values.device)
    if bool(((end[:, :-1] >= start[:, 1:]) & (start[:, 1:] < width)).any()):  # overlaps: sum over spans
        covers = (index >= start[..., None]) & (index <= end[..., None])
        return torch.where(covers, value[..., None], value.new_zeros(())).sum(1)
    # No overlaps: the span that began last is the only candidate, found by searching, and values are copied, not summed.
    latest = torch.searchsorted(start.contiguous(), index.expand(len(start), width).contiguous(), right=True) - 1
    candidate = latest.clamp(min=0)
    covered = (latest >= 0) & (index <= end.gather(1, candidate))
    return torch.where(covered, value.gather(1, candidate), value.new_zeros(()))


def placement_of(kind: Kind) -> Placement:
    """Where numbers of a kind belong: a reward is earned at the end of its span, a return or an advantage is its every token's."""
    return "end" if kind == "reward" else "whole"


@checked
def to_tokens(rewards: Rewards, rollouts: Rollouts, placement: Literal["auto", "end", "whole"] = "auto") -> Rewards:
    """One source at token level. See `ToTokens` for "auto" and for what `kind` becomes."""
    if rewards.level == "token":
        return rewards
    placement = placement_of(rewards.kind) if placement == "auto" else placement
    valid = rollouts.mask.to(rewards.values.device)
    spans = to_token_spans(rewards.spans, rollouts)
    place = place_at_ends if placement == "end" else place_on_whole
    if placement == "end":
        spans = _ending_with_the_policy(spans, rollouts)
    kind = rewards.kind
    if kind == "reward" and placement == "whole" and rewards.level == "sequence":
        kind = "return"  # every token now holds what an undiscounted suffix sum of the end placement would give it
    spread = rewards.kind == "reward" and placement == "whole" and rewards.level != "sequence"
    paid = rewards.row_reward() if spread else rewards.paid
    return replace(
        Rewards.tokens(place(rewards.values, spans, valid), rollouts, kind), paid=paid, applies=rewards.row_applies
    )


def _ending_with_the_policy(spans: Spans, rollouts: Rollouts) -> Spans:
    """Spans that end with a tool's words end at the policy's last token in them: only there is something trained."""
    policy = rollouts.policy_mask
    if policy is None or not policy.shape[1] or bool((policy == rollouts.mask).all()):
        return spans
    index = torch.arange(policy.shape[1], device=spans.end.device)
    own = torch.where(policy.to(index.device), index, -1).cummax(1).values
    last = own.gather(1, spans.end.clamp(0, policy.shape[1] - 1))
    inside = (last >= spans.start) & (spans.end < policy.shape[1]) & (spans.end >= 0)
    return replace(spans, end=torch.where(inside, last, spans.end))


@dataclass(frozen=True, repr=False)
class ToTokens(LinkBase):
    """Move a source to token level.

    A "reward" placed at ends stays a reward (its row sum is unchanged). A sequence reward on the whole becomes a "return". A
    per-span reward spread over its tokens has no meaningful row sum any more: the optimised scalar is read off before.

    Attributes:
        name: the source; None = the only one.
        placement: "end", "whole", or "auto": rewards at ends, returns and advantages on the whole span, because an advantage has no end:
            at the last token of a completion it would train that token only. Where a later link accumulates over tokens, "auto" is
            "end" for all of them, and the accumulation spreads.
    """

    name: str | None = None
    placement: Literal["auto", "end", "whole"] = "auto"

    def plan(self, levels: Levels) -> Levels:
        return {**levels, planned_name(self.name, levels): "token"}

    def settled(self, following: Sequence[object]) -> ToTokens:
        """This link in a chain: "auto" before a link that accumulates is "end"."""
        accumulated = any(getattr(link, "accumulates", False) for link in following)
        return replace(self, placement="end") if self.placement == "auto" and accumulated else self

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        name = source_of(self.name, scores)
        rewards = scores[name]
        if rewards.level == "token":
            return scores
        if self.placement == "end" and rewards.kind == "return":
            raise ChainError(f"{name!r} holds returns, which belong on whole spans: ToTokens({name!r}, 'whole')")
        placement = placement_of(rewards.kind) if self.placement == "auto" else self.placement
        return scores.with_source(name, to_tokens(rewards, rollouts, placement))


@dataclass(frozen=True, repr=False)
class ToSequence(LinkBase):
    """One value a row out of rewards over spans: their sum, or their mean over the spans that apply. NaN where any span failed.

    Attributes:
        name: a source of rewards (returns and advantages have no sum).
        mean: divide by the number of spans; a row without any gets 0.
    """

    name: str
    mean: bool = False

    def plan(self, levels: Levels) -> Levels:
        return {**levels, planned_name(self.name, levels): "sequence"}

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        rewards = scores[self.name]
        if rewards.kind != "reward":
            raise ChainError(
                f"ToSequence sums rewards, and {self.name!r} holds {rewards.kind}s: put it before they are accumulated"
            )
        total = rewards.row_total()
        if self.mean:
            total = total / rewards.spans.counts.to(total).clamp(min=1)
        reasons: dict[int, str] = {}
        for (row, _), text in sorted(rewards.reasons.items()):
            reasons.setdefault(row, text)
        return scores.with_source(self.name, Rewards.sequence(total, rollouts, reasons))


@dataclass(frozen=True, repr=False)
class MaskEnds(LinkBase):
    """Take the last token of every span of a segmentation out of a token-level source: no advantage, in no statistic.

    PURE's OpenRLHF branch gives delimiter tokens no gradient, so that the policy is not taught where to cut its own steps.

    Attributes:
        name: the token-level source.
        segment: the segmentation whose span ends are masked.
    """

    name: str
    segment: str = "steps"

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.name, levels)
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        rewards = scores[self.name]
        spans = to_token_spans(rollouts.segment(self.segment), rollouts)
        ends = place_at_ends(torch.ones(spans.start.shape, device=spans.start.device), spans, rollouts.mask) > 0
        mask = rewards.mask & ~ends.to(rewards.mask.device)
        return scores.with_source(self.name, replace(rewards, spans=replace(rewards.spans, mask=mask)))
