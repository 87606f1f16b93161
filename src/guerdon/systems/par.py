"""PAR (Preference As Reward), and the family of reward shapings it is compared with.

Problem: in RLHF a policy climbs a learned reward model beyond the region where the model is right. Idea: a good shaping is bounded,
grows fast at first and then levels off, and is a function of the CENTRED score (minus the score of a reference answer to the same
prompt). PAR is the sigmoid of that: exactly the Bradley-Terry probability that the answer beats the reference, averaged over a few
references. One reference per prompt is enough.

References must be scored by the same reward model, once, from the SFT policy; they travel with their prompt in a data column.
Where r - r_m > 10 for all references the sigmoid saturates. Division by the group's std, as the official GRPO code has it, would amplify
what is left of it by 1/(std + 1e-8), so the default carrier subtracts the group's mean and divides by nothing.

Source: "Reward Shaping to Mitigate Reward Hacking in RLHF", arXiv 2502.18770; official code github.com/PorUna-byte/PAR. The paper's
formula has no length penalty, the code always applies one: off here, `valid_len=300` reproduces the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit import (
    GAE,
    Ceil,
    CenterOn,
    GroupNorm,
    KLPenalty,
    LengthPenalty,
    On,
    OnFailure,
    RunningMoments,
    RunningNorm,
    Squash,
    ToTokens,
    Whiten,
    apply_moments,
    gae,
    group_normalise,
    kl_estimate,
    length_penalised,
    log_sigmoid_centred,
    pad_references,
    place_at_ends,
    relative_reward,
    squash,
    update_moments,
    whiten,
)
from guerdon.credit.transforms import Transform
from guerdon.errors import ConfigError
from guerdon.options import checked, require_range
from guerdon.spans import Spans
from guerdon.system import Model, System
from guerdon.systems.base import Published, VectorFunctions
from guerdon.systems.pure import _grid, refuse_for_signals
from guerdon.systems.settings import settings

Carrier = Literal["group_mean", "grpo", "ppo"]
Shaping = Literal[
    "par",
    "vanilla",
    "centred",
    "meanstd",
    "clip",
    "minmax",
    "lsc",
    "ceil",
    "tanh",
    "poly",
    "sgfc",
    "sigmoid",
    "uncentred_tanh",
]
SHAPINGS = (
    "par", "vanilla", "centred", "meanstd", "clip", "minmax", "lsc", "ceil", "tanh", "poly", "sgfc", "sigmoid", "uncentred_tanh",
)  # fmt: skip


@checked
def par(
    *,
    rm: Any,
    shaping: Shaping = "par",
    references: str = "ref_rewards",
    max_ref: int = 10,
    sigmoid_k: float = 1.0,
    ceil: float | None = None,
    valid_len: int | None = None,
    len_penalty: float = 0.01,
    carrier: Carrier = "group_mean",
    kl_coef: float = 0.005,
    gamma: float = 1.0,
    lam: float = 0.95,
    retokenize: bool = False,
    convention: str | None = None,
) -> System:
    """A learned reward model, shaped.

    Args:
        rm: path or hub id of an outcome reward model (docs/reward-models.md), or any sequence signal.
        shaping: "par", or one of the methods it is compared with: "vanilla", "centred", "meanstd", "clip", "minmax" (running
            statistics), "lsc" (log-sigmoid-centred), "ceil", "tanh" and "poly" (centred), "sgfc" (slow growth, fast convergence),
            "sigmoid" and "uncentred_tanh".
        references: data column of lists of reference scores.
        max_ref: use the first so many.
        sigmoid_k: slope.
        ceil: limit of the score for shaping="ceil" (the paper tries 3, 4, 5; default 4).
        valid_len: length penalty for tokens beyond this; None = off (the paper), 300 = the code.
        len_penalty: per token.
        carrier: "group_mean" = minus the group's mean; its KL term is the engine's loss (beta). "grpo" = the official code's, also divided
            by the group's std + 1e-8, which undoes the sigmoid: where it is flat, small differences become as loud as large ones, and
            the policy drifts on. "ppo" = the paper's main runs, per-token KL penalty, GAE, whitening: needs a critic's values.
        kl_coef, gamma, lam: of "ppo".
        retokenize: `rm` has another vocabulary than the policy: it reads the text.
        convention: how `rm` is read, where its checkpoint does not say; see `signals.learned.conventions.TABLE`.
    """
    require_range(0, above=True, sigmoid_k=sigmoid_k)
    require_range(0, len_penalty=len_penalty, kl_coef=kl_coef)
    require_range(0, 1, gamma=gamma, lam=lam)
    require_range(ceil=ceil)
    if shaping not in SHAPINGS:
        raise ConfigError(f"shaping={shaping!r}: use one of {SHAPINGS}")
    if carrier not in ("group_mean", "grpo", "ppo"):
        raise ConfigError(f"carrier={carrier!r}: use 'group_mean', 'grpo' or 'ppo'")
    cap = [On("rm", Ceil(4.0 if ceil is None else ceil))] if shaping == "ceil" or ceil is not None else []
    penalty = [On("rm", LengthPenalty(valid_len, len_penalty)), *cap] if valid_len is not None else []
    # References can be missing: what CenterOn makes NaN is dropped after it, what the model failed at before.
    chain: list[Any] = [
        OnFailure("row"),
        *cap,
        *penalty,
        *_shaped(shaping, references, max_ref, sigmoid_k),
        OnFailure("row"),
    ]
    if carrier != "ppo":
        norm = GroupNorm("rm", std=None) if carrier == "group_mean" else GroupNorm("rm", eps=1e-8)
        chain += [norm, ToTokens("rm", "whole")]
    else:
        chain += [
            ToTokens("rm", "end"),
            KLPenalty("rm", kl_coef, "k1", clamp=None),
            GAE("rm", gamma, lam),
            Whiten("rm", std="population"),
        ]
    return System(
        {"rm": _reward_model(rm, retokenize, convention)},
        chain,
        models={"reference": Model("policy", "phase_start")} if carrier == "ppo" else {},
        name="par" if shaping == "par" else f"par:shaping={shaping}",
    )


def _reward_model(rm: Any, retokenize: bool, convention: str | None) -> Any:
    if callable(rm) and hasattr(rm, "level"):
        refuse_for_signals("rm", retokenize=retokenize, convention=convention)
        return rm
    from guerdon.signals.learned.scalar import RewardModel

    return RewardModel(rm, retokenize=retokenize, convention=convention)


def _shaped(shaping: str, column: str, max_ref: int, k: float) -> list[Any]:
    centred: dict[str, Transform] = {
        "par": CenterOn(column, "sigmoid", k, 0.0, max_ref),
        "centred": CenterOn(column, "centred", 1.0, 0.0, max_ref),
        "tanh": CenterOn(column, "tanh", 1.0, 0.0, max_ref),
        "poly": CenterOn(column, "poly", 1.0, 0.0, max_ref),
        "sgfc": CenterOn(column, "sigmoid", k, 3.0, max_ref),
        "lsc": CenterOn(column, "logsigmoid"),
        "sigmoid": Squash("sigmoid", k),
        "uncentred_tanh": Squash("tanh", k),
    }
    if shaping in centred:
        return [On("rm", centred[shaping])]
    return [RunningNorm("rm", shaping)] if shaping in ("meanstd", "clip", "minmax") else []  # type: ignore[arg-type]


# --- the functions of the conformance vectors ----------------------------------------------------------------------------


def _scores(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64).reshape(-1)


def _relative(
    rewards: Any, ref_rewards: Sequence[Sequence[float]], max_ref: int, kind: Any, **options: float
) -> dict[str, Tensor]:
    references, mask = pad_references(ref_rewards, max_ref)
    return {"shaped": relative_reward(_scores(rewards), references, mask, kind, **options)}


def par_reward(rewards: Any, ref_rewards: Any, max_ref: int = 10, sigmoid_k: float = 1.0) -> dict[str, Tensor]:
    """Mean over the first max_ref references of sigma(k (r - r_m))."""
    return _relative(rewards, ref_rewards, max_ref, "sigmoid", k=sigmoid_k)


def centered_reward(rewards: Any, ref_rewards: Any, max_ref: int = 10) -> dict[str, Tensor]:
    """r minus the mean of the first max_ref references."""
    return _relative(rewards, ref_rewards, max_ref, "centred")


def relative_tanh_reward(rewards: Any, ref_rewards: Any, max_ref: int = 10) -> dict[str, Tensor]:
    """Mean of tanh(r - r_m)."""
    return _relative(rewards, ref_rewards, max_ref, "tanh")


def relative_fitted_poly_reward(rewards: Any, ref_rewards: Any, max_ref: int = 10) -> dict[str, Tensor]:
    """Mean of the polynomial fitted to sigma."""
    return _relative(rewards, ref_rewards, max_ref, "poly")


def sgfc_reward(rewards: Any, ref_rewards: Any, max_ref: int = 10, sigmoid_k: float = 1.0) -> dict[str, Tensor]:
    """Mean of sigma(k ((r - 3) - r_m))."""
    return _relative(rewards, ref_rewards, max_ref, "sigmoid", k=sigmoid_k, shift=3.0)


def sigmoid_reward(rewards: Any, sigmoid_k: float = 1.0) -> dict[str, Tensor]:
    """Uncentred sigma(k r)."""
    values = _scores(rewards)
    return {"shaped": squash(values, torch.ones_like(values, dtype=torch.bool), "sigmoid", sigmoid_k)}


def lsc_reward(rewards: Any, ref_rewards: Any) -> dict[str, Tensor]:
    """log sigma(r - q85 of the references)."""
    return {"shaped": log_sigmoid_centred(_scores(rewards), *pad_references(ref_rewards))}


def _stream(batches: Sequence[Sequence[float]], mode: Any) -> dict[str, list[Tensor]]:
    moments, shaped = RunningMoments(), []
    for batch in batches:
        moments = update_moments(moments, _scores(batch))
        shaped.append(apply_moments(_scores(batch), moments, mode))
    return {"shaped": shaped}


def meanstd_reward_stream(batches: Any) -> dict[str, list[Tensor]]:
    """(r - mean) / std of everything seen so far, batch after batch."""
    return _stream(batches, "meanstd")


def clip_reward_stream(batches: Any) -> dict[str, list[Tensor]]:
    """r clipped to one running std around the running mean."""
    return _stream(batches, "clip")


def minmax_reward_stream(batches: Any) -> dict[str, list[Tensor]]:
    """(r - min) / (max - min) of everything seen so far."""
    return _stream(batches, "minmax")


def ceil_and_length_penalty(
    rewards: Any, response_lengths: Any, ceil: float | None = None, valid_len: int = 300, len_penalty: float = 0.01
) -> dict[str, Tensor]:
    """Ceil, length penalty, ceil again."""
    limit = float("inf") if ceil is None else ceil
    capped = _scores(rewards).clamp(max=limit)
    return {"shaped": length_penalised(capped, _scores(response_lengths), valid_len, len_penalty).clamp(max=limit)}


def reward_model_loss(chosen_rewards: Any, rejected_rewards: Any, reg: float = 0.0) -> dict[str, Tensor]:
    """Per-pair Bradley-Terry loss, with the Reg baseline's squared scores."""
    from guerdon.objectives.reward_model import bradley_terry_loss

    return {"losses": bradley_terry_loss(_scores(chosen_rewards), _scores(rejected_rewards), reg)}


