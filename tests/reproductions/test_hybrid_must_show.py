"""What HARMO has to show: the length term keeps the chain against a brevity bias (4), routing beats either reward alone (5), and the
reproduction runs to its record. Vectors, advantages and call counters (1-3) are in tests/systems."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guerdon.systems.reproduction import Budget, save
from guerdon.systems.reproductions.hybrid_multi_aspect import QUESTIONS, mixed_world, run_hybrid, run_length


def test_the_length_term_keeps_the_chain() -> None:
    kept, lost = (run_length(0.23, penalty, 7, 200).chain for penalty in (True, False))
    assert kept[-1] > 0.9 and lost[-1] < 0.2
    start = 1 / (1 + 2.718281828**1.5)
    assert kept[0] == pytest.approx(start, abs=0.05) and lost[0] == pytest.approx(start, abs=0.05)
    assert run_length(0.23, True, 7, 5) == run_length(0.23, True, 7, 5) != run_length(0.23, True, 8, 5)


def test_the_mixed_world_is_as_stated() -> None:
    mixed = mixed_world(3, 400)
    assert mixed.on_sums == pytest.approx(0.2, abs=0.05) and mixed.on_open == pytest.approx(0.9, abs=0.03)
    assert mixed.world.columns["verifiable"] == [True] * 200 + [False] * 200
    assert mixed.world.quality[:200].sum(1).tolist() == [1] * 200
    known = [answer in texts for answer, texts in zip(mixed.world.columns["answer"], mixed.world.texts, strict=True)]
    assert all(known[:200]) and sum(known[200:]) == pytest.approx(200 / 3, abs=1)


def test_routing_is_as_good_as_the_rule_on_sums_and_as_the_model_elsewhere() -> None:
    mixed = mixed_world(5)
    half = QUESTIONS // 2
    rule, model, hybrid = (run_hybrid(preset, mixed, 5, 150) for preset in ("rule", "model", "hybrid"))
    assert hybrid.quality(slice(0, half)) > model.quality(slice(0, half)) + 0.15
    assert hybrid.quality(slice(half, None)) > rule.quality(slice(half, None)) + 0.1
    assert hybrid.quality(slice(0, half)) == pytest.approx(rule.quality(slice(0, half)), abs=0.05)
    assert hybrid.quality(slice(half, None)) == pytest.approx(model.quality(slice(half, None)), abs=0.05)


def test_the_reproduction_runs_to_its_record(tmp_path: Path) -> None:
    from guerdon.systems.reproductions.hybrid_multi_aspect import reproduce

    said: list[str] = []
    result = reproduce(Budget(smoke=True, say=said.append))
    assert list(result.seeds) == [0, 1] and said and len({tuple(row) for row in result.table}) == 1
    assert len(result.claims) == 4
    for curve in result.curves.values():
        assert [len(line) for line in curve["y"]] == [len(curve["x"])] * 2
    path = save(result, tmp_path, command="guerdon reproduce hybrid_multi_aspect --smoke", seconds=1.0, versions={})
    assert json.loads(path.read_text())["seeds"] == [0, 1] and (tmp_path / "hybrid_multi_aspect.svg").exists()
