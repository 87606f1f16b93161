"""Segmenters on texts without tokens: character spans."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon import Rollouts
from guerdon.errors import CapabilityError, ConfigError
from guerdon.segment import ByDelimiter, ByRegex, BySentence, ByTag, ByTurn
from guerdon.segment.text import split_sentences


def cut(segmenter: object, *texts: str) -> list[list[str]]:
    spans = segmenter(Rollouts.from_texts(["p"] * len(texts), texts))  # type: ignore[operator]
    assert spans.unit == "char"
    return [[text[s : e + 1] for s, e in row] for text, row in zip(texts, spans.to_lists(), strict=True)]


def test_delimiter() -> None:
    assert cut(ByDelimiter(), "a\n\nb", "a\n\n", "", "\n\n\n\n", "a\n\n\nb") == [
        ["a\n\n", "b"],
        ["a\n\n"],
        [],
        ["\n\n\n\n"],
        ["a\n\n", "\nb"],
    ]
    with pytest.raises(ConfigError, match="delimiter"):
        ByDelimiter(delimiter="")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One. ", "Two! ", "Three? ", "Four"]),
        ("Pi is 3.14 or so. Done.", ["Pi is 3.14 or so. ", "Done."]),
        ("Dr. Smith met J. K. Rowling. They spoke.", ["Dr. Smith met J. K. Rowling. ", "They spoke."]),
        ("See e.g. Fig. 3 vs. Fig. 4. Right.", ["See e.g. Fig. 3 vs. Fig. 4. ", "Right."]),
        ('He said "Stop." Then left.', ['He said "Stop." ', "Then left."]),
        ("Wait... what? Yes.", ["Wait... ", "what? ", "Yes."]),
        ("1. Add.\n2. Multiply.", ["1. Add.\n", "2. Multiply."]),
        ("The sum is 12. Then stop.", ["The sum is 12. ", "Then stop."]),
        ("Title\n\nBody text.", ["Title\n\n", "Body text."]),
        ("你好。再见！", ["你好。", "再见！"]),
        ("So do I. You too.", ["So do I. ", "You too."]),
        ("a.b.c is no sentence", ["a.b.c is no sentence"]),
        ("", []),
        ("   ", ["   "]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert cut(BySentence(), text) == [sentences]


def test_sentence_extra_abbreviations() -> None:
    assert cut(BySentence(), "Ms. Xyz. Abc came.") == [["Ms. Xyz. ", "Abc came."]]
    assert cut(BySentence(extra_abbreviations=("Xyz.",)), "Ms. Xyz. Abc came.") == [["Ms. Xyz. Abc came."]]


@pytest.mark.parametrize(
    "text", ["." * 200_000, "a. A. " * 40_000, "\n " * 100_000, '."' * 100_000, "1" * 200_000 + ". a"]
)
def test_sentences_take_linear_time(text: str) -> None:
    began = time.process_time()
    split_sentences(text)
    assert time.process_time() - began < 3.0


def test_tags() -> None:
    assert cut(
        ByTag("think"), "<think>a</think>b<think>c</think>", "<think></think>", "none", "a</think>b", "<think>a"
    ) == [
        ["a", "c"],
        [],
        [],
        [],
        ["a"],
    ]
    assert cut(ByTag("think", unclosed="drop"), "<think>a") == [[]]
    assert cut(ByTag("think", include_tags=True), "x<think>a</think>y", "<think></think>") == [
        ["<think>a</think>"],
        ["<think></think>"],
    ]
    assert cut(ByTag("think", opened=True), "a</think>b", "a", "<think>a</think>", "a</think>b<think>c") == [
        ["a"],
        ["a"],
        ["a"],
        ["a", "c"],
    ]
    assert cut(ByTag("t"), "<t>a<t>b</t>c</t>") == [["a<t>b"]]
    with pytest.raises(ConfigError, match="name alone"):
        ByTag("<think>")


def test_turns_by_header() -> None:
    text = "first<|im_start|>tool\n42<|im_start|>assistant\nsecond"
    header = r"<\|im_start\|>(?P<role>\w+)\n"
    assert cut(ByTurn(header), text) == [["first", "42", "second"]]
    assert cut(ByTurn(header, role="assistant"), text, "") == [["first", "second"], []]
    with pytest.raises(CapabilityError, match="header"):
        cut(ByTurn(), text)
    with pytest.raises(ConfigError, match="group"):
        ByTurn("---", role="assistant")


def test_regex() -> None:
    assert cut(ByRegex(r"\d+", "match"), "a1b22") == [["1", "22"]]
    assert cut(ByRegex(r"(\w)=(?P<value>\d*)", "match", group="value"), "a=1 b= c=3") == [["1", "3"]]
    assert cut(ByRegex(r"(?=Step)"), "Step 1 Step 2") == [["Step 1 ", "Step 2"]]
    with pytest.raises(ConfigError, match="does not compile"):
        ByRegex("(")
    with pytest.raises(ConfigError, match="no group"):
        ByRegex("a", group=1)


@settings(deadline=None)
@given(st.text(alphabet="ab\n 1é🦜"), st.sampled_from(["\n+", r"\s", "a|1", "(?=b)", "a*", "é?b"]))
def test_slices_equal_the_regex(text: str, pattern: str) -> None:
    assert cut(ByRegex(pattern, "match"), text) == [[m.group() for m in re.finditer(pattern, text) if m.group()]]
    ends = sorted({m.end() for m in re.finditer(pattern, text)} - {0, len(text)})
    assert cut(ByRegex(pattern, "split"), text) == [
        [text[s:e] for s, e in zip([0, *ends], [*ends, len(text)], strict=True) if e > s]
    ]


@settings(deadline=None)
@given(st.text(alphabet="ab. \n?!\"'1.。J"))
def test_tilings_give_back_the_text(text: str) -> None:
    for segmenter in (BySentence(), ByDelimiter(None, "\n"), ByRegex("b")):
        assert "".join(cut(segmenter, text)[0]) == text


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("So 5! = 120. Then we stop.", ["So 5! = 120. ", "Then we stop."]),
        ("We get \\[ x = 1. \\] Then we stop.", ["We get \\[ x = 1. \\] ", "Then we stop."]),
        ("The value is 3.14. Then we go on.", ["The value is 3.14. ", "Then we go on."]),
        ("1. First.\n2. Second.", ["1. First.\n", "2. Second."]),
        ("n! grows. Fast.", ["n! grows. ", "Fast."]),
        ("We have (n+1)! - n! = n n!. Done.", ["We have (n+1)! - n! = n n!. ", "Done."]),
        ("Stop! Now go.", ["Stop! ", "Now go."]),
        ("It is 5! Then stop.", ["It is 5! ", "Then stop."]),
        ("$$a = 1.$$ Then b.", ["$$a = 1.$$ ", "Then b."]),
        ("$$a = 1.$$ and b. So.", ["$$a = 1.$$ and b. ", "So."]),
        ("It costs $5. I pay $5. Good.", ["It costs $5. ", "I pay $5. ", "Good."]),
        ("Let $x = 1. y$ be. Then.", ["Let $x = 1. y$ be. ", "Then."]),
        (
            "\\begin{align} a &= 1. \\\\ b &= 2. \\end{align} So c.",
            ["\\begin{align} a &= 1. \\\\ b &= 2. \\end{align} So c."],
        ),
        ("One.\r\n\r\nTwo.", ["One.\r\n\r\n", "Two."]),
        ("Title\r\n\r\nBody.", ["Title\r\n\r\n", "Body."]),
        ("2! \\cdot 3 = 6. So.", ["2! \\cdot 3 = 6. ", "So."]),
        ("Is 5! < 6!? Yes.", ["Is 5! < 6!? ", "Yes."]),
    ],
)
def test_sentences_with_formulas_factorials_and_crlf(text: str, sentences: list[str]) -> None:
    assert cut(BySentence(), text) == [sentences]


def test_a_blank_line_of_windows_ends_a_step() -> None:
    assert cut(ByDelimiter(None, "\n\n"), "Step 1: a.\r\n\r\nStep 2: b.", "a\n\nb", "a\r\nb") == [
        ["Step 1: a.\r\n\r\n", "Step 2: b."],
        ["a\n\n", "b"],
        ["a\r\nb"],
    ]
    assert cut(ByDelimiter(None, ". "), "a. b") == [["a. ", "b"]]


@pytest.mark.parametrize("piece", ["$a", "\\[", "\\begin{a}", "5! ", "\\(", "$$"])
def test_sentences_of_unclosed_formulas_take_linear_time(piece: str) -> None:
    began = time.perf_counter()
    split_sentences(piece * (100_000 // len(piece)))
    assert time.perf_counter() - began < 3
