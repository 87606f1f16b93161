"""The span scorer against a naive loop: one forward an item, full float32 softmax."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import ConfigError
from guerdon.lm.encode import encode_continuation, encode_prompt, encode_with_target
from guerdon.lm.forward import Forward, Head, take_apart
from guerdon.lm.local import LocalModel
from guerdon.lm.scorer import NO_CONTEXT, SpanScorer

CONTEXTS = ["2+2=", "the answer to a much longer question, namely 17 * 3, is ", "a", "2+2=", "so"]
TARGETS = ["4", "fifty-one", "", "5 and more", " x"]


def naive(model, context, target, temperature=1.0):
    """[L, V] log-softmax rows that predict the target's tokens."""
    ids = torch.cat([context, target])[None]
    logits = model(input_ids=ids).logits[0].float() / temperature
    return logits.log_softmax(-1)[len(context) - 1 : len(ids[0]) - 1]


@pytest.fixture(scope="module")
def lm(tiny_model, char_tokenizer):
    return LocalModel(tiny_model, char_tokenizer)


def ids_of(lm, contexts=CONTEXTS, targets=TARGETS):
    return [encode_prompt(lm.tokenizer, c) for c in contexts], [encode_continuation(lm.tokenizer, t) for t in targets]


@pytest.mark.parametrize("left_pad", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 70, 8192])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equals_naive_loop(lm, left_pad, max_tokens, temperature):
    scorer = SpanScorer(lm, max_tokens=max_tokens, left_pad=left_pad)
    assert scorer.forward.parts.backbone is not None
    scores = scorer.score(CONTEXTS, TARGETS, temperature=temperature)
    for row, (context, target) in enumerate(zip(*ids_of(lm), strict=True)):
        with torch.no_grad():
            expected = (
                naive(lm.model, context, target, temperature).gather(1, target[:, None])[:, 0]
                if len(target)
                else torch.empty(0)
            )
        torch.testing.assert_close(scores.rows()[row], expected, atol=1e-5, rtol=1e-5)
        assert scores.ids[row][scores.mask[row]].tolist() == target.tolist()
    assert scores.lengths.tolist() == [len(t) for t in TARGETS]
    assert scores.texts == TARGETS
    assert scores.reasons == {}


def test_token_ids_and_logsumexp(lm):
    scorer = SpanScorer(lm)
    wanted = torch.tensor([[5, 9], [7, 7], [3, 4], [10, 11], [50, 51]])
    given_ids = scorer.score(CONTEXTS, TARGETS, gather="token_ids", token_ids=wanted)
    raw = scorer.score(CONTEXTS, TARGETS, gather="token_ids", token_ids=wanted, raw=True)
    total = scorer.score(CONTEXTS, TARGETS, gather="logsumexp")
    assert given_ids.values.shape == (5, 10, 2)
    for row, (context, target) in enumerate(zip(*ids_of(lm), strict=True)):
        if len(target):
            with torch.no_grad():
                expected = naive(lm.model, context, target)[:, wanted[row]]
            torch.testing.assert_close(given_ids.rows()[row], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(raw.values - total.values[..., None], given_ids.values, atol=1e-4, rtol=1e-5)


def test_next_token_question(lm):
    scores = SpanScorer(lm).score(CONTEXTS, None, gather="token_ids", token_ids=[5, 9])
    assert scores.values.shape == (5, 1, 2)
    with torch.no_grad():
        logits = lm.model(input_ids=encode_prompt(lm.tokenizer, CONTEXTS[1])[None]).logits[0, -1]
    torch.testing.assert_close(scores.values[1, 0], logits.log_softmax(-1)[[5, 9]], atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="token_ids"):
        SpanScorer(lm).score(CONTEXTS, None)


def test_gradients_equal_naive(lm):
    weights = [0.3, -1.0, 2.0, 0.7, 1.0]
    params = list(lm.model.parameters())
    expected = torch.autograd.grad(
        sum(
            w * naive(lm.model, c, t).gather(1, t[:, None]).sum()
            for w, c, t in zip(weights, *ids_of(lm), strict=True)
            if len(t)
        ),
        params,
    )
    for chunk in (3, 1024):  # 3: the head is recomputed in backward
        scores = SpanScorer(LocalModel(lm.model, lm.tokenizer, chunk=chunk), max_tokens=64).score(
            CONTEXTS, TARGETS, grad=True
        )
        actual = torch.autograd.grad((scores.sum() * torch.tensor(weights)).sum(), params)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, atol=1e-4, rtol=1e-4)
    assert not SpanScorer(lm).score(CONTEXTS, TARGETS).values.requires_grad


