"""A system's scores of a batch, laid out as columns of a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from guerdon.credit import Drop
from guerdon.io.records import score_records
from guerdon.rewards import Scores, total_reward
from guerdon.rollouts import Rollouts
from guerdon.system import Scope, System


def reward_columns(system: System, rollouts: Rollouts) -> list[dict[str, Any]]:
    """Score rollouts and lay the scores out as columns.

    The reward is the scalar the system's chain optimises, where the chain can run on texts (every source is one value a row);
    otherwise the sum of its signals' row totals, without those that the chain drops (they are for the log).
    """
    rollouts = system.segmented(rollouts)
    scores = system.score(rollouts)
    if runs_chain(system):
        scores = system.credit(scores, rollouts)
        assert scores.reward is not None
        # A row dropped because a source failed has no reward, whatever number the chain went on with.
        counted = [rewards for name, rewards in scores.raw.items() if name not in system.diagnostics()]
        failed = torch.stack([rewards.failed.any(1) for rewards in counted]).any(0) & ~scores.keep
        totals = scores.reward.double().masked_fill(failed, float("nan"))
    else:
        logged = {name for link in system.chain if isinstance(link, Drop) for name in link.names} | system.diagnostics()
        paid = [rewards for name, rewards in scores.raw.items() if name not in logged]
        paid = paid or list(scores.raw.values())
        totals = total_reward(paid).double()
        # A text without spans has the total 0; only a source of one value a row can say that it does not apply.
        bare = ~torch.stack([rewards.row_applies for rewards in paid]).any(0)
        if any(rewards.level != "sequence" for rewards in paid):
            totals = totals.masked_fill(bare, 0.0)
    records = score_records(scores)
    reasons = _reasons(scores)
    sole = len(scores.raw) == 1
    out = []
    for total, record, reason in zip(totals.tolist(), records, reasons, strict=True):
        first = next(iter(record.values()))
        extra: dict[str, Any] = {
            "reward": total,
            "reward_level": first["level"] if sole else "sequence",
            "reward_reason": reason,
        }
        if sole and first["level"] != "sequence":
            extra |= {"reward_values": first["values"], "reward_spans": first["spans"], "reward_unit": first["unit"]}
        if not sole:
            extra["reward_parts"] = {
                name: {key: part[key] for key in ("level", "values", "spans", "unit")} for name, part in record.items()
            }
        out.append(extra)
    return out


def runs_chain(system: System) -> bool:
    """Can the chain run on texts without tokens? Only where no signal scores spans inside the text."""
    return bool(system.chain) and set(system.levels().values()) <= {"sequence"}


def reward_scope(system: System) -> Scope:
    """The scope of what makes the reward of a row of the file."""
    return system.reward_scope(chain=runs_chain(system))


def notes_on(system: System) -> list[str]:
    """What a reader of the scores should know about how they came about."""
    notes = []
    if reward_scope(system) == "batch":
        notes.append("this reward compares all rows of a batch: the numbers depend on batch_size")
    if system.chain and not runs_chain(system):
        notes.append(
            "the chain needs tokens, which a file of texts has not: the reward is the sum of the signals' row totals, before the chain"
        )
    return notes


def lift(signal: Any, name: str | None, segments: Mapping[str, Any] | None) -> System:
    """A bare signal as a System without a chain."""
    label = name or getattr(signal, "name", None) or getattr(signal, "__name__", type(signal).__name__)
    return System(signals={str(label): signal}, segments=dict(segments or {}), name=str(label))


def description(system: System) -> str:
    """The system in words that are the same in every process (object addresses are not)."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(system))


def _reasons(scores: Scores) -> list[str | None]:
    """Each row's reasons in one text; with several sources each is named, those that share a reason together."""
    told: list[dict[str, list[str]]] = [{} for _ in range(len(scores))]  # reason -> the sources that give it
    for name, rewards in scores.raw.items():
        for (row, cell), text in sorted(rewards.reasons.items()):
            where = "" if rewards.level == "sequence" else f"{rewards.level} {cell}: "
            told[row].setdefault(where + text, []).append(name)
    for row, text in scores.notes.get("dropped", {}).items():
        if not told[row]:
            told[row][f"dropped: {text}"] = []
    several = len(scores.raw) > 1
    families = Counter(name.partition(".")[0] for name in scores.raw)
    return [
        "; ".join(f"{_joint(names, families)}: {text}" if several and names else text for text, names in row.items())
        or None
        for row in told
    ]


def _joint(names: list[str], families: Counter[str]) -> str:
    """Source names, those of a signal in one word where all of them are there."""
    here = Counter(name.partition(".")[0] for name in names)
    whole = {family for family, count in here.items() if count == families[family]}
    heads = [name.partition(".")[0] for name in names]
    shown = [head if head in whole else name for head, name in zip(heads, names, strict=True)]
    return ", ".join(dict.fromkeys(shown))
