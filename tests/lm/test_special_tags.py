"""Tags that a tokenizer holds as special tokens are text to signals and segmenters; what controls a conversation is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from guerdon.lm import decode_offsets
from guerdon.lm.local import _StopStrings
from guerdon.lm.offsets import control_ids, decode_text
from guerdon.rewards import Scores
from guerdon.segment import ByTag, ByTurn
from guerdon.segment.reasoning import LAYOUTS, EqualPieces
from guerdon.signals import AnswerTag, ThinkFormat
from guerdon.tasks.tiny import char_tokenizer

TAGS = ["<think>", "</think>", "<answer>", "</answer>", "[THINK]", "<|im_start|>", "<|channel|>", "<|start_header_id|>"]
ENDS = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end|>",
    "<|return|>",
    "<|end_of_text|>",
]


def tokenizer() -> Any:
    found = char_tokenizer()
    found.add_special_tokens({"additional_special_tokens": [*TAGS, *ENDS]})
    return found


def sampled(tok: Any, text: str) -> Any:
    from guerdon.engines.trl.batch import Sampled, build_rollouts
    from guerdon.rollouts import Clock

    ids = [*tok(text, add_special_tokens=False)["input_ids"], tok.eos_token_id]
    return build_rollouts(
        Sampled([tok("a=")["input_ids"]], [ids]), ["a="], {}, tokenizer=tok, stop_ids={tok.eos_token_id}, cap=10**6, group_size=1,
        rank=0, clock=Clock(),
    )  # fmt: skip


def test_tags_are_text_and_ends_are_not() -> None:
    tok = tokenizer()
    control = control_ids(tok)
    assert {tok.convert_tokens_to_ids(tag) for tag in TAGS}.isdisjoint(control)
    assert {tok.convert_tokens_to_ids(end) for end in ENDS} | {tok.eos_token_id, tok.pad_token_id} <= control
    for tag in TAGS:
        assert decode_text(tok, tok(f"a{tag}b")["input_ids"]) == f"a{tag}b"
    for end in ENDS:
        assert decode_text(tok, tok(f"a{end}b")["input_ids"]) == "ab"
    text, offsets = decode_offsets(tok, tok("a<think>b<|im_end|>c")["input_ids"])
    assert text == "a<think>bc" and offsets.tolist() == [[0, 1], [1, 8], [8, 9], [9, 9], [9, 10]]


def test_what_else_ends_a_completion_is_left_out_where_it_is_special() -> None:
    tok = tokenizer()
    header, letter = tok.convert_tokens_to_ids("<|channel|>"), tok.convert_tokens_to_ids("b")
    ids = tok("ab<|channel|>")["input_ids"]
    assert decode_text(tok, ids, leave_out=[header, letter]) == "ab"


def test_signals_and_segmenters_find_special_tags() -> None:
    tok = tokenizer()
    batch = sampled(tok, "<think>abc</think><answer>42</answer>")
    assert batch.completions == ["<think>abc</think><answer>42</answer>"]
    for signal in (ThinkFormat(mode="R1"), AnswerTag()):
        assert float(signal(batch, Scores.empty(batch)).values) == 1.0
    thoughts = ByTag("think")(batch)
    assert thoughts.to_lists() == [[(1, 3)]] and tok.decode(batch.completion_ids[0, 1:4]) == "abc"
    pieces = EqualPieces(3, LAYOUTS["think"])(batch)
    assert pieces.to_lists() == [[(1, 1), (2, 2), (3, 3)]]


def test_turns_are_cut_by_headers_that_are_special() -> None:
    batch = sampled(tokenizer(), "one<|im_end|>\n<|im_start|>tool\ndoc<|im_end|>\n<|im_start|>assistant\ntwo")
    turns = ByTurn(r"<\|im_start\|>(?P<role>\w+)\n", role="assistant")(batch)
    spans = [batch.completion_ids[0, s : e + 1] for s, e in turns.to_lists()[0]]
    assert [decode_text(tokenizer(), ids) for ids in spans] == ["one\n", "two"]


def test_a_stop_string_may_be_a_special_tag() -> None:
    tok = tokenizer()
    watch = _StopStrings(tok, ["</answer>"], prompt_width=2, rows=2)
    rows = [tok(text)["input_ids"] for text in ("a=<answer>3", "a=3</answer>")]
    ids = torch.tensor([row + [tok.pad_token_id] * (5 - len(row)) for row in rows])
    assert watch(ids, None).tolist() == [False, True]


@pytest.mark.parametrize("skip", [True, False])
def test_offsets_tile_the_text_with_tags_in_it(skip: bool) -> None:
    tok = tokenizer()
    ids = tok("<think>ab</think><|im_end|><answer>3</answer>")["input_ids"]
    text, offsets = decode_offsets(tok, ids, skip_special=skip)
    assert "".join(text[a:b] for a, b in offsets.tolist()) == text
    assert ("<|im_end|>" in text) is not skip
