"""One reader of references: what a data cell may hold, what is missing, and dotted paths to it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from guerdon import MissingColumn, Rollouts
from guerdon.cli.score import reward_by_name
from guerdon.paths import column_values
from guerdon.signals import QA, Math
from guerdon.signals.likelihood.reference import references_of
from guerdon.signals.verifiable.references import read_references, reference_values


@pytest.mark.parametrize(
    ("cell", "values"),
    [
        ("48", ["48"]),
        (48, [48]),
        (48.0, [48]),
        (0.5, [0.5]),
        (Decimal("48.00"), [48]),
        (Decimal("0.25"), [Decimal("0.25")]),
        (b"48", ["48"]),
        (bytearray("Löwe", "utf-8"), ["Löwe"]),
        (np.float64(48.0), [48]),
        (np.int64(48), [48]),
        (np.array(["48", "49"]), ["48", "49"]),
        (np.array(["48", None], dtype=object), ["48"]),
        (torch.tensor(48), [48]),
        (["48", "49"], ["48", "49"]),
        (["48", None, float("nan"), "", "48"], ["48"]),
        (("48", ["49"]), ["48", "49"]),
        ('["48", "49"]', ["48", "49"]),
        ("['48', '49']", ["48", "49"]),
        ("['48' '49']", ["48", "49"]),  # NumPy's print of an array
        ('[ "it\'s", "a, b" ]', ["it's", "a, b"]),
        ('["48", 49]', ["48", 49]),
        ('"48"', ["48"]),
        ("[1, 2]", ["[1, 2]"]),  # an interval, or a vector
        ("[1, 2", ["[1, 2"]),
        ("{1, 2}", ["{1, 2}"]),
        ("[B]", ["[B]"]),
    ],
)
def test_cells(cell: Any, values: list[Any]) -> None:
    read = read_references(cell, "math")
    assert read.values == values and read.problem is None
    assert [type(value) for value in read.values] == [type(value) for value in values]


@pytest.mark.parametrize(
    "cell",
    [None, float("nan"), float("inf"), True, "", "  ", [], [None], "nan", "NaN", "<NA>", np.nan, np.array([]), "[]", "None", '["nan"]', torch.tensor(float("nan"))],
)  # fmt: skip
def test_missing(cell: Any) -> None:
    read = read_references(cell, "math")
    assert not read.values and read.problem and "no usable reference" in read.problem


def test_words_that_are_missing_values_in_mathematics_only() -> None:
    assert reference_values("None", "text") == ["None"] and reference_values("null", "exact") == ["null"]


@pytest.mark.parametrize(
    "cell", [{"value": "48", "unit": "m"}, '{"value": "48"}', "{'value': '48'}", [{"value": "48"}]]
)
def test_a_mapping_is_no_reference_and_says_what_to_do(cell: Any) -> None:
    read = read_references(cell)
    assert not read.values and "value" in str(read.problem) and "reference=COLUMN.FIELD" in str(read.problem)


def test_bytes_that_are_no_text() -> None:
    assert "not UTF-8" in str(read_references(b"\xff\xfe").problem)


GSM8K = "He pays 3*4=<<3*4=12>>12.\n#### 1,200"
BOXED = "We get $3\\cdot4=12$, so \\boxed{\\frac{1}{2}}. Done."


@pytest.mark.parametrize(
    ("cell", "kind", "values"),
    [
        (GSM8K, "math", ["1,200"]),
        (GSM8K, "number", ["1,200"]),
        (GSM8K, "text", ["1,200"]),
        (GSM8K, "exact", [GSM8K, "1,200"]),
        (GSM8K, "literal", [GSM8K]),
        (BOXED, "math", [BOXED]),
        (BOXED, "number", ["\\frac{1}{2}"]),
        (BOXED, "exact", [BOXED, "\\frac{1}{2}"]),
        ("<think>12?</think>\n48", "math", ["48"]),
        ("<think>12?</think><answer>48</answer>", "text", ["48"]),
        ("#### Method\nWe add. 48", "text", ["#### Method\nWe add. 48"]),  # a heading
        ('["a", "b"]', "exact", ['["a", "b"]', "a", "b"]),
        ('{"a": 1}', "exact", ['{"a": 1}']),  # structured output may be the answer itself
        ("[1, 2]", "number", [1, 2]),
        ('["48"]', "literal", ["48"]),
    ],
)
def test_as_its_kind_needs(cell: str, kind: Any, values: list[Any]) -> None:
    assert reference_values(cell, kind) == values


def test_likelihood_signals_read_the_same_cells() -> None:
    assert references_of(b"48") == references_of(48.0) == references_of('["48"]') == ["48"]
    assert references_of("nan") == references_of(None) == []


# -- dotted paths ------------------------------------------------------------------------------------------------------------

COLUMNS: dict[str, list[Any]] = {
    "reward_model": [{"ground_truth": "48", "style": "rule"}, '{"ground_truth": ["48", "49"]}', None],
    "answers": [{"text": ["a", "b"], "start": [1, 2]}, {"text": []}, {}],
    "choices": [[{"label": "A"}, {"label": "B"}], [{"label": "C"}], []],
    "a.b": [1, 2, 3],
    "a": [{"b": 7}] * 3,
}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("reward_model.ground_truth", ["48", ["48", "49"], None]),
        ("answers.text", [["a", "b"], [], None]),
        ("answers.text.0", ["a", None, None]),
        ("choices.label", [["A", "B"], ["C"], None]),
        ("a.b", [1, 2, 3]),
    ],
)
def test_paths(name: str, values: list[Any]) -> None:
    assert column_values(COLUMNS, name) == values
    assert Rollouts.from_texts([""] * 3, ["x"] * 3, COLUMNS).column(name) == values


def test_a_path_to_nowhere_is_an_error_that_names_the_fields() -> None:
    with pytest.raises(MissingColumn, match=r"reward_model\.ground_truth, reward_model\.style"):
        column_values(COLUMNS, "reward_model.truth")
    with pytest.raises(MissingColumn, match="answers"):
        column_values(COLUMNS, "solution.text")


def test_paths_in_reward_functions_and_on_the_command_line() -> None:
    column = [{"ground_truth": "48"}, {"ground_truth": None}]
    for signal in (
        Math(reference="reward_model.ground_truth"),
        reward_by_name("math:reference=reward_model.ground_truth")[1],
    ):
        assert signal.as_reward_func()(prompts=["", ""], completions=["48", "48"], reward_model=column) == [1.0, None]
    with pytest.raises(MissingColumn):
        QA(reference="reward_model.truth").as_reward_func()(completions=["48"], reward_model=column[:1])
