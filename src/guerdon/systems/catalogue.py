"""The state of every published system, read from the repository's files: whether its vectors pass, which of its claims held."""

from __future__ import annotations

import json
from typing import Any

from guerdon.conformance import load_vectors, run_vectors
from guerdon.repository import find_root
from guerdon.systems import SYSTEMS
from guerdon.systems.base import published, vectors_of


def vector_state(slug: str) -> dict[str, int]:
    """{"passed", "total", "functions"}: cases of tests/vectors/<slug>.json, run now; zeros outside a checkout."""
    folder = find_root()
    path = folder / "tests" / "vectors" / f"{slug}.json" if folder else None
    if path is None or not path.exists():
        return {"passed": 0, "total": 0, "functions": 0}
    results = run_vectors(load_vectors(path), vectors_of(slug))
    return {
        "passed": sum(result.passed for result in results),
        "total": sum(result.total for result in results),
        "functions": len(results),
    }


def reproduction_state(slug: str) -> dict[str, Any] | None:
    """{"claim", "passed", "held", "checked", "seeds", "file"} of results/<slug>.json (held of the checked claims), or None where nothing
    is recorded."""
    folder = find_root()
    path = folder / "results" / f"{slug}.json" if folder else None
    if folder is None or path is None or not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    counted = {"held": sum(claim["passed"] for claim in record["claims"]), "checked": len(record["claims"])}
    kept = {key: record[key] for key in ("claim", "passed", "seeds")}
    return {**kept, **counted, "file": str(path.relative_to(folder))}


def catalogue() -> list[dict[str, Any]]:
    """Every published system with its state, in the order of the table."""
    rows = []
    for slug in SYSTEMS:
        known = published(slug)
        rows.append(
            {
                "slug": slug,
                "title": known.title,
                "arxiv": known.arxiv,
                "kinds": list(known.kinds),
                "summary": known.summary,
                "settings": dict(known.settings.fields),
                "vectors": vector_state(slug),
                "reproduction": reproduction_state(slug),
            }
        )
    return rows
