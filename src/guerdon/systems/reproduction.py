"""What a reproduction gives and how it is recorded: claims with numbers, a small table, a figure, and how to run it again.

`systems/<slug>.py` has `reproduce(budget) -> Reproduction`. `guerdon reproduce <slug>` runs it and writes
`results/<slug>.json` and `results/<slug>.svg`. A claim that does not hold is recorded as not holding.
"""

from __future__ import annotations

import json
import math
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Budget:
    """How much a reproduction may spend.

    Attributes:
        seeds: number of seeds; None = the reproduction's own choice.
        smoke: a seconds-long version for tests: it must run every line and claims nothing.
        folder: scratch space that survives, so that a long reproduction resumes; None = none.
        say: told what is being done, for progress.
    """

    seeds: int | None = None
    smoke: bool = False
    folder: Path | None = None
    say: Callable[[str], None] = lambda _: None

    def seed_list(self, default: int) -> list[int]:
        """The seeds to run: `default` many, 2 in a smoke run."""
        return list(range(self.seeds or (2 if self.smoke else default)))


@dataclass(frozen=True)
class Claim:
    """One checked statement.

    Attributes:
        text: the statement, with its pass criterion.
        passed: whether it held.
        detail: the numbers that decide it, in words.
    """

    text: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Reproduction:
    """A system's claim against the baseline it beats.

    Attributes:
        slug: the system.
        claim: the headline, one sentence.
        claims: what was checked.
        seeds: the seeds that were run.
        table: rows of {column: text or number}; baseline beside the system.
        curves: {arm: {"x": [...], "y": [[...] per seed]}} for the figure; axis names in `axes`.
        axes: (x label, y label).
        notes: what differs from the paper's setting, what surprised.
    """

    slug: str
    claim: str
    claims: Sequence[Claim]
    seeds: Sequence[int]
    table: Sequence[Mapping[str, Any]]
    curves: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    axes: tuple[str, str] = ("step", "")
    notes: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        return bool(self.claims) and all(claim.passed for claim in self.claims)


def save(result: Reproduction, folder: Path, *, command: str, seconds: float, versions: Mapping[str, str]) -> Path:
    """Write `<slug>.json` and, where there are curves, `<slug>.svg`. Returns the JSON's path."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "slug": result.slug,
        "claim": result.claim,
        "passed": result.passed,
        "seeds": list(result.seeds),
        "claims": [{"text": c.text, "passed": bool(c.passed), "detail": c.detail} for c in result.claims],
        "table": [dict(row) for row in result.table],
        "notes": list(result.notes),
        "figure": f"{result.slug}.svg" if result.curves else None,
        "command": command,
        "seconds": round(seconds, 1),
        "date": time.strftime("%Y-%m-%d"),
        "versions": dict(versions),
    }
    path = folder / f"{result.slug}.json"
    path.write_text(json.dumps(_finite(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if result.curves:
        _draw(result, folder / f"{result.slug}.svg")
    return path


def _finite(value: Any) -> Any:
    """NaN and infinities become null: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


def _draw(result: Reproduction, path: Path) -> None:
    """Every seed as a thin line, the mean as a thick one."""
    from guerdon.extras import require

    require("matplotlib", extra="report")
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    import numpy as np

    plt.rcParams["svg.hashsalt"] = result.slug  # the same numbers give the same file
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for (arm, curve), colour in zip(
        result.curves.items(), plt.rcParams["axes.prop_cycle"].by_key()["color"] * 3, strict=False
    ):
        lines = np.asarray(curve["y"], dtype=float)
        for line in lines:
            axis.plot(curve["x"], line, color=colour, alpha=0.25, linewidth=0.8)
        axis.plot(curve["x"], lines.mean(0), color=colour, linewidth=2, label=arm)
    axis.set_xlabel(result.axes[0])
    axis.set_ylabel(textwrap.fill(result.axes[1], 40))
    _legend_below(figure, len(result.curves))
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"{result.claim}\n{len(result.seeds)} seeds; thick: mean", fontsize=9, loc="left", wrap=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _legend_below(figure: Any, curves: int) -> Any:
    """A legend that is never over a line, in as few rows as the figure's width allows."""
    for columns in range(min(3, curves), 0, -1):
        legend = figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return legend
        legend.remove()
    return None
