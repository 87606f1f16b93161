"""What Co-rewarding has to show: tables on which one's own majority certifies itself, and a reproduction that runs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from guerdon.systems import reproduction
from guerdon.systems.reproductions import co_reward_tabular as tabular
from guerdon.systems.reproductions.co_reward_task import OWN_ANSWER, TIERS, tier, two_templates


def test_the_task_has_two_views_of_every_sum() -> None:
    rows = two_templates().train
    assert len(rows) == 392 and len({row["prompt"] for row in rows}) == 392
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["question_id"] == second["question_id"] and first["answer"] == second["answer"]
        a, b = (int(n) for n in first["prompt"][:-2].split("+"))
        assert [ord(c) - 97 for c in second["prompt"][:-2].split(" & ")] == [b, a] and first["tier"] == tier(a, b)
    counts = [sum(row["tier"] == name for row in rows[::2]) for name in TIERS]
    assert sum(counts) == 196 and counts[0] > 80 and min(counts) > 35
    assert OWN_ANSWER[0] != OWN_ANSWER[1]
    right = two_templates().true_success(["#3", " #3\n", "3", "#4"], [{"prompt": "", "answer": "3"}] * 4)
    assert [verdict.value for verdict in right] == [1.0, 1.0, 0.0, 0.0]


def test_tables_one_seed() -> None:
    """The other view's majority beats the own view's, from the same start."""
    runs = {arm: tabular.run(arm, tabular.Table(), 0) for arm in (tabular.OWN, tabular.CROSS)}
    assert runs[tabular.OWN][0] == runs[tabular.CROSS][0] and 0.3 < runs[tabular.OWN][0] < 0.38
    assert runs[tabular.CROSS][-1] > runs[tabular.OWN][-1] + 0.05
    assert runs[tabular.CROSS] == tabular.run(tabular.CROSS, tabular.Table(), 0), "the same seed, the same run"


def test_labels_of_a_table_by_hand() -> None:
    answers = torch.tensor([[[1, 1, 2], [0, 0, 1]], [[2, 2, 2], [1, 2, 1]]])
    taught = torch.full_like(answers, 5)
    assert tabular.labels(tabular.OWN, answers, taught)[:, :, 0].tolist() == [[1, 0], [2, 1]]
    assert tabular.labels(tabular.CROSS, answers, taught)[:, :, 0].tolist() == [[0, 1], [1, 2]]
    assert tabular.labels(tabular.TEACHER, answers, taught).eq(5).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("slug", "arms"), [("co_reward", 3), ("csr", 5)])
def test_the_reproduction_runs(slug: str, arms: int, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    reproduce = importlib.import_module(f"guerdon.systems.reproductions.{slug}").reproduce
    result = reproduce(reproduction.Budget(smoke=True, seeds=1, folder=tmp_path / "runs"))
    assert result.slug == slug and len({tuple(row) for row in result.table}) == 1
    path = reproduction.save(result, tmp_path, command="x", seconds=1.0, versions={})
    assert len(json.loads(path.read_text())["claims"]) == len(result.claims) >= 5
    assert len(list((tmp_path / "runs").glob("*.json"))) == arms, "finished runs are kept"
