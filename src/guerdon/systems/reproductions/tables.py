"""The computed blocks of a system's docs page, so that no number is typed by hand and no chain is out of date.

    python -m guerdon.systems.reproductions.tables            write the blocks of every page that has them
    python -m guerdon.systems.reproductions.tables --check    exit code 1 if a page is out of date

A page docs/systems/<slug>.md has marker lines. Between those of "composition" stands the system as it prints itself, with its
defaults; between those of "settings" what the published runs were trained with; between those of "results" what results/<slug>.json says. docs/systems/README.md lists all systems and has a block
"comparison"; README has "demo" and "demo_seeds", docs/tasks.md "smollm2"; docs/speed.md has one for each benchmark, of
benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guerdon.errors import DataError
from guerdon.repository import root
from guerdon.systems import SYSTEMS
from guerdon.systems.base import Placeholder, builder_of, published
from guerdon.systems.reproductions.bench_blocks import BENCH_BLOCKS
from guerdon.systems.settings import PublishedSettings

# blocks made of results/NAME.json, which `guerdon compare --json` wrote
COMPARISONS = ("demo", "demo_seeds", "comparison", "smollm2")


def begin(block: str) -> str:
    """The line a block starts with."""
    return f"<!-- {block}: written by python -m guerdon.systems.reproductions.tables -->"


def end(block: str) -> str:
    """The line a block ends with."""
    return f"<!-- end of {block} -->"


def composition_block(slug: str) -> str:
    """The system with its defaults and placeholders for what the user brings, as it prints itself."""
    parameters = inspect.signature(builder_of(slug)).parameters.values()
    system = builder_of(slug)(**{p.name: Placeholder(p.name) for p in parameters if p.default is p.empty})
    return f"```\n{system}\n```"


def settings_block(slug: str) -> str:
    """Markdown of what the published runs were trained with, for the system and those of its variants that have settings of their own."""
    known = published(slug)
    lines = _settings_table(slug, known.settings)
    for name, own in known.variants.items():
        lines += ["", f"`{name}`:", "", *_settings_table(name, own)]
    return "\n".join(lines)


def _settings_table(name: str, known: PublishedSettings) -> list[str]:
    rows = [
        {"setting": f"`{setting}`" if setting in known.fields else setting, "value": value, "source": source}
        for setting, value, source in known.rows()
    ]
    lines = markdown_table(rows)
    if known.fields:
        lines += [
            "",
            f'`GRPOConfig("out", **gd.systems.preset("{name}"), ...)` has the fields of TRL\'s configuration; `guerdon train` applies them.',
        ]
    return lines


def results_block(record: Mapping[str, Any]) -> str:
    """Markdown of one record of `guerdon reproduce`: claims, table, figure, notes and how to run it again."""
    lines = [
        f"{record['claim']} **{_held(record)}** with {len(record['seeds'])} seeds "
        f"(`{record['command']}`, {record['date']}).",
        "",
    ]
    lines += [
        f"- {'held' if claim['passed'] else '**did not hold**'}: {claim['text']} ({claim['detail']})"
        for claim in record["claims"]
    ]
    if record["table"]:
        lines += ["", *markdown_table(record["table"])]
    if record["figure"]:
        lines += ["", f"![{record['claim']}](../../results/{record['figure']})"]
    if record["notes"]:
        lines += ["", *[f"- {note}" for note in record["notes"]]]
    return "\n".join(lines)


def _held(record: Mapping[str, Any]) -> str:
    held, checked = sum(claim["passed"] for claim in record["claims"]), len(record["claims"])
    return "Reproduced" if record["passed"] else f"{held} of {checked} claims held"


def comparison_block(record: Mapping[str, Any], file: str) -> str:
    """Markdown of one record of `guerdon compare --json`: what each system did on held-out prompts, and the verdict."""

    def moved(system: Mapping[str, Any], name: str, digits: int) -> str:
        start, end = system[f"{name}_start"], system[f"{name}_end"]
        interval = f" [{end['low']:.{digits}f}, {end['high']:.{digits}f}]" if end["low"] is not None else ""
        return f"{start['mean']:.{digits}f} → {end['mean']:.{digits}f}{interval}"

    rows = [
        {
            "system": f"`{system['system']}`",
            "true success": moved(system, "true", 2),
            "optimised reward": moved(system, "reward", 2),
            "length": f"{system['length_start']['mean']:.0f} → {system['length_end']['mean']:.0f}",
            "verdict": f"**{system['verdict']}**" if system["hacked"] else system["verdict"],
        }
        for system in record["systems"]
    ]
    config, manifest = record["config"], record["manifest"]
    over = (
        f"over {config['seeds']} seeds" if config["seeds"] > 1 else f"over {config['eval_prompts']} rollouts, one seed"
    )
    return "\n".join(
        [
            *markdown_table(rows),
            "",
            f"Held-out prompts, start → end with 95 % intervals {over}, {config['steps']} steps "
            f"(`{manifest['command'].split(' --out')[0]}`, {manifest['started'][:10]}; results/{file}).",
        ]
    )


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of {column: text or number} as Markdown lines; columns in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")


def replaced(page: str, block: str, text: str) -> str:
    """The page with `text` in place of what stands in a block.

    Raises:
        DataError: the page does not have both of the block's lines, once each, in order.
    """
    head, found, rest = page.partition(begin(block))
    _, closed, tail = rest.partition(end(block))
    if not found or not closed or begin(block) in rest or end(block) in tail:
        raise DataError(f"the page needs the line {begin(block)!r} and, after it, the line {end(block)!r}, once each")
    return f"{head}{begin(block)}\n\n{text}\n\n{end(block)}{tail}"


def systems_block(folder: Path) -> str:
    """Markdown of every published system: its page, what it does, and whether its claim was reproduced here."""
    rows = []
    for slug in SYSTEMS:
        known, found = published(slug), folder / "results" / f"{slug}.json"
        state = "not recorded"
        if found.exists():
            record = json.loads(found.read_text("utf-8"))
            state = f"{'yes' if record['passed'] else _held(record)}, {len(record['seeds'])} seeds"
        page = folder / "docs" / "systems" / f"{slug}.md"
        rows.append(
            {
                "system": f"[{known.title}]({slug}.md)" if page.exists() else known.title,
                "name here": f"`{slug}`",
                "what it does": known.summary,
                "reproduced": "is the yardstick" if not known.vectors else state,
            }
        )
    return "\n".join(markdown_table(rows))


def refreshed(page: str, slug: str, folder: Path) -> str:
    """The page with each block that it has written anew; a results block without a file says how to get one."""
    if begin("composition") in page:
        page = replaced(page, "composition", composition_block(slug))
    if begin("settings") in page:
        page = replaced(page, "settings", settings_block(slug))
    if begin("systems") in page:
        page = replaced(page, "systems", systems_block(folder))
    for name in COMPARISONS:
        if begin(name) in page:
            path = folder / "results" / f"{name}.json"
            record = json.loads(path.read_text("utf-8")) if path.exists() else None
            page = replaced(page, name, comparison_block(record, path.name) if record else "Not recorded yet.")
    if begin("results") in page:
        path = folder / "results" / f"{slug}.json"
        missing = f"Not recorded yet: `guerdon reproduce {slug}`."
        page = replaced(
            page, "results", results_block(json.loads(path.read_text("utf-8"))) if path.exists() else missing
        )
    for name in BENCH_BLOCKS:
        if begin(name) in page:
            path = folder / "benchmarks" / "results" / f"{name}.json"
            missing = f"Not recorded yet: `guerdon bench {name} --json benchmarks/results/{name}.json`."
            page = replaced(
                page, name, bench_block(name, json.loads(path.read_text("utf-8"))) if path.exists() else missing
            )
    return page


def bench_block(name: str, record: Mapping[str, Any]) -> str:
    """Markdown of one benchmark's file."""
    rows, text = BENCH_BLOCKS[name](record)
    return "\n".join([*(markdown_table(rows) if rows else []), *([""] if rows else []), *text])


