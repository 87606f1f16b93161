"""`guerdon compare`: arms x seeds as processes, then a table, a JSON file and one report.

An unknown system or option is found before the first run starts, and what is shared is made once: the starting policy before the
arms ask for it, a reward model by the first arm that does.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guerdon.cli import config as settings
from guerdon.cli.arms import Arm, default_jobs, run_arms
from guerdon.cli.config import CompareConfig
from guerdon.cli.runfolder import provenance, read_manifest, write_manifest
from guerdon.errors import ConfigError

if TYPE_CHECKING:
    from guerdon.report import SystemSummary
    from guerdon.report.verdict import Interval


def compare_systems(
    config: CompareConfig, *, json_out: Path | None, restart: bool, quiet: bool, console: Console
) -> bool:
    """Run the comparison, print its table, write `compare.json` and `report.html`. Returns whether any run failed.

    Raises:
        ConfigError: a wrong system or setting, or a folder that holds another comparison.
        KeyboardInterrupt: after every running arm has saved; the same call goes on.
    """
    if len(set(config.systems)) < len(config.systems):
        raise ConfigError(f"a system is named twice: {', '.join(config.systems)}")
    folder = config.folder
    if settings.check_same(config, folder, restart=restart) == "new" and restart and folder.exists():
        shutil.rmtree(folder)
    runs = config.runs()
    _prepare(config, quiet=quiet, console=console)
    settings.save(config, folder)
    write_manifest(
        folder, systems=config.systems, task=config.task, model=config.model, seeds=config.seeds, **provenance()
    )
    for run in runs:
        settings.check_same(run, run.folder, restart=False)
        settings.save(run, run.folder)
    jobs = config.jobs or default_jobs(len(runs))
    started = time.monotonic()
    arms = run_arms(runs, jobs=jobs, threads=config.threads or 1, console=console, quiet=quiet)
    write_manifest(
        folder, finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"), seconds=round(time.monotonic() - started, 1), jobs=jobs
    )
    failed = [arm for arm in arms if arm.error]
    for arm in failed:
        console.print(f"[bold red]failed:[/] {escape(arm.name)} {escape(arm.error or '')}", highlight=False)
    _tell(config, arms, json_out, quiet=quiet, console=console)
    return bool(failed)


def _prepare(config: CompareConfig, *, quiet: bool, console: Console) -> None:
    """Find typing errors in any system, then build the first: what all arms share (the starting policy) is made and cached here.
    A model that only later systems need is made by the first arm that needs it, while other arms run already."""
    from guerdon.cli.train import hush, resolve_parts
    from guerdon.systems.context import check_spec

    hush()
    for system in config.systems:
        check_spec(system)
    if not quiet:
        console.print("preparing the task and the starting policy", highlight=False)
    resolve_parts(config.runs()[0])


def _tell(config: CompareConfig, arms: Sequence[Arm], json_out: Path | None, *, quiet: bool, console: Console) -> None:
    from guerdon.cli.main import dump
    from guerdon.report import summarise

    folders = [arm.config.folder for arm in arms if (arm.config.folder / "eval.jsonl").exists()]
    if not folders:
        return
    summaries = summarise(folders)
    record = {
        "config": config.model_dump(mode="json"),
        "manifest": read_manifest(config.folder),
        "systems": [as_record(s) for s in summaries],
    }
    for path in (config.folder / "compare.json", *([json_out] if json_out else [])):
        dump(record, path)
    report = write_report(config.folder)
    if not quiet:
        print_table(summaries, console)
        console.print(f"report: {report}", highlight=False)


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
    title = " vs ".join(manifest["systems"]) if "systems" in manifest else str(manifest.get("system", folder.name))
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


def _short(interval: Interval, digits: int) -> str:
    return "-" if math.isnan(interval.mean) else f"{interval.mean:.{digits}f}"


def _ranged(interval: Interval, digits: int) -> str:
    if math.isnan(interval.low):
        return _short(interval, digits)
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