def odin_losses(
    quality_rewards: Any, length_rewards: Any, response_lengths: Any, quality_head: Any, length_head: Any
) -> dict[str, Tensor]:
    """The three losses of the two-headed reward model."""
    from guerdon.objectives.reward_model import odin_losses as losses

    found = losses(
        _scores(quality_rewards),
        _scores(length_rewards),
        _scores(response_lengths),
        _grid(quality_head),
        _grid(length_head),
    )
    return {"length_loss": found.length, "orthogonal_loss": found.orthogonal, "ranking_losses": found.ranking}


def token_level_rewards(
    sequence_rewards: Any, logprobs: Any, ref_logprobs: Any, response_mask: Any, kl_coef: float = 0.005
) -> dict[str, Tensor]:
    """The shaped reward on the last response token minus the k1 penalty on every response token. [B, T]."""
    valid = _grid(response_mask) > 0
    position = torch.arange(valid.shape[1]).expand(valid.shape)
    last = torch.where(valid, position, -1).amax(1, keepdim=True) if valid.shape[1] else torch.full((len(valid), 1), -1)
    spans = Spans(last.clamp(min=0), last, last >= 0, "token", "sequence")
    kl = torch.where(valid, kl_estimate(_grid(logprobs), _grid(ref_logprobs), "k1"), 0.0)
    return {"token_rewards": place_at_ends(_scores(sequence_rewards)[:, None], spans, valid) - kl_coef * kl}


