"""Training reward models at toy size: the losses mean what they say, and training separates what it should."""

import math
import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaForTokenClassification

from guerdon.errors import ConfigError, DataError
from guerdon.rollouts import Rollouts
from guerdon.signals.learned import (
    PURE_STAGES,
    Auxiliary,
    LabelledSolution,
    PreferencePair,
    RewardModel,
    Stage,
    StepClassifier,
    pair_accuracy,
    train_prm,
    train_rm,
)
from guerdon.signals.learned.scalar import encode_pair
from guerdon.signals.learned.tiny_prm import labelled_solutions, noisy_solution, score_statistics
from guerdon.signals.learned.train_prm import (
    encode_solutions,
    next_token_loss,
    similar_lengths,
    step_loss,
    token_labels,
)
from guerdon.tasks.arithmetic import is_held_out, label_steps
from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

TOKENIZER = char_tokenizer()
NEWLINE = TOKENIZER("\n")["input_ids"][0]


def small(kind, labels):
    torch.manual_seed(0)
    return kind(
        LlamaConfig(
            vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
            num_labels=labels, pad_token_id=TOKENIZER.pad_token_id, eos_token_id=1, bos_token_id=None,
        )
    )  # fmt: skip


def test_step_loss_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)], [9.0, -9.0]]])
    nan = math.nan
    assert float(step_loss(logits, torch.tensor([[nan, 1.0, nan]]))) == pytest.approx(-math.log(0.75))
    assert float(step_loss(logits, torch.tensor([[nan, 0.5, nan]]))) == pytest.approx(-0.5 * math.log(0.75 * 0.25))
    both = step_loss(logits, torch.tensor([[0.0, 1.0, nan]]))
    assert float(both) == pytest.approx((math.log(2) - math.log(0.75)) / 2)


def test_labels_stand_at_the_delimiters_and_nowhere_else():
    rows, targets = encode_solutions(TOKENIZER, [LabelledSolution("a1+b2=?\n", ["1+b2=3", "", "#3"], [1.0, 0.0, 0.75])])
    assert TOKENIZER.decode(rows[0]) == "a1+b2=?\n1+b2=3\n\n#3\n"
    labelled = {i: label for i, label in enumerate(targets[0]) if not math.isnan(label)}
    assert labelled == {14: 1.0, 15: 0.0, 18: 0.75} and all(rows[0][i] == NEWLINE for i in labelled)


def test_token_labels_by_hand():
    nan = math.nan
    steps, labels = ["1+b2=4", "ok", "#4", ""], [0.0, 0.75, 1.0, 0.0]
    found = token_labels(TOKENIZER, LabelledSolution("a1+b2=?\n", steps, labels, [5, None, None, None]))
    due = [*[nan] * 8, 1, 1, 1, 1, 1, 0, nan, nan, nan, nan, 1, 1, nan, nan]
    assert torch.equal(torch.tensor(found).nan_to_num(nan=-1.0), torch.tensor(due).nan_to_num(nan=-1.0))
    unplaced = token_labels(TOKENIZER, LabelledSolution("a1+b2=?\n", ["1+b2=4"], [0.0]))
    assert all(math.isnan(label) for label in unplaced)


def test_next_token_loss_by_hand():
    ids, hidden = torch.tensor([[0, 1, 1]]), torch.tensor([[[0.0], [math.log(3.0)], [9.0]]])
    embedding = torch.tensor([[0.0], [1.0]])  # logits 0 and the state itself
    both = torch.ones(1, 3, dtype=torch.bool)
    assert float(next_token_loss(hidden, embedding, ids, both)) == pytest.approx((math.log(2) - math.log(0.75)) / 2)
    last = torch.tensor([[True, False, True]])
    assert float(next_token_loss(hidden, embedding, ids, last)) == pytest.approx(-math.log(0.75))


def test_bad_examples_are_refused():
    with pytest.raises(DataError, match="2 labels for 1 steps"):
        LabelledSolution("p", ["a"], [1.0, 0.0])
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        LabelledSolution("p", ["a"], [-1.0])
    with pytest.raises(DataError, match="2 places of errors for 1 steps"):
        LabelledSolution("p", ["a"], [1.0], [None, 3])
    with pytest.raises(DataError, match="nothing to learn"):
        train_prm(small(LlamaForTokenClassification, 2), [LabelledSolution("p", [], [])], tokenizer=TOKENIZER)


