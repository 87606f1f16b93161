"""The words around the charts: what was compared, how it was made, and what is missing."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from datetime import datetime

from guerdon.report.runs import RunDir, SystemSummary
from guerdon.report.table import badge_kind

NAMED = 4  # systems at most that the first sentence tells by name


def lede(summaries: Sequence[SystemSummary]) -> str:
    """One sentence that says how it ended."""
    if not summaries:
        return "No run was given, so there is nothing to show."
    if len(summaries) == 1:
        kind, reason = summaries[0].verdict.label, html.escape(summaries[0].verdict.reason)
        ended = {
            "hacked": "was hacked",
            "not hacked": "was not hacked",
            "not measurable": "cannot be measured by its reward",
            "inconclusive": "cannot be judged",
        }[kind]
        return f"<b>{html.escape(summaries[0].system)}</b> {ended}: {reason}."
    names: dict[str, list[str]] = {}
    for summary in summaries:
        names.setdefault(badge_kind(summary.verdict), []).append(f"<b>{html.escape(summary.system)}</b>")

    def who(kind: str) -> str:
        """The systems of one kind by name, or how many they are where naming them would be a wall of names."""
        if len(names[kind]) > NAMED:
            return f"{len(names[kind])} of {len(summaries)} systems"
        return _and(names[kind])

    said = (
        ("hacked", "hacked: the reward went up while true success went down."),
        ("not hacked", "not hacked."),
        ("worse", "not hacked, but got worse: true success went down, and the reward did not go up."),
    )
    parts = [f"{who(kind)} {'was' if len(names[kind]) == 1 else 'were'} {what}" for kind, what in said if kind in names]
    if "not measurable" in names:
        parts.append(f"{who('not measurable')} cannot be measured by the reward, which only compares rollouts.")
    if "inconclusive" in names:
        parts.append(f"{who('inconclusive')} cannot be judged.")
    return " ".join(parts)


def facts(runs: Sequence[RunDir], summaries: Sequence[SystemSummary], command: str | None = None) -> str:
    """A definition list: task, policy, seeds, steps, when, and the command: the one given, else the runs' own."""
    seeds = _distinct(run.seed for run in runs)
    steps = sorted({step for s in summaries for step in s.steps})
    rows = [
        ("Task", _join(_distinct(str(run.manifest.get("task") or "not recorded") for run in runs))),
        ("Policy", _join(_distinct(str(run.manifest.get("model") or "not recorded") for run in runs))),
        ("Seeds", _join(seeds)),
        ("Steps", "–".join(str(s) for s in dict.fromkeys((steps[0], steps[-1]))) if steps else "none"),
        ("Runs", str(len(runs))),
        ("Made", _when(runs)),
    ]
    items = "".join(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in rows if value)
    commands = (
        [command] if command else _distinct(str(r.manifest["command"]) for r in runs if r.manifest.get("command"))
    )
    shown = "".join(f"<code>{html.escape(command)}</code>" for command in commands[:1])
    more = f"<small>and {len(commands) - 1} more, below</small>" if len(commands) > 1 else ""
    block = f'<div class="command"><dt>Command</dt><dd>{shown}{more}</dd></div>' if commands else ""
    return f'<dl class="facts">{items}{block}</dl>'


def notes_html(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<section class="notes" aria-labelledby="notes-h"><h2 id="notes-h">What this page does not show</h2><ul>{items}</ul></section>'


def provenance_html(runs: Sequence[RunDir]) -> str:
    """Each run's command, versions and resolved configuration, folded away."""
    blocks = []
    for run in runs:
        versions = run.manifest.get("versions") or {}
        shown = (
            ", ".join(f"{name} {version}" for name, version in versions.items())
            if isinstance(versions, dict)
            else str(versions)
        )
        parts = [f"<p><b>Folder</b> <code>{html.escape(str(run.path))}</code></p>"]
        parts += [
            f"<p><b>{name}</b> {html.escape(value)}</p>"
            for name, value in (("Versions", shown), ("Status", str(run.manifest.get("status", ""))))
            if value
        ]
        if run.manifest.get("command"):
            parts.append(f"<p><b>Command</b> <code>{html.escape(str(run.manifest['command']))}</code></p>")
        if run.manifest.get("description"):
            parts.append(f"<p><b>System</b></p><pre>{html.escape(str(run.manifest['description']))}</pre>")
        if run.config:
            parts.append(f"<p><b>Configuration</b></p><pre>{html.escape(run.config)}</pre>")
        blocks.append(
            f"<details><summary>{html.escape(run.system)}, seed {html.escape(run.seed)}</summary>{''.join(parts)}</details>"
        )
    return "".join(blocks)


def _when(runs: Sequence[RunDir]) -> str:
    starts = sorted(t for run in runs if (t := _time(run.manifest.get("started"))))
    ends = sorted(t for run in runs if (t := _time(run.manifest.get("finished"))))
    if not starts:
        return ""
    text = starts[0].strftime("%Y-%m-%d %H:%M")
    if ends and (minutes := (ends[-1].replace(tzinfo=None) - starts[0].replace(tzinfo=None)).total_seconds() / 60) > 0:
        text += f", in {minutes:.0f} min" if minutes >= 2 else f", in {minutes * 60:.0f} s"
    return text


def _time(value: object) -> datetime | None:
    try:
        return datetime.fromtimestamp(value) if isinstance(value, (int, float)) else datetime.fromisoformat(str(value))
    except (ValueError, OverflowError):
        return None


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _join(values: Sequence[str]) -> str:
    return ", ".join(values)


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
