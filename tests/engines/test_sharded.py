"""Policies whose weights are spread over two processes: as many forwards on each, whatever each has to score, and the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")]


def two(script: str, *arguments: str) -> None:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*start, str(Path(__file__).with_name(script)), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("kind", ["fsdp1", "fsdp2"])
def test_ranks_with_unequal_work_run_equally_many_forwards(kind: str, tmp_path: Path) -> None:
    from cuda_kit import characters, tiny
    from shard_run import work

    from guerdon.lm import LocalModel, SpanScorer

    two("shard_run.py", kind, str(tmp_path / "out"))
    first, second = (torch.load(tmp_path / f"out.{rank}") for rank in (0, 1))
    assert first["forwards"] == second["forwards"] and min(first["forwards"].values()) > 0
    assert first["idle"] == 0 < second["idle"], "the rank with less to do ran along"
    for rank, found in ((0, first), (1, second)):
        for seed, name in ((0, "first"), (1, "second")):
            if name in found:
                plain = SpanScorer(LocalModel(tiny(seed=seed), characters())).score(*work(rank)).values
                torch.testing.assert_close(found[name], plain, rtol=1e-4, atol=1e-4)
    assert first["shared"] == second["shared"]
    assert (first["failed"], second["failed"]) == ("own", "other"), "no rank waits for one that raised"
    assert first["grad"] == second["grad"] == "CapabilityError"


@pytest.mark.parametrize("kind", ["fsdp1", "fsdp2"])
def test_a_trainer_scores_and_measures_with_a_sharded_policy(kind: str, policy_path: str, tmp_path: Path) -> None:
    import sharded_trainer_run

    sharded_trainer_run.main(policy_path, str(tmp_path / "one"), "whole")
    one: dict[str, Any] = torch.load(tmp_path / "one.0")
    two("sharded_trainer_run.py", policy_path, str(tmp_path / "two"), kind)
    found = [torch.load(tmp_path / f"two.{rank}") for rank in (0, 1)]
    assert found[0]["forwards"] == found[1]["forwards"] > 0
    for rank in found:
        torch.testing.assert_close(rank["rewards"], one["rewards"], rtol=1e-4, atol=1e-4)
        for name in ("old", "reference"):
            torch.testing.assert_close(rank[name] * rank["mask"], one[name] * one["mask"], rtol=1e-4, atol=1e-4)
        assert rank["kl"] == pytest.approx(one["kl"], abs=1e-5)
