"""EndoRM: the reward that any next-token model already contains, from the logits of a frozen copy; no verifier, no training of it.

Problem: a reward model needs preference data and another training run. Idea: likelihood training is inverse reinforcement learning, with
the logits as its Q function; the soft Bellman equation turned round gives each token's reward (`signals.likelihood.endogenous`). A system
prompt steers it, and a policy trained on it makes fewer errors that compound than one that imitates: its regret grows with the length
of the response, that of imitation with its square. Extracting once more, from the trained policy, gives nothing new.

The sum over a response is its log-likelihood plus what all responses of the prompt share. It favours short, bland and repetitive texts:
keep the KL penalty, the minimum length and the guard against repetition, and watch length and entropy. Never let the reward follow the policy.

Source: "Generalist Reward Models: Found Inside Large Language Models", arXiv 2506.23235; no official code. The paper trains with PPO; here
the default carries the sum as a group-relative sequence reward, since a critic is needed for PPO (carrier="ppo").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit import GAE, Drop, GroupNorm, KLPenalty, RewardIs, ToSequence, ToTokens, Whiten
from guerdon.credit.likelihood import FloorAtGroupMin
from guerdon.errors import ConfigError
from guerdon.options import checked, require_range
from guerdon.signals.likelihood import endogenous as soft
from guerdon.signals.text import TOKENS, TextSignal
from guerdon.signals.verdict import Verdict
from guerdon.signals.verifiable.layout import repeated_fraction
from guerdon.system import Model, System
from guerdon.systems.base import Published, VectorFunctions
from guerdon.systems.settings import settings


def not_degenerate(*, min_tokens: int = 0, max_repeated: float | None = 0.5, n: int = 4) -> TextSignal:
    """1, or 0 for a completion of fewer than `min_tokens` tokens, or in which more than a share of the word n-grams came before.

    Args:
        max_repeated: that share; None = any.
    """

    def check(texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Verdict]:
        found = []
        for text, length in zip(texts, columns[TOKENS], strict=True):
            if length < min_tokens:
                found.append(Verdict(0.0, f"{length} tokens, fewer than {min_tokens}"))
            elif max_repeated is not None and repeated_fraction(text, n) > max_repeated:
                found.append(Verdict(0.0, "repeats itself"))
            else:
                found.append(Verdict(1.0))
        return found

    return TextSignal(
        check, (), "not_degenerate", f"min_tokens={min_tokens}, max_repeated={max_repeated}", counts_tokens=True
    )


@checked
def endogenous(
    *,
    model: str | None = None,
    instruction: str | None = None,
    alpha: float = 1.0,
    gamma: float = 1.0,
    terminal: soft.Terminal = "auto",
    mean: bool = False,
    kl_coef: float = 0.01,
    min_tokens: int = 2,
    max_repeated: float | None = 0.5,
    carrier: Literal["grpo", "ppo"] = "grpo",
    lam: float = 1.0,
    retokenize: bool = False,
) -> System:
    """Soft-Bellman rewards of a frozen model, with the paper's defaults.

    Args:
        model: path or hub id of the frozen model; None = a copy of the policy as the run begins, which is the KL reference, too.
        instruction: a criterion in the system turn of the reward model's prompt.
        alpha, gamma, terminal: see `EndogenousReward`.
        mean: divide the sum by the number of tokens ("grpo").
        kl_coef: of the per-token penalty (k1) towards the starting policy; 0 leaves it out, and the maximum of an unpenalised sum is
            the single likeliest text.
        min_tokens, max_repeated: guards, see `not_degenerate`. A completion they refuse ranks below every other of its group.
        carrier: "grpo" = the sum as a sequence reward, normalised in its group; "ppo" = token rewards, GAE with a critic's values,
            whitening (the paper; no critic in TRL).
        lam: of GAE.
        retokenize: `model` has another vocabulary than the policy, see `EndogenousReward`.
    """
    require_range(0, above=True, alpha=alpha)
    require_range(0, kl_coef=kl_coef)
    require_range(0, 1, lam=lam, max_repeated=max_repeated)
    if carrier not in ("grpo", "ppo"):
        raise ConfigError(f"carrier={carrier!r}: use 'grpo' or 'ppo'")
    if carrier == "ppo" and mean:
        raise ConfigError("mean=True is an option of sequence rewards: carrier='grpo'")
    role = "reference" if model is None else "endogenous"
    reward = soft.EndogenousReward(
        level="token",
        alpha=alpha,
        gamma=gamma,
        terminal=terminal,
        instruction=instruction,
        role=role,
        retokenize=retokenize,
    )
    models = {} if model is None else {"endogenous": Model(model, "frozen")}
    if model is None or kl_coef:
        models["reference"] = Model("policy", "phase_start")
    signals: dict[str, Any] = {"endogenous": reward}
    chain: list[Any] = [RewardIs("endogenous")]
    if kl_coef:
        chain.append(KLPenalty("endogenous", kl_coef, "k1", clamp=None))
    guarded = min_tokens > 0 or max_repeated is not None
    if carrier == "ppo":
        return System(
            signals, [*chain, GAE("endogenous", gamma, lam), Whiten("endogenous")], models=models, name="endogenous"
        )
    chain.append(ToSequence("endogenous", mean=mean))
    if guarded:
        signals["proper"] = not_degenerate(min_tokens=min_tokens, max_repeated=max_repeated)
        chain += [FloorAtGroupMin("endogenous", by="proper"), Drop("proper")]
    chain += [GroupNorm("endogenous"), ToTokens("endogenous", "whole")]
    return System(signals, chain, models=models, name="endogenous")


# --- the functions of the conformance vectors ----------------------------------------------------------------------------


def _read(logits: Any, actions: Any, alpha: float) -> tuple[Tensor, Tensor]:
    """[1, T] chosen logits and soft values, float64."""
    chosen = torch.as_tensor(actions, dtype=torch.long).reshape(-1)
    if not len(chosen):
        return torch.zeros(1, 0, dtype=torch.float64), torch.zeros(1, 0, dtype=torch.float64)
    table = torch.as_tensor(logits, dtype=torch.float64)[: len(chosen)]
    return table.gather(1, chosen[:, None])[None, :, 0], soft.soft_value(table, alpha)[None]


def endogenous_token_rewards(
    logits: Any, actions: Any, alpha: float = 1.0, gamma: float = 1.0, final_logits: Any = None
) -> Tensor:
    """[T] token rewards of one response."""
    chosen, values = _read(logits, actions, alpha)
    final = None
    if final_logits is not None:
        final = soft.soft_value(torch.as_tensor(final_logits, dtype=torch.float64), alpha)[None]
    return soft.soft_bellman_rewards(chosen, values, torch.ones_like(chosen, dtype=torch.bool), final, gamma=gamma)[0]


def trajectory_reward(logits: Any, actions: Any, alpha: float = 1.0) -> dict[str, Tensor]:
    """The sum of token rewards and the two parts it telescopes to; an empty response has 0 everywhere."""
    chosen, values = _read(logits, actions, alpha)
    rewards = soft.soft_bellman_rewards(chosen, values, torch.ones_like(chosen, dtype=torch.bool))
    size = chosen.shape[1]
    zero = torch.zeros((), dtype=torch.float64)
    return {
        "reward": rewards.sum(),
        "log_likelihood": (chosen - values).sum() / alpha,
        "initial_value": values[0, 0] if size else zero,
        "mean_token_reward": rewards.mean() if size else zero,
    }


def preference_probability(reward_a: float, reward_b: float) -> Tensor:
    """Bradley-Terry."""
    a, b = (torch.tensor(float(x), dtype=torch.float64) for x in (reward_a, reward_b))
    return soft.preference_probability(a, b)


def generative_verifier_reward(yes_logit: float, all_logits: Any, alpha: float = 1.0) -> Tensor:
    """alpha log pi(Yes): the one-step case without its initial value."""
    return float(yes_logit) - soft.soft_value(torch.as_tensor(all_logits, dtype=torch.float64), alpha)


VECTORS: VectorFunctions = {
    "endogenous_token_rewards": endogenous_token_rewards,
    "trajectory_reward": trajectory_reward,
    "preference_probability": preference_probability,
    "generative_verifier_reward": generative_verifier_reward,
}

PUBLISHED = Published(
    slug="endogenous",
    title="EndoRM (endogenous reward)",
    arxiv="2506.23235",
    kinds=("token reward", "sequence reward", "reward model"),
    summary="Any language model's logits, through the inverse soft Bellman equation, are a token reward: no training, steered by a prompt.",
    vectors=VECTORS,
    settings=settings(
        note={"max_completion_length": 1024},
        guess={"beta": 0.0},
        shown={
            "KL": "0.01 inside the reward: `kl_coef` of the system [note]",
            "algorithm": "PPO with a critic [note]",
            "learning rate, clip range, group size": "not found [guess]",
        },
    ),
)
