"""What a policy trains on, and how we know whether it truly got better.

A `Task` is two disjoint lists of rows (training and held-out prompts) and a verifier. The verifier measures *true
success*: it is the yardstick of every report and is never fed into an advantage, so that a reward that is being
hacked cannot hide. A row is a plain dict with at least ``prompt`` and ``answer`` (one reference, or a list of
equally right ones); every other key is carried along as a column.

Left out on purpose: sampling and chat templates beyond one user turn (an engine's job, the loop over an environment's turns too).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from guerdon.errors import DataError
from guerdon.signals.verifiable.verdict import Verdict

if TYPE_CHECKING:
    from datasets import Dataset

    from guerdon.tasks.environment import Environment

Row = Mapping[str, Any]


Verifier = Callable[[Sequence[str], Sequence[Row]], list[Verdict]]


@dataclass(frozen=True)
class Task:
    """Prompts with answers, split in two, and the verifier that says what true success is.

    name: what `load_task` would be given to get this task again.
    train, held_out: rows; no held-out prompt occurs in train (checked here).
    verify: (B completion texts, their B rows) -> B verdicts; 1.0 right, 0.0 wrong (graded verifiers: between), NaN only
        where the *instrument* failed, such as a missing reference.
    max_completion_length: suggested cap on sampled tokens.
    delimiter: the text that ends a reasoning step of this task.
    instruction: appended to the prompt when it is shown to a chat model; empty for tasks with their own notation.
    notes: what a system's parameters of these names have to be on this task, where the user does not say otherwise.
    environment: answers the policy's turns; None = a completion is one turn.
    tiny_policy: makes (or finds) the embedded policy of this task, the path of `--model tiny`; None = the default tiny policy, which knows
        the task "sums" alone.
    """

    name: str
    train: Sequence[Row]
    held_out: Sequence[Row]
    verify: Verifier
    max_completion_length: int = 1024
    delimiter: str = "\n\n"
    instruction: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    environment: Environment | None = None
    tiny_policy: Callable[[], str] | None = None

    def __post_init__(self) -> None:
        for split, rows in (("train", self.train), ("held_out", self.held_out)):
            for i, row in enumerate(rows):
                missing = {"prompt", "answer"} - row.keys()
                if missing:
                    raise DataError(
                        f"task {self.name!r}: {split} row {i} has no {sorted(missing)}; it has {sorted(row)}"
                    )
        shared = {prompt_key(r) for r in self.train} & {prompt_key(r) for r in self.held_out}
        if shared:
            example = next(iter(shared))
            raise DataError(
                f"task {self.name!r}: {len(shared)} held-out prompts also occur in the training prompts, such as "
                f"{example!r}; true success would be measured on what was trained. Remove the duplicates."
            )

    def questions(self, split: Literal["train", "held_out"] = "train") -> int:
        """The number of different prompts of a split; rows may repeat one, as small generators do."""
        return len({prompt_key(row) for row in (self.train if split == "train" else self.held_out)})

    def true_success(self, completions: Sequence[str], rows: Sequence[Row]) -> list[Verdict]:
        """The verifier's verdict on every completion; completions[i] answers rows[i]."""
        if len(completions) != len(rows):
            raise DataError(f"{len(completions)} completions for {len(rows)} rows; there must be one row each")
        return self.verify(completions, rows)

    def to_dataset(self, split: Literal["train", "held_out"] = "train", *, chat: bool = False) -> Dataset:
        """The rows of a split as a `datasets.Dataset`, one column per key.

        chat: give each prompt as one user message (with the task's instruction), the form TRL puts through a
        tokenizer's chat template; otherwise prompts stay plain text.
        """
        from datasets import Dataset

        rows = self.train if split == "train" else self.held_out
        shown = [{**row, "prompt": self._shown(row["prompt"], chat)} for row in rows]
        try:
            return Dataset.from_list(shown)
        except (TypeError, ValueError) as error:  # Arrow's own errors are both
            mixed = [name for name in dict.fromkeys(key for row in shown for key in row) if _is_mixed(shown, name)]
            raise DataError(
                f"task {self.name!r}: the values of {', '.join(mixed) or 'some column'} are not of one type ({error}); make them one, or "
                "leave the column out"
            ) from error

    def _shown(self, prompt: Any, chat: bool) -> Any:
        if not isinstance(prompt, str):  # already a list of messages
            return prompt
        text = f"{prompt}\n\n{self.instruction}" if self.instruction else prompt
        return [{"role": "user", "content": text}] if chat else text


def _is_mixed(rows: Sequence[Row], name: str) -> bool:
    """Whether no Arrow type holds a column's values."""
    from datasets import Dataset

    try:
        Dataset.from_list([{name: row.get(name)} for row in rows])
    except (TypeError, ValueError):
        return True
    return False


def prompt_key(row: Row) -> str:
    """What makes two rows the same question: the prompt's text or messages."""
    prompt = row["prompt"]
    return prompt if isinstance(prompt, str) else repr(prompt)