def pages(folder: Path) -> list[Path]:
    """README, the page of benchmarks and every docs page of a system that have a block."""
    docs = folder / "docs"
    found = [folder / "README.md", docs / "speed.md", docs / "tasks.md", *sorted((docs / "systems").glob("*.md"))]
    blocks = ("composition", "settings", "results", "systems", *COMPARISONS, *BENCH_BLOCKS)
    return [p for p in found if p.exists() and any(begin(block) in p.read_text("utf-8") for block in blocks)]


def stale(folder: Path) -> list[str]:
    """The pages, from the folder on, whose blocks are not what they would be if written now."""
    texts = {page: page.read_text("utf-8") for page in pages(folder)}
    return [str(page.relative_to(folder)) for page, text in texts.items() if refreshed(text, page.stem, folder) != text]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m guerdon.systems.reproductions.tables")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is out of date")
    folder = root("docs")
    old = stale(folder)
    if parser.parse_args().check:
        if old:
            print(f"out of date: {', '.join(old)}; run python -m guerdon.systems.reproductions.tables")
        return int(bool(old))
    for page in pages(folder):
        name = str(page.relative_to(folder))
        if name in old:
            page.write_text(refreshed(page.read_text("utf-8"), page.stem, folder), "utf-8")
            print(f"{name}: written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
