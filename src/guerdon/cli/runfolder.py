"""A run's folder: who made it, how far it is, what it measured. Everything else reads runs through these few functions.

config.yaml      the resolved configuration
manifest.json    system, task, model, seed, versions, command, started, finished, status (running|done|interrupted|failed)
metrics.jsonl    a line for each optimiser step          eval.jsonl    a line for each measurement on held-out prompts
rollouts.jsonl   rollouts kept for the report            checkpoints/  complete checkpoints, newest last
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from guerdon.redact import without_credentials

MANIFEST = "manifest.json"
REPORTED = ("guerdon", "torch", "transformers", "trl", "accelerate", "peft", "numpy", "math-verify")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, or {} where there is none. One that cannot be read (a full disk, a lost power line) is said and left."""
    path = folder / MANIFEST
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} cannot be read ({error}); going on without it", stacklevel=2)
        return {}
    return record if isinstance(record, dict) else {}


def write_manifest(folder: Path, **values: Any) -> dict[str, Any]:
    """Update the manifest's keys; replaced in one step, so that a kill leaves the old or the new one."""
    record = {**read_manifest(folder), **values}
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{MANIFEST}.{os.getpid()}"
    with scratch.open("w") as file:
        file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(folder / MANIFEST)
    return record


def provenance() -> dict[str, Any]:
    """What made a result: versions, machine size, command line."""
    versions = {}
    for package in REPORTED:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": {**versions, "python": platform.python_version()},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "command": without_credentials(" ".join(["guerdon", *sys.argv[1:]])),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL log. A last line cut by a kill is left out; a broken one elsewhere is an error."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}:{number}: not JSON: {error}") from error
    return found


def last_record(path: Path, window: int = 65536) -> dict[str, Any]:
    """The last complete line of a JSONL log, without reading all of it; {} where there is none."""
    if not path.exists():
        return {}
    with path.open("rb") as handle:
        handle.seek(0, os.SEEK_END)
        handle.seek(max(0, handle.tell() - window))
        tail = handle.read().split(b"\n")
    for line in reversed(tail[:-1]):
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def dump(record: Any, path: Path) -> None:
    """Write a record as JSON; NaN is an error, so what is not known has to be None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
