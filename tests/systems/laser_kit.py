"""Rollouts for the tests of the last-token score."""

from __future__ import annotations

from typing import Any

import torch

from guerdon import Rollouts
from guerdon.signals.likelihood.last_token import LastTokenScore

PROMPTS, TEXTS = ["1+1=", "a longer prompt: 2+3=", "7="], ["2", "it is 5", "7, not 8"]


def tokens(lm: Any, *, cut: tuple[int, ...] = (), ended: bool = True, **more: Any) -> Rollouts:
    """Rollouts with ids, padded with the end-of-sequence token itself."""
    end = lm.tokenizer.eos_token_id
    heads = [torch.tensor(lm.tokenizer(text)["input_ids"]) for text in PROMPTS]
    tails = [
        torch.tensor([*lm.tokenizer(text)["input_ids"], *([end] if ended and row not in cut else [])])
        for row, text in enumerate(TEXTS)
    ]
    wide, long = max(map(len, heads)), max(map(len, tails)) + 2
    prompt_ids, prompt_mask = torch.full((3, wide), end), torch.zeros(3, wide, dtype=torch.bool)
    ids, mask = torch.full((3, long), end), torch.zeros(3, long, dtype=torch.bool)
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        prompt_ids[row, wide - len(head) :], prompt_mask[row, wide - len(head) :] = head, True
        ids[row, : len(tail)], mask[row, : len(tail)] = tail, True
    finished = torch.tensor([row not in cut for row in range(3)])
    return Rollouts(
        list(PROMPTS), list(TEXTS), prompt_ids=prompt_ids, prompt_mask=prompt_mask, completion_ids=ids,
        completion_mask=mask, finished=finished, **more,
    )  # fmt: skip


def alone(lm: Any, row: int, token: str = "|") -> float:
    """log pi(z) after prompt, text and one end, in a forward of this row alone."""
    ids = [*lm.tokenizer(PROMPTS[row] + TEXTS[row])["input_ids"], lm.tokenizer.eos_token_id]
    with torch.no_grad():
        logits = lm.model(torch.tensor([ids])).logits[0, -1]
    return float(logits.log_softmax(-1)[lm.tokenizer.convert_tokens_to_ids(token)])


def signal(lm: Any, **options: Any) -> LastTokenScore:
    made = LastTokenScore(**{"constant": -5.0, "token": "|", **options})
    made.bind("policy", lm)
    return made
