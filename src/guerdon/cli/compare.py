"""`guerdon compare`: arms x seeds as processes, then a table, a JSON file and one report.

An unknown system or option is found before the first run starts, and what is shared is made once: the starting policy before the
arms ask for it, a reward model by the first arm that does.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from guerdon.cli import config as settings
from guerdon.cli.arms import Arm, default_jobs, run_arms
from guerdon.cli.config import CompareConfig
from guerdon.cli.outcome import as_record, print_table, write_report
from guerdon.cli.runfolder import dump, provenance, read_manifest, write_manifest
from guerdon.errors import ConfigError

if TYPE_CHECKING:
    pass


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
    from guerdon.cli.train import hush, questions_line, resolve_parts
    from guerdon.systems.context import check_spec

    hush()
    for system in config.systems:
        check_spec(system)
    if not quiet:
        console.print("preparing the task and the starting policy", highlight=False)
    parts = resolve_parts(config.runs()[0])
    if not quiet:
        console.print(questions_line(parts.task, config.eval_prompts), highlight=False, soft_wrap=True)


def _tell(config: CompareConfig, arms: Sequence[Arm], json_out: Path | None, *, quiet: bool, console: Console) -> None:
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
