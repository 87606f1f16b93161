"""Shared-prefix scoring against a naive loop: one plain forward a (prefix, target) pair, full float32 softmax."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon import Rollouts
from guerdon.errors import ConfigError
from guerdon.lm import shared
from guerdon.lm.encode import encode_continuation, encode_prompt
from guerdon.lm.local import LocalModel
from guerdon.lm.prefixes import PrefixScorer
from guerdon.lm.scorer import NO_CONTEXT, SpanScorer
from guerdon.lm.shared import NaivePathWarning

PATHS = ["packed", "cached", "padded", "auto"]
PROMPTS = ["How much is 17*3? Think.", "How much is 17*3? Think.", "How much is 17*3? Think.", "Name 2 primes:"]
ROLLOUTS = ["3*17 is 30+21, so fifty-one.", "17*3: 51.", "", "2 and 3 are primes, 4 is not."]
CUTS = [[0, 5, 12, 28, 12], [9, 0], [0], [3, 20, 7]]  # unsorted, equal ones, empty rollout, whole trunk
TARGETS = [["51", " 51.", "", "3*17", "51"], "51", "x", ["2", "3 are primes, 4", "5"]]


def naive(model, contexts, targets, temperature=1.0):
    """One forward a pair."""
    rows = []
    for context, target in zip(contexts, targets, strict=True):
        logits = model(input_ids=torch.cat([context, target])[None]).logits[0].float() / temperature
        predicted = logits[len(context) - 1 : len(context) + len(target) - 1].log_softmax(-1)
        rows.append(predicted.gather(1, target[:, None])[:, 0])
    return rows


def pairs(tokenizer, prompts=PROMPTS, rollouts=ROLLOUTS, cuts=CUTS, targets=TARGETS):
    contexts, following = [], []
    for prompt, rollout, row, given_targets in zip(prompts, rollouts, cuts, targets, strict=True):
        begin, trunk = encode_prompt(tokenizer, prompt), encode_continuation(tokenizer, rollout)
        for k, cut in enumerate(row):
            contexts.append(torch.cat([begin, trunk[:cut]]))
            text = given_targets if isinstance(given_targets, str) else given_targets[k]
            following.append(encode_continuation(tokenizer, text))
    return contexts, following


def agree(scores, expected, tolerance=1e-4):
    for row, values in zip(scores.rows(), expected, strict=True):
        torch.testing.assert_close(row, values, atol=tolerance, rtol=tolerance)


@pytest.fixture(scope="module")
def lm(tiny_model, char_tokenizer):
    return LocalModel(tiny_model, char_tokenizer)


@pytest.fixture(autouse=True)
def warn_again():
    shared._WARNED.clear()


@pytest.mark.parametrize("share", PATHS)
@pytest.mark.parametrize("left_pad", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 60, 8192])
def test_equals_naive_loop(lm, share, left_pad, max_tokens):
    scorer = PrefixScorer(lm, share=share, left_pad=left_pad, max_tokens=max_tokens)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        scores = scorer.score_prefixes(PROMPTS, ROLLOUTS, CUTS, TARGETS, temperature=0.7)
        expected = naive(lm.model, *pairs(lm.tokenizer), 0.7)
    agree(scores, expected)
    assert scores.why == "" and (scores.path == share or share == "auto")
    assert scores.rollout.tolist() == [0] * 5 + [1] * 2 + [2] + [3] * 3
    assert scores.cut.tolist() == [0, 5, 12, 28, 12, 9, 0, 0, 3, 20, 7]
    assert scores.texts[3] == "3*17" and scores.mask[2].sum() == 0 and scores.sum()[2] == 0
    table = scores.by_rollout(scores.sum())
    assert table.shape == (4, 5) and table.isnan().sum() == 4 + 5 and table[3, 2] == scores.sum()[-1]


def test_whole_trunks_are_forwarded_once(lm):
    """Tokens, counted: a prompt of 24 and a rollout of 28 under 15 cuts of 2 target tokens each."""
    cuts, prompt, rollout = [list(range(0, 30, 2))] * 3, [PROMPTS[0]] * 3, ["a" + ROLLOUTS[0][1:], "b" * 28, "c" * 28]
    counts = {}
    for share in ("packed", "cached", "padded"):
        scorer = PrefixScorer(lm, share=share, max_tokens=100_000)
        scorer.forward.costs = shared.Costs(pair=0.02, call=1.0)  # too dear a pair to have two rollouts in one row
        scorer.score_prefixes(prompt, rollout, cuts, "51")
        counts[share] = scorer.forward.tokens
    begin, target = encode_prompt(lm.tokenizer, prompt[0]).tolist(), encode_continuation(lm.tokenizer, "51").tolist()
    sequences = [
        begin
        + encode_continuation(lm.tokenizer, r)[:cut].tolist()
        + target[:-1]  # the last token predicts nothing asked
        for r, row in zip(rollout, cuts, strict=True)
        for cut in row
    ]
    unique = len({tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)})
    assert unique <= counts["cached"] <= unique + 8  # what was padded
    assert counts["cached"] < counts["packed"] <= unique + 2 * 24 + 8  # the prompt in three rows
    assert counts["padded"] > 10 * unique


def test_auto_takes_the_cheapest_and_says_so(lm):
    scorer = PrefixScorer(lm)
    assert scorer.score_prefixes(["12"], ["345"], [[3]], "6").path == "padded"  # nothing to share
    many = scorer.score_prefixes(["1" * 30], ["2" * 60], [list(range(0, 61, 4))], "34")
    assert many.path == "packed" and many.why == ""
    # A long prompt before many rollouts that differ: the prompt is cached.
    scorer.forward.costs = shared.Costs(pair=1 / 100, call=4.0)
    group = scorer.score_prefixes(["7" * 300] * 4, ["a", "b", "c", "d"], [[0, 1]] * 4, "345")
    assert group.path == "cached"


@pytest.mark.parametrize("share", ["packed", "cached"])
def test_other_gathers(lm, share):
    contexts, targets = pairs(lm.tokenizer)
    ids = torch.randint(102, (len(contexts), 3), generator=torch.Generator().manual_seed(0))
    plain, scorer = SpanScorer(lm), PrefixScorer(lm, share=share)
    for options in (
        {"gather": "logsumexp"},
        {"gather": "token_ids", "token_ids": ids},
        {"gather": "token_ids", "token_ids": [5, 9], "raw": True},
        {"raw": True, "temperature": 0.5},
    ):
        ours = scorer.score_prefixes(PROMPTS, ROLLOUTS, CUTS, TARGETS, **options)
        torch.testing.assert_close(ours.values, plain.score(contexts, targets, **options).values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("share", PATHS)
@pytest.mark.parametrize("left_pad", [False, True])
def test_gradients_equal_naive(lm, share, left_pad):
    parameters = list(lm.model.parameters())
    contexts, targets = pairs(lm.tokenizer)
    weights = torch.linspace(-1, 2, len(contexts))
    expected = torch.autograd.grad(
        sum(w * row.sum() for w, row in zip(weights, naive(lm.model, contexts, targets), strict=True)), parameters
    )
    scorer = PrefixScorer(lm, share=share, left_pad=left_pad, max_tokens=120)
    scores = scorer.score_prefixes(PROMPTS, ROLLOUTS, CUTS, TARGETS, grad=True)
    actual = torch.autograd.grad((scores.sum() * weights).sum(), parameters)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=2e-4, rtol=2e-4)
    assert not scorer.score_prefixes(PROMPTS, ROLLOUTS, CUTS, TARGETS).values.requires_grad


@pytest.mark.parametrize("share", PATHS)
def test_no_context_is_nan_with_a_reason(lm, share):
    scores = PrefixScorer(lm, share=share).score_prefixes(["", ""], ["", "abc"], [[0], [0, 2]], "51")
    assert scores.values.isnan().tolist() == [[True, False], [True, False], [False, False]]
    assert scores.reasons == {0: NO_CONTEXT, 1: NO_CONTEXT}


def test_bridge_chat_and_ids(lm, char_tokenizer):
    import copy

    tokenizer = copy.deepcopy(char_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}>"
    scorer = PrefixScorer(LocalModel(lm.model, tokenizer), share="packed")
    strange = torch.tensor([5, 1, 0, 2, 7])  # eos, pad and unknown tokens inside: no text gives these
    scores = scorer.score_prefixes(
        [[{"role": "user", "content": "2+2"}]], [strange], [[0, 3, 5]], torch.tensor([30, 31]), bridge="=>"
    )
    begin, between = encode_prompt(tokenizer, "[2+2]>"), encode_continuation(tokenizer, "=>")
    contexts = [torch.cat([begin, strange[:cut], between]) for cut in (0, 3, 5)]
    with torch.no_grad():
        agree(scores, naive(lm.model, contexts, [torch.tensor([30, 31])] * 3))


@pytest.mark.parametrize("share", ["packed", "cached", "padded"])
def test_rollouts_with_padding_and_truncated_rows(lm, share):
    """Prompts padded on the left, completions on the right with pad = eos, one cut at the cap, one empty."""
    prompts = [encode_prompt(lm.tokenizer, p) for p in PROMPTS]
    trunks = [encode_continuation(lm.tokenizer, r) for r in ROLLOUTS]
    wide, long = max(map(len, prompts)), max(map(len, trunks))
    batch = Rollouts(
        prompts=list(PROMPTS),
        completions=list(ROLLOUTS),
        prompt_ids=torch.stack([torch.cat([torch.ones(wide - len(p), dtype=torch.long), p]) for p in prompts]),
        prompt_mask=torch.stack([torch.arange(wide) >= wide - len(p) for p in prompts]),
        completion_ids=torch.stack([torch.cat([t, torch.ones(long - len(t), dtype=torch.long)]) for t in trunks]),
        completion_mask=torch.stack([torch.arange(long) < len(t) for t in trunks]),
        finished=torch.tensor([True, False, True, True]),
    )
    scores = PrefixScorer(lm, share=share).score_rollouts(batch, CUTS, TARGETS)
    with torch.no_grad():
        agree(scores, naive(lm.model, *pairs(lm.tokenizer)))


def test_nothing_to_score(lm):
    scorer = PrefixScorer(lm, share="packed")
    assert len(scorer.score_prefixes([], [], [], "x")) == 0
    assert scorer.score_prefixes(["a"], ["b"], [[]], "x").by_rollout(torch.zeros(0)).shape == (1, 0)
    assert scorer.score_prefixes(["a"], ["b"], [[0, 1]], "").values.shape == (2, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], ["b", "c"], [[0]], "x"), "give as many"),
        ((["a"], ["bc"], [[3]], "x"), "it has 2 tokens"),
        ((["a"], ["bc"], [[-1]], "x"), "cut -1"),
        ((["a"], ["bc"], [[0]], ["x", "y"]), "2 targets for 1 rollouts"),
        ((["a"], ["bc"], [[0, 1]], [["x"]]), "1 targets for 2 cuts"),
        ((["a"], ["bc"], [[0]], [[5]]), "as a tensor"),
    ],
)
def test_what_does_not_fit_is_refused(lm, arguments, message):
    with pytest.raises(ConfigError, match=message):
        PrefixScorer(lm).score_prefixes(*arguments)
    with pytest.raises(ConfigError, match="share="):
        PrefixScorer(lm, share="best")


token = st.integers(0, 101)


@settings(max_examples=40, deadline=None)
@given(
    prompts=st.lists(st.lists(token, min_size=1, max_size=20), min_size=1, max_size=2),
    rollouts=st.lists(
        st.tuples(
            st.integers(0, 1),
            st.lists(st.integers(3, 5), max_size=20),  # few different tokens, so that rollouts share beginnings
            st.lists(st.tuples(st.floats(0, 1), st.lists(token, max_size=5)), max_size=5),
        ),
        min_size=1,
        max_size=4,
    ),
    share=st.sampled_from(["packed", "cached", "auto"]),
    left_pad=st.booleans(),
    max_tokens=st.integers(1, 300),
)
def test_any_prefixes_and_targets(lm, prompts, rollouts, share, left_pad, max_tokens):
    begins = [torch.tensor(prompts[which % len(prompts)]) for which, _, _ in rollouts]
    trunks = [torch.tensor(ids, dtype=torch.long) for _, ids, _ in rollouts]
    cuts = [[round(part * len(ids)) for part, _ in asked] for _, ids, asked in rollouts]
    targets = [[torch.tensor(ids, dtype=torch.long) for _, ids in asked] for _, _, asked in rollouts]
    scorer = PrefixScorer(lm, share=share, left_pad=left_pad, max_tokens=max_tokens)
    scores = scorer.score_prefixes(begins, trunks, cuts, targets)
    contexts = [torch.cat([b, t[:c]]) for b, t, row in zip(begins, trunks, cuts, strict=True) for c in row]
    with torch.no_grad():
        agree(scores, naive(lm.model, contexts, [ids for row in targets for ids in row]))


def test_the_135m_model(smollm2):
    """A small case on the real thing: grouped queries, tied embeddings, a chat prompt."""
    chat = [{"role": "user", "content": "What is 17*3?"}]
    rollouts = ["17*3 is 3*10 + 3*7 = 30 + 21 = 51. So it is 51", "Let me see. It is 51."]
    cuts = [[0, 4, 11], [5, 2]]
    contexts, targets = pairs(smollm2.tokenizer, [chat] * 2, rollouts, cuts, [" 51"] * 2)
    with torch.no_grad():
        expected = naive(smollm2.model, contexts, targets)
    for share in ("packed", "cached"):
        scores = PrefixScorer(smollm2, share=share).score_prefixes([chat] * 2, rollouts, cuts, " 51")
        agree(scores, expected)
        assert scores.path == share


def test_naive_path_warning_is_a_user_warning():
    assert issubclass(NaivePathWarning, UserWarning)
