"""Steps by delimiter. With a tokenizer: PURE's rule, on token ids. Without one: wherever the delimiter stands in the text.

PURE ends a step at every token whose text ENDS with the delimiter (".\\n\\n" is one token in Qwen's vocabulary and counts)
and at the last token. That rule cannot see a delimiter made of two tokens: SmolLM2 writes "a.\\n\\nb" with "\\n", "\\n", so
there it hardly ever cuts, and `ByDelimiter` warns. The text rule always cuts, but needs `rollouts.offsets`.
The two differ on EOS after a delimiter: a step of its own for PURE, part of the last step for the text rule.

White space alone is no step under either rule, which the official code of PURE does not say: its tokens belong to the step before
them (or to the first one), so that a policy cannot print blank lines for step rewards.
"""

from __future__ import annotations

import warnings
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch

from guerdon.errors import ConfigError
from guerdon.rollouts import Rollouts
from guerdon.segment.placement import author_ends, last_valid, place
from guerdon.segment.text import split_text
from guerdon.spans import Spans

_BLANK: weakref.WeakKeyDictionary[Any, dict[int, tuple[int, ...]]] = weakref.WeakKeyDictionary()
_KNOWN: weakref.WeakKeyDictionary[Any, dict[tuple[int, str], tuple[int, ...]]] = weakref.WeakKeyDictionary()


def separator_ids(tokenizer: Any, delimiter: str = "\n\n") -> tuple[int, ...]:
    """Every vocabulary id whose decoded text ends with `delimiter`, ascending; added tokens included.

    Decoding a whole vocabulary takes up to a second, so the answer is kept for as long as the tokenizer lives (and is
    worked out anew when tokens have been added to it).

    Args:
        tokenizer: a transformers tokenizer, or any object with `decode(list of ids) -> str` and a length.
        delimiter: the text that ends a step.

    Raises:
        ConfigError: an empty delimiter, or one no single token ends with, so that no step would ever end before the last
            token (a character tokenizer has only delimiters of one character).
    """
    if not delimiter:
        raise ConfigError("delimiter='' ends every token; give the text that ends a step, such as '\\n\\n'")
    key = (len(tokenizer), delimiter)
    try:
        known = _KNOWN.setdefault(tokenizer, {})
    except TypeError:  # cannot be hashed or weakly referenced: worked out each time
        known = {}
    if key not in known:
        known[key] = tuple(i for i, text in enumerate(_vocabulary_texts(tokenizer)) if text.endswith(delimiter))
    if not known[key]:
        raise ConfigError(
            f"no token of this tokenizer ends with {delimiter!r} (it takes several tokens), so PURE's rule would never cut; "
            f"choose a delimiter that ends a single token, or cut the text: ByDelimiter(None, {delimiter!r})"
        )
    return known[key]


def blank_ids(tokenizer: Any) -> tuple[int, ...]:
    """Every vocabulary id whose decoded text is white space, ascending; ids without a text (end of sequence) are none."""
    try:
        known = _BLANK.setdefault(tokenizer, {})
    except TypeError:
        known = {}
    size = len(tokenizer)
    if size not in known:
        texts = enumerate(_vocabulary_texts(tokenizer))
        known[size] = tuple(i for i, text in texts if text and not text.strip())
    return known[size]


def without_blank_steps(ends: torch.Tensor, content: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Step ends without those of steps that hold no content: blank tokens belong to the step before them, or to the first.

    Args:
        ends: [B, T] bool, where steps would end; the last valid token is one.
        content: [B, T] bool, valid tokens that are not white space.
        mask: [B, T] bool, valid tokens.

    Returns:
        [B, T] bool. Of ends with no content between them the last stays; a row of white space alone keeps its last.
    """
    if not ends.shape[1]:
        return ends
    written = content.long().cumsum(1)  # how much content there is up to here
    most = ends.shape[1] + 1
    following = torch.where(ends, written, most).flip(1).cummin(1).values.flip(1)
    following = torch.cat([following[:, 1:], torch.full_like(following[:, :1], most)], 1)
    return ends & (following != written) & ((written > 0) | last_valid(mask))


def _vocabulary_texts(tokenizer: Any) -> list[str]:
    ids = range(len(tokenizer))
    if hasattr(tokenizer, "batch_decode"):
        return list(tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False))
    return [tokenizer.decode([i]) for i in ids]


@dataclass(frozen=True)
class ByDelimiter:
    """Steps that end with a delimiter; the last step ends where the completion does. They tile the completion.

    A step also ends where a tool begins to write or ends: no step holds words of both.

    Attributes:
        tokenizer: gives the separator ids (PURE's rule, needs no offsets). None = look for the delimiter in the text.
        delimiter: the text that ends a step.
        name: of the segmentation.

    Raises:
        ConfigError: an empty delimiter, or no token of the vocabulary ends with it.
    """

    tokenizer: Any = field(default=None, repr=False)
    delimiter: str = "\n\n"
    name: str = "steps"

    def __post_init__(self) -> None:
        if not self.delimiter:
            raise ConfigError("delimiter='' would end a step everywhere; give the text that ends one, such as '\\n\\n'")
        if self.tokenizer is not None and not _occurs(self.tokenizer, self.delimiter):
            warnings.warn(
                f"this tokenizer writes {self.delimiter!r} between two words as several tokens, so PURE's rule will miss most "
                f"steps; ByDelimiter(None, {self.delimiter!r}) looks in the text instead",
                stacklevel=3,
            )

    def __call__(self, rollouts: Rollouts) -> Spans:
        if self.tokenizer is None or not rollouts.has_tokens:
            rows = [split_text(text, self.delimiter) for text in rollouts.completions]
            return place(rows, rollouts, self.name, tiling=True)
        assert rollouts.completion_ids is not None
        ids = rollouts.completion_ids
        separators = torch.tensor(separator_ids(self.tokenizer, self.delimiter), device=ids.device, dtype=ids.dtype)
        mask = rollouts.mask.to(ids.device)
        blank = torch.tensor(blank_ids(self.tokenizer), device=ids.device, dtype=ids.dtype)
        ends = (torch.isin(ids, separators) & mask) | last_valid(mask)
        ends = without_blank_steps(ends, mask & ~torch.isin(ids, blank), mask) | author_ends(rollouts).to(ids.device)
        return Spans.from_ends(ends, mask, self.name)


def _occurs(tokenizer: Any, delimiter: str) -> bool:
    """Does text like that of a solution give separator ids? True where the tokenizer cannot encode."""
    separators = set(separator_ids(tokenizer, delimiter))
    if not callable(tokenizer):
        return True
    ids = tokenizer(f"so 3.{delimiter}Then 4.{delimiter}So", add_special_tokens=False)["input_ids"]
    return bool(set(ids) & separators)