def test_first_token_without_context_is_nan_with_reason(lm):
    scores = SpanScorer(lm).score(["", "x"], ["ab", "ab"])
    assert scores.values[0].isnan().tolist() == [True, False]
    assert scores.reasons == {0: NO_CONTEXT}
    assert scores.values[1].isfinite().all()


def test_one_target_after_many_contexts_and_one_context(lm):
    scorer = SpanScorer(lm)
    many = scorer.score(CONTEXTS, "42")
    torch.testing.assert_close(many.values, scorer.score(CONTEXTS, ["42"] * 5).values)
    torch.testing.assert_close(scorer.score("2+2=", ["4", "5"]).values, scorer.score(["2+2="] * 2, ["4", "5"]).values)
    assert scorer.score([], []).values.shape[0] == 0
    assert SpanScorer(lm).score(["a"], [""]).values.shape == (1, 0)
    with pytest.raises(ConfigError, match="2 contexts and 3 targets"):
        scorer.score(["a", "b"], ["1", "2", "3"])


def test_context_ids_are_not_tokenised_again(lm):
    strange = torch.tensor([5, 5, 2, 1, 0, 7])  # unknown, end and pad tokens in the middle: no text gives these ids
    target = encode_continuation(lm.tokenizer, "42")
    with torch.no_grad():
        expected = naive(lm.model, strange, target).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(SpanScorer(lm).score([strange], ["42"]).values[0], expected, atol=1e-5, rtol=1e-5)


def test_rows_that_begin_another_share_its_forward(lm):
    class Counting(Forward):
        seen = 0

        def states(self, sequences, wanted):
            self.seen += len(sequences)
            return super().states(sequences, wanted)

    forward = Counting(lm.model)
    scores = SpanScorer(lm, forward=forward).score(["2+2=", "2+2=", "2+2", "2+2=", "3"], ["4", "5", "=4", "17", "4"])
    assert forward.seen == 2
    assert torch.equal(scores.values[0, :1], scores.values[2, 1:2])
    torch.testing.assert_close(scores.values[3, :2], SpanScorer(lm).score(["2+2="], ["17"]).values[0])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 101), min_size=1, max_size=30), st.lists(st.integers(0, 101), max_size=12)),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 200),
)
def test_order_and_batching_do_not_matter(lm, pairs, max_tokens):
    contexts = [torch.tensor(c) for c, _ in pairs]
    targets = [torch.tensor(t, dtype=torch.long) for _, t in pairs]
    together = SpanScorer(lm, max_tokens=max_tokens).score(contexts, targets).rows()
    for row, alone in enumerate(zip(contexts, targets, strict=True)):
        torch.testing.assert_close(
            together[row], SpanScorer(lm).score([alone[0]], [alone[1]]).rows()[0], atol=1e-5, rtol=1e-5
        )


def test_models_that_change_logits_after_the_head_take_the_long_way(char_tokenizer):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=102, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        final_logit_softcapping=0.5, initializer_range=0.5, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    assert take_apart(model).backbone is None
    for left_pad in (False, True):
        lm = LocalModel(model, char_tokenizer)
        scores = SpanScorer(lm, left_pad=left_pad).score(CONTEXTS, TARGETS)
        for row, (context, target) in enumerate(zip(*ids_of(lm), strict=True)):
            if len(target):
                with torch.no_grad():
                    expected = naive(model, context, target).gather(1, target[:, None])[:, 0]
                torch.testing.assert_close(scores.rows()[row], expected, atol=1e-5, rtol=1e-5)


