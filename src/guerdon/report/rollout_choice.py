"""Which logged rollouts go on the page, and how they are packed. Logs may be large: one pass indexes, a second one picks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guerdon.report.runs import Record, RunDir, number

GROUP_CAP = 8  # rollouts of one group that are shown
REASON_CAP = 12  # most frequent reasons listed for each system


@dataclass(frozen=True)
class Chosen:
    """payload: prompts, rollouts and reasons for the page. notes: what was left out, in words."""

    payload: dict[str, Any]
    notes: list[str]


Unit = tuple[str, int, Any]  # split, step, group


def choose_rollouts(runs: Sequence[RunDir], *, max_rollouts: int, max_tokens: int) -> Chosen:
    """An even choice of steps from every run, first and last included, within the two budgets."""
    prompts: dict[str, int] = {}
    rollouts: list[dict[str, Any]] = []
    notes: list[str] = []
    reasons: dict[str, Counter[str]] = {}
    for index, run in enumerate(runs):
        sizes = _index(run, reasons.setdefault(run.system, Counter()))
        wanted = _within(sizes, max_rollouts // max(1, len(runs)), max_tokens // max(1, len(runs)))
        shown, taken = 0, Counter[Unit]()
        for record in run.rollouts():
            unit = _unit(record)
            if unit in wanted and taken[unit] < GROUP_CAP:
                taken[unit] += 1
                shown += 1
                prompt = prompts.setdefault(_prompt_text(record.get("prompt")), len(prompts))
                rollouts.append({"run": index, "prompt": prompt, **_pack(record)})
        total = sum(count for count, _ in sizes.values())
        if shown < total:
            notes.append(
                f"{run.system}, seed {run.seed}: {shown} of {total} logged rollouts are on this page (evenly spaced steps, at most "
                f"{GROUP_CAP} of a group); all are in {run.path.name}/rollouts.jsonl"
            )
        elif not total:
            notes.append(f"{run.system}, seed {run.seed}: no rollouts were logged, so there is nothing to browse")
    counted = {system: [[text, n] for text, n in c.most_common(REASON_CAP)] for system, c in reasons.items() if c}
    return Chosen({"prompts": list(prompts), "rollouts": rollouts, "reasons": counted}, notes)


def _unit(record: Record) -> Unit:
    group = record.get("group")
    return (
        str(record.get("split") or "train"),
        int(number(record.get("step")) or 0),
        group if group is not None else str(record.get("prompt")),
    )


def _index(run: RunDir, reasons: Counter[str]) -> dict[Unit, tuple[int, int]]:
    """{unit: (rollouts, tokens of those that could be shown)}; counts reasons on the way."""
    found: dict[Unit, tuple[int, int]] = {}
    for record in run.rollouts():
        unit = _unit(record)
        count, tokens = found.get(unit, (0, 0))
        found[unit] = count + 1, tokens + (len(record.get("tokens") or [1]) if count < GROUP_CAP else 0)
        for name, why in _reasons(record).items():
            reasons[f"{name}: {why}"[:200]] += 1
    return found


def _within(sizes: dict[Unit, tuple[int, int]], max_rollouts: int, max_tokens: int) -> set[Unit]:
    """Units of evenly spaced steps of each split that fit the budgets; at least the first and last step's first group."""
    for keep in range(len({(split, step) for split, step, _ in sizes}), 1, -1):
        chosen = _spaced(sizes, keep)
        rows = sum(min(GROUP_CAP, sizes[unit][0]) for unit in chosen)
        if rows <= max_rollouts and sum(sizes[unit][1] for unit in chosen) <= max_tokens:
            return chosen
    return {unit for split in {u[0] for u in sizes} for unit in _ends([u for u in sizes if u[0] == split])}


def _spaced(sizes: dict[Unit, tuple[int, int]], keep: int) -> set[Unit]:
    """All groups of about `keep` steps, spread evenly over each split's steps."""
    moments = sorted({(split, step) for split, step, _ in sizes})
    chosen: set[tuple[str, int]] = set()
    for split in {split for split, _ in moments}:
        steps = [step for s, step in moments if s == split]
        count = max(2, round(keep * len(steps) / len(moments)))
        picks = {round(i * (len(steps) - 1) / max(1, count - 1)) for i in range(min(count, len(steps)))}
        chosen |= {(split, steps[i]) for i in picks}
    return {unit for unit in sizes if unit[:2] in chosen}


def _ends(units: list[Unit]) -> list[Unit]:
    units = sorted(units, key=lambda unit: unit[1])
    return [units[0], next(unit for unit in units if unit[1] == units[-1][1])]


def _prompt_text(prompt: Any) -> str:
    if isinstance(prompt, list):
        return "\n".join(
            f"{m.get('role', '?')}: {m.get('content', '')}" if isinstance(m, dict) else str(m) for m in prompt
        )
    return "" if prompt is None else str(prompt)


def _reasons(record: Record) -> dict[str, str]:
    given = record.get("reasons") or {}
    if isinstance(given, dict):
        return {str(name): text for name, why in given.items() if (text := _reason_text(why))}
    return {"reason": text} if (text := _reason_text(given)) else {}


def _reason_text(why: Any) -> str:
    if isinstance(why, dict):
        return "; ".join(f"{key}: {text}" for key, text in why.items() if text)
    if isinstance(why, (list, tuple)):
        return "; ".join(str(text) for text in why if text)
    return str(why) if why else ""


def _pack(record: Record) -> dict[str, Any]:
    """One rollout with short keys: what page scripts read."""
    tokens = record.get("tokens")
    tokens = [str(t) for t in tokens] if isinstance(tokens, list) else [str(record.get("completion", ""))]
    advantages = [_short(a) for a in (record.get("advantages") or [])]
    mask = [bool(m) for m in (record.get("mask") or [])]
    split, step, group = _unit(record)
    packed: dict[str, Any] = {
        "split": split, "step": step, "group": str(group), "tokens": tokens, "adv": advantages,
        "reward": _short(record.get("reward")), "true": _short(record.get("true")), "kept": record.get("kept", True) is not False,
        "scores": {str(name): _score(score) for name, score in (record.get("scores") or {}).items() if isinstance(score, dict)},
        "reasons": _reasons(record),
    }  # fmt: skip
    if not all(mask):
        packed["mask"] = [int(m) for m in mask]
    return packed


def _score(score: Record) -> dict[str, Any]:
    return {
        "level": str(score.get("level", "")),
        "unit": str(score.get("unit", "token")),
        "values": [_short(v) for v in (score.get("values") or [])],
        "spans": [list(map(int, span)) for span in (score.get("spans") or [])],
    }


def _short(value: Any) -> float | None:
    """Four digits; None for null."""
    found = number(value)
    return None if found != found else float(f"{found:.4g}")
