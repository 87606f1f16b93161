"""Exact, numeric, multiple choice, QA, extraction, layouts: hand-computed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.signals.verifiable.choice import choice_letter, multiple_choice
from guerdon.signals.verifiable.extraction import (
    after_marker,
    answer_window,
    extractor,
    last_boxed,
    last_number,
    last_tag,
)
from guerdon.signals.verifiable.layout import (
    answer_tag_format,
    format_reward,
    length_reward,
    repeated_fraction,
    repetition_penalty,
    think_format,
)
from guerdon.signals.verifiable.numeric import numeric_match, parse_number
from guerdon.signals.verifiable.text_match import (
    exact_match,
    qa_exact_match,
    qa_f1,
    squad_normalise,
)
from guerdon.signals.verifiable.verdict import Verdict, any_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so \\boxed{a{b}c} and \\boxed{42}", "42"),
        ("\\boxed{ \\frac{1}{2} }", "\\frac{1}{2}"),
        ("\\fbox{3}", "3"),
        ("\\boxed{never closed", None),
        ("\\boxed{1} \\boxed{never", None),
        ("none", None),
    ],
)
def test_last_boxed(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I have 3 apples and 1,200.50 dollars", "1200.50"),
        ("x = -7.", "-7"),
        ("1,2", "2"),
        ("about −5 degrees", "-5"),
        ("1e-3", "1e-3"),
        ("no digits", None),
        ("version 1.2.3", "1.2"),
        (".5 of it", ".5"),
    ],
)
def test_last_number(text: str, expected: str | None) -> None:
    assert last_number(text) == expected


def test_tag_and_marker() -> None:
    assert last_tag("<answer>1</answer> no <answer> 2 </answer>") == "2"
    assert last_tag("<answer>1") is None
    assert after_marker("work\n#### 42\nmore", "####") == "42"
    assert extractor("after:=>")("a => b => c") == "c"
    with pytest.raises(ValueError, match="last_number"):
        extractor("box")


def test_window_keeps_the_end_or_the_last_box() -> None:
    assert answer_window("a" * 50 + "end", 10) == "a" * 7 + "end"
    assert answer_window("x" * 40 + "\\boxed{7}" + "y" * 40, 12) == "\\boxed{7}yyy"
    assert answer_window("short", 10) == "short"


@pytest.mark.parametrize(
    ("answer", "reference", "options", "expected"),
    [
        ("1,000", "1000", {}, 1.0),
        ("0.50", "1/2", {}, 1.0),
        ("50%", "0.5", {}, 1.0),
        ("50%", "50", {}, 0.0),
        ("3.14", "3.14159", {"atol": 0.0, "rtol": 0.001}, 1.0),
        ("3.14", "3.14159", {"atol": 0.0, "rtol": 0.0001}, 0.0),
        ("$12.5", 12.5, {}, 1.0),
        ("1e3", 1000, {}, 1.0),
        ("−5", -5, {}, 1.0),
        ("0.1", 0.1, {"atol": 0.0}, 1.0),
        ("five", "5", {}, 0.0),
        ("1/0", "5", {}, 0.0),
        ("1e999999999", "5", {}, 0.0),
        ("1,00", "100", {}, 0.0),
    ],
)
def test_numeric(answer: str, reference: str | float, options: dict[str, float], expected: float) -> None:
    verdict = numeric_match(answer, reference, **options)
    assert verdict.value == expected and (expected == 1.0 or verdict.reason)


def test_numeric_broken_reference_is_unknown_and_bad_tolerance_refused() -> None:
    assert numeric_match("5", "five").failed
    with pytest.raises(ValueError, match="atol"):
        numeric_match("5", "5", atol=-1.0)


@given(st.text(max_size=40))
def test_parse_number_never_raises(text: str) -> None:
    value = parse_number(text)
    assert value is None or math.isfinite(value.numerator)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"), ("(b)", "B"), ("b.", "B"), ("B) because it is red", "B"), ("The answer is (C).", "C"), ("Answer: **D**", "D"),
        ("\\boxed{\\text{A}}", "A"), ("<answer>c</answer>", "C"), ("First A, then the answer is B. No: the answer is C", "C"),
        ("A dog ran.", None), ("the answer is a dog", None), ("I think so", None), ("\\boxed{42} answer: B", "B"),
        ("Reasoning about it\nD", "D"), ("reasoning\na", None), ("The answer is F", None), ("Option B is right", "B"), ("", None), ("The answer is BOTH", None),
    ],
)  # fmt: skip
def test_choice_letter(text: str, expected: str | None) -> None:
    assert choice_letter(text) == expected


def test_multiple_choice() -> None:
    assert multiple_choice("Answer: B", "(b)").value == 1.0
    assert multiple_choice("Answer: B", 1).value == 1.0
    assert multiple_choice("Answer: B", "C") == Verdict(0.0, "chose B, not C")
    assert multiple_choice("no idea", "C") == Verdict(0.0, "no choice letter found")
    assert multiple_choice("Answer: B", "Z").failed and multiple_choice("Answer: B", 9).failed


def test_qa() -> None:
    assert squad_normalise("The  Eiffel-Tower, an icon!") == "eiffeltower icon"
    assert qa_exact_match("the Paris.", "paris").value == 1.0
    # tokens {big, red, dog, dog} against {red, dog}: common 2, precision 2/4, recall 2/2, F1 = 2*2/(4+2)
    assert qa_f1("a big red dog dog", "the red dog").value == pytest.approx(2 / 3)
    assert qa_f1("", "x").value == 0.0 and qa_f1("the", "a").value == 1.0
    assert exact_match(" Caf\u0065\u0301 ", "Caf\u00e9").value == 1.0
    assert exact_match("a", "A").value == 0.0 and exact_match("a", "A", ignore_case=True).value == 1.0


def test_any_of_is_three_valued() -> None:
    unknown = Verdict(math.nan, "broken")
    assert any_of([unknown, Verdict(1.0)]).value == 1.0
    assert any_of([Verdict(0.0, "no"), unknown]).failed
    assert any_of([Verdict(0.2), Verdict(0.6)]).value == 0.6
    assert any_of([]).failed


@pytest.mark.parametrize(
    ("response", "mode", "expected"),
    [
        ("<think>a\nb</think> <answer> 4 </answer>", "R1", 1.0),
        ("<think></think><answer></answer>", "R1", 1.0),
        ("\n<think>a</think><answer>4</answer>", "R1", 0.0),
        ("<think>a</think><answer>4</answer></answer>", "R1", 0.0),
        ("<think>a<answer>4</answer></think>", "R1", 0.0),
        ("<answer>4</answer><think>a</think>", "R1", 0.0),
        ("so\n<answer>4</answer> end", "R1_nothink", 1.0),
        ("</answer>4<answer>", "R1_nothink", 0.0),
        ("<think>x <answer>4</answer>", "R1_nothink", 1.0),
        ("", "R1_nothink", 0.0),
        ("<THINK>a</THINK><answer>4</answer>", "R1", 0.0),
    ],
)
def test_format_reward(response: str, mode: str, expected: float) -> None:
    assert format_reward(response, mode) == expected  # type: ignore[arg-type]


def test_other_layouts() -> None:
    assert answer_tag_format("x <answer>4</answer>") == 1.0 and answer_tag_format("<answer> </answer>") == 0.0
    assert think_format("<think>a</think>b") == 1.0
    assert think_format("a</think>b", opened_by_prompt=True) == 1.0
    assert (
        think_format("<think>a</think> ") == 0.0
        and think_format("<think>\n</think>b") == 0.0
        and think_format("x<think>a</think>b") == 0.0
    )
    with pytest.raises(ValueError, match="R1_nothink"):
        format_reward("", "r1")  # type: ignore[arg-type]


def test_repetition() -> None:
    assert repetition_penalty("a " * 10, 10, 1) == 0, "at most window_size words gives 0 whatever the limit"
    assert (
        repetition_penalty("a " * 15, 10, 6) == -1 and repetition_penalty("a " * 14, 10, 6) == 0
    )  # 6 and 5 overlapping windows
    assert repetition_penalty("a_b " * 6, 2, 6) == -1 and repetition_penalty("a_b " * 5, 2, 6) == 0
    assert repetition_penalty("", 10, 6) == 0
    assert repeated_fraction("a b a b a b", 2) == pytest.approx(1 - 2 / 5)
    assert repeated_fraction("a b", 2) == 0.0


def test_length() -> None:
    assert (
        length_reward(50, target=100) == -0.5
        and length_reward(300, target=100) == -1.0
        and length_reward(100, target=100) == 0.0
    )
    assert [length_reward(n, cap=100, buffer=20) for n in (80, 90, 100, 120)] == [0.0, -0.5, -1.0, -1.0]
    assert [length_reward(n, cap=100) for n in (100, 101)] == [0.0, -1.0]
    with pytest.raises(ValueError, match="exactly one"):
        length_reward(1)
