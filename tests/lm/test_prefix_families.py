"""Which models can share prefixes, and that those which cannot are scored right, with a warning. Tiny random models."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers as tf

from guerdon.lm import shared
from guerdon.lm.prefixes import PrefixScorer
from guerdon.lm.shared import NaivePathWarning, SharedForward
from guerdon.lm.support import Support, known_refusal, window_of

SMALL = {"vocab_size": 102, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "initializer_range": 0.3}
LLAMA = SMALL | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
NEO = {k: v for k, v in LLAMA.items() if k not in ("num_key_value_heads", "head_dim")}


def make(name: str, **changes):
    """A random model of a family; `changes` go to its configuration."""
    options = {
        "Llama": LLAMA | {"tie_word_embeddings": False, "attention_bias": True},
        "Mistral": LLAMA | {"sliding_window": None},
        "Qwen2": LLAMA | {"tie_word_embeddings": True},
        "Qwen3": LLAMA,
        "Qwen3Moe": LLAMA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        "Gemma": LLAMA,
        "Gemma2": LLAMA | {"final_logit_softcapping": 0.5, "attn_implementation": "eager", "sliding_window": 4096},
        "GPTNeoX": NEO | {"rotary_pct": 0.25},
        "GPT2": SMALL | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
        "OPT": NEO | {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 256},
        "Phi": NEO | {"partial_rotary_factor": 0.5},
        "Bloom": SMALL | {"hidden_size": 32, "n_layer": 2, "n_head": 4},
        "GPTNeo": SMALL
        | {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16}
        | {"max_position_embeddings": 256},
        "Mamba": SMALL | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    }[name] | changes  # fmt: skip
    attention = options.pop("attn_implementation", None)
    torch.manual_seed(0)
    config = getattr(tf, f"{name}Config")(**options)
    model = getattr(tf, f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")
    if attention:
        config._attn_implementation = attention
    return model(config).eval()


GENERATOR = torch.Generator().manual_seed(1)
PROMPT = torch.randint(3, 102, (17,), generator=GENERATOR)
TRUNKS = [torch.randint(3, 102, (n,), generator=GENERATOR) for n in (33, 20, 26)]
CUTS = [[0, 8, 20, 33], [5, 20], [25, 1, 13]]
TARGETS = [[torch.randint(3, 102, (n,), generator=GENERATOR) for n in range(1, len(row) + 1)] for row in CUTS]


def check(model, tokenizer, share, left_pad=False, max_tokens=8192):
    """Score, compare with one forward a pair, return the scores."""
    scorer = PrefixScorer(model, tokenizer, share=share, left_pad=left_pad, max_tokens=max_tokens)
    scores = scorer.score_prefixes([PROMPT] * 3, TRUNKS, CUTS, TARGETS)
    row = iter(scores.rows())
    with torch.no_grad():
        for trunk, cuts, targets in zip(TRUNKS, CUTS, TARGETS, strict=True):
            for cut, target in zip(cuts, targets, strict=True):
                ids = torch.cat([PROMPT, trunk[:cut], target])
                logprobs = model(input_ids=ids[None]).logits[0].float().log_softmax(-1)
                expected = logprobs[17 + cut - 1 : len(ids) - 1].gather(1, target[:, None])[:, 0]
                torch.testing.assert_close(next(row), expected, atol=1e-4, rtol=1e-4)
    return scores


@pytest.fixture(autouse=True)
def warn_again():
    shared._WARNED.clear()


@pytest.mark.parametrize(
    "name", ["Llama", "Mistral", "Qwen2", "Qwen3", "Qwen3Moe", "Gemma", "Gemma2", "GPTNeoX", "GPT2", "OPT", "Phi"]
)
@pytest.mark.parametrize("left_pad", [False, True])
def test_families_that_share(name, left_pad, char_tokenizer):
    model = make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NaivePathWarning)
        for share in ("packed", "cached", "auto"):
            scores = check(model, char_tokenizer, share, left_pad, max_tokens=130)
            assert scores.path == share or share == "auto", scores.why
            assert scores.path != "padded"


@pytest.mark.parametrize("left_pad", [False, True])
@pytest.mark.parametrize(
    ("name", "reason"),
    [("Bloom", "trial"), ("Mamba", "recurrent"), ("GPTNeo", "window of 16")],
    ids=["alibi", "recurrent", "local-attention"],
)
def test_models_that_cannot_share_are_right_and_say_so(name, reason, left_pad, char_tokenizer):
    model = make(name)
    with pytest.warns(NaivePathWarning, match=reason) as told:
        scores = check(model, char_tokenizer, "auto", left_pad)
    assert scores.path in ("padded", "loop") and reason in scores.why
    assert type(model).__name__ in str(told[0].message)
    with warnings.catch_warnings():  # once a class
        warnings.simplefilter("error")
        assert check(model, char_tokenizer, "auto", left_pad).why


@pytest.mark.parametrize("share", ["auto", "packed", "cached"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [("Mistral", {}), ("Gemma2", {}), ("Qwen2", {"use_sliding_window": True, "max_window_layers": 1})],
)
def test_sliding_windows_shorter_than_the_sequences(name, changes, share, char_tokenizer):
    model = make(name, sliding_window=24, **changes)
    with pytest.warns(NaivePathWarning, match="window of 24 tokens") as told:
        scores = check(model, char_tokenizer, share)
    assert len(told) == 1
    assert scores.path == "padded" and "window of 24 tokens" in scores.why


def test_a_window_longer_than_the_sequences_does_not_matter(char_tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error", NaivePathWarning)
        assert check(make("Mistral", sliding_window=64), char_tokenizer, "packed").path == "packed"
        unused = make("Qwen2", use_sliding_window=False, sliding_window=8)
        assert check(unused, char_tokenizer, "packed").path == "packed"


def test_a_window_nobody_told_of_is_found_on_real_lengths(char_tokenizer):
    """A model whose configuration hides its window agrees on the small tree, and is caught on the longer sequences."""
    model = make("Mistral", sliding_window=24)
    inner = model.model.forward

    def windowed(*args, attention_mask=None, **kwargs):
        model.config.sliding_window = 24
        try:
            return inner(*args, attention_mask=attention_mask, **kwargs)
        finally:
            model.config.sliding_window = None

    model.config.sliding_window = None
    model.model.forward = windowed
    assert window_of(model.config) is None
    with pytest.warns(NaivePathWarning, match="states differ .* on a trial of 5. tokens"):
        scores = check(model, char_tokenizer, "auto")
    assert scores.path == "padded"


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_attention_without_custom_masks_is_known_by_name(attention, tiny_model, char_tokenizer, monkeypatch):
    assert attention in known_refusal(tiny_model, attention, None)
    model = copy.deepcopy(tiny_model)
    forward = SharedForward(model)
    shared._SUPPORT[model] = Support("sdpa", None, dict.fromkeys(("packed", "cached"), "it is so"), checked=999)
    with pytest.warns(NaivePathWarning, match="it is so"):
        assert check(model, char_tokenizer, "packed").path == "padded"
    assert forward.ran == "padded"


def test_attention_changed_later_is_tried_again(tiny_llama, char_tokenizer):
    model = tiny_llama()
    assert check(model, char_tokenizer, "packed").path == "packed"
    shared._SUPPORT[model].refused["packed"] = "stale"
    model.set_attn_implementation("eager")
    assert check(model, char_tokenizer, "packed").path == "packed"
    assert shared._SUPPORT[model].attention == "eager"


def test_half_precision_shares_too(tiny_llama, char_tokenizer):
    model = tiny_llama(initializer_range=0.05).to(torch.bfloat16)
    scores = [
        PrefixScorer(model, char_tokenizer, share=share).score_prefixes([PROMPT] * 3, TRUNKS, CUTS, TARGETS)
        for share in ("packed", "cached", "padded")
    ]
    assert [s.path for s in scores] == ["packed", "cached", "padded"]
    for other in scores[:2]:
        torch.testing.assert_close(other.values, scores[2].values, atol=0.1, rtol=0.05)


def test_adapters_share(tiny_model, char_tokenizer):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(copy.deepcopy(tiny_model), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.eval()
    for share in ("packed", "cached"):
        assert check(model, char_tokenizer, share).path == share


def test_virtual_tokens_do_not_share_but_are_right(tiny_model, char_tokenizer):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        copy.deepcopy(tiny_model), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    ).eval()

    scorer = PrefixScorer(model, char_tokenizer, share="packed")
    with pytest.warns(NaivePathWarning):
        scores = scorer.score_prefixes([PROMPT], TRUNKS[:1], CUTS[:1], TARGETS[:1])
    assert scores.path in ("padded", "loop")
    for row, cut, target in zip(scores.rows(), CUTS[0], TARGETS[0], strict=True):
        ids = torch.cat([PROMPT, TRUNKS[0][:cut], target])[None]
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -ids.shape[1] :]
        expected = logits.log_softmax(-1)[17 + cut - 1 : -1].gather(1, target[:, None])[:, 0]
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "GPTNeoX"])
def test_gradients_through_a_cache(name, char_tokenizer):
    model = make(name)
    found = []
    for share in ("padded", "packed", "cached"):
        scorer = PrefixScorer(model, char_tokenizer, share=share)
        scores = scorer.score_prefixes([PROMPT] * 3, TRUNKS, CUTS, TARGETS, grad=True)
        found.append(torch.autograd.grad(scores.mean().sum(), list(model.parameters()), allow_unused=True))
    for one in found[1:]:
        for a, b in zip(one, found[0], strict=True):
            if a is not None:
                torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)
