"""Whether the policy's token ids mean the same to another model. Ids of one vocabulary fed to another are words nobody wrote.

Rollouts hold ids and our decoding of them, so one look settles it: the other tokenizer decodes the same ids, and the text must be
the same. Ids that were seen to agree are remembered, so that a run pays for it in its first batches only.
"""

from __future__ import annotations

import unicodedata
from typing import Any

import torch

from guerdon.errors import CapabilityError
from guerdon.lm.offsets import decode_offsets
from guerdon.rollouts import Rollouts


class VocabularyCheck:
    """Compares the ids of rollouts with what they mean to a receiving model, batch after batch.

    Args:
        tokenizer: of the model that will read the ids.
        model: that model; its number of embeddings bounds the ids. None = unknown.
        name: for messages.
    """

    def __init__(self, tokenizer: Any, model: Any = None, name: str = "the model") -> None:
        self.tokenizer, self.name = tokenizer, name
        embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
        self.embeddings: int | None = getattr(embeddings, "num_embeddings", None)
        self._agreed: set[int] = set()
        self._prompts_agreed = False

    def difference(self, rollouts: Rollouts) -> str | None:
        """What an id means otherwise, as a sentence; None where all ids of these rollouts mean their text."""
        ids, prompts = rollouts.completion_ids, rollouts.prompt_ids
        if ids is None:
            return None
        used = ids[rollouts.mask.to(ids.device)].unique()
        given = used.new_zeros(0) if prompts is None or rollouts.prompt_mask is None else prompts[rollouts.prompt_mask]
        highest = max([int(part.max()) for part in (used, given) if len(part)], default=-1)
        if self.embeddings is not None and highest >= self.embeddings:
            return f"id {highest} is beyond the {self.embeddings} embeddings of {self.name}"
        new = torch.tensor([i for i in used.tolist() if i not in self._agreed], dtype=ids.dtype, device=ids.device)
        if len(new):
            rows = (torch.isin(ids, new) & rollouts.mask.to(ids.device)).any(1).nonzero()[:, 0].tolist()
            for row in rows:
                read, written = self._read(rollouts, row), rollouts.completions[row]
                if read.lstrip(" ") != written.lstrip(" "):
                    return (
                        f"{self.name} reads {_short(read, written)!r} where the policy wrote {_short(written, read)!r}"
                    )
            self._agreed |= set(new.tolist())
        return self._prompt_difference(rollouts)

    def require_same(self, rollouts: Rollouts, remedy: str) -> None:
        """Raise CapabilityError with the difference and the remedy, where there is one."""
        difference = self.difference(rollouts)
        if difference is not None:
            raise CapabilityError(f"the policy's token ids are of another vocabulary: {difference}; {remedy}")

    def _read(self, rollouts: Rollouts, row: int) -> str:
        """A completion's ids as the receiving tokenizer decodes them; ids without text in the rollouts are left out."""
        assert rollouts.completion_ids is not None
        real = rollouts.mask[row]
        if rollouts.offsets is None:
            return decode_offsets(self.tokenizer, rollouts.completion_ids[row][real])[0]
        begins, ends = rollouts.offsets[row].unbind(-1)
        with_text = real.to(begins.device) & (ends > begins)
        ids = rollouts.completion_ids[row].to(begins.device)[with_text]
        return decode_offsets(self.tokenizer, ids, skip_special=False)[0]

    def _prompt_difference(self, rollouts: Rollouts) -> str | None:
        """Prompts are compared until one agrees: templates may shorten some of them."""
        if self._prompts_agreed or rollouts.prompt_ids is None or rollouts.prompt_mask is None:
            return None
        difference = None
        for row, prompt in enumerate(rollouts.prompts):
            text = prompt if isinstance(prompt, str) else _last_text(prompt)
            if not text.strip():
                continue
            ids = rollouts.prompt_ids[row][rollouts.prompt_mask[row].bool()]
            read = decode_offsets(self.tokenizer, ids, skip_special=False)[0]
            if _plain(text) in _plain(read):
                self._prompts_agreed = True
                return None
            difference = f"{self.name} reads the prompt as {_short(read, text)!r}, which is {_short(text, read)!r}"
        return difference


def tokenizer_difference(own: Any, other: Any) -> str | None:
    """How another tokenizer's ids differ from `own`, as a sentence; None where every id of `own` is the same token there.

    Sizes may differ where the other one only has more: embeddings of ids that are never used do no harm. The padding token may
    be any: what is masked is never read.
    """
    if own is other or not (hasattr(own, "get_vocab") and hasattr(other, "get_vocab")):
        return None
    there = other.get_vocab()
    padding = getattr(own, "pad_token", None)
    padding = None if padding == getattr(own, "eos_token", None) else padding
    different = sorted(
        (number, token) for token, number in own.get_vocab().items() if there.get(token) != number and token != padding
    )
    if not different:
        return None
    number, token = different[0]
    have = f"has it as {there[token]}" if token in there else "does not have it"
    return f"{len(different)} of {len(own)} tokens are others there, the first {token!r}: the policy's id {number}, the other one {have}"


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()


def _last_text(messages: Any) -> str:
    texts = [m.get("content") for m in messages if m.get("role") == "user"]
    return texts[-1] if texts and isinstance(texts[-1], str) else ""


def _short(text: str, other: str, width: int = 40) -> str:
    """The part of a text that begins a little before it differs from the other one."""
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, same - 10)
    return ("…" if start else "") + text[start : start + width] + ("…" if len(text) > start + width else "")
