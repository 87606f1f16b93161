"""The process reward model signal: its rebuilt input, its scores, and what it does when something is missing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForTokenClassification

from guerdon.errors import ConfigError
from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts
from guerdon.segment import ByDelimiter
from guerdon.signals.learned import StepClassifier, find_separator_ids, rebuild_prm_input, split_steps, step_scores
from guerdon.signals.learned.prm import length_batches
from guerdon.spans import Spans
from guerdon.tasks.tiny import char_tokenizer

TOKENIZER = char_tokenizer()
EOS, PAD = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id


def small_prm(**changes):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64, num_labels=2, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None, **changes,
    )  # fmt: skip
    model = LlamaForTokenClassification(config)
    torch.nn.init.normal_(model.score.weight, std=1.0)
    return model


def rollouts(pairs, *, eos=True, unit="token"):
    """Rollouts of (prompt, completion) texts, prompts padded left, completions right, with PURE's steps."""
    heads = [TOKENIZER(p)["input_ids"] for p, _ in pairs]
    tails = [(TOKENIZER(c)["input_ids"] if c else []) + ([EOS] if eos else []) for _, c in pairs]
    width, length = max(map(len, heads)), max(map(len, tails))
    prompt_ids = torch.tensor([[PAD] * (width - len(h)) + h for h in heads])
    ids = torch.tensor([t + [PAD] * (length - len(t)) for t in tails]).reshape(len(pairs), length)
    mask = torch.tensor([[1] * len(t) + [0] * (length - len(t)) for t in tails]).reshape(len(pairs), length).bool()
    size = torch.tensor([len(c) for _, c in pairs])[:, None]
    index = torch.arange(length).expand(len(pairs), length)
    offsets = torch.stack([index.minimum(size), (index + 1).minimum(size)], -1)
    batch = Rollouts(
        [p for p, _ in pairs], [c for _, c in pairs], prompt_ids=prompt_ids, prompt_mask=prompt_ids != PAD,
        completion_ids=ids, completion_mask=mask, offsets=offsets,
    )  # fmt: skip
    return batch.with_spans(steps=ByDelimiter(TOKENIZER, "\n")(batch))


PAIRS = [
    ("a3+b5=?\n", "3+b5=8\n#8"),
    ("a1+b2+c3=?\n", "1+b2=3\nok so far\n3+c3=6\n#6"),
    ("a9+b9=?\n", "#18"),
    ("a9+b8=?\n", "\n\n"),
]


def naive_scores(model, batch):
    """Row by row as the paper's text says it: each step without its last token, then one delimiter, read there.

    White space alone is no step of its own, and a solution of nothing else gets the lowest score.
    """
    newline = TOKENIZER("\n")["input_ids"][0]
    rows = []
    for b in range(len(batch)):
        ids = TOKENIZER(batch.prompts[b])["input_ids"]
        response = batch.completion_ids[b][batch.mask[b]].tolist()
        if not batch.completions[b].strip():
            rows.append([-1.0])
            continue
        step, steps = [], []
        for t, token in enumerate(response):
            step.append(token)
            if token == newline or t == len(response) - 1:
                steps.append(step)
                step = []
        scores = []
        for step in steps:
            ids = ids + step[:-1] + [newline]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            bad, good = logits.softmax(-1).tolist()
            scores.append(good - bad)
        rows.append(scores)
    return rows


def assert_same(rewards, rows, tolerance=1e-5):
    assert rewards.mask.sum(1).tolist() == [len(r) for r in rows]
    for b, row in enumerate(rows):
        assert rewards.values[b, : len(row)].tolist() == pytest.approx(row, abs=tolerance)


