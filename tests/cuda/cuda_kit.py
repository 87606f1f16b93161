"""What the tests on the fake device share: a tokenizer of characters, tiny models of every kind, a batch with tokens, signals that
answer from the device."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from guerdon import LogProbs, Rewards, Rollouts
from guerdon.rewards import Scores
from guerdon.spans import Spans
from guerdon.testing import on_cuda

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789+-*/=.,:;()<>_{}\\#?!|'\n"
GROUPS = (0, 0, 0, 0, 1, 1, 1, 1)


@cache
def characters() -> Any:
    """One token a character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {t: i for i, t in enumerate(["<pad>", "<eos>", "<unk>", *ALPHABET])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def tiny(kind: str = "LlamaForCausalLM", seed: int = 0, **changes: Any) -> Any:
    """A random model of one head, eval mode."""
    import transformers

    settings: dict[str, Any] = {
        "vocab_size": len(characters()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, kind)(transformers.LlamaConfig(**{**settings, **changes})).eval()


TEXTS = (
    "<think>two and\n\nthree</think>\n<answer>5</answer>",
    "<think>two plus three\n\nis six</think>\n<answer>6</answer>",
    "no tags, 5",
    "<think>a</think><answer>\\boxed{5}</answer>",
    "<think>x\n\ny\n\nz</think>\n<answer>7</answer>",
    "",
    "<think>one\n\ntwo</think> <answer>7</answer> so",
    "so \\boxed{7}",
)


def batch(**changes: Any) -> Rollouts:
    """Two groups of four with tokens, log-probabilities and columns, on the CPU."""
    tokenizer = characters()
    rows = [tokenizer(text)["input_ids"] + [1] for text in TEXTS]
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    offsets = torch.zeros(len(rows), width, 2, dtype=torch.long)
    for n, row in enumerate(rows):
        ids[n, : len(row)], mask[n, : len(row)] = torch.tensor(row), True
        for t in range(len(row)):
            offsets[n, t] = torch.tensor([min(t, len(row) - 1), min(t + 1, len(row) - 1)])
    prompts = ["add 2 and 3"] * 4 + ["add 3 and 4"] * 4
    prompt_ids = torch.tensor([tokenizer(p)["input_ids"] for p in prompts])
    noise = torch.rand(len(rows), width, generator=torch.Generator().manual_seed(0))
    values: dict[str, Any] = {
        "prompt_ids": prompt_ids,
        "prompt_mask": torch.ones_like(prompt_ids, dtype=torch.bool),
        "completion_ids": ids,
        "completion_mask": mask,
        "offsets": offsets,
        "finished": torch.tensor([True] * 7 + [False]),
        "group_ids": torch.tensor(GROUPS),
        "logprobs": {"old": LogProbs(-noise, 0.7), "reference": LogProbs(-noise.flip(0), 0.7)},
        "columns": {
            "answer": ["5"] * 4 + ["7"] * 4,
            "question_id": ["q"] * 8,
            "question": prompts,
            "domain": ["CHAT"] * 8,
            "ref_rewards": [[0.2, 0.4]] * 8,
        },
    }
    return Rollouts(prompts, list(TEXTS), **{**values, **changes})


class Given:
    """Signal: numbers drawn once, at the levels another signal declares; one row in eight has no number.

    there: hand them out on the device, whatever the rollouts are on.
    """

    scope = "row"

    def __init__(self, level: str | dict[str, str] = "sequence", *, seed: int = 0, there: bool = True) -> None:
        self.level, self.seed, self.there = level, seed, there

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards | dict[str, Rewards]:
        if isinstance(self.level, str):
            return self._one(rollouts, self.level, self.seed)
        return {name: self._one(rollouts, level, self.seed + n) for n, (name, level) in enumerate(self.level.items())}

    def _one(self, rollouts: Rollouts, level: str, seed: int) -> Rewards:
        home = rollouts.to("cpu")
        spans = {"sequence": lambda: Spans.sequence(home.lengths), "token": lambda: Spans.tokens(home.mask)}
        cut = spans[level]() if level in spans else home.segment(level)
        values = torch.rand(cut.start.shape, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
        reasons = {}
        if level == "sequence" and len(values) > 6:
            values[6], reasons = float("nan"), {(6, 0): "the instrument was told to fail"}
        given = Rewards(values, cut, reasons)
        return given.to(on_cuda(torch.zeros(1)).device) if self.there else given

    def __repr__(self) -> str:
        return f"Given({self.level!r})"
