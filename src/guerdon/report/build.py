"""Builds the report: reads runs, chooses what fits on a page, and fills one HTML file that needs nothing else.

Numbers and words (header, result table, notes) are written here, so that they are there without scripts; charts and the
rollout browser are drawn by assets/page.js from one JSON block. No request ever leaves the page: a content security policy
forbids them. What did not fit is said on the page.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from guerdon.report.header import facts, lede, notes_html, provenance_html
from guerdon.report.rollout_choice import choose_rollouts
from guerdon.report.runs import RunDir, SystemSummary, load_runs, metric_over_seeds, over_seeds, summarise
from guerdon.report.table import badge_kind, result_table
from guerdon.report.verdict import Interval


def build_report(
    runs: Iterable[RunDir | str | Path],
    out_path: str | Path,
    title: str | None = None,
    *,
    command: str | None = None,
    max_rollouts: int = 3000,
    max_tokens: int = 300_000,
) -> Path:
    """Write the report of some runs.

    Args:
        runs: run folders (see `guerdon.report.runs`); those of one system are its seeds.
        out_path: the HTML file.
        title: default says which systems.
        command: what made all runs (a comparison), default: each run's own.
        max_rollouts, max_tokens: of the rollouts on the page, shared by the runs; what is left out is said there.

    Returns:
        `out_path`.
    """
    loaded = load_runs(runs)
    summaries = summarise(loaded)
    title = title or (" · ".join(s.system for s in summaries) or "No runs")
    chosen = choose_rollouts(loaded, max_rollouts=max_rollouts, max_tokens=max_tokens)
    payload = {
        "systems": [_system(summary) for summary in summaries],
        "panels": _panels(summaries),
        "runs": [{"system": run.system, "seed": run.seed} for run in loaded],
        **chosen.payload,
    }
    notes = [f"{run.system}, seed {run.seed}: {note}" for run in loaded for note in run.notes] + chosen.notes
    fields = {
        "TITLE": html.escape(title),
        "LEDE": lede(summaries),
        "FACTS": facts(loaded, summaries, command),
        "TABLE": result_table(summaries),
        "NOTES": notes_html(notes),
        "PROVENANCE": provenance_html(loaded),
        "CSS": _asset("page.css"),
        "JS": "\n".join(_asset(name) for name in ("charts.js", "browser.js")),
        "DATA": embed(payload),
    }
    out = Path(out_path)
    out.parent.mkdir(parents=True, exist_ok=True)
    page = _asset("page.html")
    for name in ("TITLE", "LEDE", "FACTS", "TABLE", "NOTES", "PROVENANCE", "CSS", "JS"):
        page = page.replace(f"<!--{name}-->", fields[name])
    head, tail = page.split("<!--DATA-->")  # last and not by replace: the data may contain anything
    out.write_text(head + fields["DATA"] + tail, encoding="utf-8", errors="replace")
    return out


def embed(payload: Any) -> str:
    """JSON that can stand inside a script element: NaN as null, no '<' that could end it."""
    text = json.dumps(_finite(payload), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _asset(name: str) -> str:
    return (resources.files("guerdon.report") / "assets" / name).read_text(encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


# -- what the charts are drawn from ----------------------------------------------------------------------------------------


def _points(series: Sequence[tuple[int, Interval]]) -> list[list[float]]:
    """[step, mean, low, high] for each step."""
    return [[step, *map(_short, (i.mean, i.low, i.high))] for step, i in series]


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _system(summary: SystemSummary) -> dict[str, Any]:
    """One system's hacking plot: true success and reward with intervals, and each seed's own line."""
    lines = []
    for run in summary.runs:
        truth = [[r["step"], _short(run.measurement(r, "true_success").mean)] for r in run.evals]
        reward = [[r["step"], _short(run.measurement(r, "reward").mean)] for r in run.evals]
        lines.append({"seed": run.seed, "truth": truth, "reward": reward})
    return {
        "name": summary.system,
        "verdict": badge_kind(summary.verdict),
        "reason": summary.verdict.reason,
        "truth": _points(over_seeds(summary.runs, "true_success")),
        "reward": _points(over_seeds(summary.runs, "reward")),
        "seeds": lines,
    }


MEASURED = (
    ("true_success", "True success", "share of held-out answers that are right", [0, 1]),
    ("length", "Length", "tokens per completion", [0, None]),
    ("truncated", "Truncated", "share cut at the length cap", [0, 1]),
    ("kl", "KL to the start", "nats per token, sampled", [None, None]),
)


def _panels(summaries: Sequence[SystemSummary]) -> list[dict[str, Any]]:
    """Small multiples, one line for each system. Held-out measurements where there are any, else the training log."""
    panels: list[dict[str, Any]] = []
    for key, title, unit, bounds in MEASURED:
        series = {s.system: _points(over_seeds(s.runs, key)) for s in summaries}
        source = "held-out prompts, 95 % interval"
        if not any(series.values()):
            series, source = _training(summaries, key), "training batches, range over seeds"
        panels.append({"title": title, "unit": unit, "bounds": bounds, "source": source, "series": series})
    trained = "training batches, range over seeds"
    kept = _training(summaries, "kept")
    panels.append(
        {"title": "Kept", "unit": "share of rollouts trained on", "bounds": [0, 1], "source": trained, "series": kept}
    )
    names = dict.fromkeys(
        name for s in summaries for run in s.runs for record in run.metrics for name in (record.get("components") or {})
    )
    for name in names:
        series = _training(summaries, "components", name, "mean")
        panels.append(
            {
                "title": name,
                "unit": "mean of this reward component",
                "bounds": [None, None],
                "source": trained,
                "series": series,
            }
        )
        failed = _training(summaries, "components", name, "nan")
        if any(point[1] > 0 for points in failed.values() for point in points):
            panels.append(
                {
                    "title": f"{name}: not scored",
                    "unit": "share of rollouts, NaN",
                    "bounds": [0, 1],
                    "source": trained,
                    "series": failed,
                }
            )
    return [*(panel for panel in panels if any(panel["series"].values())), *_chain_panels(summaries, trained)]


def _chain_panels(summaries: Sequence[SystemSummary], source: str) -> list[dict[str, Any]]:
    """What links log, such as a shaped reward or a filter's threshold; counts of failures only where there are any."""
    panels = []
    names = dict.fromkeys(
        name for s in summaries for run in s.runs for record in run.metrics for name in (record.get("chain") or {})
    )
    for name in names:
        series = _training(summaries, "chain", name)
        moved = any(point[1] for points in series.values() for point in points)
        if any(series.values()) and (moved or not name.startswith("failed/")):
            panels.append(
                {
                    "title": name,
                    "unit": "logged by the chain",
                    "bounds": [None, None],
                    "source": source,
                    "series": series,
                }
            )
    return panels


def _training(summaries: Sequence[SystemSummary], *keys: str) -> dict[str, list[list[float]]]:
    return {s.system: [[p[0], *map(_short, p[1:])] for p in metric_over_seeds(s.runs, *keys)] for s in summaries}
