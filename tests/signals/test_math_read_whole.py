"""Dates, times and quantities in parts are read whole wherever they stand: the last number of "March 5" is no answer."""

from __future__ import annotations

import pytest

pytest.importorskip("math_verify")
from guerdon.signals.verifiable.mathematics import MathOptions, verify_math


@pytest.mark.parametrize(
    ("right", "reference", "wrong"),
    [
        ("March 5", "March 5", "March 6"),
        ("5th of March", "March 5", "5 April"),
        ("March 5, 2024", "2024-03-05", "March 5, 2023"),
        ("2024-03-05", "March 5, 2024", "2024-05-03"),
        ("3:30 pm", "3:30 p.m.", "3:40 pm"),
        ("7 hours 30 minutes", "7 hours 30 minutes", "7 hours 20 minutes"),
        ("7 hours 30 minutes", "7 hours 30 minutes", "30 minutes"),
    ],
)
@pytest.mark.parametrize(
    "ending", ["{}", "The answer is {}.", "The answer is **{}**.", "<answer>{}</answer>", "Answer: {}", "\\boxed{{{}}}"]
)
def test_it_is_read_whole(right: str, reference: str, wrong: str, ending: str) -> None:
    assert verify_math(ending.format(right), reference).value == 1.0
    assert verify_math(ending.format(wrong), reference).value == 0.0
    assert verify_math(f"It was {right}? " + ending.format(wrong), reference).value == 0.0


@pytest.mark.parametrize(
    ("answer", "reference"), [("\\frac{M}{m}", "\\frac{m}{M}"), ("not March 5", "March 5"), ("5", "March 5")]
)
def test_what_is_not_the_same_is_wrong(answer: str, reference: str) -> None:
    assert verify_math(answer, reference).value == 0.0
    assert verify_math(answer, reference, MathOptions(extract=lambda text: text)).value == 0.0
