"""Who may write a folder or a file, and which files in a folder are a run's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from guerdon.errors import BusyError, ConfigError
from guerdon.folders import claim
from guerdon.folders.lock import hold_file, hold_folder, holder_of

HOLD = """
import sys, time
from guerdon.folders.lock import hold_file, hold_folder
with (hold_folder if sys.argv[1] == "folder" else hold_file)(sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


def holding(kind: str, place: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, kind, str(place)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# -- locks -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "hold"), [("folder", hold_folder), ("file", hold_file)])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_second_writer_is_told_who_the_first_is_and_a_dead_one_holds_nothing(
    kind: str, hold: Any, end: int, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    process = holding(kind, place)
    try:
        with (
            pytest.raises(BusyError, match=rf"place is being written by process {process.pid} on \S+ since \d{{4}}-"),
            hold(place),
        ):
            pass
        assert kind == "file" or holder_of(place)["pid"] == process.pid
    finally:
        process.send_signal(end)
        process.wait()
    with hold(place):
        assert kind == "file" or holder_of(place)["pid"] == os.getpid()


def test_one_may_wait_for_the_first(tmp_path: Path) -> None:
    process = holding("folder", tmp_path)
    began = time.monotonic()
    with pytest.raises(BusyError), hold_folder(tmp_path, wait_s=0.4):
        pass
    assert time.monotonic() - began >= 0.4
    process.kill()
    with hold_folder(tmp_path, wait_s=30):
        pass
    process.wait()


def test_a_place_is_held_several_times_by_one_process_and_nothing_is_left(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    with hold_folder(place):
        with hold_folder(place), hold_folder(str(place) + "/../b"):
            pass
        assert place.is_dir()
        with pytest.raises(AssertionError, match="BusyError"):
            failing = subprocess.run(
                [sys.executable, "-c", HOLD, "folder", str(place)], capture_output=True, text=True, timeout=60
            )
            raise AssertionError(failing.stderr)
    assert names(tmp_path) == []
    with hold_file(tmp_path / "c" / "out.jsonl"):
        pass
    assert names(tmp_path) == []
    with hold_file(tmp_path / "c" / "out.jsonl"):
        (tmp_path / "c" / "out.jsonl").write_text("x")
    assert names(tmp_path) == ["c", "c/out.jsonl"]


# -- what is a run's -----------------------------------------------------------------------------------------------------------


def fill(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def a_run(folder: Path) -> None:
    """What `guerdon train` leaves: logs, a complete checkpoint and a half-written one, a policy."""
    claim.claim(folder, "train")
    fill(
        folder,
        *claim.COMMAND,
        *claim.LOGS,
        "checkpoints/checkpoint-2/model.safetensors",
        "checkpoints/checkpoint-2/x/odd.bin",
    )
    marker = {"files": {"model.safetensors": 1, "x/odd.bin": 1}}
    (folder / "checkpoints/checkpoint-2/COMPLETE").write_text(json.dumps(marker))
    fill(
        folder, "checkpoints/checkpoint-4/optimizer.pt", "checkpoints/checkpoint-4/rng_state.pth", ".manifest.json.123"
    )
    (folder / "checkpoints/README.md").write_text("made by TRL")
    with claim.noting_policy(folder):
        fill(folder, "policy/model.safetensors", "policy/odd.json")


OWN = (
    "notes.txt",
    "data.jsonl",
    "run.yaml",
    "checkpoints/checkpoint-2/mine.txt",
    "checkpoints/checkpoint-4/mine.txt",
    "checkpoints/checkpoint-best/model.safetensors",
    "policy/mine.txt",
    "outcome/thing.txt",
)


def test_only_what_the_run_wrote_is_deleted(tmp_path: Path) -> None:
    a_run(tmp_path)
    assert claim.clear(tmp_path) == [] and names(tmp_path) == []
    a_run(tmp_path)
    fill(tmp_path, *OWN)
    left = claim.clear(tmp_path)
    assert left == ["checkpoints", "data.jsonl", "notes.txt", "outcome", "policy", "run.yaml"]
    assert [name for name in names(tmp_path) if (tmp_path / name).is_file()] == sorted(OWN)
    claim.claim(tmp_path, "train")  # a new run begins beside them
    with claim.noting_policy(tmp_path):
        fill(tmp_path, "policy/model.safetensors")
    claim.clear(tmp_path)
    assert [name for name in names(tmp_path) if (tmp_path / name).is_file()] == sorted(OWN)


def test_a_folder_that_is_no_runs_is_not_cleared(tmp_path: Path) -> None:
    fill(tmp_path, *claim.LOGS, "config.yaml")
    for manifest in ("", "{}", "[]", '{"versions": 3}'):
        (tmp_path / "manifest.json").write_text(manifest)
        with pytest.raises(ConfigError, match="holds no run of Guerdon"):
            claim.clear(tmp_path)
    assert (tmp_path / "metrics.jsonl").exists()
    (tmp_path / "manifest.json").write_text('{"versions": {"guerdon": "0.1.0"}}')  # a run from before there was a mark
    assert claim.clear(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "config.yaml",
        "report.html",
        "policy/model.safetensors",
        "checkpoints/checkpoint-5/model.safetensors",
    ],
)
def test_a_file_that_a_run_would_overwrite_and_no_run_wrote_is_in_the_way(name: str, tmp_path: Path) -> None:
    fill(tmp_path, name)
    with pytest.raises(ConfigError, match="no run of Guerdon wrote it"):
        claim.claim(tmp_path, "train")
    assert names(tmp_path) == sorted({name, *(str(p) for p in Path(name).parents if str(p) != ".")})


def test_a_comparison_owns_its_arms_and_nothing_else_below_it(tmp_path: Path) -> None:
    claim.claim(tmp_path, "compare", arms=["pure/seed0", "outcome/seed0"])
    fill(tmp_path, "compare.json", "config.yaml", "pure/seed7/metrics.jsonl", "pure/seed0/mine.txt")
    for arm in ("pure/seed0", "outcome/seed0"):
        claim.claim(tmp_path / arm, "train", also=["log.txt"])
        fill(tmp_path / arm, "metrics.jsonl", "log.txt")
    claim.clear(tmp_path)
    assert names(tmp_path) == ["pure", "pure/seed0", "pure/seed0/mine.txt", "pure/seed7", "pure/seed7/metrics.jsonl"]


def test_a_list_does_not_reach_out_of_its_folder(tmp_path: Path) -> None:
    run, precious = tmp_path / "run", tmp_path / "precious.txt"
    precious.write_text("x")
    a_run(run)
    (run / "checkpoints/checkpoint-2/COMPLETE").write_text(json.dumps({"files": {"../../../precious.txt": 1}}))
    claim.clear(run)
    assert precious.exists()
