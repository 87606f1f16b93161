"""Targets after K prefixes of each rollout: one shared forward, against a loop over prefixes and against the bare floor.

    guerdon bench prefix --json PATH        or        python benchmarks/bench_prefix.py [PATH] [--smoke]

On the 135M model: G rollouts of one prompt, K prefixes each, a target of 12 tokens. Four ways, interleaved in rounds:

naive    one forward a (prefix, target) pair, output embedding at the target only
padded   the same pairs in padded micro-batches (`SpanScorer` without sharing)
ours     `PrefixScorer`, its path chosen by itself
floor    one plain forward over as many tokens as ours are unique, in one batch of G rows, without the output embedding

Times are CPU times of the one thread that works, because other work on a machine stretches the clock on the wall (its ratios
stand beside). Ratios are of the same round; the interval is the range that 95 % of bootstrap medians over rounds fall in. The
two ways that run a prefix again and again take minutes and are far from their bar: they sit out the later rounds. Peak memory is
that of a process of its own for each way, after the model is loaded (the high-water mark is reset then): in all, and without the
model. Scaling is measured with one rollout, over K and over the rollout's length L. The file is written after each measurement,
and a run that was cut short goes on from its file.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BARS = {"naive_over_ours": 3.0, "ours_over_floor": 1.3, "memory_over_floor": 1.5}
WAYS = ("naive", "padded", "ours", "floor")
HEAVY = ("naive", "padded")


@dataclass(frozen=True)
class Case:
    """G rollouts of L tokens after one prompt of P, scored after K prefixes, target of T tokens."""

    rollouts: int = 8
    length: int = 400
    prefixes: int = 8
    target: int = 12
    prompt: int = 64

    @property
    def cuts(self) -> list[int]:
        return [round(self.length * (k + 1) / self.prefixes) for k in range(self.prefixes)]

    @property
    def unique(self) -> int:
        """Tokens that must be forwarded: the last one of a target predicts nothing that is asked."""
        return self.prompt + self.rollouts * (self.length + self.prefixes * (self.target - 1))


def text_tokens(lm: Any) -> list[int]:
    """Ids of some 10,000 words of text: this library's own modules about language models."""
    import guerdon.lm

    files = sorted(Path(guerdon.lm.__file__).parent.glob("*.py"))
    return lm.tokenizer("\n".join(file.read_text("utf-8") for file in files), add_special_tokens=False)["input_ids"]


