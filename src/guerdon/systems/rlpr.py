"""RLPR: the policy's own probability of the reference answer as the reward; no verifier.

Problem: in most domains answers are free text and no rule can check them. Idea: put the reference answer in the place of the policy's
own and ask the same policy how probable its tokens are after the reasoning. The arithmetic MEAN of the token probabilities is
bounded, and one unlikely token does not zero it, as it would in the product. Two stabilisers: subtract what the initial policy
believed without any reasoning (debiasing), and drop prompts whose group std is below a moving threshold.

Mean probability over-rewards long references made of predictable connective tokens: watch score, baseline and std in the log.

Source: "RLPR: Extrapolating RLVR to General Domains without Verifiers", arXiv 2506.18254; official code github.com/OpenBMB/RLPR.
Differs from the code on purpose: the repetition penalty is always added to the reward (the code skips rewards that are exactly 0), a
group of one is dropped (the code gives it a std of 1, which passes any filter), filtered rows are masked instead of drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit import (
    Fuse,
    Gate,
    GroupNorm,
    On,
    Round,
    Shape,
    StdEMAFilter,
    ToTokens,
    Watch,
    group_normalise,
    group_stats,
    shaping_function,
    std_threshold,
)
from guerdon.credit.filters import passes_std
from guerdon.errors import ConfigError
from guerdon.options import checked, require_range
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.likelihood import reference_probability as likelihood
from guerdon.system import Model, System
from guerdon.systems.base import Published, VectorFunctions
from guerdon.systems.pure import _grid, _ids
from guerdon.systems.settings import settings


@checked
def rlpr(
    *,
    reference: str = "answer",
    format_mode: Literal["R1", "R1_opened", "R1_nothink"] = "R1",
    splice: Any = None,
    aggregation: Literal["mean_prob", "mean_logprob", "prod_prob", "geo_mean_prob"] = "mean_prob",
    shaping: str = "threshold_0",
    num_bins: int = 0,
    format_coefficient: float = 0.1,
    debias: bool = True,
    repetition: bool = True,
    std_beta: float | None = 0.5,
    std_ratio: float = 0.99,
    std_start: int = 6,
    filter_start: int = 11,
    temperature: float = 1.0,
) -> System:
    """RLPR with the official defaults (those for Qwen).

    Args:
        reference: the data column with the reference answer.
        format_mode: tag layout; "R1_nothink" for Llama and Gemma; "R1_opened" where the chat template writes the <think> itself.
        splice: where the reference goes in responses of another layout, see `ReferenceProbability`; such responses are not asked
            for the layout's tags either.
        aggregation: of the reference's token probabilities.
        shaping: of score minus baseline, see `credit.shaping.shaping_function`.
        num_bins: round the shaped score to multiples of 1/N (halves to even), as an option of the official code; 0 = off.
        format_coefficient: c in (1 - c) s + c format, in [0, 1]; 0 is the paper's formula. -1 is the official code's word for
            another one: s where the layout is right, else -1.
        debias: subtract the initial policy's probability without reasoning.
        repetition: -1 for a completion that repeats a window of 10 words 10 times.
        std_beta: threshold / moving average of the group std (0.5 Qwen, 0.9 Llama, 1.0 Gemma); None = no filter.
        std_ratio, std_start, filter_start: of the moving average, see `credit.StdEMAFilter`.
        temperature: the rollouts' sampling temperature.
    """
    from guerdon.signals import Repetition, ThinkFormat

    gated = format_coefficient == -1
    if not gated:
        require_range(0, 1, format_coefficient=format_coefficient)
    elif splice is not None:
        raise ConfigError(
            "format_coefficient=-1 pays by the layout's tags, and with splice= nobody looks for them: drop one"
        )
    probability = likelihood.ReferenceProbability(
        reference=reference,
        mode=format_mode,
        splice=splice,
        aggregation=aggregation,
        debias=debias,
        temperature=temperature,
    )
    signals: dict[str, Any] = {"prob": probability}
    chain: list[Any] = []
    if debias:
        chain.append(Fuse("prob.score", "prob.baseline", weights=(1.0, -1.0), into="prob"))
    chain += [On("prob", Shape(shaping)), *([On("prob", Round(num_bins))] if num_bins else []), Watch("prob", "shaped")]
    live = "prob"
    if splice is None:
        opened = format_mode == "R1_opened"
        signals["format"] = ThinkFormat(mode="R1" if opened else format_mode, opened_by_prompt=opened, rule="rlpr")
        if gated:
            chain.append(Gate("prob", "format", threshold=1.0, when="at_least", otherwise=-1.0, drop=True))
        else:
            live, weights = "reward", (1 - format_coefficient, format_coefficient)
            chain.append(Fuse("prob", "format", weights=weights, into=live))
    if repetition:
        signals["repetition"] = Repetition(rule="rlpr", window_size=10, max_repetitions=10)
        chain.append(Fuse(live, "repetition", into="reward"))
        live = "reward"
    if std_beta is not None:
        chain.append(StdEMAFilter(live, std_beta, std_ratio, std_start, filter_start))
    chain += [GroupNorm(live, eps=1e-6, flat_below=1e-6, singleton="drop"), ToTokens(live, "whole")]
    return System(signals, chain, models={"initial": Model("policy", "phase_start")} if debias else {}, name="rlpr")


# --- the functions of the conformance vectors ----------------------------------------------------------------------------


def reference_probability_score(
    logprobs: Any, reference_mask: Any, aggregation: Any = "mean_prob", round_bfloat16: bool = False
) -> Tensor:
    """One score from per-token log-probabilities [T] and the reference's mask [T]."""
    values = torch.as_tensor(logprobs, dtype=torch.float32).reshape(-1)
    mask = torch.as_tensor(reference_mask).reshape(-1) > 0
    return likelihood.aggregate(values, mask, aggregation, round_bfloat16=round_bfloat16)


