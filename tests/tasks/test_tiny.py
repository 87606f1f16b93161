"""The tiny policy: tokenizer, packing, warm-start, cache."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from guerdon.tasks import tiny
from guerdon.tasks.arithmetic import DELIMITER, NO_NOISE, make_prompt, sample_operands, solve
from guerdon.tasks.tiny import ALPHABET, TinyConfig, WarmStart, char_tokenizer, new_model, pack_rows, tiny_policy

SMALL = TinyConfig(hidden=32, layers=2, heads=2, intermediate=64)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GUERDON_CACHE", str(tmp_path))
    return tmp_path


def test_tokenizer_round_trip_and_reload(tmp_path):
    tokenizer = char_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a3+b5=?\n3+b5=8\n#8", ALPHABET, " . , n't ", ""):
        for loaded in (tokenizer, again):
            ids = loaded(text)["input_ids"]
            assert len(ids) == len(text)
            assert loaded.decode(ids) == text
    assert again.is_fast and again.padding_side == "left" and len(again) == len(tokenizer)
    assert again.pad_token_id != again.eos_token_id and again.eos_token_id is not None
    assert again("é")["input_ids"] == [again.unk_token_id]
    assert again("a\nb", return_offsets_mapping=True)["offset_mapping"] == [(0, 1), (1, 2), (2, 3)]
    assert again.convert_tokens_to_ids(DELIMITER) == again(DELIMITER)["input_ids"][0]


def test_packing_equals_separate_rows():
    """Logits of a packed demonstration are those of the demonstration alone: nothing leaks across."""
    tokenizer = char_tokenizer()
    model = new_model(tokenizer, SMALL, 0).eval()
    rng = random.Random(0)
    drawn = []

    def draw():
        operands = sample_operands(rng)
        drawn.append((make_prompt(operands), "\n".join(solve(operands, NO_NOISE, rng))))
        return drawn[-1]

    packed = pack_rows(tokenizer, draw, 2, 96)
    with torch.no_grad():
        logits = model(input_ids=packed.ids, attention_mask=packed.attention, position_ids=packed.positions).logits
        column = 0
        for prompt, solution in drawn[:2]:
            ids = torch.tensor([[*tokenizer(prompt + solution)["input_ids"], tokenizer.eos_token_id]])
            size = ids.shape[1]
            alone = model(input_ids=ids).logits[0]
            torch.testing.assert_close(logits[0, column : column + size], alone, atol=1e-5, rtol=1e-4)
            targets = packed.targets[0, column : column + size]
            assert targets[: len(prompt) - 1].eq(-100).all() and targets[-1] == -100
            assert targets[len(prompt) - 1 : -1].tolist() == ids[0, len(prompt) :].tolist()
            column += size
    assert (packed.targets != -100).any(1).all()


def test_what_comes_after_the_end_can_be_taught():
    tokenizer = char_tokenizer()
    packed = pack_rows(tokenizer, lambda: ("1+1=", "2"), 1, 12, after_end=tokenizer.pad_token_id)
    ends = packed.ids[0] == tokenizer.eos_token_id
    assert ends.sum() == 2 and packed.targets[0, ends].tolist() == [tokenizer.pad_token_id] * 2
    plain = pack_rows(tokenizer, lambda: ("1+1=", "2"), 1, 12)
    assert (plain.targets[0, ends] == -100).all() and (plain.targets[0, ~ends] == packed.targets[0, ~ends]).all()


def test_a_demonstration_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        pack_rows(char_tokenizer(), lambda: ("x" * 30, "y" * 30), 1, 32)


def test_new_model_is_seeded_and_leaves_the_random_state():
    tokenizer = char_tokenizer()
    before = torch.get_rng_state()
    one, two, other = (new_model(tokenizer, SMALL, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)
    assert sum(p.numel() for p in new_model(tokenizer, TinyConfig(), 0).parameters()) < 2_000_000


def test_warm_start_is_cached_saved_and_loads_from_its_path(cache):
    before = torch.get_rng_state()
    path = tiny_policy(steps=30, config=SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    assert tiny_policy(steps=30, config=SMALL) == path
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.config._name_or_path == path  # TRL reloads the reference from here
    assert model.config.eos_token_id == AutoTokenizer.from_pretrained(path).eos_token_id
    card = json.loads((Path(path) / "card.json").read_text())
    assert card["loss_last"] < 0.9 * card["loss_first"]
    assert 0 <= card["held_out"]["true_success"] <= 1
    assert not [p for p in cache.iterdir() if p.name.startswith(".")]  # no scratch left


def test_warm_start_is_deterministic():
    settings = WarmStart(steps=3, rows=2)
    _, _, losses = tiny.warm_start_policy(0, SMALL, settings)
    assert tiny.warm_start_policy(0, SMALL, settings)[2] == losses
