"""The local model: it reads right, samples the same with the same seed, and leaves everything as it was."""

from __future__ import annotations

import copy

import pytest
import torch

from guerdon.errors import ConfigError
from guerdon.lm.forward import instrument, microbatches
from guerdon.lm.judging import judge
from guerdon.lm.local import LocalModel, _cut
from guerdon.lm.scorer import SpanScorer


@pytest.fixture
def lm(tiny_model, char_tokenizer):
    return LocalModel(copy.deepcopy(tiny_model), char_tokenizer)


def ragged(left=False):
    rows = [[5, 6, 7, 8, 9], [10, 11], [12]]
    ids, mask = torch.zeros(3, 5, dtype=torch.long), torch.zeros(3, 5, dtype=torch.bool)
    for b, row in enumerate(rows):
        where = slice(5 - len(row), 5) if left else slice(0, len(row))
        ids[b, where], mask[b, where] = torch.tensor(row), True
    return rows, ids, mask


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 8192])
def test_token_logprobs(tiny_model, char_tokenizer, left, max_tokens):
    rows, ids, mask = ragged(left)
    values = LocalModel(tiny_model, char_tokenizer, max_tokens=max_tokens).token_logprobs(ids, mask, 0.7)
    for b, row in enumerate(rows):
        with torch.no_grad():
            expected = (tiny_model(input_ids=torch.tensor([row])).logits[0] / 0.7).log_softmax(-1)
        mine = values[b][mask[b]]
        assert mine[0].isnan()
        torch.testing.assert_close(mine[1:], expected[range(len(row) - 1), row[1:]], atol=1e-5, rtol=1e-5)
    assert (values[~mask] == 0).all()


def test_token_logprobs_only_where_wanted_with_gradient(lm):
    _, ids, mask = ragged()
    wanted = mask.clone()
    wanted[:, :2] = False
    values = lm.token_logprobs(ids, mask, wanted=wanted, grad=True)
    assert values.isfinite().all() and (values != 0).tolist() == wanted.tolist()
    values.sum().backward()
    assert lm.model.model.embed_tokens.weight.grad.abs().sum() > 0
    assert lm.token_logprobs(ids, torch.zeros_like(mask)).eq(0).all()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_hidden_states(lm, left, layer):
    rows, ids, mask = ragged(left)
    states = lm.hidden_states(ids, mask, layer=layer)
    for b, row in enumerate(rows):
        with torch.no_grad():
            expected = lm.model.model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[layer][0]
        torch.testing.assert_close(states[b][mask[b]], expected, atol=1e-4, rtol=1e-4)
    assert (states[~mask] == 0).all()
    last = torch.tensor([[4], [4 if left else 1], [4 if left else 0]])
    picked = lm.hidden_states(ids, mask, layer=layer, positions=last)
    torch.testing.assert_close(picked[:, 0], states[torch.arange(3), last[:, 0]])


def test_everything_is_left_as_it_was(lm):
    """ENGINES trap 8: train flags (per module), checkpointing, use_cache, RNG."""
    model = lm.model
    model.activation_checkpointing_enable()
    model.config.use_cache = False
    model.train()
    model.model.layers[0].eval()
    flags = [m.training for m in model.modules()]
    generation = model.generation_config
    _, ids, mask = ragged()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    lm.generate(["1+1="], n=2, max_new_tokens=4, seed=3, logprobs=True)
    lm.token_logprobs(ids, mask, grad=True).nansum().backward()
    lm.hidden_states(ids, mask)
    SpanScorer(lm).score(["a"], ["b"])
    with pytest.raises(IndexError):
        lm.token_logprobs(ids + 1000, mask)  # also when the forward fails
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model.modules()] == flags
    assert (
        model.is_activation_checkpointing and model.config.use_cache is False and model.generation_config is generation
    )
    assert torch.is_grad_enabled()


def test_dropout_is_off_inside(char_tokenizer, tiny_llama):
    model = tiny_llama(attention_dropout=0.5).train()
    lm = LocalModel(model, char_tokenizer)
    _, ids, mask = ragged()
    assert torch.equal(lm.token_logprobs(ids, mask)[:, 1:], lm.token_logprobs(ids, mask)[:, 1:])


def test_same_seed_same_samples(lm):
    options = {"n": 3, "max_new_tokens": 12, "logprobs": True}
    one, same, other = (lm.generate(["1+1=", "much longer prompt: "], seed=s, **options) for s in (5, 5, 6))
    assert one.texts == same.texts != other.texts and len(one.texts) == 6
    assert torch.equal(one.logprobs.values, same.logprobs.values)
    generator = torch.Generator().manual_seed(1)
    first, second = (lm.generate(["1+1="], generator=generator, max_new_tokens=12).texts for _ in range(2))
    assert first != second
    assert lm.generate(["1+1="], generator=torch.Generator().manual_seed(1), max_new_tokens=12).texts == first


