"""Reasoning patterns by hand: phrases, repetition, tags, and the MATH string rule with its corners."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon import ConfigError, Rollouts
from guerdon.signals.verifiable.math_strings import boxed_or_all, same_math_string, tidy_math
from guerdon.signals.verifiable.patterns import (
    MATH_PHRASES,
    RM_PHRASES,
    ReasoningPatterns,
    count_phrases,
    ngram_repetition_ratio,
    reasoning_pattern_reward,
    think_and_answer,
)


def test_the_lists_have_the_published_sizes_and_no_doubles() -> None:
    assert len(MATH_PHRASES) == len(set(MATH_PHRASES)) == 40 and len(RM_PHRASES) == len(set(RM_PHRASES)) == 53
    assert all(phrase == phrase.lower() for phrase in RM_PHRASES)


def test_substrings_count_unless_whole_words_are_wanted() -> None:
    text = "enthusiasm awaits the henceforth"  # thus, wait, hence
    assert count_phrases(text, MATH_PHRASES) == 3 and count_phrases(text, MATH_PHRASES, word_boundary=True) == 0
    assert count_phrases("Wait! Thus, first, go", MATH_PHRASES, word_boundary=True) == 3
    assert count_phrases("let us first, and", MATH_PHRASES) == 2  # "let us first" and "first, "


def test_divisor_self_dialogue_and_floor() -> None:
    text = "wait thus hence so that"
    assert reasoning_pattern_reward(text) == pytest.approx(4 / 20)
    assert reasoning_pattern_reward(text, divisor=40) == pytest.approx(4 / 40)
    assert reasoning_pattern_reward(text + " User: more") == 0
    assert reasoning_pattern_reward(text + " User: more", "rm") == pytest.approx(0.2)
    assert reasoning_pattern_reward(text + " User: more", "rm", self_dialogue=True) == 0
    assert reasoning_pattern_reward("hm well", ["hm", "well"], divisor=2) == 1
    assert reasoning_pattern_reward("") == reasoning_pattern_reward("等等，所以") == 0


def test_stuffing_one_sentence_is_caught_only_while_it_repeats() -> None:
    once = " ".join(f"w{i}" for i in range(19)) + " wait"  # 20 words, one n-gram
    assert ngram_repetition_ratio(once) == 0
    assert ngram_repetition_ratio(f"{once} {once}") == pytest.approx(1 / 21)
    assert reasoning_pattern_reward(f"{once} {once}") == pytest.approx(max(0, 0.05 - 1 / 21))


@given(st.text(max_size=300), st.sampled_from(["math", "rm"]))
def test_rpr_is_bounded_blind_to_case_and_the_stricter_count_is_smaller(text: str, phrases: str) -> None:
    value = reasoning_pattern_reward(text, phrases)  # type: ignore[arg-type]
    assert 0 <= value <= 1
    assert reasoning_pattern_reward(text, phrases, word_boundary=True) <= value  # type: ignore[arg-type]


@given(st.lists(st.sampled_from("ab"), max_size=60), st.integers(1, 5))
def test_repetition_is_at_most_a_half(words: list[str], n: int) -> None:
    assert 0 <= ngram_repetition_ratio(" ".join(words), n) <= 0.5


@pytest.mark.parametrize(
    ("response", "think", "answer"),
    [
        ("<think>a</think><answer>b</answer>", "a", "b"),
        ("<think>x</think><think>a</think><answer>y</answer><answer>b</answer>", "a", "b"),
        ("<think>a</think> <answer>b</answer></think>", None, None),  # the last </think> comes after <answer>
        ("<think>a</think><answer></answer>", None, None),
        ("<think>a</think><answer>b", None, None),
        ("<think> </think><answer> </answer>", " ", " "),
        ("", None, None),
    ],
)
def test_the_last_tags_count(response: str, think: str | None, answer: str | None) -> None:
    assert think_and_answer(response) == (think, answer)


def test_the_signal_reads_what_it_is_told_and_gives_reasons() -> None:
    texts = ["<think>wait</think><answer>thus \\boxed{1}</answer>", "wait, thus", ""]
    rollouts = Rollouts.from_texts(["q"] * 3, texts)
    everything = ReasoningPatterns()(rollouts)
    assert everything.values[:, 0].tolist() == pytest.approx([0.1, 0.1, 0.0])
    thinking = ReasoningPatterns(read="think")(rollouts)
    assert thinking.values[:, 0].tolist() == pytest.approx([0.05, 0.0, 0.0])
    assert "well-formed" in thinking.reasons[1, 0]
    answered = ReasoningPatterns(answer="boxed")(rollouts)
    assert answered.values[:, 0].tolist() == pytest.approx([0.1, 0.0, 0.0]) and "no answer" in answered.reasons[1, 0]
    assert "0x" not in repr(ReasoningPatterns(answer=len))
    for wrong in ({"read": "answer"}, {"phrase_set": "code"}, {"phrase_set": ["Wait"]}, {"divisor": 0}, {"n": 0}):
        with pytest.raises(ConfigError):
            ReasoningPatterns(**wrong)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("\\dfrac12", "\\frac{1}{2}", True),
        ("1/2", "\\tfrac{1}{2}", True),
        ("0.5", "1/2", True),
        (".5", "0.5", True),
        ("x=3", "3", True),
        ("abc=3", "3", False),
        ("5\\text{ cm}", "5", True),
        ("30^\\circ", "30", True),
        ("50\\%", "50", True),
        ("\\$ 7", "7", True),
        ("\\sqrt3", "\\sqrt{3}", True),
        ("\\left( 1, 2 \\right)", "(1,2)", True),
        ("2x+1", "1+2x", False),
        ("-1/2", "\\frac{-1}{2}", True),
        ("007/2", "\\frac{7}{2}", False),
        ("\\frac", "\\frac", True),  # cannot be tidied: compared as they are
        ("\\frac ", "\\frac", False),
        ("", "", True),
    ],
)
def test_math_strings(first: str, second: str, same: bool) -> None:
    assert same_math_string(first, second) is same and same_math_string(second, first) is same


def test_what_cannot_be_tidied_says_so() -> None:
    for text in ("1\\text{ m}\\text{ s}", "\\sqrt", "\\frac"):
        with pytest.raises(ValueError):
            tidy_math(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a \\boxed{1} b \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{}", ""),
        ("\\boxed{1", "\\boxed{1"),
        ("\\boxed {1}", "\\boxed {1}"),
        ("nothing", "nothing"),
    ],
)
def test_the_last_box_or_the_whole_text(text: str, answer: str) -> None:
    assert boxed_or_all(text) == answer
