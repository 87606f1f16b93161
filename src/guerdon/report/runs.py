"""Run folders as the report reads them. A file or key that is missing becomes a note on the page, never an error.

manifest.json   system, task, model, seed, versions, started, finished, status, command
config.yaml     the resolved configuration, shown as it is
metrics.jsonl   a line for each step; eval.jsonl: a line for each measurement on held-out prompts
rollouts.jsonl  rollouts to look at; may be large, so it is only indexed, and read again for the few that are shown
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guerdon.report.verdict import HackingVerdict, Interval, Measurement, combine, hacked, with_proportion_error

Record = dict[str, Any]


@dataclass
class RunDir:
    """One run.

    Attributes:
        path: its folder. manifest: what manifest.json says. config: text of config.yaml, or "".
        metrics, evals: records in the order of their steps; of a step written twice the last one counts.
        notes: what is missing or broken, in words.
    """

    path: Path
    manifest: Record = field(default_factory=dict)
    config: str = ""
    metrics: list[Record] = field(default_factory=list)
    evals: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @staticmethod
    def load(path: str | Path) -> RunDir:
        run = RunDir(Path(path))
        for name in ("manifest.json", "metrics.jsonl", "eval.jsonl", "rollouts.jsonl"):
            if not (run.path / name).exists():
                run.notes.append(f"{name} is missing")
        run.manifest = run._manifest()
        config = run.path / "config.yaml"
        run.config = config.read_text(errors="replace") if config.exists() else ""
        run.metrics = run._by_step("metrics.jsonl")
        run.evals = run._by_step("eval.jsonl")
        status = run.manifest.get("status")
        if status not in (None, "done"):
            last = run.metrics[-1]["step"] if run.metrics else 0
            why = f" ({run.manifest['error']})" if run.manifest.get("error") else ""
            run.notes.append(f"status {status!r}: this is what it had at step {last}{why}")
        return run

    @property
    def system(self) -> str:
        return str(self.manifest.get("system") or self.path.name)

    @property
    def seed(self) -> str:
        return str(self.manifest.get("seed", "?"))

    @property
    def relative(self) -> bool:
        """Whether the reward compared the policy's rollouts with one another, at the start and at the end."""
        return bool(self.evals) and all(record.get("relative") for record in (self.evals[0], self.evals[-1]))

    def measurement(self, record: Record, key: str) -> Measurement:
        """One quantity of an evaluation record; NaN where it is missing or null. A proportion gets an error from n."""
        value = record.get(key)
        if not isinstance(value, dict):
            return Measurement(number(value))
        found = Measurement(number(value.get("mean")), number(value.get("se")), int(value.get("n") or 0))
        return with_proportion_error(found) if key in ("true_success", "truncated") else found

    def rollouts(self) -> Iterator[Record]:
        """The logged rollouts, one at a time."""
        for record in self._records("rollouts.jsonl", note=False):
            if isinstance(record.get("tokens") or record.get("completion"), (list, str)):
                yield record

    def _manifest(self) -> Record:
        path = self.path / "manifest.json"
        if not path.exists():
            return {}
        try:
            found = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            self.notes.append(f"manifest.json cannot be read: {error}")
            return {}
        return found if isinstance(found, dict) else {}

    def _by_step(self, name: str) -> list[Record]:
        found = {r["step"]: r for r in self._records(name) if isinstance(r.get("step"), (int, float))}
        return [found[step] for step in sorted(found)]

    def _records(self, name: str, *, note: bool = True) -> Iterator[Record]:
        path, broken = self.path / name, 0
        if not path.exists():
            return
        with path.open("rb") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                except (json.JSONDecodeError, UnicodeDecodeError):
                    broken += bool(line.strip())
                    continue
                if isinstance(record, dict):
                    yield record
        if broken and note:
            self.notes.append(f"{name}: {broken} line(s) that are no JSON were left out")


def number(value: Any) -> float:
    """A number of a log; NaN for null, missing or anything that is none."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


@dataclass(frozen=True)
class SystemSummary:
    """What the result table says about one system, over its seeds. Intervals are 95 % and two-sided; NaN = not measured.

    start and end are the first and last evaluation of each run; `steps` the last step of each run.
    """

    system: str
    runs: list[RunDir]
    steps: list[int]
    true_start: Interval
    true_end: Interval
    reward_start: Interval
    reward_end: Interval
    length_start: Interval
    length_end: Interval
    kl_end: Interval
    verdict: HackingVerdict

    @property
    def seeds(self) -> list[str]:
        return [run.seed for run in self.runs]


def load_runs(runs: Iterable[RunDir | str | Path]) -> list[RunDir]:
    return [run if isinstance(run, RunDir) else RunDir.load(run) for run in runs]


def by_system(runs: Sequence[RunDir]) -> dict[str, list[RunDir]]:
    """Runs of each system, in order of first appearance."""
    found: dict[str, list[RunDir]] = {}
    for run in runs:
        found.setdefault(run.system, []).append(run)
    return found


def summarise(runs: Sequence[RunDir | str | Path]) -> list[SystemSummary]:
    """A summary of each system: true success, reward, length and KL with intervals over seeds, and the verdict."""
    return [_summary(system, group) for system, group in by_system(load_runs(runs)).items()]


def _summary(system: str, runs: list[RunDir]) -> SystemSummary:
    def ends(key: str) -> list[tuple[Measurement, Measurement]]:
        return [
            (run.measurement(run.evals[0], key), run.measurement(run.evals[-1], key))
            if len(run.evals) > 1
            else _NOTHING
            for run in runs
        ]

    def at(index: int, key: str) -> Interval:
        return combine([run.measurement(run.evals[index], key) for run in runs if run.evals])

    last = [int(max([r["step"] for r in (run.metrics[-1:] + run.evals[-1:])], default=0)) for run in runs]
    return SystemSummary(
        system, runs, last, at(0, "true_success"), at(-1, "true_success"), at(0, "reward"), at(-1, "reward"),
        at(0, "length"), at(-1, "length"), at(-1, "kl"), hacked(ends("reward"), ends("true_success"), relative=any(run.relative for run in runs)),
    )  # fmt: skip


_NOTHING = (Measurement(math.nan), Measurement(math.nan))


def over_seeds(runs: Sequence[RunDir], key: str) -> list[tuple[int, Interval]]:
    """A quantity of the evaluations at every step that any run measured, combined over the runs that did."""
    steps: dict[int, list[Measurement]] = {}
    for run in runs:
        for record in run.evals:
            steps.setdefault(record["step"], []).append(run.measurement(record, key))
    found = ((step, combine(measured)) for step, measured in sorted(steps.items()))
    return [(step, interval) for step, interval in found if interval.seeds]


def metric_over_seeds(runs: Sequence[RunDir], *keys: str) -> list[tuple[int, float, float, float]]:
    """(step, mean, lowest, highest over the runs) of a training metric; `keys` go down into nested records."""
    steps: dict[int, list[float]] = {}
    for run in runs:
        for record in run.metrics:
            value: Any = record
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            if not math.isnan(number(value)):
                steps.setdefault(record["step"], []).append(number(value))
    return [(step, math.fsum(v) / len(v), min(v), max(v)) for step, v in sorted(steps.items())]