def test_stages_train_what_they_say_and_micro_batches_change_nothing():
    assert [(s.trains, s.lr, s.epochs) for s in PURE_STAGES] == [("head", 1e-4, 3), ("all", 1e-6, 1)]
    examples = labelled_solutions(8, random.Random(0), 0.75)

    def trained(stages, **options):
        model = small(LlamaForTokenClassification, 2)
        model.dropout = torch.nn.Identity()  # dropout would draw differently in batches of another size
        before = {k: v.clone() for k, v in model.state_dict().items()}
        result = train_prm(model, examples, stages=stages, batch_size=8, tokenizer=TOKENIZER, **options)
        changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
        return result, changed

    _, changed = trained([Stage("head", 1e-2)])
    assert changed == {"score.weight", "score.bias"}
    one, changed = trained([Stage("all", 1e-3)])
    assert "model.layers.0.mlp.up_proj.weight" in changed
    two, _ = trained([Stage("all", 1e-3)], micro_batch_size=3)
    assert two.losses == pytest.approx(one.losses, rel=1e-4)
    dense, _ = trained([Stage("all", 1e-3)], auxiliary=Auxiliary(1.0, 0.5))
    parts, _ = trained([Stage("all", 1e-3)], auxiliary=Auxiliary(1.0, 0.5), micro_batch_size=3)
    assert dense.losses[0] > one.losses[0] and parts.losses == pytest.approx(dense.losses, rel=1e-4)


def test_similar_lengths_is_a_permutation_with_little_padding():
    torch.manual_seed(0)
    lengths = torch.randint(5, 60, (200,)).tolist()
    batches = similar_lengths(lengths, 8)
    assert sorted(torch.cat(batches).tolist()) == list(range(200))
    padded = sum(len(b) * max(lengths[i] for i in b.tolist()) for b in batches)
    assert padded < 1.2 * sum(lengths)


