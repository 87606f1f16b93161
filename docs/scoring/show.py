"""The rewards of scored files side by side: `python show.py a.jsonl b.jsonl`."""

import json
import sys
from pathlib import Path

columns = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in map(Path, sys.argv[1:])}
print("".join(f"{name:>15}" for name in columns), "  completion")
for rows in zip(*columns.values(), strict=True):
    cells = ["-" if row["reward"] is None else f"{row['reward']:.4g}" for row in rows]
    text = rows[0]["completion"]
    print("".join(f"{cell:>15}" for cell in cells), f"  {text[:30]}...{text[-24:]}" if len(text) > 60 else f"  {text}")
