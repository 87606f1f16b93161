"""The factories: protocol, references, TRL's reward function form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import guerdon.signals
from guerdon import CapabilityError, MissingColumn, Rollouts, Scores, System
from guerdon.signals import (
    QA,
    AnswerTag,
    Exact,
    Length,
    Math,
    MultipleChoice,
    Numeric,
    Repetition,
    TextSignal,
    ThinkFormat,
    Verdict,
    text_signal,
)


def texts(completions: list[str], **columns: list[Any]) -> Rollouts:
    return Rollouts.from_texts([""] * len(completions), completions, columns)


def values(signal: TextSignal, rollouts: Rollouts) -> list[float]:
    return signal(rollouts, Scores.empty(rollouts)).values[:, 0].tolist()


def test_math_signal_in_a_system() -> None:
    rollouts = texts(["\\boxed{4}", "\\boxed{5}", "no idea", "4"], answer=["4", "4", 4, None])
    system = System(signals={"truth": Math()})
    scores = system.score(rollouts)
    assert scores["truth"].values[:3, 0].tolist() == [1.0, 0.0, 0.0]
    assert math.isnan(scores["truth"].values[3, 0].item())
    reasons = scores["truth"].reasons
    assert "no usable reference" in reasons[(3, 0)] and reasons[(2, 0)] == "no answer found" and "5" in reasons[(1, 0)]
    assert (0, 0) not in reasons
    assert "math(reference='answer'" in str(system)


@pytest.mark.parametrize("signal", [Math(), Exact(), Numeric(), MultipleChoice(), QA()])
def test_a_missing_column_is_an_error_that_names_those_there_are(signal: TextSignal) -> None:
    with pytest.raises(MissingColumn, match="gold, topic"):
        signal(texts(["x"], gold=["1"], topic=["t"]))


@pytest.mark.parametrize("signal", [Math(), Exact(), Numeric(), MultipleChoice(), QA()])
@pytest.mark.parametrize("missing", [None, "", "  ", math.nan, [], [None], True])
def test_a_missing_reference_is_unknown_with_a_reason(signal: TextSignal, missing: Any) -> None:
    rewards = signal(texts(["A 1"], answer=[missing]))
    assert math.isnan(rewards.values[0, 0].item()) and "no usable reference" in rewards.reasons[(0, 0)]


def test_several_references_any_match() -> None:
    assert values(Math(), texts(["\\boxed{7}"] * 3, answer=[["5", "7"], ["5", "6"], ["5", "\\frac{1}{"]]))[:2] == [
        1.0,
        0.0,
    ]
    assert values(Exact(), texts(["b", "c"], answer=[["a", "b"]] * 2)) == [1.0, 0.0]
    assert values(Numeric(), texts(["it is 3"], answer=[torch.tensor([1.0, 3.0])])) == [1.0]
    assert values(QA(), texts(["red dog"], answer=[["cat", "the dog"]])) == [pytest.approx(2 / 3)]


def test_extraction_options() -> None:
    gsm = texts(["3 + 4 = 7 #### 7", "7"], answer=["7", "7"])
    assert values(Math(extract="after:####"), gsm) == [1.0, 0.0]
    assert values(Math(extract="tag"), texts(["<answer>x^2 + 1</answer> 9"], answer=["1 + x^2"])) == [1.0]
    assert values(Math(extract="boxed"), texts(["\\boxed{1} then 2", "2"], answer=["2", "2"])) == [0.0, 0.0]
    assert values(Math(extract="last_number"), texts(["first 3 then 1,000 apples"], answer=["1000"])) == [1.0]
    assert values(Exact(extract=lambda text: text.split()[-1]), texts(["a b"], answer=["b"])) == [1.0]
    assert values(
        Math(extract="tag"),
        texts(["<answer>12 apples</answer>", "<answer>The answer is 12.</answer>"], answer=["12"] * 2),
    ) == [1.0, 1.0]


def test_numeric_without_an_answer_still_sees_a_broken_reference() -> None:
    rewards = Numeric()(texts(["none", "none"], answer=["5", "five"]))
    assert rewards.values[0, 0].item() == 0.0 and math.isnan(rewards.values[1, 0].item())


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("1e3", "1000", 1.0),
        ("1e3", "1", 0.0),
        ("x^2 + 1", "1", 0.0),
        ("The answer is x^2 + 1", "1", 0.0),
        ("\\boxed{1 1/2}", "1", 0.0),
        ("\\boxed{1 1/2}", "3/2", 1.0),
        ("\\boxed{2 3}", "5", 0.0),
        ("\\boxed{12 345}", "12345", 1.0),
        ("−5", "-5", 1.0),
        ("+3", "3", 1.0),
        ("The answer is 3/7.", "3/7", 1.0),
        ("\\boxed{\\frac{1}{}} 42", "42", 0.0),
        ("\\boxed{x \\in [0, 1)}", "[0,1)", 1.0),
        ("$\\frac{\\sqrt{2}}{2}$", "\\frac{1}{\\sqrt{2}}", 1.0),
        ("\\boxed{9}. But wait a moment. \\boxed{10}", "10", 1.0),
        ("\\boxed{9}, \\boxed{10}", "10", 0.0),
        ("5", "\\frac{1}{", math.nan),
        ("10" + "0" * 90_000, "10", 0.0),
        ("\\boxed{8}" + " ok" * 20_000, "8", 1.0),
    ],
)
def test_math_by_hand(answer: str, reference: str, expected: float) -> None:
    rewards = Math(timeout_s=20.0, workers=2)(texts([answer], answer=[reference]))
    assert rewards.values[0, 0].item() == pytest.approx(expected, nan_ok=True), rewards.reasons


def test_formats_length_repetition() -> None:
    good = "<think>t</think><answer>4</answer>"
    rollouts = texts([good, "4"])
    assert values(AnswerTag(), rollouts) == [1.0, 0.0]
    assert values(ThinkFormat(), rollouts) == [1.0, 0.0]
    assert values(ThinkFormat(mode="think"), rollouts) == [1.0, 0.0]
    assert values(Length(cap=10, unit="char"), rollouts) == [-1.0, 0.0]
    assert values(Repetition(), texts(["a " * 30, "a b"])) == [-1.0, 0.0]
    assert values(Repetition(rule="ngram", n=1), texts(["a a a b"])) == [-0.5]
    with pytest.raises(CapabilityError, match="unit='char'"):
        Length(cap=10)(rollouts)
    tokens = Rollouts(
        [""], ["abc"], completion_ids=torch.tensor([[1, 2, 3, 0]]), completion_mask=torch.tensor([[1, 1, 1, 0]])
    )
    assert values(Length(target=6), tokens) == [-0.5]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Math(extract="box"), lambda: Math(on_timeout="one"), lambda: Math(timeout_s=0), lambda: Numeric(atol=-1), lambda: QA(metric="bleu"),
        lambda: ThinkFormat(mode="r1"), lambda: ThinkFormat(mode="R1_nothink", opened_by_prompt=True), lambda: ThinkFormat(rule="x"), lambda: QA(rule="x"),
        lambda: Length(), lambda: Length(cap=5, buffer=5),
        lambda: Length(cap=5, unit="line"), lambda: Repetition(rule="x"), lambda: Repetition(window_size=0),
    ],
)  # fmt: skip
def test_bad_options_are_refused_at_construction(make: Any) -> None:
    with pytest.raises(ValueError):
        make()


def test_as_a_trl_reward_function() -> None:
    reward = Math().as_reward_func()
    assert reward.__name__ == "math"
    chat = [
        [{"role": "assistant", "content": "\\boxed{4}"}],
        [{"role": "tool", "content": "4"}, {"role": "assistant", "content": [{"type": "text", "text": "5"}]}],
        [],
    ]
    assert reward(
        prompts=["", "", ""],
        completions=chat,
        completion_ids=[[1], [2], []],
        answer=["4", "4", "4"],
        trainer_state=None,
    ) == [1.0, 0.0, 0.0]
    assert reward(prompts=[""], completions=["4"], answer=[None]) == [None]
    assert Length(cap=2).as_reward_func()(prompts=[""], completions=["abc"], completion_ids=[[1, 2, 3]]) == [-1.0]
    with pytest.raises(MissingColumn, match="gold"):
        reward(prompts=[""], completions=["4"], gold=["4"])


def test_text_signal_lifts_a_function() -> None:
    def brevity(completion: str, limit: int) -> float | Verdict:
        return Verdict(math.nan, "no limit") if limit < 0 else float(len(completion) <= limit)

    signal = text_signal(brevity, columns=["limit"])
    rewards = signal(texts(["abc", "abc", "abc"], limit=[3, 2, -1]))
    assert rewards.values[:2, 0].tolist() == [1.0, 0.0] and rewards.reasons == {(2, 0): "no limit"}
    assert (signal.scope, signal.needs, signal.level) == ("row", frozenset(), "sequence")
    unexplained = text_signal(lambda completion: math.nan)(texts(["a"]))
    assert "without a reason" in unexplained.reasons[(0, 0)]
    with pytest.raises(ZeroDivisionError):
        text_signal(lambda completion: 1 / 0)(texts(["a"]))
    assert len(signal(texts([], limit=[]))) == 0


def test_exports_resolve_and_unknown_names_say_what_there_is() -> None:
    for name in guerdon.signals.__all__:
        assert getattr(guerdon.signals, name) is not None
    with pytest.raises(AttributeError, match="MultipleChoice"):
        guerdon.signals.Maths  # noqa: B018
