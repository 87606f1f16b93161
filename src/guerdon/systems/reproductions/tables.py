"""The results block of a system's docs page, written from results/<slug>.json so that no number is typed by hand.

    python -m guerdon.systems.reproductions.tables            write the block of every page that has one
    python -m guerdon.systems.reproductions.tables --check    exit code 1 if a page differs from its file

A page docs/systems/<slug>.md has two marker lines; what is between them belongs to this command.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guerdon.errors import DataError
from guerdon.repository import root

BEGIN = "<!-- results: written by python -m guerdon.systems.reproductions.tables -->"
END = "<!-- end of results -->"


def results_block(record: Mapping[str, Any]) -> str:
    """Markdown of one record of `guerdon reproduce`: claims, table, figure, notes and how to run it again."""
    lines = [
        f"{record['claim']} **{'Reproduced' if record['passed'] else 'Not reproduced'}** with {len(record['seeds'])} seeds "
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


def refreshed(page: str, record: Mapping[str, Any]) -> str:
    """The page's text with its results block written anew.

    Raises:
        DataError: the page does not have both markers, once each, in order.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in tail:
        raise DataError(f"the page needs the line {BEGIN!r} and, after it, the line {END!r}, once each")
    return f"{head}{BEGIN}\n\n{results_block(record)}\n\n{END}{tail}"


def pages(folder: Path) -> list[tuple[Path, Path]]:
    """(page, results file) of every page with a results block."""
    found = sorted(path for path in (folder / "docs" / "systems").glob("*.md") if BEGIN in path.read_text("utf-8"))
    return [(page, folder / "results" / f"{page.stem}.json") for page in found]


def stale(folder: Path) -> list[str]:
    """Pages whose block is not what their results file says, or whose results file is missing."""
    out = []
    for page, results in pages(folder):
        text = page.read_text("utf-8")
        if not results.exists() or refreshed(text, json.loads(results.read_text("utf-8"))) != text:
            out.append(page.name)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m guerdon.systems.reproductions.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is out of date")
    if parser.parse_args().check:
        if old := stale(root("docs")):
            print(f"out of date: {', '.join(old)}; run python -m guerdon.systems.reproductions.tables")
        return int(bool(old))
    for page, results in pages(root("docs")):
        if not results.exists():
            print(f"{page.name}: no {results.name}; run guerdon reproduce {page.stem}")
            continue
        page.write_text(refreshed(page.read_text("utf-8"), json.loads(results.read_text("utf-8"))), "utf-8")
        print(f"{page.name}: written from {results.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