def grpo_advantages(rewards: Any, group_size: int, response_mask: Any) -> dict[str, Tensor]:
    """(r - mean) / (sample std + 1e-8) of contiguous groups, on all T positions (no mask)."""
    values = _scores(rewards)
    groups = torch.arange(len(values)) // group_size
    advantages = group_normalise(values, groups, eps=1e-8, dtype=torch.float64)
    return {"advantages": advantages[:, None].expand_as(_grid(response_mask))}


def ppo_gae_advantages(
    values: Any, rewards: Any, response_mask: Any, gamma: float = 1.0, lam: float = 0.95
) -> dict[str, Tensor]:
    """GAE, whitened over the batch with the population variance, and discounted rewards-to-go. [B, T]; V = r = 0 in a hole of the mask."""
    valid = _grid(response_mask) > 0
    advantages, returns = gae(_grid(rewards), _grid(values), valid, gamma, lam, holes="zero")
    return {"advantages": whiten(advantages, valid, std="population"), "returns": returns}


VECTORS: VectorFunctions = {
    "par_reward": par_reward,
    "centered_reward": centered_reward,
    "relative_tanh_reward": relative_tanh_reward,
    "relative_fitted_poly_reward": relative_fitted_poly_reward,
    "sgfc_reward": sgfc_reward,
    "sigmoid_reward": sigmoid_reward,
    "lsc_reward": lsc_reward,
    "meanstd_reward_stream": meanstd_reward_stream,
    "clip_reward_stream": clip_reward_stream,
    "minmax_reward_stream": minmax_reward_stream,
    "ceil_and_length_penalty": ceil_and_length_penalty,
    "reward_model_loss": reward_model_loss,
    "odin_losses": odin_losses,
    "token_level_rewards": token_level_rewards,
    "grpo_advantages": grpo_advantages,
    "ppo_gae_advantages": ppo_gae_advantages,
}

PUBLISHED = Published(
    slug="par",
    title="PAR (Preference As Reward) and the reward-shaping family it is compared with",
    arxiv="2502.18770",
    kinds=("reward shaping", "reward model", "advantage estimator"),
    summary="The sigmoid of the score minus a reference answer's: bounded, centred, quick to saturate.",
    vectors=VECTORS,
    settings=settings(
        code={
            "num_generations": 5,
            "temperature": 0.9,
            "top_p": 0.9,
            "top_k": 50,
            "epsilon": 0.2,
            "beta": 0.005,
            "num_iterations": 1,
            "learning_rate": 3e-7,
            "max_grad_norm": 5.0,
            "max_completion_length": 512,
        },
        shown={
            "batch": "16 prompts of 5 (GRPO), 40 (PPO), from a replay buffer of 4 batches [code]",
            "PPO": "the learning rate is PPO's; critic 5e-6; there the KL term is in the reward (`kl_coef`) [code]",
            "sign of the KL term": "exp(d) - d - 1 with d = policy - reference; TRL has d = reference - policy [code]",
        },
    ),
)
