"""Offsets of tokens from decoding ids, for every kind of tokenizer, against the tokenizer's own decode."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.lm.encode import continuation_offsets, encode_continuation, encode_prompt, encode_with_target
from guerdon.lm.offsets import _table, decode_offsets, decode_offsets_batch, overlapping_tokens

TEXTS = [
    "hello world",
    "  two blanks\n\n<answer> 42</answer>",
    "h\u00e9llo \u65e5\u672c\u8a9e \U0001f914\U0001f389 x",
    "",
    " ",
    "\u202b\u05e9\u05dc\u05d5\u05dd\u202c \x00\x07",
    "e\u0301 \U0001f468\u200d\U0001f469\u200d\U0001f467",
]


def train_byte_bpe():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["hello world the answer answer 42 42"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def train_sentencepiece_like():
    """Llama 2's shape: blanks as U+2581, one put in front, bytes as <0xNN>, the leading blank dropped again."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += [
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyz0123456789<>/=\n",
        "he",
        "ll",
        "hell",
        "hello",
        "\u2581h",
        "\u2581hello",
        "wo",
        "\u2581wo",
    ]
    merges = [
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        ("\u2581", "h"),
        ("\u2581", "hello"),
        ("w", "o"),
        ("\u2581", "wo"),
    ]
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def train_wordpiece():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {w: i for i, w in enumerate(["[UNK]", "[SEP]", "hello", "wor", "##ld", "an", "##swer", "42", "x"])}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", unk_token="[UNK]")


class Slow:
    """A character tokenizer with nothing but decode."""

    def decode(self, ids):
        return "".join(chr(i) for i in ids)


TOKENIZERS = {"byte_bpe": train_byte_bpe, "sentencepiece": train_sentencepiece_like, "wordpiece": train_wordpiece}


@pytest.fixture(scope="module", params=[*TOKENIZERS, "characters"])
def tokenizer(request, char_tokenizer):
    return char_tokenizer if request.param == "characters" else TOKENIZERS[request.param]()


