"""`import guerdon` beyond torch's own import: CPU time in fresh processes, and what it brings along.

    guerdon bench import --json PATH        or        python benchmarks/bench_import.py [PATH]

Every round starts a Python of its own, imports torch, and then measures the CPU time of `import guerdon` in it; CPU time,
because other work on the machine stretches the clock on the wall. The first process warms the disk and counts for nothing.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

BAR_S = 0.3

CODE = """
import json, sys, time
begin = time.process_time()
import torch
between = time.process_time()
before = set(sys.modules)
import guerdon
end = time.process_time()
new = sorted({name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)
print(json.dumps({"torch_s": between - begin, "guerdon_s": end - between, "brings": new}))
"""


def fresh() -> dict[str, Any]:
    """One process."""
    answer = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def run(json_path: str | Path | None = None, *, rounds: int = 9) -> dict[str, Any]:
    """Measure, print, return (and write) the numbers.

    Args:
        json_path: write them there too.
        rounds: processes; the median counts.
    """
    fresh()
    found = [fresh() for _ in range(rounds)]
    ours = [row["guerdon_s"] for row in found]
    result: dict[str, Any] = {
        "name": "import",
        "what": "CPU seconds of `import guerdon` after `import torch`, each time in a process of its own",
        "rounds": rounds,
        "median_s": statistics.median(ours),
        "low_s": min(ours),
        "high_s": max(ours),
        "torch_median_s": statistics.median(row["torch_s"] for row in found),
        "brings": found[0]["brings"],
        "bar_s": BAR_S,
        "passed": statistics.median(ours) <= BAR_S,
    }
    print(
        f"import guerdon: {result['median_s']:.3f} s [{result['low_s']:.3f}, {result['high_s']:.3f}] beyond torch's "
        f"{result['torch_median_s']:.2f} s; bar {BAR_S} s {'held' if result['passed'] else 'NOT held'}; brings "
        f"{', '.join(result['brings'])}"
    )
    if json_path is not None:
        Path(json_path).parent.mkdir(parents=True, exist_ok=True)
        Path(json_path).write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    run(sys.argv[1] if len(sys.argv) > 1 else None)
