"""The numbers of a docs page are those of its results file, and the block can be written anew."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from guerdon.errors import DataError
from guerdon.repository import find_root
from guerdon.systems.reproductions.tables import (
    begin,
    end,
    markdown_table,
    pages,
    refreshed,
    replaced,
    results_block,
    stale,
)

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


def test_a_block_is_written_between_its_markers_and_nowhere_else() -> None:
    page = f"# A\n\n{begin('results')}\nold 0.9\n{end('results')}\n\nafter"
    new = replaced(page, "results", results_block(RECORD))
    assert new.startswith("# A\n\n") and new.endswith(f"{end('results')}\n\nafter") and "old 0.9" not in new
    assert "**0 of 1 claims held** with 2 seeds" in new and "**did not hold**: A > B (1 of 2 seeds)" in new
    assert replaced(new, "results", results_block(RECORD)) == new
    with pytest.raises(DataError, match="once each"):
        replaced("# no markers", "results", "text")


def test_tables_round_and_escape() -> None:
    assert markdown_table(RECORD["table"]) == [
        "| arm | score | n |",
        "| --- | --- | --- |",
        "| A\\|x | 0.123 |  |",
        "| B | - | 3 |",
    ]


def test_a_page_that_differs_from_its_file_or_its_system_is_stale(tmp_path: Path) -> None:
    docs, results = tmp_path / "docs" / "systems", tmp_path / "results"
    docs.mkdir(parents=True)
    results.mkdir()
    page = docs / "pure.md"
    page.write_text("\n".join(line(block) for block in ("composition", "results") for line in (begin, end)))
    assert stale(tmp_path) == ["docs/systems/pure.md"]
    page.write_text(refreshed(page.read_text(), "pure", tmp_path))
    assert stale(tmp_path) == [] and "Not recorded yet" in page.read_text()
    (results / "pure.json").write_text(json.dumps(RECORD))
    assert stale(tmp_path) == ["docs/systems/pure.md"]
    page.write_text(refreshed(page.read_text(), "pure", tmp_path))
    assert "0.123" in page.read_text() and "MinForm()" in page.read_text()
    for wrong in (("0.123", "0.124"), ("MinForm()", "MinForm(temperature=0.2)")):
        good = page.read_text()
        page.write_text(good.replace(*wrong))
        assert stale(tmp_path) == ["docs/systems/pure.md"]
        page.write_text(good)
    assert stale(tmp_path) == []


def test_a_benchmark_s_numbers_are_those_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    page = tmp_path / "docs" / "speed.md"
    page.write_text("\n".join(line("prefix") for line in (begin, end)))
    page.write_text(refreshed(page.read_text(), "speed", tmp_path))
    assert "Not recorded yet: `guerdon bench prefix" in page.read_text() and stale(tmp_path) == []
    several, one = ({"ratio": 3.456, "low": 3.0, "high": 4.0, "rounds": n} for n in (2, 1))
    record = {
        "case": {"rollouts": 8, "prefixes": 4, "length": 100, "looped_tokens": 900},
        "tokens_forwarded": 300,
        "path": "packed",
        "naive_over_ours": several,
        "padded_over_ours": one,
        "ours_over_floor": {"ratio": 1.4, "low": 1.0, "high": 2.0, "rounds": 5},
        "largest_difference_to_naive": 2e-6,
        "memory": {
            "ways": {"ours": {"peak_mb": 1200.4}},
            "ours_over_floor": 1.2,
            "ours_over_floor_without_model": 1.9,
        },
        "bars": {"naive_over_ours": 3.0, "ours_over_floor": 1.3, "memory_over_floor": 1.5},
        "passed": {"naive_over_ours": True, "ours_over_floor": False, "memory_over_floor": True, "exact": True},
    }
    (folder / "prefix.json").write_text(json.dumps(record))
    assert stale(tmp_path) == ["docs/speed.md"]
    text = refreshed(page.read_text(), "speed", tmp_path)
    assert "| G = 8, K = 4, L = 100 | 3.46 [3.00, 4.00] | 3.46 | 1.40 [1.00, 2.00] | packed |" in text
    assert "- held: naive / ours at least 3" in text and "- **not held**: ours / floor at most 1.3" in text


def test_the_pages_of_this_repository_are_up_to_date() -> None:
    root = find_root()
    assert root is not None
    assert {"pure.md", "clip_delta.md", "par.md"} <= {page.name for page in pages(root)}
    assert stale(root) == []


@pytest.mark.parametrize(
    "slug", ["pure", "clip_delta", "par", "crm", "noisy_rpr", "hybrid_multi_aspect", "igpo", "likelihood", "rlpr"]
)
def test_the_python_of_a_page_runs_and_gives_what_its_comments_say(slug: str) -> None:
    root = find_root()
    assert root is not None
    code = re.findall(r"```python\n(.*?)```", (root / "docs" / "systems" / f"{slug}.md").read_text(), re.S)
    checked = 0
    for block in code:
        scope: dict[str, Any] = {}
        for statement in ast.parse(block).body:
            source = ast.get_source_segment(block, statement)
            assert source is not None
            comment = block.splitlines()[(statement.end_lineno or 1) - 1].partition("# ")[2]
            if not isinstance(statement, ast.Expr) or not re.match(r"-?\d", comment):
                exec(source, scope)
                continue
            said = [float(number) for number in comment.partition(":")[0].split(",")]
            assert eval(source, scope).flatten().tolist() == pytest.approx(said, abs=0.01)
            checked += 1
    assert checked
