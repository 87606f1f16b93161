"""Running statistics of a reward over the whole run, and the shapings made of them (PAR's Meanstd, Clip and Minmax baselines).

The moments are state: (state, batch) -> (output, next state). The System keeps it in checkpoints, which the official code does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from guerdon.credit.groups import equal_up_to_rounding
from guerdon.credit.link import Levels, LinkBase, planned_name, require_level, row_totals, source_of
from guerdon.errors import ConfigError
from guerdon.options import checked
from guerdon.rewards import Scores
from guerdon.rollouts import Rollouts

RunningMode = Literal["meanstd", "clip", "minmax"]


class RunningMoments(NamedTuple):
    """Number, mean, summed squared deviation, least and greatest of all scores seen."""

    size: int = 0
    mean: float = 0.0
    m2: float = 0.0
    least: float = float("inf")
    greatest: float = float("-inf")

    @property
    def std(self) -> float:
        """Population standard deviation; 0 for one score or none, and where all are equal up to float32 rounding."""
        return (self.m2 / self.size) ** 0.5 if self.size > 1 and not self.flat else 0.0

    @property
    def flat(self) -> bool:
        """Whether all scores seen are one number: what they differ by is float32 rounding, and dividing by it makes noise."""
        ends = torch.tensor([self.least, self.greatest], dtype=torch.float64)
        return bool(equal_up_to_rounding(ends[0], ends[1], torch.float32))


def update_moments(state: RunningMoments, batch: Tensor) -> RunningMoments:
    """Merge a batch (Chan, Golub and LeVeque 1979): d = mean_b - mean; mean += d b/(n+b); M2 += M2_b + d^2 n b/(n+b).

    Args:
        state: what was seen so far.
        batch: [N] finite scores; an empty batch changes nothing.
    """
    values = batch.double()
    if not len(values):
        return state
    added, total = len(values), state.size + len(values)
    mean = float(values.mean())
    delta = mean - state.mean
    m2 = state.m2 + float(((values - mean) ** 2).sum()) + delta**2 * state.size * added / total
    least, greatest = min(state.least, float(values.min())), max(state.greatest, float(values.max()))
    return RunningMoments(total, state.mean + delta * added / total, m2, least, greatest)


@checked
def apply_moments(values: Tensor, state: RunningMoments, mode: RunningMode) -> Tensor:
    """Shape scores by running statistics that already contain them.

    meanstd (r - mean) / std, std 0 -> 1;  clip to [mean - std, mean + std];  minmax (r - min) / (max - min), 0.5 while max = min
    (the official code divides by zero there).

    Args:
        values: [N].

    Returns:
        [N] float64.
    """
    values = values.double()
    if mode == "meanstd":
        return (values - state.mean) / (state.std or 1.0)
    if mode == "clip":
        return values.clamp(state.mean - state.std, state.mean + state.std)
    width = state.greatest - state.least
    return torch.full_like(values, 0.5) if state.flat else (values - state.least) / width


@dataclass(frozen=True, repr=False)
class RunningNorm(LinkBase):
    """Shape a sequence source by statistics of every score seen in training, updated with the batch BEFORE use. Stateful.

    Not centring in the sense of advantages: what comes out is still a reward. The clip band follows the drift of the policy, so it
    is no fixed bound.

    Attributes:
        name: the source; None = the only one.
        mode: see `apply_moments`.
    """

    name: str | None = None
    mode: RunningMode = "meanstd"

    scope: ClassVar[Literal["row", "group", "batch"]] = "batch"

    def __post_init__(self) -> None:
        if self.mode not in ("meanstd", "clip", "minmax"):
            raise ConfigError(f"mode={self.mode!r}: use meanstd, clip or minmax")

    def plan(self, levels: Levels) -> Levels:
        name = planned_name(self.name, levels)
        require_level(name, levels, "sequence", "running statistics are of one value a row")
        return levels

    def init_state(self) -> dict[str, Any]:
        return RunningMoments()._asdict()

    def __call__(self, scores: Scores, rollouts: Rollouts, state: dict[str, Any]) -> tuple[Scores, dict[str, Any]]:
        name = source_of(self.name, scores)
        rewards = scores[name]
        totals, live = row_totals(scores, rewards)
        moments = update_moments(RunningMoments(**state), totals[live])
        shaped = apply_moments(rewards.values, moments, self.mode).to(rewards.values.dtype)
        values = torch.where(rewards.mask, shaped, torch.zeros_like(shaped))
        metrics = {f"{name}/running_mean": moments.mean, f"{name}/running_std": moments.std}
        return scores.with_source(name, rewards.with_values(values)).with_metrics(**metrics), moments._asdict()
