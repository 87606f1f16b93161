"""Verification of mathematics against the peer it replaces: math-verify's parse + verify, in the same run, as ratios.

    guerdon bench math --json PATH        or        python benchmarks/bench_math.py [PATH]

Measured: (1) plain numbers, fast path against parse + verify; (2) expressions, the pool against parse + verify in one process;
(3) a batch in which every pair occurs eight times, against the same batch with all pairs different.
"""

from __future__ import annotations

import json
import logging
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guerdon.signals.verifiable import MathOptions, check_math

BAR, EXPRESSIONS_BAR = 50.0, 1.5  # times math-verify's rate on plain numbers, and on expressions with two workers

FORMS = (
    "{}",
    "${}$",
    "\\boxed{{{}}}",
    "The answer is {}.",
    "Answer: {}",
    "First 3 + 4 = 7, and so on.\nThus \\boxed{{{}}}.",
)


def plain_pairs(count: int, rng: random.Random) -> list[tuple[str, str]]:
    """(answer, reference) pairs of plain numbers and fractions, all different, half of them right."""
    pairs = []
    for i in range(count):
        value = rng.choice(
            [f"{i + 1}", f"{i * 1000:,}", f"{i}.{rng.randint(0, 9)}5", f"{i + 1}/{rng.randint(2, 9)}", f"-{i + 1}"]
        )
        pairs.append((rng.choice(FORMS).format(value), value if i % 2 else f"{i + count}"))
    return pairs


def expression_pairs(count: int, rng: random.Random) -> list[tuple[str, str]]:
    """(answer, reference) pairs that need sympy, all different."""
    pairs = []
    for i in range(count):
        a, b = i + 2, rng.randint(2, 9)
        pairs.append(
            rng.choice(
                [
                    (f"\\boxed{{(x+{a})^2}}", f"x^2 + {2 * a}x + {a * a}"),
                    (f"$\\frac{{\\sqrt{{{a}}}}}{{{b}}}$", f"\\sqrt{{{a}}}/{b}"),
                    (f"${a}\\pi + {b}$", f"{b} + \\pi \\cdot {a}"),
                ]
            )
        )
    return pairs


def seconds(work: Callable[[], Any], rounds: int) -> float:
    """The median time of some rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peer(pairs: list[tuple[str, str]]) -> list[float]:
    """math-verify alone, as its documentation says, without its time-outs (which only slow it down)."""
    from math_verify import parse, verify

    return [
        float(
            verify(
                parse(f"${reference}$", parsing_timeout=None), parse(answer, parsing_timeout=None), timeout_seconds=None
            )
        )
        for answer, reference in pairs
    ]


def ours(pairs: list[tuple[str, str]], options: MathOptions) -> list[float]:
    """Our verdicts of the pairs."""
    return [
        verdict.value
        for verdict in check_math([answer for answer, _ in pairs], [reference for _, reference in pairs], options)
    ]


def run(
    json_path: str | Path | None = None,
    *,
    plain: int = 1000,
    expressions: int = 150,
    rounds: int = 3,
    workers: int | None = None,
) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        json_path: write the numbers there too.
        plain: pairs of plain numbers.
        expressions: pairs that need sympy.
        rounds: repetitions; the median counts.
        workers: pool processes; None = CPUs, at most 8.

    Returns:
        pairs per second of each side, their ratios, and the pairs on which the two sides disagree.
    """
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    rng = random.Random(0)
    options = MathOptions(workers=workers, timeout_s=30.0)
    numbers, algebra = plain_pairs(plain, rng), expression_pairs(expressions, rng)
    (
        peer(numbers[:5] + algebra[:20]),
        ours(algebra[:20], options),
    )  # imports, tables and worker processes are not what is measured

    differ = [
        pair
        for pair, a, b in zip(numbers + algebra, ours(numbers + algebra, options), peer(numbers + algebra), strict=True)
        if a != b
    ]
    peer_plain, fast_plain = seconds(lambda: peer(numbers), rounds), seconds(lambda: ours(numbers, options), rounds)
    # One round: sympy's caches make every repetition of the same expressions unlike a first meeting, on both sides.
    fresh = expression_pairs(2 * expressions, random.Random(1))[expressions:]
    peer_slow, pool_slow = seconds(lambda: peer(fresh), 1), seconds(lambda: ours(fresh, options), 1)
    more = expression_pairs(4 * expressions, random.Random(2))[3 * expressions :]
    repeated = (more[: len(more) // 8] * 8)[: len(more)]
    distinct_s, repeated_s = seconds(lambda: ours(more, options), 1), seconds(lambda: ours(repeated, options), 1)

    result: dict[str, Any] = {
        "name": "math",
        "plain": {
            "pairs": plain,
            "ours_per_s": plain / fast_plain,
            "math_verify_per_s": plain / peer_plain,
            "ratio": peer_plain / fast_plain,
        },
        "expressions": {
            "pairs": expressions,
            "workers": options.pool().size,
            "ours_per_s": expressions / pool_slow,
            "math_verify_per_s": expressions / peer_slow,
            "ratio": peer_slow / pool_slow,
        },
        # "The answer is 3/7.": math-verify reads the float 3/7.0 and calls it wrong, we take the full stop for one.
        "verdicts_that_differ": [list(pair) for pair in differ],
        "deduplication": {"pairs": len(repeated), "each_repeated": 8, "ratio": distinct_s / repeated_s},
        "bar": BAR,
        "expressions_bar": EXPRESSIONS_BAR,
        "passed": peer_plain / fast_plain >= BAR and peer_slow / pool_slow >= EXPRESSIONS_BAR,
    }
    for kind in ("plain", "expressions"):
        row = result[kind]
        print(
            f"{kind:12s} ours {row['ours_per_s']:10.0f}/s   math-verify {row['math_verify_per_s']:8.0f}/s   ratio {row['ratio']:6.2f}"
        )
    print(
        f"every pair eight times: {result['deduplication']['ratio']:.1f} times faster than all different; verdicts that differ: {len(differ)}"
    )
    held = "held" if result["passed"] else "NOT held"
    print(
        f"plain numbers at {BAR:.0f} times math-verify's rate or more, expressions at {EXPRESSIONS_BAR} times: {held}"
    )
    if json_path is not None:
        Path(json_path).parent.mkdir(parents=True, exist_ok=True)
        Path(json_path).write_text(json.dumps(result, indent=2) + "\n")
    return result


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else None)
