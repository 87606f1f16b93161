"""Clip and Delta: process rewards refined so that the return of any trajectory is bounded.

Problem: scores of a process or outcome reward model, added to a sparse success reward, can hurt: every correct but useless step
earns a positive score and the sum grows with the number of steps. Idea: Clip, min(r - eta, 0), makes all good enough steps worth
nothing and leaves only penalties; Delta, current minus NEXT score, makes sums telescope, so that a step is credited with its own
score and nothing from later ones. Clip first, then Delta, is the recommended recipe.

Clip alone prefers few steps; Delta alone still lets a good-looking filler step beat the answer (its return is alpha r + beta
success, the answer's beta success only). Whitening REWARDS would bring positive filler back: only advantages are whitened here.

Source: "On Designing Effective RL Reward at Training Time for LLM Reasoning", arXiv 2410.15115. There is no official code; eta, alpha
and the KL weight are not given by the paper and are choices of this library (eta: see `eta_from_scores`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit import (
    GAE,
    Accumulate,
    Clip,
    Delta,
    Fuse,
    KLPenalty,
    LeaveOneOut,
    MinForm,
    On,
    Scale,
    ToTokens,
    WatchSteps,
    Whiten,
    clip_scores,
    delta_scores,
    place_at_ends,
    suffix_sum,
)
from guerdon.errors import ConfigError
from guerdon.options import checked, require_range
from guerdon.segment import ByDelimiter
from guerdon.spans import Spans
from guerdon.system import Model, System
from guerdon.systems.base import Published, VectorFunctions
from guerdon.systems.settings import settings

Mode = Literal["sr", "or", "pr", "pr_clip", "pr_delta", "pr_clip_delta", "pr_length_norm", "pr_step_penalty"]
MODES = ("sr", "or", "pr", "pr_clip", "pr_delta", "pr_clip_delta", "pr_length_norm", "pr_step_penalty")


@checked
def clip_delta(
    *,
    prm: Any,
    verifier: Any,
    orm: Any = None,
    tokenizer: Any = None,
    delimiter: str | None = None,
    mode: Mode = "pr_clip_delta",
    eta: float = 0.5,
    alpha: float = 1.0,
    beta: float = 1.0,
    step_penalty: float = 0.5,
    prm_range: Literal["signed", "unit"] | None = None,
    estimator: Literal["returns", "gae"] = "returns",
    gamma: float = 1.0,
    lam: float = 0.95,
    kl_coef: float = 0.05,
    retokenize: bool = False,
    convention: str | None = None,
) -> System:
    """Success reward plus refined process rewards.

    Args:
        prm: path or hub id of a process reward model, or any signal over "steps". Unused in modes "sr" and "or".
        verifier: a sequence signal, 1 right and 0 wrong.
        orm: an outcome reward model in [0, 1], a sequence signal; mode "or" only.
        tokenizer, delimiter: how steps are cut; delimiter None = a newline.
        mode: "sr" success only; "or" + outcome model; "pr" + raw step scores (the hackable baseline); "pr_clip", "pr_delta",
            "pr_clip_delta"; "pr_length_norm" r/K and "pr_step_penalty" r - step_penalty, which the paper says do not cure it.
        eta: Clip's threshold, on scores in [0, 1]. Most steps should come out 0.
        alpha, beta: weights of process and success reward. A small alpha weakens what is left of the filler incentive.
        prm_range: "signed" scores in [-1, 1] are mapped to [0, 1] first, "unit" are used as they are; None = signed for a
            token classifier, unit for a signal.
        estimator: "returns" = suffix sums minus the leave-one-out token baseline, whitened; "gae" = PPO's, which the paper uses
            and which needs a critic's values.
        gamma: 1 for exact telescoping.
        kl_coef: per-token k1 penalty inside the reward; 0 needs no reference model.
        retokenize, convention: of a `prm` by path, see `pure`.
    """
    require_range(0, alpha=alpha, beta=beta, step_penalty=step_penalty, kl_coef=kl_coef)
    require_range(0, 1, gamma=gamma, lam=lam)
    require_range(eta=eta)
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r}: use one of {MODES}")
    if (mode == "or") != (orm is not None):
        raise ConfigError("mode='or' and orm=... go together")
    if estimator not in ("returns", "gae"):
        raise ConfigError(f"estimator={estimator!r}: use 'returns' or 'gae'")
    signals: dict[str, Any] = {}
    links: list[Any] = []
    if mode.startswith("pr"):
        from guerdon.systems.pure import step_signal

        signals["steps"] = step_signal(prm, retokenize=retokenize, convention=convention)
        signed = prm_range == "signed" or (prm_range is None and signals["steps"] is not prm)
        links += [On("steps", Scale(0.5, 0.5))] if signed else []
        links += [
            WatchSteps("steps"),
            *_refined(mode, eta, step_penalty),
            On("steps", Scale(alpha)),
            ToTokens("steps", "end"),
        ]
    elif mode == "or":
        signals["steps"] = orm
        links += [On("steps", Scale(alpha)), ToTokens("steps", "end")]
    signals["answer"] = verifier
    links += [On("answer", Scale(beta)), ToTokens("answer", "end")]
    name = "answer"
    if "steps" in signals:
        name = "credit"
        links.append(Fuse("steps", "answer", into=name))
    links += [KLPenalty(name, kl_coef, "k1", clamp=None)] if kl_coef else []
    if estimator == "gae":
        links += [GAE(name, gamma, lam), Whiten(name, std="population")]
    else:
        links += [Accumulate(name, gamma), LeaveOneOut(name, "padded_tokens", singleton="raw"), Whiten(name)]
    return System(
        signals,
        links,
        segments={"steps": ByDelimiter(tokenizer, delimiter or "\n")} if mode.startswith("pr") else {},
        models={"reference": Model("policy", "phase_start")} if kl_coef else {},
        name=f"clip_delta:mode={mode}" if mode != "pr_clip_delta" else "clip_delta",
    )


def _refined(mode: str, eta: float, step_penalty: float) -> list[On]:
    return {
        "pr": [],
        "pr_clip": [On("steps", Clip(eta))],
        "pr_delta": [On("steps", Delta())],
        "pr_clip_delta": [On("steps", Clip(eta)), On("steps", Delta())],
        "pr_length_norm": [On("steps", MinForm(weighted=False))],  # weights 1/K
        "pr_step_penalty": [On("steps", Scale(1.0, -step_penalty))],
    }[mode]


def eta_from_scores(scores: Sequence[float] | Tensor, quantile: float = 0.3) -> float:
    """A threshold that leaves most steps at 0: a quantile of step scores on CORRECT solutions of the initial policy.

    Args:
        scores: all step scores, any shape, in [0, 1].
        quantile: share of steps that will be punished.

    Raises:
        ConfigError: no finite score.
    """
    flat = torch.as_tensor(scores, dtype=torch.float64).reshape(-1)
    flat = flat[torch.isfinite(flat)]
    if not len(flat):
        raise ConfigError("eta_from_scores needs at least one finite step score")
    return float(flat.quantile(quantile))


# --- the functions of the conformance vectors ----------------------------------------------------------------------------


def _row(values: Any) -> tuple[Tensor, Tensor]:
    """One row [1, K] and its mask."""
    row = torch.as_tensor(values, dtype=torch.float64).reshape(1, -1)
    return row, torch.ones_like(row, dtype=torch.bool)


def clip_step_rewards(step_rewards: Any, eta: float) -> dict[str, Tensor]:
    """min(r_k - eta, 0) of one solution's step scores [K]."""
    return {"shaped": clip_scores(*_row(step_rewards), eta)[0]}


