"""Steps by delimiter. With a tokenizer: PURE's rule, on token ids. Without one: wherever the delimiter stands in the text.

PURE ends a step at every token whose text ENDS with the delimiter (".\\n\\n" is one token in Qwen's vocabulary and counts)
and at the last token. That rule cannot see a delimiter made of two tokens: SmolLM2 writes "a.\\n\\nb" with "\\n", "\\n", so
there it hardly ever cuts, and `ByDelimiter` warns. The text rule always cuts, but needs `rollouts.offsets`.
The two differ on EOS after a delimiter: a step of its own for PURE, part of the last step for the text rule.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from guerdon.errors import ConfigError
from guerdon.rollouts import Rollouts
from guerdon.segment.placement import place
from guerdon.segment.text import split_text
from guerdon.spans import Spans


@dataclass(frozen=True)
class ByDelimiter:
    """Steps that end with a delimiter; the last step ends where the completion does. They tile the completion.

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
        if self.tokenizer is None:
            return
        from guerdon.signals.learned.steps import find_separator_ids

        try:
            separators = find_separator_ids(self.tokenizer, self.delimiter)
        except ValueError as error:
            raise ConfigError(f"{error}; or ByDelimiter(None, {self.delimiter!r}), which looks in the text") from error
        if not _occurs(self.tokenizer, self.delimiter, set(separators.tolist())):
            warnings.warn(
                f"this tokenizer writes {self.delimiter!r} between two words as several tokens, so PURE's rule will miss most "
                f"steps; ByDelimiter(None, {self.delimiter!r}) looks in the text instead",
                stacklevel=3,
            )

    def __call__(self, rollouts: Rollouts) -> Spans:
        if self.tokenizer is None or not rollouts.has_tokens:
            rows = [split_text(text, self.delimiter) for text in rollouts.completions]
            return place(rows, rollouts, self.name, tiling=True)
        from guerdon.signals.learned.steps import find_separator_ids, split_steps

        assert rollouts.completion_ids is not None
        ids, mask = rollouts.completion_ids, rollouts.mask.to(rollouts.completion_ids.device)
        ends = split_steps(ids, mask, find_separator_ids(self.tokenizer, self.delimiter)).step_end_mask
        return Spans.from_ends(ends, mask, self.name)


def _occurs(tokenizer: Any, delimiter: str, separators: set[int]) -> bool:
    """Does text like that of a solution give separator ids? True where the tokenizer cannot encode."""
    if not callable(tokenizer):
        return True
    ids = tokenizer(f"so 3.{delimiter}Then 4.{delimiter}So", add_special_tokens=False)["input_ids"]
    return bool(set(ids) & separators)
