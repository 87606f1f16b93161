"""Files of rollouts: read and written row by row, JSONL and Parquet, never held in memory as a whole.

for rows in read_rows("rollouts.parquet", 256): ...        # list[dict] batches
with RowWriter("scored.jsonl") as out: out.write(rows)     # a kill loses at most the batch in flight
score_file("rollouts.jsonl", "scored.jsonl", signal)       # the engine of `guerdon score`
"""

from guerdon.io.read import RowReader, count_rows, read_rows
from guerdon.io.records import rollouts_from_rows, rows_from_rollouts
from guerdon.io.score import ScoreProgress, ScoreResult, score_file
from guerdon.io.write import RowWriter

__all__ = [
    "RowReader",
    "RowWriter",
    "ScoreProgress",
    "ScoreResult",
    "count_rows",
    "read_rows",
    "rollouts_from_rows",
    "rows_from_rollouts",
    "score_file",
]