def shape_reward(x: float, name: str) -> Tensor:
    """A named shaping of one number."""
    return shaping_function(name)(torch.tensor(float(x), dtype=torch.float64))


def rlpr_reward(
    score_b: float,
    score_a: float,
    format_score: float,
    format_coefficient: float = 0.1,
    shaping: str = "threshold_0",
    num_bins: int = 0,
) -> Tensor:
    """The sequence reward of one response: the system's chain up to its reward, on given scores."""
    system = rlpr(
        shaping=shaping, num_bins=num_bins, format_coefficient=format_coefficient, repetition=False, std_beta=None
    )
    rollouts = Rollouts.from_texts(["q"], ["a"], group_ids=[0])
    given = {"prob.score": score_b, "prob.baseline": score_a, "format": format_score}
    sources = {
        name: Rewards.sequence(torch.tensor([float(value)], dtype=torch.float64), rollouts)
        for name, value in given.items()
    }
    reward = system.credit(replace(Scores.empty(rollouts), sources=sources), rollouts).reward
    assert reward is not None
    return reward[0]


def format_reward(response: str, format_mode: Any = "R1") -> float:
    """1.0 if the tags are laid out as the mode asks."""
    from guerdon.signals.verifiable.layout import format_reward as score

    return score(response, format_mode)


def repetition_penalty(text: str, window_size: int = 10, max_repetitions_limit: int = 6) -> int:
    """-1 for a window of words that occurs too often."""
    from guerdon.signals.verifiable.layout import repetition_penalty as score

    return score(text, window_size, max_repetitions_limit)


def grpo_outcome_advantages(rewards: Any, group_ids: Sequence[Any], response_mask: Any) -> dict[str, Any]:
    """Advantages [B, T], the share of rows in flat groups, and each row's group std."""
    values, groups, mask = (
        torch.as_tensor(rewards, dtype=torch.float64).reshape(-1),
        _ids(group_ids),
        _grid(response_mask),
    )
    options: dict[str, Any] = {"singleton": "raw", "dtype": torch.float64}
    std = group_stats(values, groups, **options).std
    advantages = group_normalise(values, groups, eps=1e-6, flat_below=1e-6, **options)
    flat = (std < 1e-6).double()
    return {
        "advantages": advantages[:, None] * mask,
        "filter_rate": float(flat.mean()) if len(flat) else 0.0,
        "group_stds": std,
    }


def std_filter_ema(
    step_stds: Sequence[Sequence[float]],
    ema_start_step: int = 6,
    filter_start_step: int = 11,
    ema_ratio: float = 0.99,
    beta: float = 0.5,
) -> list[dict[str, Any]]:
    """Threshold and keep flags for each step of a recorded run of group stds."""
    state = StdEMAFilter().init_state()
    steps = []
    for stds in step_stds:
        values = torch.tensor([float("nan") if s is None else float(s) for s in stds], dtype=torch.float64)
        finite = values[torch.isfinite(values)]
        mean = float(finite.mean()) if len(finite) else float("nan")
        threshold, state = std_threshold(
            state, mean, start=ema_start_step, filter_from=filter_start_step, ratio=ema_ratio, beta=beta
        )
        filters = state["step"] >= filter_start_step
        keep = passes_std(values, threshold) if filters else torch.ones_like(values, dtype=torch.bool)
        steps.append({"threshold": threshold, "keep": keep})
    return steps


VECTORS: VectorFunctions = {
    "reference_probability_score": reference_probability_score,
    "shape_reward": shape_reward,
    "rlpr_reward": rlpr_reward,
    "format_reward": format_reward,
    "repetition_penalty": repetition_penalty,
    "grpo_outcome_advantages": grpo_outcome_advantages,
    "std_filter_ema": std_filter_ema,
}

PUBLISHED = Published(
    slug="rlpr",
    title="RLPR (reference probability reward)",
    arxiv="2506.18254",
    kinds=("sequence reward", "reward shaping", "curriculum"),
    summary="The mean probability the policy itself gives to the reference answer after its reasoning, debiased and std-filtered.",
    vectors=VECTORS,
    settings=settings(
        code={
            "num_generations": 8,
            "temperature": 1.0,
            "epsilon": 0.2,
            "epsilon_high": 0.27,
            "beta": 0.0,
            "loss_type": "dapo",
            "learning_rate": 1e-6,
            "max_completion_length": 3072,
        },
        shown={
            "temperature for Llama and Gemma": "0.6 [code]",
            "batch": "768 prompts, updates of 192 (Llama, Gemma: 256 and 64) [code]",
            "prompt length": "2048 [code]",
        },
    ),
)
