"""Recipes of several phases: SFT then RL; label, train a PRM, then search; preference rounds. Each phase resumes by itself.

A recipe is an iterator of `Phase`s, usually a generator, so that a later phase can be built from what an earlier one left
in its folder. Every phase has a folder (`01-sft`, `02-rl`, ...) with a manifest; a finished phase is not run again, an
unfinished one is called again with the same folder and continues from what it saved there. A one-phase system needs none
of this.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guerdon.errors import ConfigError

MANIFEST = "phase.json"


@dataclass(frozen=True)
class Phase:
    """One phase of a recipe.

    Attributes:
        name: short; part of the folder's name.
        run: (folder) -> a JSON-serialisable result. Must be resumable: called again after a kill with the same folder.
        settings: what the phase depends on, JSON-serialisable. A folder made with other settings is refused, not reused.
    """

    name: str
    run: Callable[[Path], Mapping[str, Any] | None]
    settings: Mapping[str, Any] = field(default_factory=dict)


def run_phases(
    phases: Iterable[Phase], folder: Path, *, announce: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Run a recipe in `folder`, going on where an earlier call stopped.

    Args:
        phases: the recipe; pulled one at a time, after the one before has finished.
        folder: made if absent.
        announce: told "running 02-rl" and "02-rl was done before".

    Returns:
        The manifest of each phase: {"name", "settings", "status": "done", "result", "started", "finished"}.

    Raises:
        ConfigError: a phase's folder was made with other settings or under another name.
    """
    manifests = []
    for number, phase in enumerate(phases, 1):
        place = folder / f"{number:02d}-{phase.name}"
        _check(phase, place, folder, number)
        manifest = _read(place)
        if manifest.get("status") == "done":
            announce(f"{place.name} was done before")
        else:
            announce(f"running {place.name}")
            started = manifest.get("started") or time.strftime("%Y-%m-%dT%H:%M:%S%z")
            manifest = {"name": phase.name, "settings": dict(phase.settings), "status": "running", "started": started}
            _write(place, manifest)
            result = dict(phase.run(place) or {})
            manifest = {
                **manifest,
                "status": "done",
                "result": result,
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }
            _write(place, manifest)
        manifests.append(manifest)
    return manifests


def _check(phase: Phase, place: Path, folder: Path, number: int) -> None:
    strangers = [other.name for other in folder.glob(f"{number:02d}-*") if other != place]
    if strangers:
        raise ConfigError(
            f"{folder}: phase {number} was {strangers[0]!r} and is now {place.name!r}; use another folder"
        )
    settings = _read(place).get("settings", phase.settings)
    if json.loads(json.dumps(dict(settings))) != json.loads(json.dumps(dict(phase.settings))):
        raise ConfigError(
            f"{place} was made with other settings ({settings} then, {dict(phase.settings)} now); use another folder"
        )


def _read(place: Path) -> dict[str, Any]:
    path = place / MANIFEST
    return json.loads(path.read_text()) if path.exists() else {}


def _write(place: Path, manifest: Mapping[str, Any]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    scratch = place / f".{MANIFEST}"
    scratch.write_text(json.dumps(manifest, indent=1) + "\n")
    scratch.replace(place / MANIFEST)
