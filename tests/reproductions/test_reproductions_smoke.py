"""Every line of the reproductions runs, gives a full record, and the record is written; what they claim is in results/."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from guerdon.systems.reproduction import Budget, save

SLUGS = ["pure", "clip_delta", "par"]


@pytest.mark.parametrize("slug", SLUGS)
def test_smoke(slug: str, tmp_path: Path) -> None:
    said: list[str] = []
    reproduce = importlib.import_module(f"guerdon.systems.reproductions.{slug}").reproduce
    result = reproduce(Budget(smoke=True, say=said.append))
    assert result.slug == slug and list(result.seeds) == [0, 1] and said
    assert len({tuple(row) for row in result.table}) == 1  # one set of columns
    for curve in result.curves.values():
        assert [len(line) for line in curve["y"]] == [len(curve["x"])] * 2
    path = save(result, tmp_path, command=f"guerdon reproduce {slug} --smoke", seconds=1.0, versions={})
    record = json.loads(path.read_text())
    assert record["seeds"] == [0, 1] and len(record["claims"]) == len(result.claims)
    assert (tmp_path / f"{slug}.svg").read_text().lstrip().startswith("<?xml")


def test_a_reproduction_repeats_number_for_number() -> None:
    from guerdon.systems.reproductions.clip_delta import run_mode
    from guerdon.systems.reproductions.step_chain import UsefulSteps

    first, second = (run_mode("pr_clip_delta", UsefulSteps(slips=True), 3, 8) for _ in range(2))
    assert first == second
    assert first != run_mode("pr_clip_delta", UsefulSteps(slips=True), 4, 8)
