r"""The answer part of a completion: reasoning in the notations of many models, tools, turns."""

from __future__ import annotations

import time

import pytest

from guerdon.signals import QA, Exact, Math, MultipleChoice, Numeric
from guerdon.signals.conversation import completion_text
from guerdon.signals.verifiable.answer_part import answer_part

ENDS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<Think>", "</ THINK >"),
    ('<think step="1">', "</think>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>\n<|begin_of_solution|>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("analysis", "assistantfinal"),
    ("<|channel>thought\n", "<channel|>"),
]


@pytest.mark.parametrize(("opening", "closing"), ENDS)
def test_what_follows_the_end_of_reasoning_is_the_answer(opening: str, closing: str) -> None:
    assert answer_part(f"{opening}First 12.{closing}The answer is 48.").text == "The answer is 48."
    assert answer_part(f"{opening}First 12.{closing}\n\n").text is None
    never = answer_part(f"{opening}First 12. The answer is 48.")
    assert never.text is None and never.reason and "answer" in never.reason


@pytest.mark.parametrize("closing", [closing for opening, closing in ENDS if "analysis" not in opening])
def test_reasoning_that_the_prompt_opened(closing: str) -> None:
    text = f"First 12.{closing}48"
    assert answer_part(text).text == answer_part(text, reasoning="opened").text == "48"
    assert answer_part("First 12.", reasoning="opened").text is None
    assert answer_part(text, reasoning="keep").text == text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think>47<think>no, 48</think>48", "48"),
        ("<think>a</think>48<think>no", None),
        ("<think>a <reasoning>b</reasoning> 48", None),
        ("<think>a <reasoning>b</reasoning></think> 48", "48"),
        ("<think>I end with `</think>` and then 12</think>48", "48"),
        ('The tag "<think>" begins it.', 'The tag "<think>" begins it.'),
        ("<thinking>a</think>48", "48"),
        ("48</think>", None),
        ("", None),
        (" \n", None),
        ("x < 3 and y > [1]", "x < 3 and y > [1]"),
        ("analysis of the sum: 48", "analysis of the sum: 48"),
        ("<tool_response>48</tool_response>I cannot tell.", "I cannot tell."),
        ("<information>the key is 48", None),
        ("<think>put <information> around it</think>48", "48"),
        ("```output\n48\n```\nI cannot tell.", "I cannot tell."),
        ("47<|im_end|>\n<|im_start|>user\nIs it 48?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>", "No."),
        ("47<|im_end|>\n<|im_start|>user\nIs it 48?<|im_end|>", "47"),
        ("47<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n48<|eot_id|>", "47"),
        ("48<|im_end|>", "48"),
        ("48</s>", "48"),
        ("<s>47</s> 48", "<s>47</s> 48"),
    ],
)
def test_answer_part(text: str, answer: str | None) -> None:
    part = answer_part(text)
    assert part.text == answer and (part.text is None) == bool(part.reason)
    if part.text is not None:
        assert answer_part(part.text).text == part.text


def test_another_word_for_reasoning_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'drop', 'keep'.*'opened'"):
        answer_part("48", reasoning="dorp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'drop', 'keep'.*'opened'"):
        Exact(reasoning="dorp")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "piece",
    [
        "<think>",
        "</think>",
        "<information>",
        "<information></think>",
        "<|start|>a",
        "```output\n",
        "< ",
        "<|im_start|>",
    ],
)
def test_it_takes_linear_time(piece: str) -> None:
    began = time.perf_counter()
    answer_part(piece * (200_000 // len(piece)))
    assert time.perf_counter() - began < 2


def verdict(signal, completion: object, answer: object) -> float | None:
    return signal.as_reward_func()(prompts=[""], completions=[completion], answer=[answer])[0]


@pytest.mark.parametrize(
    ("signal", "right", "wrong"),
    [
        (Math(), "48", "12"),
        (Math(extract="boxed"), "\\boxed{48}", "\\boxed{12}"),
        (Numeric(), "48", "12"),
        (Exact(), "48", "12"),
        (QA(), "48", "12"),
        (MultipleChoice(), "B", "A"),
    ],
)
def test_every_verifier_reads_the_answer_part(signal, right: str, wrong: str) -> None:
    answer = "B" if right == "B" else "48"
    assert verdict(signal, f"<think>{wrong}</think>{right}", answer) == 1.0
    assert verdict(signal, f"<think>{right}</think>{wrong}", answer) == 0.0
    assert verdict(signal, f"<think>{wrong}\n\n{right}", answer) == 0.0
    assert verdict(signal, f"{wrong}</think>{right}", answer) == 1.0
    assert verdict(signal, [{"role": "assistant", "content": wrong}, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": right}], answer) == 1.0  # fmt: skip
    assert verdict(signal, [{"role": "assistant", "content": wrong}, {"role": "tool", "content": right}], answer) == 0.0


def test_the_old_way_and_marks_that_are_asked_for() -> None:
    assert verdict(Math(reasoning="keep"), "<think>\\boxed{48}</think> done", "48") == 1.0
    assert verdict(Exact(extract="after:</think>"), "<think>12</think>48", "48") == 1.0


def test_completion_text() -> None:
    def said(*turns: tuple[str, object]) -> str:
        return completion_text([{"role": role, "content": content} for role, content in turns])

    assert said(("assistant", "a"), ("tool", "b"), ("assistant", "c")) == "c"
    assert said(("assistant", "a"), ("tool", "b")) == "a"
    assert said(("assistant", "a"), ("assistant", None)) == "a"  # one turn in two messages: a tool call has no words
    assert said(("assistant", "a"), ("user", "b"), ("assistant", None)) == ""
    assert said(("user", "a"), ("tool", "b")) == ""
    assert (
        said(("model", [{"type": "thinking", "text": "hm"}, {"type": "text", "text": "a"}, {"type": "image"}])) == "a"
    )
    assert completion_text({"role": "assistant", "content": "a"}) == "a"
    assert completion_text([{"content": "a"}]) == "a"