def test_generation_fields_agree(lm):
    got = lm.generate(["1+1=", "longer prompt"], n=2, max_new_tokens=40, seed=0, logprobs=True, temperature=0.8)
    assert got.prompt_ids.shape == (4, 13) and got.prompt_mask[0].tolist() == [False] * 9 + [True] * 4
    for row in range(4):
        ids = got.ids[row][got.mask[row]]
        assert lm.tokenizer.decode(ids, skip_special_tokens=True) == got.texts[row]
        assert (got.finish_reasons[row] == "eos") == (int(ids[-1]) == 1) and 1 not in ids[:-1].tolist()
        scores = SpanScorer(lm).score([got.prompt_ids[row][got.prompt_mask[row]]], [ids], temperature=0.8)
        torch.testing.assert_close(got.logprobs.values[row][got.mask[row]], scores.rows()[0], atol=1e-5, rtol=1e-5)
    assert got.logprobs.temperature == 0.8 and (got.logprobs.values[~got.mask] == 0).all()


def test_stop_strings_end_a_row(lm):
    free = lm.generate(["1+1="], n=4, max_new_tokens=30, seed=0)
    stop = free.texts[1][3:5]
    got = lm.generate(["1+1="], n=4, max_new_tokens=30, seed=0, stop=[stop])
    for text, reason, own, was in zip(got.texts, got.finish_reasons, free.texts, free.finish_reasons, strict=True):
        if stop in own:
            assert reason == "stop" and text == own[: own.index(stop) + len(stop)]
        else:
            assert (text, reason) == (own, was)
    assert got.finish_reasons[1] == "stop" and bool(got.finished[1])


def test_pad_that_equals_eos_is_not_counted():
    row = torch.tensor([7, 8, 1, 1, 1])
    assert _cut(row, {1}, None)[0].tolist() == [7, 8, 1]
    assert _cut(row, set(), 2)[0].tolist() == [7, 8]
    assert _cut(torch.tensor([7, 8]), {1}, None)[1] == "length"


def test_the_models_own_generation_config_does_not_apply(lm):
    plain = lm.generate(["1+1="], max_new_tokens=12, seed=0).texts
    lm.model.generation_config.top_k = 1
    lm.model.generation_config.repetition_penalty = 5.0
    assert lm.generate(["1+1="], max_new_tokens=12, seed=0).texts == plain


def test_sampling_follows_the_distribution(lm):
    """Frequencies of the first token against its probabilities, at a temperature."""
    got = lm.generate(["1+1="], n=4000, max_new_tokens=1, seed=0, temperature=2.0)
    logits = lm.model(input_ids=got.prompt_ids[:1]).logits[0, -1] / 2.0
    expected = logits.softmax(-1)
    counts = torch.bincount(got.ids[:, 0], minlength=len(expected)) / 4000
    assert (counts - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5
    nucleus = lm.generate(["1+1="], n=200, max_new_tokens=1, seed=0, temperature=2.0, top_p=1e-6)
    assert (nucleus.ids[:, 0] == expected.argmax()).all()


def test_refusals(lm):
    for options in ({}, {"seed": 0, "max_new_tokens": 0}, {"seed": 0, "n": 0}):
        with pytest.raises(ConfigError):
            lm.generate(["a"], **options)
    with pytest.raises(ConfigError, match="empty"):
        lm.generate([""], seed=0)
    with pytest.raises(ConfigError, match="chat template"):
        lm.generate([[{"role": "user", "content": "hi"}]], seed=0)
    with pytest.raises(ConfigError, match="tokenizer"):
        LocalModel(lm.model)


def test_microbatches_keep_the_budget():
    lengths = [3, 50, 7, 7, 1, 20]
    batches = microbatches(lengths, 40)
    assert sorted(i for b in batches for i in b) == list(range(6)) and batches[0] == [1]
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 40 for b in batches)


def test_instrument_without_gradient_checkpoints_nothing(lm):
    with instrument(lm.model):
        assert not torch.is_grad_enabled() and not lm.model.training


# -- the 135M model ------------------------------------------------------------------------------------------------------------


def test_smollm2_scores_and_answers(smollm2):
    """BPE seams on real weights: the batch equals one item at a time, and sense beats nonsense."""
    scorer = SpanScorer(smollm2)
    contexts = [
        "The capital of France is",
        "The capital of France is",
        "<answer>",
        "\u65e5\u672c\u306e\u9996\u90fd\u306f",
        "I feel \U0001f914",
        "2+2=\n",
    ]
    targets = [" Paris", " potato", "42</answer>", "\u6771\u4eac", "\U0001f389!", "4<|im_end|>"]
    scores = scorer.score(contexts, targets)
    assert scores.texts[:5] == targets[:5]
    assert scores.ids[5][scores.mask[5]].tolist()[-1] == smollm2.tokenizer.eos_token_id
    for row, (context, target) in enumerate(zip(contexts, targets, strict=True)):
        before = smollm2.tokenizer(context, add_special_tokens=False)["input_ids"]
        after = smollm2.tokenizer(target, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            table = smollm2.model(input_ids=torch.tensor([before + after])).logits[0].log_softmax(-1)
        expected = table[range(len(before) - 1, len(before) + len(after) - 1), after]
        torch.testing.assert_close(scores.rows()[row], expected, atol=2e-4, rtol=1e-4)
    assert scores.sum()[0] > scores.sum()[1] + 3


def test_smollm2_is_a_judge(smollm2):
    verdicts = judge(smollm2, ["Reply with one number: what is 2+2?"], lambda text: float("4" in text), max_tokens=16)
    assert verdicts.values[0] in (0.0, 1.0) and verdicts.replies[0][0].completion_tokens > 0
