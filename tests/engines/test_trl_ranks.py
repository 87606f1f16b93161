"""Two processes, groups split across them, widths that differ: the same advantages and parameters as one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_run
import torch
from engine_kit import lines

from guerdon.engines.trl.batch import concat_rewards, local_part
from guerdon.rewards import Rewards
from guerdon.spans import Spans
from guerdon.system import System

SCRIPT = str(Path(__file__).with_name("rank_run.py"))
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def run(policy: str, out: Path, per_device: int, processes: int) -> dict[str, Any]:
    if processes == 1:
        rank_run.main(policy, str(out), per_device)
        return torch.load(out, weights_only=False)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, SCRIPT, policy, str(out), str(per_device)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=False)


@pytest.mark.slow
def test_two_processes_are_one(policy_path: str, tmp_path: Path) -> None:
    one = run(policy_path, tmp_path / "one.pt", 12, 1)
    two = run(policy_path, tmp_path / "two.pt", 6, 2)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["width"] < one["width"], "the first process's rows are shorter: widths differed"
    for mine, theirs in zip(one["seen"], two["seen"], strict=True):
        assert mine["texts"] == theirs["texts"] and mine["answers"] == theirs["answers"]
        assert theirs["groups"].tolist() == [0] * 4 + [1] * 4 + [2] * 4, "group 1 was split"
        assert theirs["samples"].tolist() == list(range(12))
        assert mine["keep"].tolist() == theirs["keep"].tolist() == [row != 7 for row in range(12)]
        assert mine["reasons"] == theirs["reasons"] and mine["reasons"]["letters"] == [(7, 0)]
        assert torch.equal(mine["advantages"], theirs["advantages"])
    for name, weight in one["parameters"].items():
        assert torch.allclose(weight, two["parameters"][name], atol=1e-6), name
    for mine, theirs in zip(one["history"], two["history"], strict=True):
        for key in ("loss", "reward", "true", "kept", "rewards/rarity/mean"):
            assert (key in mine) == (key in theirs) and mine.get(key, 0) == pytest.approx(
                theirs.get(key, 0), abs=1e-5
            ), key
    for name in ("metrics.jsonl", "eval.jsonl"):
        mine_lines, theirs_lines = lines(tmp_path / "one.log" / name), lines(tmp_path / "two.log" / name)
        assert len(mine_lines) == len(theirs_lines) == 2
    assert mine_lines[0]["true_success"] == theirs_lines[0]["true_success"]
    assert mine_lines[0]["kl"]["mean"] == theirs_lines[0]["kl"]["mean"] == 0.0
    assert mine_lines[1]["kl"]["mean"] == pytest.approx(theirs_lines[1]["kl"]["mean"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["column", "synthesised"])
def test_group_likelihoods_are_forwarded_once_over_all_ranks(what: str, tmp_path: Path) -> None:
    """P2S: the same rewards on both ranks, and together about the tokens that one process forwards."""
    import spread_run

    spread_run.main(what, str(tmp_path / "one"))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = str(Path(SCRIPT).with_name("spread_run.py"))
    done = subprocess.run(
        [*start, script, what, str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, first, second = (torch.load(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    assert torch.equal(first["steps"], second["steps"]) and torch.equal(first["mask"], second["mask"])
    if what == "column":  # ranks that sample draw by themselves
        torch.testing.assert_close(first["steps"], one["steps"])
    for part in (first, second):
        assert 0 < part["seen"]["tokens"] < 0.75 * one["seen"]["tokens"]
    both = first["seen"]["tokens"] + second["seen"]["tokens"]
    assert what != "column" or both < 1.2 * one["seen"]["tokens"], "what ranks share is the prompts alone"


def test_stages_keep_the_order_and_part_rows_from_groups() -> None:
    class Row:
        scope, level = "row", "sequence"

    class Group(Row):
        scope = "group"

    class Asked(Row):
        asked = "once"

    parts = {"a": Row(), "b": Row(), "c": Asked(), "d": Row(), "e": Group(), "f": Asked(), "g": Row()}
    for part in parts.values():
        type(part).__call__ = lambda self, rollouts, scores: None  # type: ignore[attr-defined]
    expected = [(True, ["a", "b"]), (False, ["c"]), (True, ["d"]), (False, ["e", "f"]), (True, ["g"])]
    assert System(parts).stages() == expected


def test_rewards_of_ranks_join_with_their_reasons() -> None:
    narrow = Rewards(
        torch.tensor([[1.0], [float("nan")]]),
        Spans.from_lists([[(0, 1)], [(0, 0)]], unit="token", name="steps"),
        {(1, 0): "late"},
    )
    wide = Rewards(
        torch.tensor([[2.0, 3.0]]), Spans.from_lists([[(0, 0), (1, 4)]], unit="token", name="steps"), {(0, 1): "odd"}
    )
    joined = concat_rewards([narrow, wide])
    assert joined.values.shape == (3, 2) and joined.mask.tolist() == [[True, False], [True, False], [True, True]]
    assert joined.reasons == {(1, 0): "late", (2, 1): "odd"}
    assert joined.row_total().nan_to_num(-1).tolist() == [1.0, -1.0, 5.0]
    assert joined.level == "steps"


def test_local_part_cuts_and_pads() -> None:
    tensor = torch.arange(12.0).view(4, 3)
    assert local_part(tensor, 1, 2, 2).tolist() == [[6, 7], [9, 10]]
    assert local_part(tensor, 0, 2, 4).tolist() == [[0, 1, 2, 0], [3, 4, 5, 0]]
