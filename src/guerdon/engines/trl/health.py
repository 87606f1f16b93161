"""Is anything being trained? Counts what each training generation gave, and says when a run had better stop than go on in silence.

Two things can make a run do nothing while every step succeeds: the instrument is down, so that no rollout of a generation could be
scored, and the reward does not vary, so that every advantage is 0. One flat generation means little (a hard task, a small batch), so
only a run that has never had an advantage counts as flat. What every rank sees is the global batch: all come to the same conclusion.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from guerdon.errors import ConfigError
from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts

TOO_FEW = 3  # generations that say nothing yet about what a system can do


class Health:
    """What the training generations of a run came to.

    Args:
        stop_when_failed: consecutive generations in which nothing was kept because instruments failed; None = never stop.
        stop_when_flat: generations since the start (or since it was resumed) without one advantage other than 0, when the run has had none
            before; None = never stop.
        trains_anyway: something else is trained in every step (an auxiliary objective), so that flat rewards are not the end.

    Attributes:
        generations: seen by the run, before it was resumed as well.
        varied: one of them had an advantage other than 0.
    """

    def __init__(
        self, stop_when_failed: int | None, stop_when_flat: int | None, *, trains_anyway: bool = False
    ) -> None:
        for name, value in (("stop_when_failed", stop_when_failed), ("stop_when_flat", stop_when_flat)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(
                    f"{name}={value!r}: a number of generations, at least 1, or None to go on whatever happens"
                )
        self.stop_when_failed, self.stop_when_flat, self.trains_anyway = stop_when_failed, stop_when_flat, trains_anyway
        self.generations, self.varied = 0, False
        self._down = self._flat = 0
        self._why = self._paid = ""

    def see(self, rollouts: Rollouts, scores: Scores) -> None:
        """Take note of a training generation whose chain has run."""
        assert rollouts.policy_mask is not None
        self.generations += 1
        failing = [(name, rewards) for name, rewards in scores.raw.items() if bool(rewards.failed.any())]
        down = bool(failing) and not bool(scores.keep.any())
        self._down = self._down + 1 if down else 0
        if down:
            reasons = Counter(text for _, rewards in failing for text in rewards.reasons.values())
            self._why = (
                f"{', '.join(name for name, _ in failing)}: {reasons.most_common(1)[0][0] if reasons else 'NaN'}"
            )
        advantages = scores.advantages
        trained = rollouts.policy_mask.to(advantages.device) & scores.keep.to(advantages.device)[:, None]
        varied = bool((advantages[trained] != 0).any())
        self.varied |= varied
        self._flat = 0 if varied or self.varied else self._flat + 1
        if not varied:
            self._paid = _paid(scores)

    def failure(self) -> str | None:
        """Why the run should stop now, or None."""
        if self.stop_when_failed is not None and self._down >= self.stop_when_failed:
            return (
                f"no rollout of the last {self._down} generation(s) could be scored, because an instrument is down ({self._why}): "
                f"mend it and resume (stop_when_failed={self.stop_when_failed})"
            )
        if self.stop_when_flat is not None and self._flat >= self.stop_when_flat and not self.trains_anyway:
            return f"{self._nothing()}; resume to try as many again (stop_when_flat={self.stop_when_flat})"
        return None

    def at_the_end(self) -> str | None:
        """Why a run that took all its steps has trained nothing, or None."""
        if self.varied or self.trains_anyway or self.generations < TOO_FEW:
            return None
        if self._down == self.generations:
            return f"nothing was trained: no rollout of {self.generations} generations could be scored ({self._why})"
        return self._nothing()

    def _nothing(self) -> str:
        return (
            f"nothing was trained: not one rollout of {self.generations} generations got an advantage other than 0 ({self._paid}). What is "
            "paid does not vary on these prompts with this policy: look at rollouts.jsonl, and choose another task, system or policy"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"generations": self.generations, "varied": self.varied}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. What made it stop is counted anew: whoever resumes wants it tried."""
        self.generations, self.varied = int(state.get("generations", 0)), bool(state.get("varied", False))


def _paid(scores: Scores) -> str:
    """What a flat generation was paid, and the most common reason for it."""
    known = scores.keep if scores.reward is None else scores.keep & ~scores.reward.to(scores.keep.device).isnan()
    numbers = torch.zeros(0) if scores.reward is None else scores.reward[known.to(scores.reward.device)]
    if not len(numbers):
        dropped = Counter(scores.notes.get("dropped", {}).values())
        return f"no row was kept: {dropped.most_common(1)[0][0]}" if dropped else "no row was kept"
    low, high = float(numbers.min()), float(numbers.max())
    text = f"reward {low:g} in every rollout" if low == high else f"rewards from {low:g} to {high:g}"
    reasons = Counter(text for rewards in scores.raw.values() for text in rewards.reasons.values())
    return f"{text}; most often: {reasons.most_common(1)[0][0]}" if reasons else text


__all__ = ["Health"]
