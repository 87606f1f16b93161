"""Links over the suffix scans: returns, strict min-form, GAE."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from guerdon.credit.link import Levels, LinkBase, planned_name, require_level, source_of
from guerdon.credit.scan import gae, suffix_min, suffix_sum
from guerdon.errors import CapabilityError, ConfigError
from guerdon.rewards import Kind, Rewards, Scores
from guerdon.rollouts import Rollouts


def _check_discount(**given: float) -> None:
    for name, value in given.items():
        if not 0.0 <= value <= 1.0:
            raise ConfigError(f"{name}={value}: a discount is in [0, 1]")


def _accumulated(rewards: Rewards) -> Kind:
    return "advantage" if rewards.kind == "advantage" else "return"


@dataclass(frozen=True, repr=False)
class Accumulate(LinkBase):
    """Suffix sums: each cell gets the discounted sum of its own and all later rewards (`scan.suffix_sum`).

    Rewards become returns; centred rewards stay advantages. Works over tokens or over the spans of any level.

    Attributes:
        name: the source; None = the only one.
        gamma: discount per valid cell.
    """

    name: str | None = None
    gamma: float = 1.0

    accumulates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_discount(gamma=self.gamma)

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.name, levels)
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        name = source_of(self.name, scores)
        rewards = scores[name]
        values = suffix_sum(rewards.values, rewards.mask, self.gamma)
        return scores.with_source(name, rewards.with_values(values, _accumulated(rewards)))


@dataclass(frozen=True, repr=False)
class MinReturn(LinkBase):
    """Suffix minima: PURE's strict min-form (`scan.suffix_min`).

    At token level the tokens between step ends hold 0 and take part, as in PURE's code: positive minima are cut to 0.

    Attributes:
        name: the source; None = the only one.
        padding: "ignore", or "zero" as in PURE's verl branch (depends on the batch's width).
    """

    name: str | None = None
    padding: Literal["ignore", "zero"] = "ignore"

    accumulates: ClassVar[bool] = True

    def plan(self, levels: Levels) -> Levels:
        planned_name(self.name, levels)
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        name = source_of(self.name, scores)
        rewards = scores[name]
        values = suffix_min(rewards.values, rewards.mask, padding=self.padding)
        return scores.with_source(name, rewards.with_values(values, _accumulated(rewards)))


@dataclass(frozen=True, repr=False)
class GAE(LinkBase):
    """Generalised advantage estimation with the rollouts' critic values (`scan.gae`); not whitened, add Whiten for that.

    Rewards-to-go go to `scores.notes["returns"]`, [B, T], for a critic's loss.

    Attributes:
        name: a token-level source of rewards; None = the only one.
        gamma, lam: discounts per token.
    """

    name: str | None = None
    gamma: float = 1.0
    lam: float = 0.95

    needs: ClassVar[frozenset[str]] = frozenset({"values"})
    centres: ClassVar[bool] = True
    accumulates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_discount(gamma=self.gamma, lam=self.lam)

    def plan(self, levels: Levels) -> Levels:
        name = planned_name(self.name, levels)
        require_level(name, levels, "token", f"GAE works on tokens: ToTokens({name!r}) first")
        return levels

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        if rollouts.values is None:
            raise CapabilityError("GAE needs a critic's values and these rollouts have none")
        name = source_of(self.name, scores)
        rewards = scores[name]
        valid = (
            rewards.mask
            if rollouts.policy_mask is None
            else rewards.mask & rollouts.policy_mask.to(rewards.mask.device)
        )
        advantages, returns = gae(rewards.values, rollouts.values.to(rewards.values), valid, self.gamma, self.lam)
        scores = scores.with_source(name, rewards.with_values(advantages, "advantage"))
        return replace(scores, notes={**scores.notes, "returns": returns})
