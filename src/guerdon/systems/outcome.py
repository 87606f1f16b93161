"""Outcome-only baselines: one verifiable reward for a whole completion, and four ways to make advantages of it.

Problem: a policy samples several completions of a prompt and a verifier says which are right. What should each token get?

| builder | advantage | source |
| --- | --- | --- |
| `grpo` | (r - group mean) / (group std + eps) on every token | DeepSeekMath, arXiv 2402.03300; defaults of TRL |
| `dr_grpo` | r - group mean | Dr. GRPO, arXiv 2503.20783 |
| `rloo` | r - mean of the group's other rewards | RLOO, arXiv 2402.14740 |
| `reinforce_pp` | r on the last token minus per-token KL, summed from each token on, whitened over the batch | arXiv 2501.03262 |
| `gdpo` | several rewards, each normalised in its group, summed, z-scored over the batch | GDPO, arXiv 2601.05242 |

They are the yardstick of every comparison: with the task's own verifier the optimised reward IS true success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from guerdon.credit import Accumulate, GroupNorm, KLPenalty, LeaveOneOut, PerRewardNorm, ToTokens, Whiten
from guerdon.errors import ConfigError
from guerdon.options import checked
from guerdon.system import Model, System
from guerdon.systems.base import Published

Estimator = Literal["grpo", "dr_grpo", "rloo", "reinforce_pp"]


@checked
def grpo(*, verifier: Any, eps: float = 1e-4, std_over: Literal["group", "batch"] = "group") -> System:
    """GRPO with the defaults of TRL: sample std, epsilon 1e-4. `std_over="batch"` is TRL's scale_rewards="batch"."""
    return System(
        {"answer": verifier},
        [GroupNorm("answer", eps=eps, std_over=std_over), ToTokens("answer", "whole")],
        name="grpo",
    )


def dr_grpo(*, verifier: Any) -> System:
    """GRPO without the division by the std. (Its other half, a loss not divided by length, is the engine's loss type.)"""
    return System({"answer": verifier}, [GroupNorm("answer", std=None), ToTokens("answer", "whole")], name="dr_grpo")


def rloo(*, verifier: Any) -> System:
    """Leave-one-out baseline. A group of one gets no advantage."""
    return System({"answer": verifier}, [LeaveOneOut("answer"), ToTokens("answer", "whole")], name="rloo")


def reinforce_pp(*, verifier: Any, kl_coef: float = 0.01, group_mean: bool = False) -> System:
    """REINFORCE++: no group statistics, whitening over the whole batch.

    Args:
        verifier: the outcome signal.
        kl_coef: of the per-token k1 penalty inside the reward (OpenRLHF's default); 0 leaves it and the reference model out.
        group_mean: subtract the group's mean first (the "-baseline" variant).
    """
    centre = [GroupNorm("answer", std=None)] if group_mean else []
    penalty = [KLPenalty("answer", kl_coef, "k1", clamp=None)] if kl_coef else []
    chain = [*centre, ToTokens("answer", "end"), *penalty, Accumulate("answer"), Whiten("answer")]
    models = {"reference": Model("policy", "phase_start")} if kl_coef else {}
    return System({"answer": verifier}, chain, models=models, name="reinforce_pp")


def gdpo(*, signals: Mapping[str, Any], weights: Sequence[float] | None = None) -> System:
    """GDPO: each reward normalised on its own before they are summed, so that a rare reward is not drowned by a common one."""
    if not isinstance(signals, Mapping):
        signals = {"answer": signals}
    link = PerRewardNorm(tuple(signals), None if weights is None else tuple(weights), into="credit")
    return System(dict(signals), [link, ToTokens("credit", "whole")], name="gdpo")


@checked
def outcome(*, verifier: Any, estimator: Estimator = "grpo") -> System:
    """One verifiable reward a completion.

    Args:
        verifier: a sequence signal, 1 right and 0 wrong.
        estimator: "grpo", "dr_grpo", "rloo" or "reinforce_pp", with their defaults.
    """
    builders = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo, "reinforce_pp": reinforce_pp}
    if estimator not in builders:
        raise ConfigError(f"estimator={estimator!r}: use one of {sorted(builders)}")
    return builders[estimator](verifier=verifier)


PUBLISHED = Published(
    slug="outcome",
    title="Outcome-only baselines (GRPO, Dr. GRPO, RLOO, REINFORCE++)",
    arxiv="2402.03300",
    kinds=("outcome reward", "advantage estimator"),
    summary="One verifiable reward for a whole completion, spread over its tokens by group or batch statistics.",
)
