"""The conformance runner: comparison rules, files that are wrong, and the four systems' vectors."""

import json
import math
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from guerdon.conformance import difference, load_vectors, main, run_file, run_vectors
from guerdon.errors import DataError

VECTORS = Path(__file__).parents[1] / "vectors"
NAN, INF = float("nan"), float("inf")
Pair = namedtuple("Pair", "a b")


def agree(actual, expected, rtol=1e-5, atol=1e-6):
    return difference(actual, expected, rtol=rtol, atol=atol) is None


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (1, 1.0),
        (1.000001, 1),
        (-0.0, 0),
        (0.0, -0.0),
        (True, 1),  # a flag where a number is expected is that number
        (10**400, 10**400),
        (NAN, NAN),
        (NAN, None),
        (None, None),
        (INF, INF),
        (-INF, "-inf"),
        (INF, "inf"),
        (NAN, "nan"),
        ("inf", "inf"),
        ((1, 2), [1, 2]),
        ([], []),
        (torch.zeros(0), []),
        (torch.zeros(2, 0), [[], []]),
        (torch.tensor([[1.0, NAN]]), [[1, None]]),
        (torch.tensor([True, False]), [True, False]),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.arange(3), [0, 1, 2]),
        (Pair(1, [2.0]), {"a": 1, "b": [2]}),
        (Pair(1, 2), [1, 2]),
        ({1: 2}, {"1": 2}),
        ({"a": torch.tensor(1.5)}, {"a": 1.5}),
    ],
)
def test_agreement(actual, expected):
    assert agree(actual, expected)


@pytest.mark.parametrize(
    ("actual", "expected", "where"),
    [
        (1.1, 1.0, "result"),
        (0.0, None, "expected null"),
        (NAN, 0.0, "nan"),
        (0.0, NAN, "expected nan"),
        (INF, 1e308, "inf"),
        (INF, -INF, "inf"),
        (1, True, "expected True"),
        (False, True, "expected True"),
        ("1", 1, "'1'"),
        (None, 1.0, "None"),
        ([1, 2], [1], "1 items, got 2"),
        ([1, [2, 3]], [1, [2, 4]], r"result[1][1]"),
        ({"a": 1}, {"a": 1, "b": 2}, "missing keys ['b']"),
        ({"a": 1, "c": 2}, {"a": 1}, "extra keys ['c']"),
        ({"a": [0, 1]}, {"a": [0, 2]}, "result.a[1]"),
        (3, [3], "a list"),
        ([3], {"a": 3}, "a mapping"),
        ("abc", "abd", "'abd'"),
        ("abc", ["a", "b", "c"], "a list"),
    ],
)
def test_first_difference(actual, expected, where):
    assert where in (difference(actual, expected, rtol=1e-5, atol=1e-6) or "")


def test_tolerances_are_the_cases_own():
    assert agree(1e12 + 1e6, 1e12) and not agree(1e12 + 1e8, 1e12)
    assert agree(1e-7, 0.0) and not agree(1e-7, 0.0, atol=1e-9)
    assert not agree(10**400, 10**400 + 10**399, rtol=0.0)


def record(**changes):
    case = {"name": "c", "inputs": {"x": 1}, "expected": 1, "rtol": 0, "atol": 0}
    return {"system": "s", "vectors": [{"function": "f", "cases": [case | changes]}]}


def test_a_case_that_raises_fails_with_its_message():
    (result,) = run_vectors(record(), {"f": lambda x: 1 // 0})
    assert (result.passed, result.total) == (0, 1) and not result.ok
    assert result.failures == (("c", "ZeroDivisionError: integer division or modulo by zero"),)
    (wrong,) = run_vectors(record(inputs={"y": 1}), {"f": lambda x: x})
    assert "TypeError" in wrong.failures[0][1]
    (unknown,) = run_vectors(record(), {"g": lambda x: x})
    assert unknown.failures[0][1] == "unknown function of 's'" and (unknown.passed, unknown.total) == (0, 1)


def write(tmp_path, content):
    path = tmp_path / "v.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_exit_codes_and_lines(tmp_path, capsys):
    assert main([VECTORS / "clip_delta.json"]) == 0
    assert "clip_delta clip_step_rewards 5/5" in capsys.readouterr().out.splitlines()
    pure = json.loads((VECTORS / "pure.json").read_text())
    pure["vectors"] = [pure["vectors"][1]]
    pure["vectors"][0]["cases"][0]["expected"]["returns"][0] = 7
    assert main([write(tmp_path, pure)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "pure min_form_returns 4/5" and "result.returns[0]: expected 7" in out[1]
    assert main([write(tmp_path, record() | {"system": "nobody"})]) == 1
    assert "unknown function of 'nobody'" in capsys.readouterr().out
    assert main([write(tmp_path, {"system": "pure", "vectors": [{"function": "nothere", "cases": []}]})]) == 1
    assert main([]) == 1, "nothing was run, so nothing was shown"
    assert main([tmp_path / "missing.json", VECTORS / "clip_delta.json"]) == 1
    assert "missing.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["", "[]", '{"system": "x"}', '{"system": 1, "vectors": []}', '{"system": "x", "vectors": [{}]}']
)
def test_files_that_are_no_vectors(tmp_path, content):
    with pytest.raises(DataError):
        load_vectors(write(tmp_path, content))


@pytest.mark.parametrize("slug", ["rlpr", "pure", "clip_delta", "par"])
def test_vectors_pass(slug):
    results = run_file(VECTORS / f"{slug}.json")
    assert results and not [failure for result in results for failure in result.failures]
    assert math.prod(result.total for result in results) > 0
