"""Where a completion reasons and where it answers, and the reasoning cut into pieces of equal token count.

<think>First ... then ...</think>
<answer>42</answer>                  layout "think", the tags of the R1 family; "think_opened" where the prompt has written the <think>

3+b5=8
#8                                   ChainLayout(answer=("#", "")): the task "sums"; what has no tags has empty ones
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from guerdon.errors import ConfigError
from guerdon.rollouts import Rollouts
from guerdon.spans import Spans


class Parsed(NamedTuple):
    """Characters [start, end) of the reasoning and of the answer; `why` it is malformed, "" where it is not."""

    reasoning: tuple[int, int] = (0, 0)
    answer: tuple[int, int] = (0, 0)
    why: str = ""

    @property
    def ok(self) -> bool:
        return not self.why


@dataclass(frozen=True)
class ChainLayout:
    """Reasoning, then an answer, each between an opening and a closing text; empty texts stand for none.

    Attributes:
        think: around the reasoning. Without a closing text the reasoning ends where the answer opens.
        answer: around the answer; the first of the two is needed. Without a closing text the answer is the last line.
    """

    think: tuple[str, str] = ("", "")
    answer: tuple[str, str] = ("<answer>", "</answer>")

    def __post_init__(self) -> None:
        object.__setattr__(self, "think", tuple(self.think))
        object.__setattr__(self, "answer", tuple(self.answer))
        if len(self.think) != 2 or len(self.answer) != 2 or not self.answer[0]:
            raise ConfigError(f"{self}: think and answer are two texts each, and something has to open the answer")

    @property
    def bridge(self) -> str:
        """What stands between reasoning and answer."""
        return f"{self.think[1]}\n{self.answer[0]}" if self.think[1] else self.answer[0]

    def parse(self, text: str) -> Parsed:
        """Where reasoning and answer stand. Every tag has to occur once, in order; neither part may be blank."""
        tags = [tag for tag in (*self.think, *self.answer) if tag]
        places = []
        for tag in tags:
            if text.count(tag) != 1:
                return Parsed(why=f"{tag!r} occurs {text.count(tag)} times, expected once")
            places.append(text.index(tag))
        if places != sorted(places):
            return Parsed(why=f"the tags are not in the order {' '.join(tags)}")
        (think, close), (opening, end) = self.think, self.answer
        start = text.index(think) + len(think) if think else 0
        stop = text.index(close) if close else text.index(opening)
        first = text.index(opening) + len(opening)
        last = text.index(end) if end else len(text)
        between = text[stop + len(close) : first - len(opening)] if close else ""
        around = text[: start - len(think)] + between + (text[last + len(end) :] if end else "")
        if around.strip():
            return Parsed(why=f"text outside of the tags: {around.strip()[:40]!r}")
        if not text[start:stop].strip() or not text[first:last].strip():
            return Parsed(why="the reasoning is empty" if text[first:last].strip() else "the answer is empty")
        if not end and "\n" in text[first:last].strip():
            return Parsed(why="text after the answer")
        return Parsed((start, stop), (first, last))

    def answer_of(self, text: str) -> str | None:
        """The answer without white space around it; None in a malformed text."""
        parsed = self.parse(text)
        return text[slice(*parsed.answer)].strip() if parsed.ok else None


LAYOUTS = {
    "think": ChainLayout(("<think>", "</think>")),
    "think_opened": ChainLayout(("", "</think>")),
    "answer": ChainLayout(),
}


def layout_of(layout: str | ChainLayout | Sequence[str]) -> ChainLayout:
    """A layout by name, as an object, or as its four texts (around the reasoning, around the answer)."""
    if isinstance(layout, ChainLayout):
        return layout
    if isinstance(layout, str):
        if layout not in LAYOUTS:
            raise ConfigError(f"layout={layout!r}: use one of {', '.join(LAYOUTS)}, four texts, or a ChainLayout")
        return LAYOUTS[layout]
    if len(layout) != 4:
        raise ConfigError(
            f"layout={layout!r}: four texts are needed, two around the reasoning and two around the answer"
        )
    return ChainLayout((layout[0], layout[1]), (layout[2], layout[3]))


def equal_pieces(length: int, pieces: int) -> list[tuple[int, int]]:
    """[start, end) of min(pieces, length) pieces that tile `length` tokens: piece i begins at floor(i length / m)."""
    count = max(0, min(pieces, length))
    return [(i * length // count, (i + 1) * length // count) for i in range(count)]


def whole_tokens(offsets: Tensor, start: int, end: int) -> tuple[int, int]:
    """First and last (exclusive) of the tokens that lie wholly in characters [start, end); those across a border do not.

    Args:
        offsets: [T, 2] characters of each token; special ones have zero width and are outside.
    """
    begins, ends = offsets[:, 0], offsets[:, 1]
    inside = ((begins >= start) & (ends <= end) & (ends > begins)).nonzero()[:, 0].tolist()
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


@dataclass(frozen=True)
class EqualPieces:
    """Segmenter: the reasoning in at most `pieces` spans of equal token count. A malformed completion has none.

    Attributes:
        pieces: at most so many; shorter reasoning has one token a piece.
        layout: see `layout_of`.
        tokenizer: counts the tokens of rollouts that are texts only; without one, those are cut by characters.
        name: of the segmentation.
    """

    pieces: int = 5
    layout: ChainLayout = LAYOUTS["think"]
    tokenizer: Any = field(default=None, repr=False)
    name: str = "steps"

    def __post_init__(self) -> None:
        if self.pieces < 1:
            raise ConfigError(f"pieces={self.pieces}: must be at least 1")

    def __call__(self, rollouts: Rollouts) -> Spans:
        parsed = [self.layout.parse(text) for text in rollouts.masked_texts]
        if rollouts.completion_ids is not None and rollouts.offsets is not None:
            rows = [self._tokens(rollouts, row, found) for row, found in enumerate(parsed)]
            return Spans.from_lists(rows, unit="token", name=self.name)
        rows = [self._characters(text, found) for text, found in zip(rollouts.masked_texts, parsed, strict=True)]
        return Spans.from_lists(rows, unit="char", name=self.name)

    def _tokens(self, rollouts: Rollouts, row: int, parsed: Parsed) -> list[tuple[int, int]]:
        assert rollouts.offsets is not None
        if not parsed.ok:
            return []
        real = rollouts.mask[row].nonzero()[:, 0]
        first, last = whole_tokens(rollouts.offsets[row][real], *parsed.reasoning)
        places = real[first:last].tolist()
        return [(places[a], places[b - 1]) for a, b in equal_pieces(len(places), self.pieces)]

    def _characters(self, text: str, parsed: Parsed) -> list[tuple[int, int]]:
        if not parsed.ok:
            return []
        start, end = parsed.reasoning
        starts = list(range(start, end))
        if self.tokenizer is not None:
            from guerdon.lm.encode import continuation_offsets, encode_continuation

            ids = encode_continuation(self.tokenizer, text[start:end])
            starts = sorted({start + int(a) for a, b in continuation_offsets(self.tokenizer, ids)[1].tolist() if b > a})
        cuts = [*starts, end]
        return [(cuts[a], cuts[b] - 1) for a, b in equal_pieces(len(starts), self.pieces)]


__all__ = ["LAYOUTS", "ChainLayout", "EqualPieces", "Parsed", "equal_pieces", "layout_of", "whole_tokens"]