@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("token_budget", [1, 60, 10_000])
def test_scores_equal_a_naive_loop(eos, token_budget):
    model = small_prm().eval()
    batch = rollouts(PAIRS, eos=eos)
    signal = StepClassifier(model, tokenizer=TOKENIZER, token_budget=token_budget)
    rewards = signal(batch, Scores.empty(batch))
    assert_same(rewards, naive_scores(model, batch))
    assert rewards.level == "steps" and rewards.reasons == {(3, 0): "the step is white space alone"}
    assert torch.equal(step_scores(signal.last_logits, rewards.mask)[:3], rewards.values[:3])
    assert rewards.values[~rewards.mask].eq(0).all()


def test_retokenizing_with_the_same_tokenizer_changes_nothing():
    model = small_prm().eval()
    batch = rollouts(PAIRS[:3])
    plain = StepClassifier(model, tokenizer=TOKENIZER)(batch)
    again = StepClassifier(model, tokenizer=TOKENIZER, retokenize=True)(batch)
    torch.testing.assert_close(plain.values, again.values, atol=1e-5, rtol=1e-4)


def test_texts_alone_are_encoded():
    model = small_prm().eval()
    batch = Rollouts.from_texts([p for p, _ in PAIRS[:3]], [c for _, c in PAIRS[:3]])
    batch = batch.with_spans(steps=ByDelimiter(None, "\n")(batch))
    assert batch.spans["steps"].unit == "char"
    for retokenize in (False, True):  # there are no ids that could be another vocabulary's
        rewards = StepClassifier(model, tokenizer=TOKENIZER, retokenize=retokenize)(batch)
        assert_same(rewards, naive_scores(model, rollouts(PAIRS[:3])))


def test_eval_mode_random_state_and_gradients_are_left_alone():
    model = small_prm(attention_dropout=0.5, classifier_dropout=0.5).train()
    signal = StepClassifier(model, tokenizer=TOKENIZER)
    before = torch.get_rng_state()
    one, two = signal(rollouts(PAIRS)), signal(rollouts(PAIRS))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.values, two.values) and not one.values.requires_grad
    assert model.training


def test_rows_without_steps_are_masked_and_empty_spans_fail():
    model = small_prm().eval()
    batch = rollouts([("a3+b5=?\n", "#8"), ("a3+b5=?\n", "")], eos=False)
    rewards = StepClassifier(model, tokenizer=TOKENIZER)(batch)
    assert rewards.mask.tolist() == [[True], [False]] and not rewards.values.isnan().any()
    whole = StepClassifier(model, tokenizer=TOKENIZER, segment="sequence")
    rewards = whole(batch.with_spans(sequence=Spans.sequence(batch.lengths)))
    assert rewards.values[1].tolist() == [-1.0] and rewards.reasons == {(1, 0): "the step is empty"}
    nothing = rollouts([("a3+b5=?\n", "")], eos=False)
    assert StepClassifier(model, tokenizer=TOKENIZER)(nothing).values.shape == (1, 0)


def test_beyond_the_context_is_the_lowest_score_and_broken_weights_are_nan():
    """A completion that is too long is the policy's doing, a prompt that is too long or a broken head is not."""
    model = small_prm().eval()
    batch = rollouts([("a3+b5=?\n", "3+b5=8\n" * 10), PAIRS[0]])
    rewards = StepClassifier(model, tokenizer=TOKENIZER)(batch)
    assert (rewards.values[0, :8] > -1).all() and (rewards.values[0, 8:11] == -1).all()
    assert "context of 64" in rewards.reasons[0, 8] and rewards.values[1].isfinite().all()
    prompt = "a3+b5=?\n" * 9
    for retokenize in (False, True):
        rewards = StepClassifier(model, tokenizer=TOKENIZER, retokenize=retokenize)(rollouts([(prompt, "#8")]))
        assert rewards.failed.equal(rewards.mask) and "the prompt alone fills" in rewards.reasons[0, 0]
    with torch.no_grad():
        model.score.bias.fill_(math.nan)
    rewards = StepClassifier(model, tokenizer=TOKENIZER)(rollouts(PAIRS))
    written = rewards.mask.clone()
    written[3] = False  # white space alone is not asked about
    assert rewards.failed.equal(written) and set(rewards.reasons) == {tuple(c) for c in rewards.mask.nonzero().tolist()}


