"""What came of runs, for people and for programs: the table in the terminal, records as JSON, and the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guerdon.cli import config as settings
from guerdon.cli.runfolder import read_manifest
from guerdon.errors import ConfigError

if TYPE_CHECKING:
    from guerdon.report import SystemSummary
    from guerdon.report.verdict import Interval


TABLE_WIDTH = 110  # characters; a narrower terminal gets a few lines a system instead


def run_folders(folder: Path) -> list[Path]:
    """The runs in a folder: itself, or every folder below it that a run has started in, in the order they were asked for."""
    if (folder / "metrics.jsonl").exists() or (folder / "eval.jsonl").exists():
        return [folder]
    found = {path.parent for name in ("eval.jsonl", "metrics.jsonl") for path in folder.glob(f"*/*/{name}")}
    order = {settings.slug(system): i for i, system in enumerate(read_manifest(folder).get("systems", []))}
    return sorted(found, key=lambda path: (order.get(path.parent.name, len(order)), path.name))


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a run or a comparison, finished or not. Raises ConfigError where there is no run."""
    from guerdon.report import build_report

    runs = run_folders(folder)
    if not runs:
        raise ConfigError(
            f"{folder} holds no run: neither eval.jsonl nor metrics.jsonl is there or two folders below it"
        )
    manifest = read_manifest(folder)
    systems = manifest.get("systems", [])
    many = f"{len(systems)} systems on {manifest.get('task', 'one task')}"
    title = (
        (" vs ".join(systems) if len(systems) <= 4 else many) if systems else str(manifest.get("system", folder.name))
    )
    return Path(build_report(runs, out or folder / "report.html", title, command=manifest.get("command")))


def as_record(summary: SystemSummary) -> dict[str, Any]:
    """A summary as JSON: every quantity with its interval, the verdict with its reason. Not measured = null."""
    quantities = ("true_start", "true_end", "reward_start", "reward_end", "length_start", "length_end", "kl_end")
    verdict = summary.verdict
    return {
        "system": summary.system,
        "seeds": summary.seeds,
        "steps": summary.steps,
        **{name: _interval(getattr(summary, name)) for name in quantities},
        "verdict": verdict.label,
        "hacked": verdict.hacked,
        "reason": verdict.reason,
        "reward_change": _interval(verdict.reward_change),
        "true_change": _interval(verdict.truth_change),
        "seeds_hacked": verdict.seeds_hacked,
    }


def _interval(interval: Interval) -> dict[str, Any]:
    values = {"mean": interval.mean, "low": interval.low, "high": interval.high, "se": interval.se}
    return {
        **{k: (v if math.isfinite(v) else None) for k, v in values.items()},
        "seeds": interval.seeds,
        "level": interval.level,
    }


def print_table(summaries: Sequence[SystemSummary], console: Console) -> None:
    """True success, reward and length from start to end, and the verdict, a row a system."""
    if console.width < TABLE_WIDTH:
        _print_stacked(summaries, console)
        return
    table = Table(header_style="bold", title="held-out prompts, start -> end (95 % interval)", title_justify="left")
    for column in ("system", "seeds", "true success", "optimised reward", "length", "KL", "verdict"):
        table.add_column(column, no_wrap=column == "verdict", overflow="fold")
    for summary in summaries:
        colour = {"hacked": "bold red", "not hacked": "green"}.get(summary.verdict.label, "yellow")
        table.add_row(
            escape(summary.system),
            str(len(summary.seeds)),
            f"{_short(summary.true_start, 2)} -> {_ranged(summary.true_end, 2)}",
            f"{_short(summary.reward_start, 2)} -> {_ranged(summary.reward_end, 2)}",
            f"{_short(summary.length_start, 0)} -> {_short(summary.length_end, 0)}",
            _short(summary.kl_end, 2),
            f"[{colour}]{summary.verdict.label}[/]",
        )
    console.print(table)
    for summary in summaries:
        console.print(f"  {escape(summary.system)}: {escape(summary.verdict.reason)}", highlight=False)


def _print_stacked(summaries: Sequence[SystemSummary], console: Console) -> None:
    """The table for a narrow terminal: a few lines a system, each short enough not to wrap."""
    console.print("[bold]held-out prompts, start -> end (95 % interval)[/]")
    for summary in summaries:
        colour = {"hacked": "bold red", "not hacked": "green"}.get(summary.verdict.label, "yellow")
        console.print(f"[bold]{escape(summary.system)}[/]  [{colour}]{summary.verdict.label}[/]", highlight=False)
        seeds = len(summary.seeds)
        rows = (
            ("true success", f"{_short(summary.true_start, 2)} -> {_ranged(summary.true_end, 2)}"),
            ("optimised reward", f"{_short(summary.reward_start, 2)} -> {_ranged(summary.reward_end, 2)}"),
            ("length", f"{_short(summary.length_start, 0)} -> {_short(summary.length_end, 0)}"),
            ("KL, seeds", f"{_short(summary.kl_end, 2)}, {seeds}"),
        )
        for name, value in rows:
            console.print(f"  {name:18s}{value}", highlight=False)
        console.print(f"  {escape(summary.verdict.reason)}", highlight=False, style="dim")


def _short(interval: Interval, digits: int) -> str:
    return "-" if math.isnan(interval.mean) else f"{interval.mean:.{digits}f}"


def _ranged(interval: Interval, digits: int) -> str:
    if math.isnan(interval.low):
        return _short(interval, digits)
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
