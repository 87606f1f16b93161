"""What the blocks of docs/speed.md say: rows of a table and sentences, from the files that `guerdon bench NAME --json` writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]
Block = tuple[list[Row], list[str]]  # the table, and what stands under it


def prefix_block(record: Mapping[str, Any]) -> Block:
    """Targets after prefixes: the case with the bars, then over K and L. A run that was cut short shows what there is."""
    if "passed" not in record:
        return [], ["Not finished: the same command goes on."]
    case, bars, passed, memory = record["case"], record["bars"], record["passed"], record["memory"]
    rows: list[Row] = [
        _prefix_row(f"G = {case['rollouts']}, K = {case['prefixes']}, L = {case['length']}", record),
        *(_prefix_row(f"G = 1, K = {row['K']}, L = {row['L']}", row) for row in record.get("scaling", [])),
    ]
    peaks = ", ".join(f"{way} {row['peak_mb']:.0f}" for way, row in memory["ways"].items())
    verdicts = {
        "naive_over_ours": f"naive / ours at least {bars['naive_over_ours']:g}",
        "ours_over_floor": f"ours / floor at most {bars['ours_over_floor']:g}",
        "memory_over_floor": f"peak memory of ours / floor at most {bars['memory_over_floor']:g}",
        "exact": "within 1e-4 of the loop",
    }
    return rows, [
        f"Peak memory in MB: {peaks}; ours / floor {memory['ours_over_floor']:.2f}, and "
        f"{memory['ours_over_floor_without_model']:.2f} of what is needed beside the model. Largest difference to the loop: "
        f"{record['largest_difference_to_naive']:.1g}. {case['looped_tokens']} tokens in the loop, {record['tokens_forwarded']} in ours.",
        "",
        *(f"- {'held' if passed[name] else '**not held**'}: {text}" for name, text in verdicts.items()),
        "",
        "![naive / ours and ours / floor over K and L](../benchmarks/results/prefix.png)",
    ]


def _prefix_row(label: str, found: Mapping[str, Any]) -> Row:
    def shown(name: str) -> str | None:
        if name not in found:
            return None
        value = found[name]
        interval = f" [{value['low']:.2f}, {value['high']:.2f}]" if value["rounds"] > 1 else ""
        return f"{value['ratio']:.2f}{interval}"

    ratios = {
        name: f"{name}_over_{under}" for name, under in (("naive", "ours"), ("padded", "ours"), ("ours", "floor"))
    }
    columns = {"naive": "naive / ours", "padded": "padded / ours", "ours": "ours / floor"}
    return {"rollouts": label, **{columns[name]: shown(key) for name, key in ratios.items()}, "path": found["path"]}


def math_block(record: Mapping[str, Any]) -> Block:
    """Verification against math-verify alone."""
    rows: list[Row] = [
        {
            "pairs": f"{record[kind]['pairs']} {text}",
            "ours, per s": f"{record[kind]['ours_per_s']:.0f}",
            "math-verify, per s": f"{record[kind]['math_verify_per_s']:.0f}",
            "ratio": f"{record[kind]['ratio']:.2f}",
        }
        for kind, text in (("plain", "plain numbers"), ("expressions", "expressions"))
    ]
    verdict = "held" if record["passed"] else "**not held**"
    return rows, [
        f"A batch in which every pair occurs eight times takes 1/{record['deduplication']['ratio']:.1f} of the time of one with "
        f"all pairs different. Verdicts that differ: {len(record['verdicts_that_differ'])}. Plain numbers at least "
        f"{record['bar']:g} times as fast, expressions at least {record['expressions_bar']:g} times: {verdict}.",
    ]


def verdicts_block(record: Mapping[str, Any]) -> Block:
    """Shares of answers paid, beside math-verify alone."""
    matrix, corpus, cases = record["matrix"], record["corpus"], record["cases"]
    rows: list[Row] = [
        {"answers": f"{matrix['right_answers']} right ones, {matrix['endings']} endings", "paid": f"{record['right_paid']:.1%}", "math-verify": f"{record['math_verify_right_paid']:.1%}"},
        {"answers": f"{matrix['wrong_answers']} wrong ones", "paid": f"{record['wrong_paid']:.1%}", "math-verify": f"{record['math_verify_wrong_paid']:.1%}"},
    ]  # fmt: skip
    verdict = "held" if record["passed"] else "**not held**"
    return rows, [
        f"The corpus of reward-doctor ({corpus['cases']} cases): {corpus['false_negatives']:.1%} false negatives, {corpus['false_positives']:.1%} "
        f"false positives. {cases['cases']} cases kept with the tests: {cases['right']:.1%} right. All bars: {verdict}.",
        "The endings and the cases were known when the verifiers were written: the shares say that nothing was lost since, not what an "
        "unseen way of answering will bring.",
    ]


def import_block(record: Mapping[str, Any]) -> Block:
    """The import beyond torch's."""
    verdict = "held" if record["passed"] else "**not held**"
    return [], [
        f"{record['median_s']:.3f} s of CPU time [{record['low_s']:.3f}, {record['high_s']:.3f}] in {record['rounds']} processes, "
        f"after torch's own {record['torch_median_s']:.2f} s; no package but {', '.join(record['brings'])} is loaded. At most "
        f"{record['bar_s']:g} s: {verdict}.",
    ]


def engine_block(record: Mapping[str, Any]) -> Block:
    """A step of the trainer against TRL's own."""
    verdict = "held" if record["passed"] else "**not held**"
    wall, cpu = record["wall"], record["cpu"]
    return [], [
        f"Step time {wall['ratio']:.3f} of TRL's [{wall['low']:.3f}, {wall['high']:.3f}] ({cpu['ratio']:.3f} in CPU time) over "
        f"{record['pairs']} pairs of steps on a tiny policy, {record['own_ms']:.1f} ms a step of our own. At most {record['target']:g}: {verdict}.",
    ]


BENCH_BLOCKS: dict[str, Callable[[Mapping[str, Any]], Block]] = {
    "prefix": prefix_block,
    "math": math_block,
    "verdicts": verdicts_block,
    "import": import_block,
    "engine": engine_block,
}