def test_deep_copy_of_a_patched_model_answers_for_itself(tiny_model, char_tokenizer):
    from trl.trainer.utils import add_fused_lm_head

    original = copy.deepcopy(tiny_model)
    add_fused_lm_head(original)
    clone = copy.deepcopy(original)
    with torch.no_grad():
        clone.model.embed_tokens.weight.mul_(0.5)
        clone.model.norm.weight.mul_(3.0)
    healthy = copy.deepcopy(tiny_model)
    healthy.load_state_dict(clone.state_dict())
    expected = SpanScorer(LocalModel(healthy, char_tokenizer)).score(CONTEXTS, TARGETS).values
    torch.testing.assert_close(SpanScorer(LocalModel(clone, char_tokenizer)).score(CONTEXTS, TARGETS).values, expected)
    prompt = ["2+2="]
    assert (
        LocalModel(clone, char_tokenizer).generate(prompt, temperature=0, max_new_tokens=8).texts
        == LocalModel(healthy, char_tokenizer).generate(prompt, temperature=0, max_new_tokens=8).texts
    )


def test_lora_adapters_are_scored(tiny_model, char_tokenizer):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        copy.deepcopy(tiny_model), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.train()
    lm = LocalModel(model, char_tokenizer)
    scores = SpanScorer(lm).score(CONTEXTS, TARGETS)
    assert model.training  # dropout was off inside and is on again
    merged = copy.deepcopy(model).merge_and_unload().eval()
    torch.testing.assert_close(
        scores.values,
        SpanScorer(LocalModel(merged, char_tokenizer)).score(CONTEXTS, TARGETS).values,
        atol=1e-4,
        rtol=1e-4,
    )


def test_marked_part_in_the_middle(lm):
    """RLPR's splice: the reference answer between tags, scored in the joined text."""
    text = "think</think><answer> 42 </answer>"
    start = text.index("42")
    spliced = encode_with_target(lm.tokenizer, text, start, start + 2, context=torch.tensor([5, 6, 7]))
    assert spliced.target.nonzero()[:, 0].tolist() == [3 + start, 3 + start + 1]
    values, reasons = SpanScorer(lm).score_positions([spliced.ids], [spliced.target])
    with torch.no_grad():
        every = lm.model(input_ids=spliced.ids[None]).logits[0].log_softmax(-1)
    expected = torch.stack([every[i - 1, spliced.ids[i]] for i in (3 + start, 4 + start)])
    torch.testing.assert_close(values[0], expected, atol=1e-5, rtol=1e-5)
    assert reasons == {}
    assert encode_with_target(lm.tokenizer, text, 3, 3).target.sum() == 0
    with pytest.raises(ValueError, match="no part"):
        encode_with_target(lm.tokenizer, text, 0, 1000)


def test_aggregates(lm):
    scores = SpanScorer(lm).score(CONTEXTS, TARGETS)
    rows = scores.rows()
    torch.testing.assert_close(scores.sum(), torch.stack([r.sum() for r in rows]))
    assert scores.mean()[2].isnan() and scores.sum()[2] == 0
    torch.testing.assert_close(scores.mean_prob()[1], rows[1].exp().mean())


@pytest.mark.parametrize(
    "options",
    [{"gather": "all"}, {"temperature": 0.0}, {"gather": "token_ids"}, {"gather": "token_ids", "token_ids": [-1]}],
)
def test_wrong_options_are_refused(lm, options):
    with pytest.raises(ConfigError):
        SpanScorer(lm).score(["a"], ["b"], **options)


def test_logits_of_a_large_vocabulary_come_in_pieces(tiny_llama):
    """With 1 MB a position: 32 positions at a time on a CPU, all at once where gradients are kept or a size was given."""
    model = tiny_llama(vocab_size=1 << 18, hidden_size=4, num_attention_heads=2, num_key_value_heads=1)
    parts = take_apart(model)
    states = torch.randn(70, 4, generator=torch.Generator().manual_seed(0))
    seen = []

    def read(logits):
        seen.append(len(logits))
        return (logits.amax(-1),)

    with torch.no_grad():
        (values,) = Head(parts)(states, read)
        (whole,) = Head(parts, 70)(states, read)
    torch.testing.assert_close(values, whole)
    Head(parts)(states, read)
    assert seen == [32, 32, 6, 70, 70]