class Work:
    """The four ways to do one case, on text: on random ids this model's own rounding in float32 is several times larger (the
    loop is up to 4e-4 from itself in float64 there)."""

    def __init__(self, lm: Any, case: Case) -> None:
        import torch

        from guerdon.lm import PrefixScorer, SpanScorer

        tokens = itertools.cycle(text_tokens(lm))

        def ids(*shape: int) -> Any:
            return torch.tensor([next(tokens) for _ in range(math.prod(shape))]).reshape(shape)

        self.lm, self.case = lm, case
        self.prompt, self.rollouts, self.target = ids(case.prompt), ids(case.rollouts, case.length), ids(case.target)
        self.pairs = [torch.cat([self.prompt, row[:cut]]) for row in self.rollouts for cut in case.cuts]
        self.plain_ids = ids(case.rollouts, -(-case.unique // case.rollouts))
        self.scorer, self.padded_scorer = PrefixScorer(lm), SpanScorer(lm, share="padded")
        self.answers: dict[str, Any] = {}  # the last of each way

    def largest_difference(self) -> float:
        """Between the log-probabilities of ours and of the loop (where a resumed run did not run it: of its longest pairs)."""
        loop = self.answers["naive"] if "naive" in self.answers else self.naive(2)
        ours = self.answers["ours"] if "ours" in self.answers else self.ours()
        return float((ours[-len(loop) :] - loop).abs().max())

    def ours(self) -> Any:
        size = self.case.rollouts
        return self.scorer.score_prefixes(
            [self.prompt] * size, list(self.rollouts), [self.case.cuts] * size, self.target
        ).values

    def padded(self, pairs: int | None = None) -> Any:
        return self.padded_scorer.score(self.pairs[-pairs:] if pairs else self.pairs, self.target).values

    def naive(self, pairs: int | None = None) -> Any:
        import torch

        model, size, found = self.lm.model, len(self.target), []
        with torch.no_grad():
            for context in self.pairs[-pairs:] if pairs else self.pairs:
                ids = torch.cat([context, self.target])[None, :-1]
                states = model.model(input_ids=ids, use_cache=False).last_hidden_state[0, -size:]
                logprobs = model.lm_head(states).float().log_softmax(-1)
                found.append(logprobs.gather(1, self.target[:, None])[:, 0])
        return torch.stack(found)

    def floor(self) -> Any:
        import torch

        with torch.no_grad():
            return self.lm.model.model(input_ids=self.plain_ids, use_cache=False).last_hidden_state


Round = dict[str, dict[str, float]]  # seconds of each way, on both clocks


class Record:
    """What is measured, kept in a file from measurement to measurement; a file that is not finished is gone on with."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.result: dict[str, Any] = {}
        if path is not None and path.exists():
            left = json.loads(path.read_text())
            self.result = {} if left["finished"] else left
        self.result |= {"name": "prefix", "finished": False}
        self.result.setdefault("seconds", {})

    def rounds(self, case: Case) -> list[Round]:
        return self.result["seconds"].setdefault(f"G={case.rollouts} K={case.prefixes} L={case.length}", [])

    def save(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.result, indent=1) + "\n")


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """(seconds, what it returned)."""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}, answer


def measure(work: Work, ways: tuple[str, ...], rounds: int, heavy_rounds: int, record: Record) -> list[Round]:
    """Rounds of measurements, those that the record has included. Who goes first moves on; heavy ways stop after `heavy_rounds`."""
    found = record.rounds(work.case)
    for n in range(rounds):
        if n == len(found):
            found.append({})
        now = [way for way in ways if n < heavy_rounds or way not in HEAVY]
        for way in now[n % len(now) :] + now[: n % len(now)]:
            if way not in found[n]:
                found[n][way], work.answers[way] = timed(getattr(work, way))
                record.save()
    return found


def ratio(rounds: list[Round], over: str, under: str, clock: str = "cpu") -> dict[str, Any]:
    """Median of over / under, over the rounds that have both, with a 95 % bootstrap interval."""
    ratios = [row[over][clock] / row[under][clock] for row in rounds if over in row and under in row]
    rng = random.Random(0)
    draws = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {"ratio": statistics.median(ratios), "low": draws[50], "high": draws[1949], "rounds": len(ratios)}


def ratios(rounds: list[Round]) -> dict[str, Any]:
    """All ratios a case gives, in CPU time and by the clock on the wall."""
    pairs = [("naive", "ours"), ("padded", "ours"), ("ours", "floor")]
    return {
        f"{over}_over_{under}": ratio(rounds, over, under) | {"wall": ratio(rounds, over, under, "wall")}
        for over, under in pairs
        if over in rounds[0] and under in rounds[0]
    } | {"median_cpu_s": {way: statistics.median(r[way]["cpu"] for r in rounds if way in r) for way in rounds[0]}}


# -- memory: one process a way -----------------------------------------------------------------------------------------------


def high_water_mb() -> float:
    """Peak resident memory of this process since the last reset. (ru_maxrss would hold the parent's from before exec.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system has no VmHWM in /proc/self/status")


def memory_of(way: str, case: Case) -> dict[str, float]:
    """Peak of one way in this process. The loops run their last and longest pairs only, enough for their peak."""
    work = prepared(case)
    work.lm.model.model(input_ids=work.plain_ids[:1, :8])  # libraries and weights are there
    if way == "ours":  # the trial of the model is not part of a call
        short = Case(case.rollouts, 24, 2, 2, 16)
        Work(work.lm, short).ours()
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water_mb()
    {
        "naive": lambda: work.naive(2),
        "padded": lambda: work.padded(1 + work.lm.max_tokens // (case.length + case.prompt)),
        "ours": work.ours,
        "floor": work.floor,
    }[way]()
    return {"loaded_mb": before, "peak_mb": high_water_mb()}


def memory(case: Case) -> dict[str, Any]:
    """Peak of each way, in processes of their own."""
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--memory", way, json.dumps(asdict(case))]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
        found[way] = json.loads(answer.stdout.splitlines()[-1])
    peak = {way: row["peak_mb"] for way, row in found.items()}
    extra = {way: row["peak_mb"] - row["loaded_mb"] for way, row in found.items()}
    return {
        "ways": found,
        "ours_over_floor": peak["ours"] / peak["floor"],
        "ours_over_floor_without_model": extra["ours"] / extra["floor"],
    }


def prepared(case: Case, lm: Any = None) -> Work:
    import torch

    from guerdon.lm import LocalModel

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    return Work(lm or LocalModel("smollm2"), case)


# -- the run -----------------------------------------------------------------------------------------------------------------


def scaling(lm: Any, case: Case, rounds: int, record: Record) -> dict[str, Any]:
    """One rollout, one K and one L. Where the loop forwards thousands of tokens, it does so once."""
    work = Work(lm, case)
    work.ours()
    looped = sum(len(pair) for pair in work.pairs)
    found = ratios(measure(work, ("naive", "ours", "floor"), rounds, min(rounds, 3 if looped < 1500 else 1), record))
    difference = work.largest_difference()
    row = {"K": case.prefixes, "L": case.length, "path": work.scorer.forward.ran, "looped_tokens": looped}
    show(f"K={case.prefixes:<3d} L={case.length:<5d}", found)
    return row | {"largest_difference_to_naive": difference} | found


def show(label: str, row: dict[str, Any]) -> None:
    parts = [
        f"{name.replace('_over_', ' / ')} {row[name]['ratio']:.2f} [{row[name]['low']:.2f}, {row[name]['high']:.2f}]"
        for name in ("naive_over_ours", "padded_over_ours", "ours_over_floor")
        if name in row
    ]
    print(f"{label:16s}" + "   ".join(parts), flush=True)


def figure(result: dict[str, Any], path: Path) -> None:
    """Both ratios over K and over L."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3), sharey=True)
    for axis, (varied, fixed, value) in zip(axes, (("K", "L", 400), ("L", "K", 8)), strict=True):
        rows = sorted((r for r in result["scaling"] if r[fixed] == value), key=lambda r: r[varied])
        for name, label in (("naive_over_ours", "naive loop / ours"), ("ours_over_floor", "ours / floor")):
            middle = [r[name]["ratio"] for r in rows]
            spread = [
                [m - r[name]["low"] for m, r in zip(middle, rows, strict=True)],
                [r[name]["high"] - m for m, r in zip(middle, rows, strict=True)],
            ]
            axis.errorbar([r[varied] for r in rows], middle, yerr=spread, marker="o", capsize=2, label=label)
        axis.set(xscale="log", yscale="log", xlabel=f"{varied} ({fixed} = {value})")
        axis.set_xticks([r[varied] for r in rows], [str(r[varied]) for r in rows], minor=False)
        axis.minorticks_off()
        axis.set_yticks([1, 1.3, 2, 3, 5, 10, 20], ["1", "1.3", "2", "3", "5", "10", "20"])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ratio of CPU times")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def run(json_path: str | Path | None = None, *, smoke: bool = False) -> dict[str, Any]:
    """Measure, print, return (and write, with a figure beside) the numbers. `smoke`: tiny sizes, to see that it runs."""
    case = Case(2, 40, 4, 3, 16) if smoke else Case()
    rounds, heavy, more = (1, 1, 1) if smoke else (6, 2, 3)
    lengths, counts = ((100,), (1, 2)) if smoke else ((100, 200, 800, 1600), (1, 2, 4, 8, 16, 32))
    record = Record(None if json_path is None else Path(json_path))
    result, work = record.result, prepared(case)
    if "passed" not in result:
        work.ours()  # the model has been tried, and libraries are loaded
        result |= ratios(measure(work, WAYS, rounds, heavy, record)) | {"memory": memory(case)}
        result["largest_difference_to_naive"] = work.largest_difference()
        looped, forward = sum(len(pair) for pair in work.pairs), work.scorer.forward
        result["case"] = asdict(case) | {"unique_tokens": case.unique, "looped_tokens": looped}
        result |= {"path": forward.ran, "tokens_forwarded": forward.tokens, "bars": BARS, "passed": held(result)}
        record.save()
    show(f"G={case.rollouts} K={case.prefixes} L={case.length}", result)
    print(f"peak memory, ours / floor: {result['memory']['ours_over_floor']:.2f} "
          f"(without the model {result['memory']['ours_over_floor_without_model']:.2f})")  # fmt: skip
    print(", ".join(f"{name} {'held' if good else 'NOT held'}" for name, good in result["passed"].items()), flush=True)
    cases = [Case(1, 400, k) for k in counts] + [Case(1, length, 8) for length in lengths]
    result["scaling"] = [scaling(work.lm, one, more, record) for one in cases]
    result["finished"] = True
    record.save()
    if json_path is not None:
        figure(result, Path(json_path).with_suffix(".png"))
    return result


def held(result: dict[str, Any]) -> dict[str, bool]:
    """Each bar."""
    return {
        "naive_over_ours": result["naive_over_ours"]["ratio"] >= BARS["naive_over_ours"],
        "ours_over_floor": result["ours_over_floor"]["ratio"] <= BARS["ours_over_floor"],
        "memory_over_floor": result["memory"]["ours_over_floor"] <= BARS["memory_over_floor"],
        "exact": result["largest_difference_to_naive"] <= 1e-4,
    }


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["--memory"]:
        print(json.dumps(memory_of(arguments[1], Case(**json.loads(arguments[2])))))
    else:
        paths = [a for a in arguments if not a.startswith("--")]
        run(paths[0] if paths else None, smoke="--smoke" in arguments)
