"""P2S's parts: layouts and equal pieces, gold chains and their filter, path faithfulness by hand, the switch, the composition."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from p2s_kit import HALF, NAN, PROMPT, RIGHT, SUMS, WRONG, tokens

from guerdon import Clock, Rewards, Rollouts
from guerdon.errors import CapabilityError, ConfigError
from guerdon.segment.reasoning import LAYOUTS, ChainLayout, EqualPieces, equal_pieces, layout_of, whole_tokens
from guerdon.signals.likelihood.gold_chain import (
    ChainColumn,
    SynthesisedChains,
    hinted,
    leaks,
    select_gold_chain,
)
from guerdon.signals.likelihood.path_faithfulness import PathFaithfulness, path_faithfulness_rewards, placeholder
from guerdon.signals.verifiable.answer_layout import LayoutFormat, Rouge, rouge1_f1
from guerdon.spans import Spans

pytest.importorskip("transformers")

# --- layouts and pieces ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "text", "reasoning", "answer"),
    [
        ("think", "<think>a b</think>\n<answer> c </answer>\n", "a b", " c "),
        ("think", " <think>a</think><answer>c</answer>", "a", "c"),
        ("think_opened", "a b</think>\n<answer> c </answer>\n", "a b", " c "),
        ("answer", "so it is\n<answer>c</answer>", "so it is\n", "c"),
        (SUMS, RIGHT, "3+b5=8\n8+c4=12\n", "12"),
        (SUMS, "1\n#2\n", "1\n", "2\n"),
    ],
)
def test_layouts_find_reasoning_and_answer(layout: Any, text: str, reasoning: str, answer: str) -> None:
    parsed = layout_of(layout).parse(text)
    assert parsed.ok and text[slice(*parsed.reasoning)] == reasoning and text[slice(*parsed.answer)] == answer
    assert layout_of(layout).answer_of(text) == answer.strip()


@pytest.mark.parametrize(
    ("layout", "text", "why"),
    [
        ("think", "", "occurs 0 times"),
        ("think", "<think>a</think><answer>c", "occurs 0 times"),
        ("think", "<think>a<think></think><answer>c</answer>", "occurs 2 times"),
        ("think", "<answer>c</answer><think>a</think>", "not in the order"),
        ("think", "<think> </think><answer>c</answer>", "reasoning is empty"),
        ("think", "<think>a</think><answer>\n</answer>", "answer is empty"),
        ("think", "Sure! <think>a</think><answer>c</answer>", "outside"),
        ("think", "<think>a</think> then <answer>c</answer>", "outside"),
        (SUMS, "3+b5=8\n#8\nok so far", "after the answer"),
        (SUMS, "#8", "reasoning is empty"),
    ],
)
def test_what_a_layout_refuses(layout: Any, text: str, why: str) -> None:
    parsed = layout_of(layout).parse(text)
    assert not parsed.ok and why in parsed.why and layout_of(layout).answer_of(text) is None
    rollouts = Rollouts.from_texts(["q"], [text])
    scored = LayoutFormat(layout=layout)(rollouts)
    assert scored.values.tolist() == [[0.0]] and why in scored.reasons[0, 0]
    assert not EqualPieces(5, layout_of(layout))(rollouts).mask.any()


def test_layouts_by_name_and_by_texts() -> None:
    assert (
        layout_of(["", "", "#", ""]) == SUMS and LAYOUTS["think"].bridge == "</think>\n<answer>" and SUMS.bridge == "#"
    )
    for wrong in ("thought", ["<a>", "</a>"], ["", "", "", ""]):
        with pytest.raises(ConfigError):
            layout_of(wrong)


@pytest.mark.parametrize(("length", "pieces"), [(0, 5), (1, 5), (7, 3), (5, 5), (23, 4), (9, 1)])
def test_pieces_tile_and_differ_by_at_most_one_token(length: int, pieces: int) -> None:
    found = equal_pieces(length, pieces)
    assert [i for a, b in found for i in range(a, b)] == list(range(length))
    sizes = [b - a for a, b in found]
    assert len(found) == min(length, pieces) and max(sizes, default=0) - min(sizes, default=0) <= 1


def test_tokens_across_a_border_belong_to_neither_side() -> None:
    offsets = torch.tensor([[0, 6], [6, 8], [8, 9], [9, 9], [9, 12]])  # "<think", ">a", "b", a special one, "</t"
    assert whole_tokens(offsets, 7, 9) == (2, 3) and whole_tokens(offsets, 7, 8) == (0, 0)


def test_steps_are_tokens_of_the_reasoning_alone(lm: Any) -> None:
    rollouts = tokens(lm, [PROMPT, PROMPT], [RIGHT, "#12"])
    spans = EqualPieces(4, SUMS)(rollouts)
    assert spans.unit == "token" and spans.to_lists() == [[(0, 2), (3, 6), (7, 10), (11, 14)], []]
    texts = EqualPieces(4, SUMS, lm.tokenizer)(Rollouts.from_texts([PROMPT] * 2, [RIGHT, "#12"]))
    assert texts.unit == "char" and texts.to_lists() == spans.to_lists()  # one token a character
    assert EqualPieces(4, SUMS)(Rollouts.from_texts([PROMPT], [RIGHT])).to_lists() == spans.to_lists()[:1]


# --- outcome -------------------------------------------------------------------------------------------------------------


def test_rouge_reads_the_answer_and_the_best_reference() -> None:
    text = "<think>12 yards</think><answer>12 yards</answer>"
    rollouts = Rollouts.from_texts(
        ["q"] * 4,
        [text, text, "12 yards", text],
        {"answer": ["12 yards longer", ["no", "12 YARDS."], "12 yards", None]},
    )
    found = Rouge(layout="think")(rollouts)
    assert found.values[:3, 0].tolist() == pytest.approx([0.8, 1.0, 0.0])
    assert math.isnan(found.values[3, 0]) and "no usable reference" in found.reasons[3, 0]
    assert rouge1_f1("", "") == rouge1_f1("...", "a") == 0.0 and rouge1_f1("a a a", "a b") == pytest.approx(0.4)


# --- gold chains -----------------------------------------------------------------------------------------------------------


def test_the_filter_takes_the_likeliest_well_formed_one() -> None:
    assert select_gold_chain([1, 0, 1], [-3.0, -0.1, -2.0]) == 2  # a malformed one never wins
    assert select_gold_chain([1, 1], [-float("inf"), -float("inf")]) == 0
    assert select_gold_chain([1, 1], [NAN, -5.0]) == 1 and select_gold_chain([1], [NAN]) is None
    assert select_gold_chain([], []) is None


def test_hints_go_to_the_end_of_the_question() -> None:
    assert hinted("Q", "A{b}", " is {answer}!") == "Q is A{b}!" and hinted("Q", "A", "") == "Q"
    assert hinted("Q", "A", lambda prompt, answer: answer + prompt) == "AQ"
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}]
    made = hinted(chat, "A", " ({answer})")
    assert made[2]["content"] == "z (A)" and chat[2]["content"] == "z" and made[0] == chat[0]
    with pytest.raises(ConfigError, match="no user message"):
        hinted([{"role": "system", "content": "x"}], "A", "h")
    assert leaks("It is Paris, as the river ...", "paris", 2) and not leaks("The river ... so Paris", "paris", 2)


class Writer:
    """A model that writes given chains and scores with a real one."""

    def __init__(self, lm: Any, texts: list[str]) -> None:
        self.lm, self.texts, self.asked = lm, texts, []
        self.tokenizer = lm.tokenizer

    def generate(self, prompts: Any, *, n: int, generator: Any, **_: Any) -> Any:
        from guerdon.lm.local import Generations

        self.asked += list(prompts)
        rows = tokens(self.lm, [""] * n * len(prompts), self.texts)
        assert rows.completion_ids is not None and rows.offsets is not None
        none = torch.zeros(0)
        return Generations(
            self.texts, none, none, rows.completion_ids, rows.mask, rows.offsets, ["eos"] * len(self.texts)
        )


def test_synthesis_keeps_reasoning_only_and_scores_it_without_the_hint(lm: Any) -> None:
    """The chosen chain is the argmax of log pi(y* | question, chain) among the well-formed ones, computed here the long way."""
    texts = [WRONG, "no answer at all", RIGHT, HALF]
    writer = Writer(lm, texts)
    source = SynthesisedChains(SUMS, hint="{answer}\n")
    rollouts = tokens(lm, [PROMPT], [WRONG], columns={"answer": ["12"]})
    chains, shares = source.sample(writer, [PROMPT], ["12"], 64, torch.Generator())
    assert writer.asked == [PROMPT + "12\n"] and shares == [0.75] and chains[0][1] is None
    ours = [None if c is None else lm.tokenizer.decode(c) for c in chains[0]]
    assert ours == ["3+b5=2\n2+c4=1\n", None, "3+b5=8\n8+c4=12\n", "3+b5=8\n8+c4=9\n"]
    found = source.filter(lm, [PROMPT], ["12"], chains, shares)[0]
    long_way = {}
    for k, chain in enumerate(ours):
        if chain is not None:
            ids = torch.tensor([lm.tokenizer(PROMPT + chain + "#12")["input_ids"]])
            logprobs = lm.token_logprobs(ids, torch.ones_like(ids, dtype=torch.bool))
            long_way[k] = float(logprobs[0, -2:].mean())
    best = max(long_way, key=lambda k: long_way[k])
    assert not isinstance(found, str) and torch.equal(found.ids, chains[0][best])  # type: ignore[arg-type]
    assert found.logprob == pytest.approx(long_way[best], abs=1e-4) and found.survived == 0.75
    first = replace(source, choose="first").filter(lm, [PROMPT], ["12"], chains, shares)[0]
    assert not isinstance(first, str) and torch.equal(first.ids, chains[0][0])  # type: ignore[arg-type]
    lone = source.filter(lm, [PROMPT], ["12"], [[None, None]], [0.0])[0]
    assert isinstance(lone, str) and "well-formed" in lone
    assert source(lm, rollouts, []) == []


def test_a_leaking_candidate_is_dropped(lm: Any) -> None:
    texts = ["12 of course\nbecause\nbecause\n#12", RIGHT]
    chains, shares = SynthesisedChains(SUMS, candidates=2, leak_pieces=2).sample(
        Writer(lm, texts), [PROMPT], ["12"], 9, torch.Generator()
    )
    assert chains[0][0] is None and chains[0][1] is not None and shares == [0.5]
    with pytest.raises(ConfigError, match="choose"):
        SynthesisedChains(SUMS, choose="best")  # type: ignore[arg-type]


def test_sampled_chains_repeat_with_the_clock(lm: Any) -> None:
    rollouts = tokens(lm, [PROMPT], [WRONG], columns={"answer": ["12"]}, clock=Clock(3, 10, True, 1))
    source = SynthesisedChains(ChainLayout(answer=("=", "")), candidates=8, hint="")
    first, second = source(lm, rollouts, [0])[0], source(lm, rollouts, [0])[0]
    assert isinstance(first, str) == isinstance(second, str)
    if not isinstance(first, str) and not isinstance(second, str):
        assert torch.equal(first.ids, second.ids)


# --- path faithfulness -------------------------------------------------------------------------------------------------------


def test_the_maximum_is_of_the_difference_and_nan_is_not_hidden() -> None:
    suffixes, masked = torch.tensor([[-1.0, -8.0]]), torch.tensor([[-1.0, -12.0]])
    assert path_faithfulness_rewards(suffixes, masked, torch.tensor(-0.5)).tolist() == [4.0, -0.5]
    assert path_faithfulness_rewards(torch.zeros(0, 0), torch.zeros(0, 0), torch.tensor(-0.5)).tolist() == [-0.5]
    broken = path_faithfulness_rewards(torch.tensor([[NAN, 0.0]]), torch.zeros(1, 2), torch.tensor(-0.5))
    assert math.isnan(broken[0]) and broken[1] == -0.5
    assert math.isnan(path_faithfulness_rewards(torch.zeros(2, 0), torch.zeros(2, 0), torch.tensor(0.0))[1])


def signal_of(lm: Any, **options: Any) -> PathFaithfulness:
    signal = PathFaithfulness(chains=ChainColumn("gold", SUMS), layout=SUMS, pieces=options.pop("pieces", 3), **options)
    signal.bind("policy", lm)
    return signal


def scored(lm: Any, rollouts: Rollouts, **options: Any) -> dict[str, Rewards]:
    pieces = options.get("pieces", 3)
    return signal_of(lm, **options)(rollouts.with_spans(steps=EqualPieces(pieces, SUMS, lm.tokenizer)(rollouts)))


@pytest.mark.parametrize("baseline", ["masked", "empty"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_rewards_equal_a_forward_for_every_pair(lm: Any, baseline: Any, reduction: Any) -> None:
    gold = "3+b5=8\n8+c4=12\n"
    rollouts = tokens(lm, [PROMPT], [HALF], columns={"answer": ["12"], "gold": [gold]})
    found = scored(lm, rollouts, baseline=baseline, suffix_reduction=reduction, answer_reduction=reduction)
    tokenizer, mask_id = lm.tokenizer, placeholder(lm.tokenizer)
    prompt, reasoning = tokenizer(PROMPT)["input_ids"], tokenizer("3+b5=8\n8+c4=9\n")["input_ids"]
    chain = tokenizer(gold)["input_ids"]

    def logprob(context: list[int], target: list[int]) -> float:
        ids = torch.tensor([[*context, *target]])
        values = lm.token_logprobs(ids, torch.ones_like(ids, dtype=torch.bool))[0, len(context) :]
        return float(values.mean() if reduction == "mean" else values.sum())

    expected = []
    for _, end in equal_pieces(len(reasoning), 3)[:-1]:
        masked = [mask_id] * end if baseline == "masked" else []
        gains = [
            logprob(prompt + reasoning[:end], chain[start:]) - logprob(prompt + masked, chain[start:])
            for start, _ in equal_pieces(len(chain), 3)
        ]
        expected.append(max(gains))
    expected.append(logprob(prompt + reasoning + tokenizer("#")["input_ids"], tokenizer("12")["input_ids"]))
    assert found["steps"].values[0].tolist() == pytest.approx(expected, abs=1e-4)
    after_gold = logprob(prompt + chain + tokenizer("#")["input_ids"], tokenizer("12")["input_ids"])
    if reduction == "mean":
        assert float(found["gold"].values[0, 0]) == pytest.approx(after_gold, abs=1e-4)


def test_another_question_is_the_baseline_of_each(lm: Any) -> None:
    """As many pieces of the next question's reasoning; a question alone in its batch has nothing to be compared with and says so."""
    gold, other = "3+b5=8\n8+c4=12\n", "a7+b2=?\n"
    columns = {"answer": ["12", "12", "9"], "gold": [gold, gold, "7+b2=9\n"]}
    rollouts = tokens(
        lm, [PROMPT, PROMPT, other], [HALF, WRONG, "7+b2=9\n#9"], columns=columns, group_ids=torch.tensor([0, 0, 1])
    )
    found = scored(lm, rollouts, baseline="other", suffix_reduction="sum")["steps"]
    tokenizer = lm.tokenizer
    ids = {text: tokenizer(text)["input_ids"] for text in (PROMPT, other, gold, "3+b5=8\n8+c4=9\n", "7+b2=9\n")}

    def gain(prompt: str, own: str, stranger: str, step: int, chain: str) -> float:
        def logprob(prefix: list[int], target: list[int]) -> float:
            row = torch.tensor([ids[prompt] + prefix + target])
            values = lm.token_logprobs(row, torch.ones_like(row, dtype=torch.bool))
            return float(values[0, -len(target) :].sum())

        ends = [ids[chain][start:] for start, _ in equal_pieces(len(ids[chain]), 3)]
        prefix, other = (ids[text][: equal_pieces(len(ids[text]), 3)[step][1]] for text in (own, stranger))
        return max(logprob(prefix, s) - logprob(other, s) for s in ends)

    assert float(found.values[0, 1]) == pytest.approx(gain(PROMPT, "3+b5=8\n8+c4=9\n", "7+b2=9\n", 1, gold), abs=1e-4)
    assert float(found.values[2, 0]) == pytest.approx(
        gain(other, "7+b2=9\n", "3+b5=8\n8+c4=9\n", 0, "7+b2=9\n"), abs=1e-4
    )
    assert not found.failed.any()
    alone = scored(lm, rollouts.select(torch.tensor([0, 1])), baseline="other")["steps"]
    assert alone.failed[alone.mask].all() and "no other question" in alone.reasons[0, 0]
    one_step = scored(lm, rollouts.select(torch.tensor([0])), baseline="other", pieces=1)["steps"]
    assert not one_step.failed.any()  # log pi(answer) alone is compared with nothing


