"""The verdict bench: its matrix is what it says, and a slice of it holds with every test run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "bench_verdicts.py"
    spec = importlib.util.spec_from_file_location("bench_verdicts", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["bench_verdicts"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_matrix_has_a_hundred_endings_and_no_cell_is_both_right_and_wrong(bench):
    assert len(set(bench.ENDINGS)) == len(bench.ENDINGS) >= 100
    cells = bench.matrix()
    right = {(cell.completion, cell.reference) for cell in cells if cell.right}
    wrong = {(cell.completion, cell.reference) for cell in cells if not cell.right}
    assert not right & wrong
    for cell in cells:
        assert "P" not in cell.completion.replace("PQ", ""), f"a mark was left in {cell.ending!r}"


def test_values_take_the_places_of_the_marks(bench):
    assert bench._filled("答案是P。", "53", "x") == "答案是53。"
    assert bench._filled("La réponse est P and $L$.", "3/8", "\\frac{3}{8}") == "La réponse est 3/8 and $\\frac{3}{8}$."
