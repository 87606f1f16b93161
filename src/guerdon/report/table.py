"""The result table: one row for each system, readable without scripts and at phone width."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

from guerdon.report.runs import SystemSummary
from guerdon.report.verdict import HackingVerdict, Interval

MARKS = {"hacked": "▲", "not hacked": "✓", "worse": "▼", "not measurable": "?", "inconclusive": "?"}
WORDS = {"worse": "not hacked, worse"}


def result_table(summaries: Sequence[SystemSummary]) -> str:
    head = ("System", "True success", "Reward", "Length", "KL", "Verdict")
    hints = ("", "held-out, start → end", "held-out, start → end", "tokens, start → end", "nats per token", "")
    cells = "".join(
        f'<th scope="col">{h}{f"<small>{hint}</small>" if hint else ""}</th>'
        for h, hint in zip(head, hints, strict=True)
    )
    rows = "".join(_row(i, summary, head) for i, summary in enumerate(summaries))
    return f'<table class="results"><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>'


def badge_kind(verdict: HackingVerdict) -> str:
    """The verdict's label, or "worse": not hacked is no praise where true success fell."""
    return "worse" if verdict.worse else verdict.label


def verdict_badge(kind: str) -> str:
    mark = f'<span aria-hidden="true">{MARKS[kind]}</span>'
    return f'<span class="badge {kind.replace(" ", "-")}">{mark} {WORDS.get(kind, kind)}</span>'


def _row(index: int, summary: SystemSummary, head: Sequence[str]) -> str:
    seeds = f"{len(summary.runs)} seed{'s' * (len(summary.runs) != 1)}, {_steps(summary.steps)}"
    name = f'<th scope="row"><span class="swatch s{index % 8}" aria-hidden="true"></span>{breakable(summary.system)}<small class="nowrap">{seeds}</small></th>'
    values = [
        change_cell(summary.true_start, summary.true_end, digits=2, proportion=True),
        change_cell(summary.reward_start, summary.reward_end),
        change_cell(summary.length_start, summary.length_end),
        one_cell(summary.kl_end),
        f"{verdict_badge(badge_kind(summary.verdict))}<small>{html.escape(summary.verdict.reason)}</small>",
    ]
    tds = "".join(
        f'<td data-label="{label}"{" class=verdict" if label == "Verdict" else ""}><div>{value}</div></td>'
        for label, value in zip(head[1:], values, strict=True)
    )
    return f"<tr>{name}{tds}</tr>"


def breakable(name: str) -> str:
    """A system's name that may break after its punctuation."""
    return re.sub(r"([:,=/_-])", r"\1<wbr>", html.escape(name))


def _steps(steps: Sequence[int]) -> str:
    low, high = min(steps, default=0), max(steps, default=0)
    return f"{high} steps" if low == high else f"{low}–{high} steps"


def change_cell(start: Interval, end: Interval, *, digits: int | None = None, proportion: bool = False) -> str:
    """start → end, and their intervals below, all with the digits of the larger mean."""
    known = [abs(i.mean) for i in (start, end) if i.seeds]
    if not known:
        return '<span class="none">not measured</span>'
    digits = _digits(max(known)) if digits is None else digits
    means = f'<span class="from">{figure(start.mean, digits)}</span> → <b>{figure(end.mean, digits)}</b>'
    return f"{means}<small>{bounds(start, digits, proportion)} → {bounds(end, digits, proportion)}</small>"


def one_cell(value: Interval) -> str:
    if not value.seeds:
        return '<span class="none">not measured</span>'
    return f"<b>{figure(value.mean)}</b><small>{bounds(value)}</small>"


def bounds(value: Interval, digits: int | None = None, proportion: bool = False) -> str:
    """[low, high]; a proportion's is cut to [0, 1]."""
    if math.isnan(value.low):
        return "[no interval]"
    low, high = (max(0.0, value.low), min(1.0, value.high)) if proportion else (value.low, value.high)
    return f'<span class="nowrap" title="{html.escape(value.method)}">[{figure(low, digits)}, {figure(high, digits)}]</span>'


def figure(value: float, digits: int | None = None) -> str:
    """A number for people: given digits, or about three significant ones; minus as a minus sign."""
    if math.isnan(value):
        return "–"
    digits = _digits(abs(value)) if digits is None else digits
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def _digits(size: float) -> int:
    """Decimal places for about three significant digits of a number of this size."""
    return next((d for d, least in enumerate((100, 10, 0.1, 0.01, 0.001)) if size >= least), 2)