def test_wrong_models_and_delimiters_are_refused():
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match="tokenizer"):
        StepClassifier(small_prm())
    three = LlamaForTokenClassification(LlamaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=3))  # fmt: skip
    with pytest.raises(ConfigError, match="2 labels"):
        StepClassifier(three, tokenizer=TOKENIZER).load()
    with pytest.raises(ConfigError, match="one known token"):
        StepClassifier(small_prm(), tokenizer=TOKENIZER, delimiter="\n\n")(rollouts(PAIRS))


def test_hub_style_loading_from_a_path(tmp_path):
    model = small_prm().eval()
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    batch = rollouts(PAIRS)
    loaded = StepClassifier(str(tmp_path))(batch)
    assert torch.equal(loaded.values, StepClassifier(model, tokenizer=TOKENIZER)(batch).values)


def test_rebuilt_input_by_hand():
    built = rebuild_prm_input(
        torch.tensor([[0, 0, 7], [5, 6, 7]]),
        torch.tensor([[0, 0, 1], [1, 1, 1]]),
        torch.tensor([[8, 9, 1, 2], [8, 2, 0, 0]]),
        torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        torch.tensor([[1, 3], [1, -1]]),
        delimiter_id=4,
        pad_id=0,
    )
    assert built.ids.tolist() == [[7, 8, 4, 1, 4, 0, 0], [5, 6, 7, 8, 4, 0, 0]]
    assert built.mask.sum(1).tolist() == [5, 5]
    assert built.positions.tolist() == [[2, 4], [4, -1]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 120))
def test_length_batches_cover_every_row_within_the_budget(lengths, budget):
    batches = list(length_batches(torch.tensor(lengths), budget))
    assert sorted(torch.cat(batches).tolist()) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * max(lengths[i] for i in rows.tolist()) <= budget


@settings(max_examples=200)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=4),
    st.sets(st.integers(0, 3), max_size=2),
    st.booleans(),
)
def test_split_steps_equals_a_loop(rows, separators, twice):
    width = max(map(len, rows))
    ids = torch.tensor([r + [0] * (width - len(r)) for r in rows]).reshape(len(rows), width)
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]).reshape(len(rows), width)
    expected = []
    for row in rows:
        ends = [i for i, token in enumerate(row) if token in separators]
        if row and (twice or not ends or ends[-1] != len(row) - 1):
            ends.append(len(row) - 1)
        expected.append(ends)
    got = split_steps(ids, mask, separators, count_final_separator_twice=twice)
    most = max(map(len, expected))
    assert got.num_steps.tolist() == [len(e) for e in expected]
    assert got.step_ends.tolist() == [e + [-1] * (most - len(e)) for e in expected]
    assert [m.nonzero()[:, 0].tolist() for m in got.step_end_mask] == [sorted(set(e)) for e in expected]


def test_split_steps_agrees_with_the_segmenter():
    batch = rollouts(PAIRS[:3], eos=False)  # but for white space alone, which is a step to the official splitter
    spans = batch.spans["steps"]
    ends = split_steps(batch.completion_ids, batch.mask, find_separator_ids(TOKENIZER, "\n")).step_ends
    assert torch.equal(ends, torch.where(spans.mask, spans.end, -1))


def test_split_steps_ignores_separators_outside_the_mask_and_checks_shapes():
    got = split_steps(torch.tensor([[1, 5, 1, 1]]), torch.tensor([[0, 1, 1, 0]]), torch.tensor([1]))
    assert got.step_ends.tolist() == [[2]]
    with pytest.raises(ValueError, match=r"\[B, T\]"):
        split_steps(torch.zeros(2, 3), torch.zeros(2, 4), [1])