def test_texts_score_as_their_tokens(lm: Any) -> None:
    columns = {"answer": ["12"] * 2, "gold": ["3+b5=8\n8+c4=12\n"] * 2}
    ids = scored(lm, tokens(lm, [PROMPT] * 2, [HALF, WRONG], columns=columns))["steps"]
    texts = scored(lm, Rollouts.from_texts([PROMPT] * 2, [HALF, WRONG], columns))["steps"]
    torch.testing.assert_close(ids.values, texts.values, atol=1e-4, rtol=0)


def test_what_does_not_apply_is_masked_and_what_is_missing_is_nan(lm: Any) -> None:
    texts = [HALF, "#12", WRONG, HALF, "7\n#1"]
    columns = {"answer": ["12", "12", "12", None, "12"], "gold": ["3+b5=8\n", "3+b5=8\n", None, "3+b5=8\n", "3+b5=8\n"]}
    found = scored(lm, tokens(lm, [PROMPT] * 5, texts, columns=columns, group_ids=torch.arange(5)))
    steps = found["steps"]
    assert steps.mask.sum(1).tolist() == [
        3,
        0,
        0,
        3,
        2,
    ]  # whole, broken layout, no gold chain, no reference, two tokens
    assert steps.failed[3].all() and "no reference" in steps.reasons[3, 0] and not steps.failed[[0, 1, 2, 4]].any()
    assert found["gold"].mask[:, 0].tolist() == [True, False, False, False, True]
    with pytest.raises(CapabilityError, match="'policy'"):
        PathFaithfulness(chains=ChainColumn("gold", SUMS), layout=SUMS)(
            tokens(
                lm,
                [PROMPT],
                [HALF],
                columns={"answer": ["1"], "gold": ["x"]},
                spans={"steps": Spans.sequence(torch.tensor([5]))},
            )
        )
    with pytest.raises(ConfigError, match="baseline"):
        signal_of(lm, baseline="none")
