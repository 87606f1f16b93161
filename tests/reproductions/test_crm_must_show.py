"""What CRM has to show: the collapse of the additive form and not of CRF, the data builder, and that the reproduction runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from guerdon.signals.learned.tiny_crm import rule_score, with_waste, written_pairs
from guerdon.signals.learned.train_crm import discriminative
from guerdon.systems.reproduction import Budget, save
from guerdon.systems.reproductions.crm import longer_concise, ordered
from guerdon.systems.reproductions.crm_behaviours import ADDED, CRF, OUTCOME, run_arm

pytest.importorskip("transformers")


def test_crf_removes_filler_and_the_additive_form_removes_the_reasoning() -> None:
    plain, ours, added = (run_arm(arm, 7) for arm in (OUTCOME, CRF, ADDED))
    assert ours.length[-1] <= 0.85 * plain.length[-1] and ours.accuracy[-1] >= plain.accuracy[-1] - 0.02
    assert added.accuracy[-1] <= plain.accuracy[-1] - 0.1 and added.length[-1] < 0.4 * 4
    assert run_arm(CRF, 7, 5) == run_arm(CRF, 7, 5) != run_arm(CRF, 8, 5)


def test_the_judge_counts_what_is_needed() -> None:
    question = "a3+b5+c2=?\n"
    assert rule_score(question, "3+b5=8\n8+c2=10\n#10") == 1.0
    assert rule_score(question, "3+b5=8\n3+b5=8\nok so far\n8+c2=10\n#10") == pytest.approx(3 / 5)
    assert rule_score(question, "") == 0.1 and rule_score(question, "ok so far") == 0.1


def test_wasted_lines_leave_the_solution_in_place() -> None:
    import random

    lines = ["3+b5=8", "8+c2=10", "#10"]
    wasted = with_waste(lines, 5, random.Random(0))
    assert len(wasted) == 8 and wasted[-1] == "#10" and next(w for w in wasted if w in lines) == lines[0]


def test_only_discriminative_pairs_are_kept() -> None:
    written = written_pairs(300, 0, held_out=False)
    kept = discriminative(written)
    assert 50 < len(kept) < 290 and all(p.concise_score >= 0.8 and p.redundant_score <= 0.5 for p in kept)
    assert written == written_pairs(300, 0, held_out=False)
    assert not {p.question for p in written} & {p.question for p in written_pairs(300, 0, held_out=True)}
    across = longer_concise(kept)
    assert across and all(len(concise[1]) > len(redundant[1]) for concise, redundant in across)


def test_ties_are_half_and_missing_scores_count_against() -> None:
    nan = float("nan")
    assert ordered(torch.tensor([0.9, 0.5, nan, 0.1]), torch.tensor([0.1, 0.5, 0.1, 0.2])) == (1 + 0.5) / 4


def test_the_reproduction_runs_and_is_recorded(tmp_path: Path) -> None:
    from guerdon.systems.reproductions.crm import reproduce

    pytest.importorskip("trl")
    said: list[str] = []
    result = reproduce(Budget(smoke=True, folder=tmp_path / "runs", say=said.append))
    assert len(list((tmp_path / "runs").glob("*.json"))) == 6
    assert list(result.seeds) == [0, 1] and said and len({tuple(row) for row in result.table}) == 1
    for curve in result.curves.values():
        assert [len(line) for line in curve["y"]] == [len(curve["x"])] * 2
    path = save(result, tmp_path, command="guerdon reproduce crm --smoke", seconds=1.0, versions={})
    assert len(json.loads(path.read_text())["claims"]) == len(result.claims) and (tmp_path / "crm.svg").exists()