def delta_step_rewards(step_rewards: Any) -> dict[str, Tensor]:
    """r_k - r_{k+1}, r_{K-1} at the last but one, 0 at the last. [K]."""
    return {"shaped": delta_scores(*_row(step_rewards))[0]}


def clip_delta_step_rewards(step_rewards: Any, eta: float) -> dict[str, Tensor]:
    """Clip, then Delta. [K]."""
    row, mask = _row(step_rewards)
    return {"shaped": delta_scores(clip_scores(row, mask, eta), mask)[0]}


def combine_with_success(
    step_rewards: Any,
    success: float,
    alpha: float = 1.0,
    beta: float = 1.0,
    eta: float = 0.5,
    mode: str = "pr_clip_delta",
    step_penalty: float = 0.5,
) -> dict[str, Any]:
    """alpha * refined + beta * success on the last step. Without steps there is nothing to put success on."""
    row, mask = _row(step_rewards)
    if mode not in MODES or mode == "or":
        raise ConfigError(f"mode={mode!r}: use one of {[name for name in MODES if name != 'or']}")
    refined = torch.zeros_like(row) if mode == "sr" else row
    if mode in ("pr_clip", "pr_clip_delta"):
        refined = clip_scores(refined, mask, eta)
    if mode in ("pr_delta", "pr_clip_delta"):
        refined = delta_scores(refined, mask)
    if mode == "pr_length_norm":
        refined = refined / max(row.shape[1], 1)
    if mode == "pr_step_penalty":
        refined = refined - step_penalty
    rewards = alpha * refined[0]
    rewards[-1:] += beta * success
    return {"rewards": rewards, "return": float(rewards.sum())}


def step_returns(step_rewards: Any, gamma: float = 1.0) -> dict[str, Tensor]:
    """G_k = r_k + gamma G_{k+1}. [K]."""
    return {"returns": suffix_sum(*_row(step_rewards), gamma)[0]}


def step_to_token_rewards(step_rewards: Any, step_ends: Any, response_mask: Any) -> dict[str, Tensor]:
    """Each step's reward on its last token; ends on masked tokens contribute nothing, coinciding ends add. [T]."""
    row, mask = _row(step_rewards)
    ends = torch.as_tensor(step_ends, dtype=torch.long).reshape(1, -1)
    valid = torch.as_tensor(response_mask, dtype=torch.float64).reshape(1, -1) > 0
    return {"token_rewards": place_at_ends(row, Spans(ends, ends, mask & (ends >= 0), "token", "steps"), valid)[0]}


VECTORS: VectorFunctions = {
    "clip_step_rewards": clip_step_rewards,
    "delta_step_rewards": delta_step_rewards,
    "clip_delta_step_rewards": clip_delta_step_rewards,
    "combine_with_success": combine_with_success,
    "step_returns": step_returns,
    "step_to_token_rewards": step_to_token_rewards,
}

PUBLISHED = Published(
    slug="clip_delta",
    title="Clip & Delta (training-time reward refinement for PRM/ORM)",
    arxiv="2410.15115",
    kinds=("step reward", "reward shaping"),
    summary="Step scores are clipped to penalties and differenced, so that no trajectory's return grows with its steps.",
    vectors=VECTORS,
    settings=settings(
        note={"num_generations": 8},
        guess={"beta": 0.0},
        shown={
            "KL": "inside the reward: `kl_coef` of the system, whose value was not found [guess]",
            "algorithm": "PPO with a critic (ReaLHF) [note]",
            "batch": "1024 prompts (1.5B), 4096 (7B) [note]",
            "learning rate, clip range": "not found [guess]",
        },
    ),
)
