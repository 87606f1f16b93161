"""`guerdon systems`, `reproduce` and `bench`: what is there, whether it holds, how fast it is - read from files, not typed."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guerdon.cli.runfolder import provenance
from guerdon.errors import ConfigError, nearest
from guerdon.repository import root


def show_systems(name: str | None, *, as_json: bool) -> None:
    """Print all systems, or one with what it composes."""
    from guerdon.systems.base import describe
    from guerdon.systems.catalogue import catalogue

    if name is not None:
        print(describe(name))
        return
    rows = catalogue()
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("system", "what it is", "arXiv", "vectors", "claims held"):
        table.add_column(column)
    for row in rows:
        vectors, shown = row["vectors"], row["reproduction"]
        done = "-" if shown is None else f"{shown['held']}/{shown['checked']} ({len(shown['seeds'])} seeds)"
        counted = f"{vectors['passed']}/{vectors['total']}" if vectors["total"] else "-"
        table.add_row(row["slug"], escape(row["title"]), row["arxiv"] or "-", counted, done)
    Console().print(table)


def run_reproductions(
    names: Sequence[str], *, seeds: int | None, smoke: bool, out: str | None, console: Console
) -> int:
    """Run reproductions one after another and record each as it ends. Returns 1 if any claim did not hold."""
    from guerdon.systems.base import reproducible, reproduction_of
    from guerdon.systems.reproduction import Budget, save

    known = reproducible()
    wanted = known if list(names) == ["all"] else list(names)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ConfigError(
            f"no reproduction of {', '.join(unknown)}{nearest(unknown[0], known)}; there are: {', '.join(known)}"
        )
    folder = Path(out) if out else (Path("runs/smoke") if smoke else root("results") / "results")
    failed = False
    for name in wanted:
        started = time.monotonic()
        budget = Budget(
            seeds,
            smoke,
            Path("runs/reproduce") / name,
            lambda text: console.print(f"  {escape(text)}", highlight=False),
        )
        console.print(f"[bold]{name}[/]")
        result = reproduction_of(name)(budget)
        seconds = time.monotonic() - started
        command = f"guerdon reproduce {name}" + (f" --seeds {seeds}" if seeds else "") + (" --smoke" if smoke else "")
        path = save(result, folder, command=command, seconds=seconds, versions=provenance()["versions"])
        _show_reproduction(result, console)
        console.print(f"  {seconds:.0f} s; recorded in {path}\n")
        failed |= not result.passed and not smoke
    return int(failed)


def _show_reproduction(result: Any, console: Console) -> None:
    console.print(f"  {escape(result.claim)}", highlight=False)
    if result.table:
        table = Table(box=None, header_style="bold", pad_edge=False)
        columns = list(dict.fromkeys(key for row in result.table for key in row))
        for column in columns:
            table.add_column(column)
        for row in result.table:
            table.add_row(
                *[f"{v:.3g}" if isinstance(v, float) else escape(str(v)) for v in (row.get(c, "") for c in columns)]
            )
        console.print(table)
    for claim in result.claims:
        mark = "[green]held[/]" if claim.passed else "[red]did not hold[/]"
        console.print(f"  {mark}  {escape(claim.text)}  ({escape(claim.detail)})", highlight=False)


def run_benchmark(name: str, json_path: Path | None) -> int:
    """Run `benchmarks/bench_NAME.py`: its `run(json_path=None)` prints a table and returns the numbers."""
    folder = root("benchmarks") / "benchmarks"
    there = sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))
    if name == "list":
        print("\n".join(f"{bench:12s}{_first_line(folder / f'bench_{bench}.py')}" for bench in there))
        return 0
    if name not in there:
        raise ConfigError(f"no benchmark {name!r}{nearest(name, there)}; there are: {', '.join(there)}")
    _module(folder / f"bench_{name}.py").run(json_path)
    return 0


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up while it is being run
    spec.loader.exec_module(module)
    return module


def _first_line(path: Path) -> str:
    return path.read_text().lstrip('"').splitlines()[0].rstrip('"')