def test_a_trained_prm_separates_wrong_from_right_lines(tmp_path):
    """A mistake a small model finds quickly: a restatement of two different values."""
    rng = random.Random(0)

    def example():
        lines = [f"so {v} is {v if (good := rng.random() < 0.5) else v + 1}" for v in (rng.randint(1, 8),)]
        return LabelledSolution("a1+b2=?\n", lines, [float(good)])

    backbone, path = (
        new_model(TOKENIZER, TinyConfig(hidden=64, layers=2, heads=2, intermediate=128), 0),
        tmp_path / "base",
    )
    backbone.save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    before = torch.get_rng_state()
    result = train_prm(
        str(path),
        [example() for _ in range(3200)],
        stages=[Stage("head", 1e-2), Stage("all", 3e-3, epochs=2)],
        batch_size=32,
        output=tmp_path / "prm",
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(result.losses[-5:]) / 5 < 0.2 < 0.6 < result.losses[0]
    signal = StepClassifier(str(tmp_path / "prm"), retokenize=True)
    texts = ["so 4 is 4", "so 4 is 5", "so 7 is 7", "so 7 is 8"]
    batch = Rollouts.from_texts(["a1+b2=?\n"] * 4, texts)
    from guerdon.segment import ByDelimiter

    values = signal(batch.with_spans(steps=ByDelimiter(None, "\n")(batch))).values[:, 0].tolist()
    assert values[0] > 0.5 and values[2] > 0.5 and values[1] < -0.5 and values[3] < -0.5


def test_noisy_solutions_have_every_kind_and_keep_to_their_side():
    rng = random.Random(0)
    kinds = set()
    for held_out in (True, False):
        for _ in range(100):
            prompt, lines = noisy_solution(rng, held_out=held_out)
            assert is_held_out(prompt) == held_out
            assert len("\n".join(lines)) < 64
            kinds |= set(label_steps(prompt, lines))
    assert kinds == {"correct", "wrong", "filler"}
    labels = {label for s in labelled_solutions(50, rng, 0.8) for label in s.labels}
    assert labels == {0.0, 0.8, 1.0}


def test_score_statistics_counts_every_line():
    solutions = [("a1+b2=?\n", ["1+b2=3", "ok so far", "#4"]), ("a1+b3=?\n", ["#4"])]
    stats = score_statistics(small(LlamaForTokenClassification, 2).eval(), TOKENIZER, solutions)
    assert {k: v["count"] for k, v in stats.items()} == {"correct": 1, "filler": 1, "wrong": 2, "wrong answer": 2}


# --- scalar reward models --------------------------------------------------------------------------------------------


def token_rollouts(pairs):
    heads = [TOKENIZER(p)["input_ids"] for p, _ in pairs]
    tails = [[*TOKENIZER(c)["input_ids"], TOKENIZER.eos_token_id] for _, c in pairs]
    width, length = max(map(len, heads)), max(map(len, tails))
    prompt_ids = torch.tensor([[0] * (width - len(h)) + h for h in heads])
    ids = torch.tensor([t + [0] * (length - len(t)) for t in tails])
    return Rollouts(
        [p for p, _ in pairs], [c for _, c in pairs],
        prompt_ids=prompt_ids, prompt_mask=prompt_ids != 0, completion_ids=ids, completion_mask=ids != 0,
    )  # fmt: skip


PAIRS = [("a1+b2=?\n", "1+b2=3\n#3"), ("a1+b2+c9=?\n", "#3"), ("a4+b4=?\n", "ok so far\nok so far\n#8")]


def test_reward_model_scores_the_last_token():
    model = small(LlamaForSequenceClassification, 1).eval()
    signal = RewardModel(model, tokenizer=TOKENIZER)
    rewards = signal(token_rollouts(PAIRS))
    for b, (prompt, completion) in enumerate(PAIRS):
        ids = torch.tensor([encode_pair(TOKENIZER, prompt, completion)])
        with torch.no_grad():
            alone = model(input_ids=ids).logits[0, 0]  # one unpadded row: the model's own pooling is right here
        assert float(rewards.values[b, 0]) == pytest.approx(float(alone), abs=1e-5)
    texts = Rollouts.from_texts([p for p, _ in PAIRS], [c for _, c in PAIRS])
    again = RewardModel(model, tokenizer=TOKENIZER, retokenize=True, token_budget=40)(texts)
    torch.testing.assert_close(again.values, rewards.values, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(signal(texts).values, rewards.values, atol=1e-5, rtol=1e-4)


def test_pad_equal_to_eos_does_not_move_the_last_token():
    model = small(LlamaForSequenceClassification, 1).eval()
    model.config.pad_token_id = TOKENIZER.eos_token_id
    plain = small(LlamaForSequenceClassification, 1).eval()
    one = RewardModel(model, tokenizer=TOKENIZER)(token_rollouts(PAIRS)).values
    assert torch.equal(one, RewardModel(plain, tokenizer=TOKENIZER)(token_rollouts(PAIRS)).values)


def test_too_long_is_scored_as_far_as_it_fits_and_non_finite_is_nan():
    model = small(LlamaForSequenceClassification, 1).eval()
    model.config.max_position_embeddings = 30
    rewards = RewardModel(model, tokenizer=TOKENIZER)(token_rollouts(PAIRS))
    assert rewards.values.isfinite().all() and set(rewards.reasons) == {(2, 0)}
    assert "context of 30" in rewards.reasons[2, 0] and "scored at the last" in rewards.reasons[2, 0]
    ids = torch.tensor([encode_pair(TOKENIZER, *PAIRS[2])[:30]])
    with torch.no_grad():
        assert float(rewards.values[2]) == pytest.approx(float(model(input_ids=ids).logits[0, 0]), abs=1e-5)
    rewards = RewardModel(model, tokenizer=TOKENIZER)(token_rollouts([("a1+b2=?\n" * 5, "#3")]))
    assert rewards.values.isnan().all() and "the prompt alone" in rewards.reasons[0, 0]
    with torch.no_grad():
        model.score.weight.fill_(math.inf)
    rewards = RewardModel(model, tokenizer=TOKENIZER)(token_rollouts(PAIRS))
    assert rewards.values.isnan().all() and "non-finite" in rewards.reasons[0, 0]


def test_two_labels_are_not_a_scalar_reward_model():
    with pytest.raises(ConfigError, match="1 label"):
        RewardModel(small(LlamaForSequenceClassification, 2), tokenizer=TOKENIZER).load()
    with pytest.raises(ConfigError, match="tokenizer"):
        RewardModel(small(LlamaForSequenceClassification, 1))


def test_train_rm_learns_a_preference():
    rng = random.Random(0)

    def pair():
        operands = f"a{rng.randint(1, 9)}+b{rng.randint(1, 9)}=?\n"
        return PreferencePair(operands, f"#{rng.randint(1, 9)}", f"{rng.randint(1, 9)}#")

    pairs = [pair() for _ in range(640)]
    model = small(LlamaForSequenceClassification, 1)
    held_out = [pair() for _ in range(50)]
    result = train_rm(model, pairs, lr=3e-3, epochs=3, batch_size=32, reg=0.005, tokenizer=TOKENIZER)
    assert result.losses[-1] < 0.2 < 0.5 < result.losses[0]
    assert pair_accuracy(result.model, TOKENIZER, held_out) > 0.95
    with pytest.raises(DataError):
        train_rm(model, [], tokenizer=TOKENIZER)
    with pytest.raises(ConfigError, match="without reg"):
        train_rm(model, pairs, loss="pointwise", reg=0.1, tokenizer=TOKENIZER)
    options = {"lr": 3e-3, "epochs": 6, "batch_size": 32, "loss": "pointwise", "tokenizer": TOKENIZER}
    pointwise = train_rm(small(LlamaForSequenceClassification, 1), pairs, **options)
    assert pointwise.losses[-1] < 0.1 and pair_accuracy(pointwise.model, TOKENIZER, held_out) > 0.9
