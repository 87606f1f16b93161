"""Rollouts for the tests of P2S."""

from __future__ import annotations

from typing import Any

import torch

from guerdon import Rollouts
from guerdon.segment.reasoning import ChainLayout

SUMS = ChainLayout(answer=("#", ""))
PROMPT = "a3+b5+c4=?\n"
RIGHT, HALF, WRONG = "3+b5=8\n8+c4=12\n#12", "3+b5=8\n8+c4=9\n#9", "3+b5=2\n2+c4=1\n#1"
NAN = float("nan")


def tokens(lm: Any, prompts: list[str], texts: list[str], **more: Any) -> Rollouts:
    """Rollouts with the ids of their texts and an end-of-sequence token."""
    from guerdon.lm.forward import pad_ids
    from guerdon.lm.offsets import decode_offsets_batch

    tokenizer = lm.tokenizer
    rows = [torch.tensor([*tokenizer(t, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]) for t in texts]
    ids, mask = pad_ids(rows)
    heads, head_mask = pad_ids([torch.tensor(tokenizer(p)["input_ids"]) for p in prompts], left=True)
    decoded, offsets = decode_offsets_batch(tokenizer, ids, mask)
    assert decoded == texts
    return Rollouts(
        list(prompts), list(texts), prompt_ids=heads, prompt_mask=head_mask, completion_ids=ids, completion_mask=mask,
        offsets=offsets, finished=torch.ones(len(texts), dtype=torch.bool), **more,
    )  # fmt: skip
