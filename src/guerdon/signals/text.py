"""TextSignal: a function of completions' texts as a signal, and as a TRL reward function.

length = text_signal(lambda completion: -len(completion) / 1000)
System(signals={"short": length}, ...)                              # the protocol: (Rollouts, Scores) -> Rewards
GRPOTrainer(..., reward_funcs=[length.as_reward_func()])            # alone, without a System
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from guerdon.errors import CapabilityError
from guerdon.paths import column_values
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.conversation import completion_text
from guerdon.signals.held import Held, held_by
from guerdon.signals.verdict import Verdict

BatchCheck = Callable[[Sequence[str], Mapping[str, Sequence[Any]]], Sequence[Verdict]]
TOKENS = "#tokens"  # the column a check with `counts_tokens` finds each completion's number of tokens in


@dataclass(frozen=True)
class TextSignal:
    """A signal that reads only texts and data columns, one value a row.

    The text of a row is what the policy said last (`Rollouts.last_turns`): never what a tool or a user wrote.

    Attributes:
        check: (B completions, {column: B values}) -> B verdicts.
        columns: the data columns it reads.
        name: shown in logs.
        settings: its options, shown when a System is printed.
        counts_tokens: also wants the completions' token counts, as column `TOKENS`.
        model: what it asks, where that can be placed on a device.
    """

    check: BatchCheck
    columns: tuple[str, ...] = ()
    name: str = "text"
    settings: str = ""
    counts_tokens: bool = False
    model: Any = field(default=None, repr=False, compare=False)
    scope: ClassVar[str] = "row"
    needs: ClassVar[frozenset[str]] = frozenset()
    level: ClassVar[str] = "sequence"

    def __repr__(self) -> str:
        return f"{self.name}({self.settings})"

    def held(self) -> list[Held]:
        """What its model loads."""
        return held_by(self.model)

    def to(self, device: Any, dtype: Any = None) -> None:
        """Place the model, where there is one that can be."""
        if callable(getattr(self.model, "to", None)):
            self.model.to(device, dtype)

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> Rewards:
        """Score a batch.

        Raises:
            MissingColumn: the rollouts lack a column this signal reads.
            CapabilityError: it counts tokens and the rollouts are text only.
        """
        columns = {name: rollouts.column(name) for name in self.columns}
        if self.counts_tokens:
            if not rollouts.has_tokens:
                raise CapabilityError(
                    f"{self!r} counts tokens and these rollouts are texts only; use unit='char' or 'word'"
                )
            columns[TOKENS] = rollouts.policy_mask.sum(1).tolist()  # type: ignore[union-attr]
        verdicts = self._verdicts(rollouts.last_turns, columns)
        return Rewards.sequence(
            [verdict.value for verdict in verdicts], rollouts, [verdict.reason for verdict in verdicts]
        )

    def _verdicts(self, texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Verdict]:
        verdicts = list(self.check(texts, columns)) if texts else []
        if len(verdicts) != len(texts):
            raise ValueError(f"{self!r} returned {len(verdicts)} verdicts for {len(texts)} completions")
        return [
            v if v.reason or not v.failed else Verdict(v.value, f"{self.name} returned NaN without a reason")
            for v in verdicts
        ]

    def as_reward_func(self) -> Callable[..., list[float | None]]:
        """An entry for TRL's `reward_funcs`: (prompts, completions, **columns) -> B floats, None where the instrument failed.

        Reasons have no place in that interface; a System under `guerdon.engines.trl` keeps them.
        """

        def reward(
            prompts: Sequence[Any] | None = None, completions: Sequence[Any] = (), **columns: Any
        ) -> list[float | None]:
            lists = [key for key, value in columns.items() if isinstance(value, list)]
            given: dict[str, Sequence[Any]] = {name: column_values(columns, name, lists) for name in self.columns}
            if self.counts_tokens:
                if columns.get("completion_ids") is None:
                    raise CapabilityError(
                        f"{self!r} counts tokens and was called without completion_ids; use unit='char' or 'word'"
                    )
                given[TOKENS] = [len(ids) for ids in columns["completion_ids"]]
            verdicts = self._verdicts([completion_text(completion) for completion in completions], given)
            return [None if math.isnan(verdict.value) else float(verdict.value) for verdict in verdicts]

        reward.__name__ = reward.__qualname__ = self.name  # TRL logs a reward function by its name
        return reward


def text_signal(
    function: Callable[..., float | Verdict], *, columns: Sequence[str] = (), name: str | None = None
) -> TextSignal:
    """Lift a function of one row to a signal.

    Args:
        function: called as function(completion, column=value, ...) for each row; returns a number or a Verdict (NaN = the
            instrument failed). Its exceptions are not caught: they are bugs, not scores.
        columns: the data columns to pass.
        name: default the function's own.
    """

    def check(texts: Sequence[str], given: Mapping[str, Sequence[Any]]) -> list[Verdict]:
        results = [function(text, **{key: given[key][i] for key in columns}) for i, text in enumerate(texts)]
        return [result if isinstance(result, Verdict) else Verdict(float(result)) for result in results]

    return TextSignal(check, tuple(columns), name or getattr(function, "__name__", "text").strip("<>"))
