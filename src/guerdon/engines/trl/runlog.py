"""The run's own logs: one JSON line for each optimiser step, evaluation and logged rollout, flushed as it is written.

NaN is written as null. Steps count optimiser steps taken: a line of `metrics.jsonl` carries the number after its step, a line
of `eval.jsonl` the number before any later step, a rollout the number before it was trained on. When a run is resumed, lines
that the resumed run will write again are cut, as is a last line that a kill left unfinished.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts

METRICS, EVAL, ROLLOUTS = "metrics.jsonl", "eval.jsonl", "rollouts.jsonl"


@dataclass(frozen=True)
class RolloutLog:
    """Which rollouts are kept for people to read.

    Attributes:
        every: optimiser steps between logged generations; 0 = none.
        groups: groups of a logged generation, the first ones.
    """

    every: int = 10
    groups: int = 2


class RunLog:
    """Appends records to the three files of a folder. Only the main process writes; elsewhere every method does nothing."""

    def __init__(self, folder: str | Path, *, active: bool = True) -> None:
        self.folder = Path(folder)
        self.active = active
        self._open: dict[str, TextIO] = {}

    def write(self, name: str, record: dict[str, Any]) -> None:
        if not self.active:
            return
        if name not in self._open:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._open[name] = (self.folder / name).open("a")
        self._open[name].write(json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n")
        self._open[name].flush()

    def restart(self, step: int) -> None:
        """Keep what lies before step `step` of a run that goes on from there; 0 = a run that starts anew keeps nothing."""
        if not self.active:
            return
        self.close()
        for name in (METRICS, EVAL, ROLLOUTS):
            # What was sampled for training at the checkpoint's step is sampled again; what was measured there is not.
            cut(
                self.folder / name, lambda record: step > 0 and record["step"] < step + (record.get("split") != "train")
            )

    def close(self) -> None:
        for handle in self._open.values():
            handle.close()
        self._open.clear()


def cut(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines that are not to be kept, and a line that is not whole. The file is replaced in one step."""
    if not path.exists():
        return
    draft = path.with_name(f".{path.name}.cut")
    with path.open() as source, draft.open("w") as target:
        for line in source:
            try:
                kept = keep(json.loads(line))
            except json.JSONDecodeError:
                continue
            if kept and line.endswith("\n"):
                target.write(line)
    os.replace(draft, path)


def plain(value: Any) -> Any:
    """JSON without NaN: tensors become lists, non-finite numbers null."""
    if isinstance(value, Tensor):
        return plain(
            [float(f"{v:.6g}") for v in value.tolist()]
            if value.is_floating_point() and value.dim() == 1
            else value.tolist()
        )
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)


# -- what goes into the lines ----------------------------------------------------------------------------------------------


def mean_std(values: Tensor) -> tuple[float, float]:
    """Mean and sample standard deviation of the numbers among `values`; NaN where there are none, or only one for the std."""
    numbers = values[~values.isnan()].double()
    mean = float(numbers.mean()) if len(numbers) else math.nan
    return mean, float(numbers.std()) if len(numbers) > 1 else math.nan


def generation_metrics(rollouts: Rollouts, scores: Scores, truth: Tensor | None) -> dict[str, Any]:
    """The part of a metrics line that belongs to a generation; global batch."""
    reward = scores.reward if scores.reward is not None else torch.full((len(scores),), math.nan)
    mean, std = mean_std(reward)
    components = {}
    for name, rewards in scores.raw.items():
        totals = rewards.row_reward()
        component_mean, component_std = mean_std(totals)
        components[name] = {
            "mean": component_mean,
            "std": component_std,
            "nan": float(rewards.failed.any(1).float().mean()),
        }
    found: dict[str, Any] = {"reward": mean, "reward_std": std, "components": components}
    found["length"] = float(rollouts.lengths.float().mean())
    found["truncated"] = math.nan if rollouts.finished is None else 1 - float(rollouts.finished.float().mean())
    found["kept"] = float(scores.keep.float().mean())
    if truth is not None:
        found["true"] = mean_std(truth)[0]
    if scores.metrics:
        found["chain"] = dict(scores.metrics)
    if scores.logged:
        found["logged"] = dict(scores.logged)
    return found


def rollout_records(
    rollouts: Rollouts,
    scores: Scores,
    rows: list[int],
    *,
    step: int,
    split: str,
    truth: Tensor | None = None,
    truth_reasons: list[str] | None = None,
) -> list[dict[str, Any]]:
    """A record for each of some rows: text by token, credit by token, every raw score with its spans and reasons."""
    advantages = scores.advantages if _has_credit(scores) else torch.zeros_like(rollouts.mask, dtype=torch.float)
    dropped = scores.notes.get("dropped", {})
    records = []
    for row in rows:
        text, length = rollouts.completions[row], int(rollouts.lengths[row])
        reasons = {name: why for name, rewards in scores.raw.items() if (why := _reasons(rewards, row))}
        if truth_reasons and truth_reasons[row]:
            reasons["true"] = truth_reasons[row]
        if row in dropped:
            reasons["dropped"] = dropped[row]
        reward = float("nan") if scores.reward is None else float(scores.reward[row])
        assert rollouts.policy_mask is not None
        records.append(
            {
                "step": step,
                "split": split,
                "prompt": rollouts.prompts[row],
                "completion": text,
                "tokens": _token_texts(rollouts, row, length),
                "advantages": advantages[row, :length],
                "mask": rollouts.policy_mask[row, :length],
                "reward": reward,
                "true": None if truth is None else float(truth[row]),
                "scores": {name: _score(rewards, row) for name, rewards in scores.raw.items()},
                "reasons": reasons,
                "group": int(rollouts.groups[row]),
                "kept": bool(scores.keep[row]),
            }
            | ({"texts": {name: cells[row] for name, cells in scores.texts.items()}} if scores.texts else {})
        )
    return records


def _has_credit(scores: Scores) -> bool:
    return [rewards.level for rewards in scores.sources.values()].count("token") == 1


def _token_texts(rollouts: Rollouts, row: int, length: int) -> list[str]:
    if rollouts.offsets is None:
        return [rollouts.completions[row]]
    return [rollouts.completions[row][start:end] for start, end in rollouts.offsets[row, :length].tolist()]


def _score(rewards: Rewards, row: int) -> dict[str, Any]:
    mask = rewards.mask[row]
    spans = torch.stack([rewards.spans.start[row][mask], rewards.spans.end[row][mask]], 1)
    return {"level": rewards.level, "values": rewards.values[row][mask], "spans": spans, "unit": rewards.spans.unit}


def _reasons(rewards: Rewards, row: int) -> str:
    """The row's reasons in span order, each text once."""
    texts = [text for (r, _), text in sorted(rewards.reasons.items()) if r == row]
    return "; ".join(dict.fromkeys(texts))
