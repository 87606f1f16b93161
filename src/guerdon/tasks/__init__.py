"""What policies train on: the built-in task "sums" with its tiny policy, and adapters for real data.

load_task("sums"), load_task("reasoning-gym:chain_sum"), load_task("problems.jsonl")
tiny_policy()    the path of the warm-started policy the embedded default trains
"""

from guerdon.tasks.base import Row, Task, Verdict
from guerdon.tasks.registry import load_task
from guerdon.tasks.tiny import char_tokenizer, tiny_policy

__all__ = ["Row", "Task", "Verdict", "char_tokenizer", "load_task", "tiny_policy"]