def check(tokenizer, ids, skip_special=True, control=None):
    """`control`: the ids to be left out, where the tokenizer's special tokens are more than those."""
    text, offsets = decode_offsets(tokenizer, ids, skip_special=skip_special)
    kept = ids if control is None else [number for number in ids if number not in control]
    skip = skip_special and control is None
    assert text == tokenizer.decode(kept, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
    assert offsets.shape == (len(ids), 2)
    starts, ends = offsets[:, 0].tolist(), offsets[:, 1].tolist()
    assert starts == sorted(starts) and ends == sorted(ends)
    at = rebuilt = 0
    rebuilt = ""
    for start, end in zip(starts, ends, strict=True):
        assert start <= end <= len(text) and start <= at, (start, end, at)  # no gap
        rebuilt += text[max(start, at) : end]  # tokens inside one character share it
        at = max(at, end)
    assert rebuilt == text
    return text, offsets


@pytest.mark.parametrize("text", TEXTS)
def test_text_of_tokens(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    check(tokenizer, ids)
    check(tokenizer, [*ids, tokenizer.eos_token_id, *ids])
    check(tokenizer, [*ids, tokenizer.eos_token_id, *ids], skip_special=False)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_ids(tokenizer, data):
    """A policy writes ids no text encodes to: half characters, special tokens in the middle, stray bytes."""
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    check(tokenizer, ids, data.draw(st.booleans()))


def test_kinds_are_recognised(char_tokenizer):
    kinds = {name: _table(make()).kind for name, make in TOKENIZERS.items()}
    assert kinds["byte_bpe"] == "byte_level" and kinds["sentencepiece"] == "sentencepiece"
    assert _table(char_tokenizer).kind == "plain"


def test_half_characters_share_the_whole_one():
    tokenizer = train_byte_bpe()
    ids = tokenizer("a\U0001f914b", add_special_tokens=False)["input_ids"]
    assert len(ids) == 6
    text, offsets = decode_offsets(tokenizer, ids)
    assert text == "a\U0001f914b" and offsets.tolist() == [[0, 1], [1, 2], [1, 2], [1, 2], [1, 2], [2, 3]]
    text, offsets = decode_offsets(tokenizer, ids[:3])  # cut at the length cap
    assert text == "a\ufffd" and offsets.tolist() == [[0, 1], [1, 2], [1, 2]]


def test_special_token_between_two_halves_of_a_character():
    tokenizer = train_byte_bpe()
    halves = tokenizer("\u00e9", add_special_tokens=False)["input_ids"]
    assert len(halves) == 2
    text, offsets = check(tokenizer, [halves[0], tokenizer.eos_token_id, halves[1], tokenizer.eos_token_id])
    assert text == "\u00e9" and offsets.tolist() == [[0, 1], [0, 1], [0, 1], [1, 1]]


def test_special_and_added_tokens():
    tokenizer = train_byte_bpe()
    size = len(tokenizer)
    first = decode_offsets(tokenizer, tokenizer("hello")["input_ids"])[0]
    tokenizer.add_tokens(["<step> ", "caf\u00e9"])
    assert len(tokenizer) == size + 2 and first == "hello"
    text, offsets = decode_offsets(tokenizer, [size, tokenizer.eos_token_id, size])
    assert text == "<step> <step> " and offsets.tolist() == [[0, 7], [7, 7], [7, 14]]
    check(tokenizer, [size + 1, size])


def test_leading_blank_of_sentencepiece():
    tokenizer = train_sentencepiece_like()
    ids = tokenizer("hello wo", add_special_tokens=False)["input_ids"]
    text, offsets = decode_offsets(tokenizer, ids)
    assert text == "hello wo" and offsets.tolist() == [[0, 5], [5, 8]]
    follows = encode_continuation(tokenizer, "hello")
    assert tokenizer.convert_ids_to_tokens(follows.tolist()) == ["hello"]  # no blank put in front
    assert encode_continuation(tokenizer, " hello").tolist() == tokenizer.convert_tokens_to_ids(["\u2581hello"])
    assert continuation_offsets(tokenizer, encode_continuation(tokenizer, " hello"))[0] == " hello"


def test_slow_object_with_decode_only():
    text, offsets = decode_offsets(Slow(), [104, 233, 0x1F914])
    assert text == "h\u00e9\U0001f914" and offsets.tolist() == [[0, 1], [1, 2], [2, 3]]


def test_batch_and_its_padding(char_tokenizer):
    rows = [char_tokenizer(t)["input_ids"] for t in ("abc", "d", "")]
    ids = torch.tensor([[*rows[0], 0], [0, *rows[1], 0, 0], [0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    texts, offsets = decode_offsets_batch(char_tokenizer, ids, mask)
    assert texts == ["abc", "d", ""]
    assert offsets.tolist() == [[[0, 1], [1, 2], [2, 3], [3, 3]], [[0, 0], [0, 1], [1, 1], [1, 1]], [[0, 0]] * 4]
    assert decode_offsets_batch(char_tokenizer, ids[:0], mask[:0])[1].shape == (0, 4, 2)


def test_labels_are_no_tokens(char_tokenizer):
    with pytest.raises(ValueError, match="-100"):
        decode_offsets(char_tokenizer, [5, -100])


def test_ids_beyond_the_vocabulary_are_nothing(char_tokenizer):
    text, offsets = decode_offsets(train_byte_bpe(), [70, 100_000])
    assert offsets[1].tolist() == [len(text), len(text)]


def test_overlap_rule():
    offsets = torch.tensor([[0, 2], [2, 5], [5, 5], [5, 7]])
    assert overlapping_tokens(offsets, 4, 6).tolist() == [False, True, False, True]
    assert overlapping_tokens(offsets, 2, 5).tolist() == [False, True, False, False]
    assert not overlapping_tokens(offsets, 3, 3).any()
    both = overlapping_tokens(offsets.expand(2, 4, 2), torch.tensor([[4], [0]]), torch.tensor([[6], [1]]))
    assert both.tolist() == [[False, True, False, True], [True, False, False, False]]


def test_begin_token_is_put_once():
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_byte_bpe()
    assert encode_prompt(tokenizer, "hello").tolist() == tokenizer("hello")["input_ids"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    plain = tokenizer("hello", add_special_tokens=False)["input_ids"]
    assert encode_prompt(tokenizer, "hello").tolist() == [0, *plain]  # and no end token
    assert encode_prompt(tokenizer, "<s>hello").tolist() == [0, *plain]
    assert encode_prompt(tokenizer, "").tolist() == [0]
    spliced = encode_with_target(tokenizer, "hello world", 6, 11)
    assert spliced.ids[0] == 0 and not spliced.target[0]
    assert tokenizer.decode(spliced.ids[spliced.target].tolist()).strip() == "world"


def test_time_is_linear_in_length():
    tokenizer = train_byte_bpe()
    ids = tokenizer("hello world \u65e5\u672c " * 4000, add_special_tokens=False)["input_ids"]
    decode_offsets(tokenizer, ids[:10])
    started = time.perf_counter()
    decode_offsets(tokenizer, ids)
    assert len(ids) >= 40_000 and time.perf_counter() - started < 2.0  # decoding each prefix would take minutes


# -- the real BPE ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_text(smollm2_tokenizer, text):
    check(
        smollm2_tokenizer,
        [*smollm2_tokenizer(text, add_special_tokens=False)["input_ids"], smollm2_tokenizer.eos_token_id],
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 49151), max_size=40))
def test_smollm2_any_ids(smollm2_tokenizer, ids):
    # <|endoftext|>, <|im_start|> and <|im_end|>; <repo_name> and its like are special tokens and text all the same
    check(smollm2_tokenizer, ids, control={0, 1, 2})


@pytest.mark.parametrize("target", ["42", " 42", "\n42", "\u65e5\u672c", "\U0001f914", "x\u00b2"])
@pytest.mark.parametrize("lead", ["", " ", "\n"])
@pytest.mark.parametrize("trail", ["", " ", "."])
def test_smollm2_mask_covers_the_reference(smollm2_tokenizer, target, lead, trail):
    """RLPR: preceded by a blank, by a line break, glued to the tag; the tags only by overlap."""
    head, tail = f"<think>so 42</think><answer>{lead}", f"{trail}</answer>"
    start = len(head)
    spliced = encode_with_target(smollm2_tokenizer, head + target + tail, start, start + len(target))
    assert smollm2_tokenizer.decode(spliced.ids.tolist()) == head + target + tail
    begins, ends = spliced.offsets[:, 0], spliced.offsets[:, 1]
    assert spliced.target.tolist() == ((begins < start + len(target)) & (ends > start)).tolist()
    marked = spliced.offsets[spliced.target]
    covered = spliced.text[int(marked[0, 0]) : int(marked[-1, 1])]
    assert target in covered
    left, right = covered.split(target)[0], covered.split(target)[-1]
    assert left in ("", " ", ">", "\n", ">\n", "> ", '"') and right.strip() in ("", ".", ".</", "</")


def test_smollm2_ids_are_kept_across_the_seam(smollm2_tokenizer):
    sampled = torch.tensor(smollm2_tokenizer("let us see <ans", add_special_tokens=False)["input_ids"])
    spliced = encode_with_target(smollm2_tokenizer, "wer> 42", 5, 7, context=sampled)
    assert spliced.ids[: len(sampled)].tolist() == sampled.tolist()
    assert smollm2_tokenizer.decode(spliced.ids[spliced.target].tolist()).strip() == "42"
