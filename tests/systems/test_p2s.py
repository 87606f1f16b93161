"""P2S's parts: layouts and equal pieces, gold chains and their filter, path faithfulness by hand, the switch, the composition."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import guerdon
from guerdon import Clock, Rewards, Rollouts
from guerdon.credit import Hierarchical, WeightedSteps, hierarchical_rewards, sigmoid_step_weights
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
from guerdon.systems.p2s import VECTORS, p2s

pytest.importorskip("transformers")

SUMS = ChainLayout(answer=("#", ""))
PROMPT = "a3+b5+c4=?\n"
RIGHT, HALF, WRONG = "3+b5=8\n8+c4=12\n#12", "3+b5=8\n8+c4=9\n#9", "3+b5=2\n2+c4=1\n#1"
NAN = float("nan")


@pytest.fixture(scope="module")
def lm() -> Any:
    """A tiny model without training, one token a character."""
    from guerdon.lm import LocalModel
    from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

    tokenizer = char_tokenizer()
    return LocalModel(
        new_model(tokenizer, TinyConfig(hidden=16, layers=1, heads=2, intermediate=16), 0).eval(), tokenizer
    )


def tokens(lm: Any, prompts: list[str], texts: list[str], **more: Any) -> Rollouts:
    """Rollouts with the ids of their texts and an end-of-sequence token."""
    from guerdon.lm.forward import pad_ids
    from guerdon.lm.offsets import decode_offsets_batch

    tokenizer = lm.tokenizer
    rows = [torch.tensor([*tokenizer(t, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]) for t in texts]
    ids, mask = pad_ids(rows)
    heads, head_mask = pad_ids([torch.tensor(tokenizer(p)["input_ids"]) for p in prompts], left=True)
    decoded, offsets = decode_offsets_batch(tokenizer, ids, mask)
    assert decoded == texts
    return Rollouts(
        list(prompts), list(texts), prompt_ids=heads, prompt_mask=head_mask, completion_ids=ids, completion_mask=mask,
        offsets=offsets, finished=torch.ones(len(texts), dtype=torch.bool), **more,
    )  # fmt: skip


# --- layouts and pieces ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "text", "reasoning", "answer"),
    [
        ("think", "<think>a b</think>\n<answer> c </answer>\n", "a b", " c "),
        ("think", " <think>a</think><answer>c</answer>", "a", "c"),
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


# --- links -------------------------------------------------------------------------------------------------------------------


def test_weights_grow_sum_to_one_and_survive_any_steepness() -> None:
    mask = torch.tensor(
        [[True, True, True, False], [True, False, True, True], [True, False, False, False], [False] * 4]
    )
    weights = sigmoid_step_weights(mask, 10.0)
    assert weights.sum(1).tolist() == pytest.approx([1, 1, 1, 0]) and bool((weights[~mask] == 0).all())
    assert weights[0, :3].tolist() == pytest.approx(weights[1, [0, 2, 3]].tolist())
    for steepness in (1e4, -1e4):
        extreme = sigmoid_step_weights(mask, steepness)
        assert torch.isfinite(extreme).all() and extreme.sum(1).tolist() == pytest.approx([1, 1, 1, 0])
    assert sigmoid_step_weights(mask, -1e4)[0, 0] == pytest.approx(1)
    assert VECTORS["sigmoid_step_weights"](0).tolist() == []


def test_the_switch_is_group_by_group() -> None:
    layout = torch.tensor([True, True, True, True, False, True])
    outcome = torch.tensor([1.0, 0.3, 0.3, 0.0, 1.0, 0.2])
    process = torch.tensor([9.0, 0.0, 0.0, -float("inf"), 9.0, 0.0])
    groups = torch.tensor([7, 7, 2, 2, 2, 5])
    applies = torch.tensor([True, True, True, True, True, False])
    values, solved = hierarchical_rewards(layout, outcome, process, groups, applies=applies)
    assert values.tolist() == pytest.approx([1.0, 0.3, 0.25, 0.0, -1.0, 0.2])  # a malformed right answer solves nothing
    assert solved.tolist() == [True, True, False, False, False, False]
    kept, _ = hierarchical_rewards(layout, outcome, process, groups, counts=torch.tensor([False] + [True] * 5))
    assert kept[1] == pytest.approx(0.25)  # its only right one was dropped
    with pytest.raises(ConfigError, match="outrank"):
        Hierarchical("a", "b", "c", scale=2.0)


class Column:
    """A signal that reads its scores from a data column."""

    scope, level = "row", "sequence"

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, rollouts: Rollouts, scores: object) -> Rewards:
        return Rewards.sequence(torch.tensor(rollouts.column(self.name)), rollouts)


def batch(lm: Any, texts: list[str], ok: list[float], **more: Any) -> Rollouts:
    columns = {"answer": ["12"] * len(texts), "gold": ["3+b5=8\n8+c4=12\n"] * len(texts), "ok": ok}
    return tokens(
        lm, [PROMPT] * len(texts), texts, columns=columns, group_ids=torch.zeros(len(texts), dtype=torch.long), **more
    )


def test_all_wrong_groups_have_advantages_and_outcomes_alone_have_none(lm: Any) -> None:
    rollouts = batch(lm, [HALF, WRONG, "12", HALF[:-2] + "#7"], [0.0] * 4)
    ours = p2s(verifier=Column("ok"), layout=SUMS, gold="gold", format_warmup=0.0)
    ours.bind("policy", lm)
    scores = ours(rollouts)
    assert bool((scores.advantages[:, 0].abs() > 1e-3).all())
    assert scores.reward is not None and float(scores.reward[2]) == -1.0  # no answer line
    rest = scores.reward[[0, 1, 3]]
    assert bool(((rest > 0) & (rest < 0.5)).all()) and len(set(rest.tolist())) > 1
    steps = scores.raw["pfr.steps"]
    weights = sigmoid_step_weights(steps.mask)
    process = (weights[0] * steps.values[0]).sum()
    assert float(scores.reward[0]) == pytest.approx(float(0.5 * torch.sigmoid(process)), abs=1e-5)
    alone = guerdon.systems.grpo(verifier=Column("ok"))(rollouts)
    assert not alone.advantages.any()
    assert scores.metrics["reward/process"] == 0.75 and scores.metrics["reward/solved_groups"] == 0.0


def test_solved_groups_ask_the_model_nothing(lm: Any) -> None:
    rollouts = batch(lm, [RIGHT, WRONG, "12"], [1.0, 0.0, 0.0])
    system = p2s(verifier=Column("ok"), layout=SUMS, gold="gold", format_warmup=0.0)  # no model is bound
    scores = system(rollouts)
    assert scores.reward is not None and scores.reward.tolist() == [1.0, 0.0, -1.0]
    assert not scores.raw["pfr.steps"].mask.any()
    default = p2s(layout=SUMS, gold="gold", format_warmup=0.0)(rollouts)
    assert default.reward is not None and default.reward.tolist() == [
        1.0,
        0.0,
        -1.0,
    ]  # ROUGE of "12" and "1" against "12"


def test_additive_integration_and_the_format_warm_up(lm: Any) -> None:
    rollouts = batch(lm, [RIGHT, WRONG, "12"], [1.0, 0.0, 0.0])
    both = p2s(verifier=Column("ok"), layout=SUMS, gold="gold", integration="additive", weight=2.0, format_warmup=0.0)
    both.bind("policy", lm)
    scores = both(rollouts)
    weighted = WeightedSteps("pfr.steps", into="process")(scores_with(scores.raw), rollouts)["process"].values[:, 0]
    assert scores.reward is not None
    assert scores.reward.tolist() == pytest.approx([1 + 2 * float(weighted[0]), 2 * float(weighted[1]), -1.0], abs=1e-5)
    warm = p2s(verifier=Column("ok"), layout=SUMS, gold="gold", format_warmup=0.5)
    early = warm(replace(rollouts, clock=Clock(4, 10, True)))
    late = warm(replace(rollouts, clock=Clock(5, 10, True)))
    held_out = warm(replace(rollouts, clock=Clock(4, 10, False)))
    assert early.reward is not None and early.reward.tolist() == [1.0, 1.0, 0.0]
    assert late.reward is not None and held_out.reward is not None
    assert late.reward.tolist() == held_out.reward.tolist() == [1.0, 0.0, -1.0]
    with pytest.raises(CapabilityError, match="max_steps"):
        warm(replace(rollouts, clock=Clock(4, None, True)))
    with pytest.raises(ConfigError, match="integration"):
        p2s(integration="sum")  # type: ignore[arg-type]


def scores_with(raw: dict[str, Rewards]) -> Any:
    from guerdon.rewards import Scores

    return Scores(dict(raw), torch.ones(3, dtype=torch.bool))


def test_a_question_without_a_chain_keeps_its_outcome(lm: Any) -> None:
    rollouts = batch(lm, [HALF, WRONG], [0.25, 0.0])
    rollouts = replace(rollouts, columns={**rollouts.columns, "gold": [None, None]})
    system = p2s(verifier=Column("ok"), layout=SUMS, gold="gold", format_warmup=0.0)
    system.bind("policy", lm)
    reward = system(rollouts).reward
    assert reward is not None and reward.tolist() == [0.25, 0.0]


def test_the_task_brings_layout_and_hint() -> None:
    from guerdon.lm.load import load_tokenizer
    from guerdon.systems.context import Context, build
    from guerdon.tasks import load_task

    assert load_tokenizer is not None
    system = build("p2s:max_steps=3", Context(load_task("sums,train_size=20,held_out_size=5"), None, "tiny"))
    assert "answer=('#', '')" in str(system) and "hint=''" in str(system) and "pieces=3" in str(system)
    assert system.needs == {"policy", "policy.generate"}


# --- the pipeline ------------------------------------------------------------------------------------------------------------


def test_chains_of_a_file_are_resumed_and_can_be_trained_on(lm: Any, tmp_path: Any) -> None:
    import json

    from guerdon.io.chains import gold_chain_phase, write_gold_chains
    from guerdon.phases import run_phases

    rows = [{"prompt": f"a{i}+b1=?\n", "answer": str(i + 1), "topic": i} for i in range(1, 8)] + [
        {"prompt": "q", "answer": None}
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # An untrained model keeps to a layout only by luck: any text with one "=" and one line after it will do.
    options: dict[str, Any] = {
        "layout": ["", "", "=", ""],
        "hint": "",
        "candidates": 6,
        "max_new_tokens": 16,
        "batch_size": 3,
    }
    done = write_gold_chains(source, tmp_path / "out.jsonl", lm, **options)
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert done.rows == len(out) == 8 and [row["topic"] for row in out[:7]] == list(range(1, 8))
    assert out[7]["gold_chain"] is None and "no answer" in out[7]["gold_reason"]
    assert done.left_out == sum(row["gold_chain"] is None for row in out)
    for row in out:
        assert (row["gold_chain"] is None) == (row["gold_reason"] is not None) == (row["gold_logprob"] is None)

    class Stopping(type(lm)):  # type: ignore[misc]
        calls = 0

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            Stopping.calls += 1
            if Stopping.calls == 2:
                raise KeyboardInterrupt
            return super().generate(*args, **kwargs)

    with pytest.raises(KeyboardInterrupt):
        write_gold_chains(source, tmp_path / "again.jsonl", Stopping(lm.model, lm.tokenizer), **options)
    resumed = write_gold_chains(source, tmp_path / "again.jsonl", lm, **options)
    assert resumed.resumed_at == 3 and (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    (manifest,) = run_phases([gold_chain_phase(source, lm, **options)], tmp_path / "recipe")
    assert manifest["result"]["rows"] == 8
