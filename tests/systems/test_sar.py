"""SAR: the formula and its variants, prompts without their question, the signal against plain forwards, the composition."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import guerdon
from guerdon import CapabilityError, Clock, ConfigError, LogProbs, Rewards, Rollouts
from guerdon.signals.likelihood.relative_perplexity import (
    RelativePerplexity,
    encode_context,
    mean_nll,
    relative_perplexity,
    without_question,
)
from guerdon.systems.outcome import dr_grpo, grpo
from guerdon.systems.sar import last_number_or_fraction, sar

transformers = pytest.importorskip("transformers")
NAN = float("nan")


def of(question: float, alone: float, **options: Any) -> float:
    return float(relative_perplexity(torch.tensor(question), torch.tensor(alone), **options))


# --- the formula -----------------------------------------------------------------------------------------------------


@given(st.floats(0, 30), st.floats(0, 30))
def test_the_safe_form_is_the_direct_one(question: float, alone: float) -> None:
    q, a = math.exp(question), math.exp(alone)
    assert of(question, alone) == pytest.approx(max((a - q) / a, -1.0), abs=1e-5)
    assert -1 <= of(question, alone) <= 1


def test_where_the_direct_form_overflows() -> None:
    assert of(1000.0, 900.0) == -1.0 and of(900.0, 1000.0) == 1.0
    assert of(math.inf, 3.0) == -1.0 and of(3.0, math.inf) == 1.0 and of(math.inf, math.inf) == 0.0
    assert math.isnan(of(NAN, 1.0))


def test_variants_by_hand() -> None:
    q, a = math.log(1.4), math.log(2.1)
    assert of(q, a, use_log=True) == pytest.approx((a - q) / a)
    assert of(q, a, use_denominator=False) == pytest.approx(0.7)
    assert of(q, a, use_denominator=False, use_comparison=False) == pytest.approx(3.6)
    assert of(math.log(8), a, use_denominator=False) == pytest.approx(-5.9), "differences have no floor"
    assert of(q, math.log(50), clip_value=10) == pytest.approx(0.86)
    assert of(3.0, 12.0, use_log=True, clip_value=10) == pytest.approx(0.7), "the cap comes after the logarithm"
    assert of(q, math.log(50), clip_value=1) == of(q, math.log(50)), "a cap of 1 or less is none"
    assert of(0.0, 0.0, use_log=True) == 0.0 and of(0.5, 0.0, use_log=True) == -1.0
    with pytest.raises(ConfigError, match="use_denominator=False"):
        of(q, a, use_comparison=False)


def test_token_view() -> None:
    """R = 1 - exp(-mean v), v the gain of each token from the question."""
    with_q, without = torch.tensor([[-0.5, -1.0, -0.2]]), torch.tensor([[-2.5, -1.0, -0.9]])
    mask = torch.ones(1, 3)
    found = relative_perplexity(mean_nll(with_q, mask), mean_nll(without, mask))
    assert float(found) == pytest.approx(1 - math.exp(-2.7 / 3), rel=1e-6)


def test_nll_ignores_padding_whatever_stands_there() -> None:
    logprobs = torch.tensor([[-1.0, -3.0, NAN], [-1.0, -math.inf, 5.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert mean_nll(logprobs, mask).tolist()[:2] == [2.0, 1.0] and math.isnan(mean_nll(logprobs, mask)[2])


# --- prompts without their question ----------------------------------------------------------------------------------

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2? Answer in a word."}]


def test_the_official_rule_keeps_the_system_text_only() -> None:
    assert without_question(CHAT) == [CHAT[0], {"role": "user", "content": ""}]
    assert without_question(CHAT, has_template=False) == "System: Be brief.\nUser: \nAssistant: "
    assert without_question("2+2?") == ""


def test_a_named_question_leaves_what_is_around_it() -> None:
    shots = [CHAT[0], {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "two"}, CHAT[1]]
    assert without_question(shots, "2+2?") == [*shots[:3], {"role": "user", "content": " Answer in a word."}]
    assert without_question("Q: 2+2?\nA: 4\nQ: 2+2?\nA:", "2+2?") == "Q: 2+2?\nA: 4\nQ: \nA:"
    for question in ("3+3?", "  "):
        with pytest.raises(ValueError, match="not part of the prompt"):
            without_question(CHAT, question)


@pytest.fixture(scope="module")
def lm() -> Any:
    """A tiny model with a token for each character and a chat template that refuses system messages."""
    from guerdon.lm import LocalModel
    from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

    tokenizer = char_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"
    )
    model = new_model(tokenizer, TinyConfig(hidden=32, layers=2, heads=2, intermediate=64), 0)
    return LocalModel(model.eval(), tokenizer)


def test_a_template_without_a_system_role_gets_its_text_in_the_user_message(lm: Any) -> None:
    text = lm.tokenizer.decode(encode_context(lm.tokenizer, without_question(CHAT)))
    assert text == "<user>Be brief.\n\n<assistant>"
    assert encode_context(lm.tokenizer, "").tolist() == [lm.tokenizer.eos_token_id], "something begins every text"


# --- the signal ------------------------------------------------------------------------------------------------------


def plain_nll(lm: Any, context: torch.Tensor, ids: torch.Tensor, wanted: list[int], temperature: float = 1.0) -> float:
    """One row alone, no padding: the mean over some of its tokens."""
    whole = torch.cat([context, ids])[None]
    with torch.no_grad():
        logprobs = (lm.model(whole).logits[0] / temperature).log_softmax(-1)
    return -sum(float(logprobs[len(context) + t - 1, ids[t]]) for t in wanted) / len(wanted)


def tokens(lm: Any, prompts: list[Any], texts: list[str], **more: Any) -> Rollouts:
    """Rollouts with ids: prompts left-padded, completions right-padded with a token that is also the end of sequence."""
    end = lm.tokenizer.eos_token_id
    heads = [encode_context(lm.tokenizer, prompt) for prompt in prompts]
    tails = [
        torch.cat([encode(lm, text), torch.tensor([end])]) if text else torch.tensor([], dtype=torch.long)
        for text in texts
    ]
    wide, long = max(map(len, heads)), max(map(len, tails))
    prompt_ids, prompt_mask = torch.full((len(heads), wide), end), torch.zeros(len(heads), wide, dtype=torch.bool)
    ids, mask = torch.full((len(tails), long), end), torch.zeros(len(tails), long, dtype=torch.bool)
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        prompt_ids[row, wide - len(head) :], prompt_mask[row, wide - len(head) :] = head, True
        ids[row, : len(tail)], mask[row, : len(tail)] = tail, True
    return Rollouts(
        list(prompts), list(texts), prompt_ids=prompt_ids, prompt_mask=prompt_mask, completion_ids=ids, completion_mask=mask, **more
    )  # fmt: skip


def encode(lm: Any, text: str) -> torch.Tensor:
    return torch.tensor(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def bound(lm: Any, **options: Any) -> RelativePerplexity:
    signal = RelativePerplexity(likelihoods=True, **options)
    signal.bind("policy", lm)
    return signal


PROMPTS: list[Any] = ["a3+b5=?\n", [{"role": "user", "content": "2+2? now"}], "long prompt of another length: 9-1"]
TEXTS = ["3+b5=8\n#8", "4", "eight"]


def test_scores_equal_plain_forwards_row_by_row(lm: Any) -> None:
    rollouts = tokens(lm, PROMPTS, TEXTS)
    found = bound(lm)(rollouts)
    for row, (prompt, text) in enumerate(zip(PROMPTS, TEXTS, strict=True)):
        ids = torch.cat([encode(lm, text), torch.tensor([lm.tokenizer.eos_token_id])])
        every = list(range(len(ids)))
        question = plain_nll(lm, encode_context(lm.tokenizer, prompt), ids, every)
        alone = plain_nll(lm, encode_context(lm.tokenizer, without_question(prompt)), ids, every)
        assert float(found["nll_question"].values[row]) == pytest.approx(question, abs=1e-4)
        assert float(found["nll_alone"].values[row]) == pytest.approx(alone, abs=1e-4)
        assert float(found["score"].values[row]) == pytest.approx(max(1 - math.exp(question - alone), -1), abs=1e-4)


def test_text_only_rollouts_are_scored_too(lm: Any) -> None:
    found = bound(lm)(Rollouts.from_texts(PROMPTS, TEXTS))
    ids = encode(lm, TEXTS[0])
    expected = plain_nll(lm, encode(lm, PROMPTS[0]), ids, list(range(len(ids))))
    assert float(found["nll_question"].values[0]) == pytest.approx(expected, abs=1e-4)


def test_tool_output_is_context_in_both_passes_and_counts_in_neither(lm: Any) -> None:
    rollouts = tokens(lm, PROMPTS[:1], TEXTS[:1])
    assert rollouts.completion_ids is not None
    policy = rollouts.mask.clone()
    policy[0, 2:5] = False
    found = bound(lm)(replace(rollouts, policy_mask=policy))
    wanted = policy[0].nonzero()[:, 0].tolist()
    ids = rollouts.completion_ids[0]
    assert float(found["nll_question"].values) == pytest.approx(
        plain_nll(lm, encode(lm, PROMPTS[0]), ids, wanted), abs=1e-4
    )
    alone = plain_nll(lm, encode_context(lm.tokenizer, ""), ids, wanted)
    assert float(found["nll_alone"].values) == pytest.approx(alone, abs=1e-4)


def test_stored_log_probabilities_are_used_at_temperature_one_and_never_tempered(lm: Any) -> None:
    rollouts = tokens(lm, PROMPTS, TEXTS)
    marked = torch.full(rollouts.mask.shape, -0.125)
    stored = bound(lm)(replace(rollouts, logprobs={"old": LogProbs(marked, 1.0)}))
    assert stored["nll_question"].values[:, 0].tolist() == [0.125] * 3
    tempered = bound(lm)(replace(rollouts, logprobs={"old": LogProbs(marked, 0.7)}))
    torch.testing.assert_close(tempered["score"].values, bound(lm)(rollouts)["score"].values)


def test_an_empty_response_is_the_policys_doing(lm: Any) -> None:
    found = bound(lm)(tokens(lm, PROMPTS[:2], ["", "4"]))
    assert float(found["score"].values[0]) == -1 and "wrote nothing" in found["score"].reasons[0, 0]
    assert not found["nll_alone"].mask[0, 0] and found["nll_alone"].mask[1, 0]
    assert not any(rewards.failed.any() for rewards in found.values())


def test_a_question_that_is_not_in_its_prompt_is_the_datas_doing(lm: Any) -> None:
    rows = replace(tokens(lm, PROMPTS[:2] * 2, ["4"] * 4), columns={"q": ["a3+b5", "2+2?", "7", None]})
    found = bound(lm, question="q")(rows)
    assert found["score"].failed[:, 0].tolist() == [False, False, True, True]
    assert "not part of the prompt" in found["score"].reasons[2, 0]
    ids = torch.cat([encode(lm, "4"), torch.tensor([lm.tokenizer.eos_token_id])])
    assert float(found["nll_alone"].values[0]) == pytest.approx(
        plain_nll(lm, encode(lm, "=?\n"), ids, [0, 1]), abs=1e-4
    )


def test_questionless_prompts_of_the_users_own(lm: Any) -> None:
    rollouts = tokens(lm, PROMPTS[:1], TEXTS[:1])
    fixed = bound(lm, questionless="=?\n")(rollouts)["nll_alone"].values
    made = bound(lm, questionless=lambda prompt: prompt[-3:])(rollouts)["nll_alone"].values
    torch.testing.assert_close(fixed, made)
    with pytest.raises(ConfigError, match="give one"):
        RelativePerplexity(question="q", questionless="x")
    with pytest.raises(CapabilityError, match="'policy'"):
        RelativePerplexity()(rollouts)


# --- the composition -------------------------------------------------------------------------------------------------


class Column:
    """A signal that reads its scores from a data column."""

    scope, level = "row", "sequence"

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, rollouts: Rollouts, scores: object) -> Rewards:
        return Rewards.sequence(torch.tensor(rollouts.column(self.name)), rollouts)


def graded(lm: Any, **more: Any) -> Rollouts:
    texts = ["3+b5=8\n#8", "ok so far\n3+b5=8\n#8", "#9", ""]
    return tokens(
        lm, [PROMPTS[0]] * 4, texts, group_ids=torch.tensor([0, 0, 0, 1]), columns={"ok": [1.0, 1.0, 0.0, 0.0]}, **more
    )


def test_the_reward_is_correctness_plus_a_fifth_of_the_score(lm: Any) -> None:
    system = guerdon.systems.sar(verifier=Column("ok"))
    system.bind("policy", lm)
    scores = system(graded(lm))
    score = scores.raw["sar.score"].values[:, 0]
    torch.testing.assert_close(scores.reward, torch.tensor([1.0, 1.0, 0.0, 0.0]) + 0.2 * score)
    expected = scores.reward - torch.tensor([float(scores.reward[:3].mean())] * 3 + [0.0])
    torch.testing.assert_close(scores.advantages[:3, 0], expected[:3])
    assert scores.keep.all() and {"length/mean", "length/right", "length/right_and_short"} <= set(scores.metrics)
    assert {"sar.score", "sar.nll_question", "sar.nll_alone", "answer"} == set(scores.raw)


@pytest.mark.parametrize("norm_by_std", [False, True])
def test_per_reward_advantages_equal_the_sums_unless_divided(lm: Any, norm_by_std: bool) -> None:
    found = []
    for weighting in ("reward", "advantage"):
        system = sar(verifier=Column("ok"), weighting=weighting, norm_by_std=norm_by_std)  # type: ignore[arg-type]
        system.bind("policy", lm)
        found.append(system(graded(lm)))
    torch.testing.assert_close(found[0].reward, found[1].reward)
    assert torch.allclose(found[0].advantages[:3], found[1].advantages[:3], atol=1e-6) is not norm_by_std


def test_the_schedule_scales_alpha(lm: Any) -> None:
    system = sar(verifier=Column("ok"), scheduler="linear", increase=True, peak=0.5)
    system.bind("policy", lm)
    scores = system(graded(lm, clock=Clock(10, 40, True)))
    expected = torch.tensor([1.0, 1.0, 0.0, 0.0]) + 0.5 * 0.2 * scores.raw["sar.score"].values[:, 0]
    torch.testing.assert_close(scores.reward, expected)


@pytest.mark.parametrize("norm_by_std", [False, True])
def test_alpha_zero_is_plain_grpo_to_the_last_bit(lm: Any, norm_by_std: bool) -> None:
    rollouts = graded(lm).select([0, 1, 2])
    plain = grpo(verifier=Column("ok"), eps=1e-6) if norm_by_std else dr_grpo(verifier=Column("ok"))
    ours = sar(verifier=Column("ok"), alpha=0.0, norm_by_std=norm_by_std)
    assert torch.equal(ours(rollouts).advantages, plain(rollouts).advantages) and not ours.needs


def test_baselines_and_confidence(lm: Any) -> None:
    rollouts = graded(lm)
    for efficiency in ("o1_pruner", "efficient_reasoner"):
        system = sar(verifier=Column("ok"), efficiency=efficiency)  # type: ignore[arg-type]
        reward = system(rollouts).reward
        assert reward[0] > 1 > reward[1], "the shorter of two right ones"
        assert not system.needs
    system = sar(verifier=Column("ok"), use_comparison=False, use_denominator=False)
    system.bind("policy", lm)
    scores = system(rollouts)
    confidence = 5 - scores.raw["sar.nll_question"].values[:3, 0].exp()
    torch.testing.assert_close(scores.raw["sar.score"].values[:3, 0], confidence, rtol=1e-4, atol=1e-4)


def test_ppo_puts_the_reward_on_the_last_token(lm: Any) -> None:
    system = sar(verifier=Column("ok"), carrier="ppo")
    system.bind("policy", lm)
    rollouts = graded(lm)
    scores = system(replace(rollouts, values=torch.zeros(rollouts.mask.shape)))
    torch.testing.assert_close(
        scores.reward[:3], torch.tensor([1.0, 1.0, 0.0]) + 0.2 * scores.raw["sar.score"].values[:3, 0]
    )
    assert float(scores.advantages[rollouts.mask].mean()) == pytest.approx(0, abs=1e-5)


def test_refusals() -> None:
    with pytest.warns(UserWarning, match="collapsed"):
        sar(verifier=Column("ok"), base=0.0)
    with pytest.raises(ConfigError, match="efficiency"):
        sar(verifier=Column("ok"), efficiency="short")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="carrier='grpo'"):
        sar(verifier=Column("ok"), weighting="advantage", carrier="ppo")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 and 4 make\nAnswer: 1,007.", "1007"),
        ("it is -2.5 degrees", "-2.5"),
        (r"so x = \frac{3}{4}", r"\frac{3}{4}"),
        (r"-\dfrac{1}{2} of 8 is -4", "-4"),
        ("no number", None),
    ],
)
def test_the_official_verifiers_answer(text: str, answer: str | None) -> None:
    assert last_number_or_fraction(text) == answer


def test_the_score_alone_is_one_value_a_row(lm: Any) -> None:
    signal = RelativePerplexity()
    signal.bind("policy", lm)
    rollouts = tokens(lm, PROMPTS, TEXTS)
    torch.testing.assert_close(signal(rollouts).values, bound(lm)(rollouts)["score"].values)
