"""A function of one step as a signal: what a person writes first who wants to pay steps and has no reward model.

steps = step_signal(lambda step: -0.2 * ("sorry" in step))
System({"steps": steps}, [...], segments={"steps": ByDelimiter(None, "\\n\\n")})
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from guerdon.rewards import Reasons, Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.verdict import Verdict


@dataclass(frozen=True)
class StepSignal:
    """A signal that calls a function with the text of each step.

    Attributes:
        function: (step, column=value, ...) -> a number or a Verdict; NaN = the instrument failed.
        level: the name of the segmentation it scores.
        columns: the data columns to pass.
        name: shown in logs.
    """

    function: Callable[..., float | Verdict]
    level: str = "steps"
    columns: tuple[str, ...] = ()
    name: str = "steps"
    scope: ClassVar[str] = "row"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __repr__(self) -> str:
        return f"step_signal({self.name})"

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> Rewards:
        """Rewards [B, S] over the steps. A System leaves steps out of which the policy wrote nothing (a tool's output).

        Raises:
            CapabilityError: the rollouts have no such segmentation, or count its steps in tokens and have no offsets.
            MissingColumn: the rollouts lack a column.
        """
        from guerdon.signals.learned.prm import step_texts

        spans = rollouts.segment(self.level)
        columns = {name: rollouts.column(name) for name in self.columns}
        values = torch.zeros(spans.start.shape, dtype=torch.get_default_dtype())
        reasons: Reasons = {}
        for b, row in enumerate(step_texts(rollouts, spans)):
            cells = {name: column[b] for name, column in columns.items()}
            for s, text in row:
                result = self.function(text, **cells)
                verdict = result if isinstance(result, Verdict) else Verdict(float(result))
                values[b, s] = verdict.value
                if verdict.reason or math.isnan(verdict.value):
                    reasons[b, s] = verdict.reason or f"{self.name} returned NaN without a reason"
        return Rewards(values, spans, reasons)


def step_signal(
    function: Callable[..., float | Verdict],
    *,
    level: str = "steps",
    columns: Sequence[str] = (),
    name: str | None = None,
) -> StepSignal:
    """Lift a function of one step to a signal.

    Args:
        function: called as function(step, column=value, ...) for each step; returns a number or a Verdict (NaN = the instrument
            failed). Its exceptions are not caught: they are bugs, not scores.
        level: the segmentation of the System whose spans are the steps.
        columns: the data columns to pass.
        name: default the function's own.
    """
    return StepSignal(function, level, tuple(columns), name or getattr(function, "__name__", "step").strip("<>"))
