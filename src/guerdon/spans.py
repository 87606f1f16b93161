"""Spans: where in each completion a thing stands - a step, a turn, a thought, the whole sequence.

One type for every segmentation. `start` and `end` are INCLUSIVE indices of tokens or characters of the completion; an
empty span (an empty completion still has a sequence span) has `end == start - 1`. Cells where `mask` is False are padding
and mean nothing. Cutting text into spans is in `guerdon.segment`; this file only holds and moves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from guerdon.errors import ShapeError

Unit = Literal["token", "char"]


@dataclass(frozen=True)
class Spans:
    """B rows of up to S spans.

    Attributes:
        start: [B, S] int64, first token (or character) of each span, 0-based within the completion.
        end: [B, S] int64, last token (or character), inclusive; `start - 1` for an empty span.
        mask: [B, S] bool, False = padding.
        unit: what start and end count.
        name: what the spans are ("sequence", "token", "steps", ...). Rewards over them carry this name as their level.
    """

    start: Tensor
    end: Tensor
    mask: Tensor
    unit: Unit = "token"
    name: str = "spans"

    def __post_init__(self) -> None:
        shape = self.start.shape
        if len(shape) != 2 or self.end.shape != shape or self.mask.shape != shape:
            raise ShapeError(
                f"spans {self.name!r}: start, end and mask must share one shape [B, S], got {tuple(shape)}, {tuple(self.end.shape)}, {tuple(self.mask.shape)}"
            )
        if self.mask.dtype != torch.bool:
            raise ShapeError(f"spans {self.name!r}: mask must be bool, got {self.mask.dtype}")

    def __len__(self) -> int:
        return self.start.shape[0]

    @property
    def counts(self) -> Tensor:
        """[B] int64: how many spans each row has."""
        return self.mask.sum(1)

    @property
    def lengths(self) -> Tensor:
        """[B, S] int64: tokens (or characters) in each span, 0 at padding."""
        return (self.end - self.start + 1).clamp(min=0) * self.mask

    def select(self, rows: Tensor | Sequence[int]) -> Spans:
        """The spans of some rows, in the order given."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.start.device)
        return replace(self, start=self.start[index], end=self.end[index], mask=self.mask[index])

    def to(self, device: torch.device | str) -> Spans:
        """The spans on a device; themselves where they are there already."""
        device = torch.device(device)
        if self.start.device == self.end.device == self.mask.device == device:
            return self
        return replace(self, start=self.start.to(device), end=self.end.to(device), mask=self.mask.to(device))

    def renamed(self, name: str) -> Spans:
        return replace(self, name=name)

    @staticmethod
    def sequence(lengths: Tensor, unit: Unit = "token") -> Spans:
        """One span a row, the whole completion. `lengths`: [B] int64."""
        end = (lengths.long() - 1)[:, None]
        return Spans(torch.zeros_like(end), end, torch.ones_like(end, dtype=torch.bool), unit, "sequence")

    @staticmethod
    def tokens(mask: Tensor) -> Spans:
        """One span a token. `mask`: [B, T] bool, the valid tokens."""
        index = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        return Spans(index, index, mask.bool(), "token", "token")

    @staticmethod
    def from_ends(end_mask: Tensor, valid: Tensor, name: str) -> Spans:
        """Spans that tile a row, each ending at a marked token.

        Args:
            end_mask: [B, T] bool, True at the last token of each span.
            valid: [B, T] bool, the completion's tokens. Marks outside it are ignored.
            name: the segmentation's name.
        """
        ends = end_mask.bool() & valid.bool()
        counts = ends.sum(1)
        width = int(counts.max()) if len(counts) else 0
        index = torch.arange(ends.shape[1], device=ends.device).expand(ends.shape)
        order = torch.where(ends, index, ends.shape[1]).sort(1).values[:, :width]
        mask = torch.arange(width, device=ends.device)[None] < counts[:, None]
        end = torch.where(mask, order, -1)
        start = torch.cat([torch.zeros_like(end[:, :1]), end[:, :-1] + 1], 1) if width else end
        return Spans(torch.where(mask, start, 0), end, mask, "token", name)

    @staticmethod
    def from_lists(rows: Sequence[Sequence[tuple[int, int]]], *, unit: Unit, name: str) -> Spans:
        """From a list of (start, end) inclusive pairs for each row."""
        width = max((len(row) for row in rows), default=0)
        start = torch.zeros(len(rows), width, dtype=torch.long)
        end = torch.full((len(rows), width), -1, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            if row:
                start[i, : len(row)], end[i, : len(row)] = torch.tensor(row, dtype=torch.long).T
                mask[i, : len(row)] = True
        return Spans(start, end, mask, unit, name)

    def to_lists(self) -> list[list[tuple[int, int]]]:
        """The (start, end) pairs of each row, padding left out."""
        starts, ends, masks = self.start.tolist(), self.end.tolist(), self.mask.tolist()
        return [[(s, e) for s, e, m in zip(*row, strict=True) if m] for row in zip(starts, ends, masks, strict=True)]


def stack_spans(parts: Sequence[Spans]) -> Spans:
    """Concatenate rows of the same segmentation, padding S to the widest."""
    width = max(part.start.shape[1] for part in parts)

    def wide(tensor: Tensor, fill: int) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=fill)

    return replace(
        parts[0],
        start=torch.cat([wide(p.start, 0) for p in parts]),
        end=torch.cat([wide(p.end, -1) for p in parts]),
        mask=torch.cat([wide(p.mask, 0) for p in parts]),
    )
