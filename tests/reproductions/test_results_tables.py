"""The numbers of a docs page are those of its results file, and the block can be written anew."""

import json
from pathlib import Path

import pytest

from guerdon.errors import DataError
from guerdon.repository import find_root
from guerdon.systems.reproductions.tables import BEGIN, END, markdown_table, pages, refreshed, stale

RECORD = {
    "claim": "A beats B.",
    "passed": False,
    "seeds": [0, 1],
    "claims": [{"text": "A > B", "passed": False, "detail": "1 of 2 seeds"}],
    "table": [{"arm": "A|x", "score": 0.123456}, {"arm": "B", "score": None, "n": 3}],
    "notes": ["small"],
    "figure": "a.svg",
    "command": "guerdon reproduce a",
    "date": "2025-01-01",
}


def test_a_block_is_written_between_the_markers_and_nowhere_else() -> None:
    page = f"# A\n\n{BEGIN}\nold 0.9\n{END}\n\nafter"
    new = refreshed(page, RECORD)
    assert new.startswith("# A\n\n") and new.endswith(f"{END}\n\nafter") and "old 0.9" not in new
    assert "**Not reproduced** with 2 seeds" in new and "**did not hold**: A > B (1 of 2 seeds)" in new
    assert refreshed(new, RECORD) == new
    with pytest.raises(DataError, match="once each"):
        refreshed("# no markers", RECORD)


def test_tables_round_and_escape() -> None:
    assert markdown_table(RECORD["table"]) == [
        "| arm | score | n |",
        "| --- | --- | --- |",
        "| A\\|x | 0.123 |  |",
        "| B | - | 3 |",
    ]


def test_a_page_that_differs_from_its_file_is_stale(tmp_path: Path) -> None:
    docs, results = tmp_path / "docs" / "systems", tmp_path / "results"
    docs.mkdir(parents=True)
    results.mkdir()
    page = docs / "a.md"
    page.write_text(refreshed(f"{BEGIN}\n{END}", RECORD))
    assert stale(tmp_path) == ["a.md"]  # no results file
    (results / "a.json").write_text(json.dumps(RECORD))
    assert stale(tmp_path) == []
    page.write_text(page.read_text().replace("0.123", "0.124"))
    assert stale(tmp_path) == ["a.md"]


def test_the_pages_of_this_repository_show_what_their_files_say() -> None:
    root = find_root()
    assert root is not None
    assert pages(root), "no docs page has a results block"
    assert stale(root) == []
