"""`guerdon compare`: arms x seeds as processes, then a table, a JSON file and one report.

An unknown system or option is found before the first run starts, and what is shared is made once: the starting policy before the
arms ask for it, a reward model by the first arm that does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from guerdon.cli import config as settings
from guerdon.cli.arms import SAVE_TIMEOUT_S, Arm, default_jobs, run_arms
from guerdon.cli.config import CompareConfig, RunConfig
from guerdon.cli.outcome import as_record, print_table, write_report
from guerdon.cli.runfolder import dump, provenance, read_manifest, write_manifest
from guerdon.errors import ConfigError
from guerdon.folders import claim
from guerdon.folders.lock import hold_folder


def compare_systems(
    config: CompareConfig, *, json_out: Path | None, restart: bool, quiet: bool, console: Console
) -> bool:
    """Run the comparison, print its table, write `compare.json` and `report.html`. Returns whether any run failed.

    Raises:
        ConfigError: a wrong system or setting, or a folder that holds another comparison.
        BusyError: another process writes the folder.
        KeyboardInterrupt: after every running arm has saved; the same call goes on.
    """
    if len(set(config.systems)) < len(config.systems):
        raise ConfigError(f"a system is named twice: {', '.join(config.systems)}")
    with hold_folder(config.folder):
        return _compare(config, json_out=json_out, restart=restart, quiet=quiet, console=console)


def _compare(config: CompareConfig, *, json_out: Path | None, restart: bool, quiet: bool, console: Console) -> bool:
    folder, runs = config.folder, config.runs()
    found = settings.check_same(config, folder, restart=restart)
    own = (claim.owner(folder) or {}).get("arms", []) if found == "replace" else []
    for run in runs:
        if str(run.folder.relative_to(folder)) not in own:
            settings.check_same(run, run.folder, restart=False)
    # What is about to be deleted was paid for: then every arm is built before, not only what they share.
    _prepare(config, every=found == "replace" and settings.has_steps(folder), quiet=quiet, console=console)
    _take(config, runs, found, console)
    write_manifest(
        folder, systems=config.systems, task=config.task, model=config.model, seeds=config.seeds, **provenance()
    )
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


def _prepare(config: CompareConfig, *, every: bool, quiet: bool, console: Console) -> None:
    """Find typing errors in any system, then build the first (`every`: all): what all arms share (the starting policy) is made and
    cached here. A model that only later systems need is made by the first arm that needs it, while other arms run already."""
    from guerdon.cli.train import grpo_config, hush, questions_line, resolve_parts
    from guerdon.systems.context import check_spec

    hush()
    for system in config.systems:
        check_spec(system)
    if not quiet:
        console.print("preparing the task and the starting policy", highlight=False)
    for i, run in enumerate(config.runs()[: len(config.systems) if every else 1]):
        parts = resolve_parts(run)
        grpo_config(run, parts, run.folder)
        if not quiet and not i:
            console.print(questions_line(parts.task, config.eval_prompts), highlight=False, soft_wrap=True)


def _take(config: CompareConfig, runs: Sequence[RunConfig], found: settings.Found, console: Console) -> None:
    """Make the folder and its arms' folders this comparison's; every arm's configuration is written."""
    from guerdon.cli.train import take

    folder = config.folder
    names = [str(run.folder.relative_to(folder)) for run in runs]
    old = (claim.owner(folder) or {}).get("arms", [])
    with ExitStack() as held:
        for name in dict.fromkeys([*old, *names]):
            if (folder / name).is_dir():
                # An arm whose comparison was killed is still saving: it ends soon, and until then the folder is its own.
                held.enter_context(hold_folder(folder / name, wait_s=SAVE_TIMEOUT_S))
        take(folder, found, "compare", console=console, arms=names)
        settings.save(config, folder)
        for run in runs:
            take(
                run.folder,
                settings.check_same(run, run.folder, restart=False),
                "train",
                console=console,
                also=["log.txt"],
            )
            settings.save(run, run.folder)


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
