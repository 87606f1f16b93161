"""SAR (self-aligned reward): correctness plus how much more probable the question makes the response.

Problem: with a correctness reward alone, reasoners grow long: padding, repetition and self-talk cost nothing. A length penalty says
how many tokens to drop, not which. Idea: compare the policy's perplexity of the WHOLE response with and without the question in its
context. Text that only the question explains scores high, text that would be as probable anyway scores low; being continuous, the
score also orders responses that are all right or all wrong.

Very short answers score very high. Keep alpha small (0.2), never train without the correctness term (the paper's run without it
collapsed to guesses of 84 tokens), and watch length/right_and_short in the log.

Source: "Self-Aligned Reward: Towards Effective and Efficient Reasoners", arXiv 2509.05489; official code
github.com/amazon-science/Self-Aligned-Reward-Towards_Effective_and_Efficient_Reasoners. Differs from the code on purpose: perplexities
stay logarithms, so nothing overflows; an empty response scores -1 (the code divides by zero); log-probabilities always have
temperature 1; the two length baselines, which crash there, work.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit import Drop, Fuse, GroupNorm, On, Scale, ToTokens, Whiten, group_normalise
from guerdon.credit.accumulate import GAE
from guerdon.credit.length import LengthReward, WatchLength, efficient_reasoner_reward, o1_pruner_reward
from guerdon.credit.schedule import Anneal, Annealing
from guerdon.credit.weighting import WeightedAdvantages
from guerdon.errors import ConfigError
from guerdon.options import checked, require_range
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Clock, Rollouts
from guerdon.signals.likelihood import relative_perplexity as likelihood
from guerdon.system import System
from guerdon.systems.base import Placeholder, Published, VectorFunctions
from guerdon.systems.pure import _grid, _ids
from guerdon.systems.settings import settings

Efficiency = Literal["self_aligned", "o1_pruner", "efficient_reasoner"]


@checked
def sar(
    *,
    verifier: Any,
    alpha: float = 0.2,
    base: float = 1.0,
    efficiency: Efficiency = "self_aligned",
    question: str | None = None,
    questionless: str | Callable[[Any], Any] | None = None,
    use_log: bool = False,
    use_denominator: bool = True,
    use_comparison: bool = True,
    clip_value: float | None = None,
    scheduler: Literal["constant", "linear"] = "constant",
    peak: float = 0.5,
    bottom: float = 0.0,
    increase: bool = False,
    decrease: bool = False,
    norm_by_std: bool = False,
    weighting: Literal["reward", "advantage"] = "reward",
    carrier: Literal["grpo", "ppo"] = "grpo",
    gamma: float = 1.0,
    lam: float = 1.0,
    short: int = 4,
) -> System:
    """Correctness x base + alpha x schedule x self-aligned reward, with the defaults of the official scripts.

    Args:
        verifier: the outcome signal, 1 right and 0 wrong.
        alpha: factor of the efficiency reward, applied to right and wrong responses alike. 0 is plain Dr. GRPO, bit for bit.
        base: factor of correctness.
        efficiency: "self_aligned", or a length baseline of the same code: "o1_pruner", "efficient_reasoner".
        question: data column with the question's words, to cut exactly these out of the prompt. None = the user message (or the
            text prompt) is left empty, as in the official code.
        questionless: the prompt without its question: a text, or a function of the prompt.
        use_log, use_denominator, use_comparison, clip_value: variants, see `relative_perplexity`. "Confidence only" is
            use_comparison=False, use_denominator=False.
        scheduler: "linear" makes alpha follow a tent, see `credit.schedule.peak_schedule`; needs a run of known length.
        peak, bottom, increase, decrease: of that tent.
        norm_by_std: divide by the group's std. Off in the official scripts: where all are right only alpha's small differences are
            left, and the division would blow them up.
        weighting: "advantage" normalises each reward in its group before the weighted sum; the same thing unless `norm_by_std`.
        carrier: "grpo", or "ppo": the reward on the last token, GAE, whitening; needs a critic's values.
        gamma, lam: of "ppo".
        short: right responses with fewer tokens are counted in the log as suspiciously short.

    The official loss sums a response's tokens and divides by a constant: in TRL loss_type="dr_grpo".
    """
    _check(alpha, base, efficiency, scheduler, weighting, carrier)
    require_range(0, alpha=alpha, base=base, short=short)
    require_range(0, clip_value=clip_value, above=True)
    require_range(0, 1, peak=peak, bottom=bottom, gamma=gamma, lam=lam)
    likelihood.check_variant(use_denominator, use_comparison)
    signals: dict[str, Any] = {"answer": verifier}
    chain: list[Any] = []
    name = "length" if efficiency != "self_aligned" else "sar.score"
    if alpha and efficiency == "self_aligned":
        signals["sar"] = likelihood.RelativePerplexity(
            question=question,
            questionless=questionless,
            likelihoods=True,
            use_log=use_log,
            use_denominator=use_denominator,
            use_comparison=use_comparison,
            clip_value=clip_value,
        )
        chain.append(Drop("sar.nll_question", "sar.nll_alone"))
    elif alpha:
        chain.append(LengthReward(efficiency, "answer", "length"))  # type: ignore[arg-type]
    if alpha and scheduler == "linear":
        tent = Annealing("peak", peak=peak, bottom=bottom, increase=increase, decrease=decrease)
        chain.append(On(name, Anneal(tent)))
    chain.append(WatchLength("answer", short))
    chain += _credit(name if alpha else None, (base, alpha), norm_by_std, weighting, carrier, gamma, lam)
    return System(signals, chain, name="sar")


def _check(alpha: float, base: float, efficiency: str, scheduler: str, weighting: str, carrier: str) -> None:
    choices = {
        "efficiency": (efficiency, ("self_aligned", "o1_pruner", "efficient_reasoner")),
        "scheduler": (scheduler, ("constant", "linear")),
        "weighting": (weighting, ("reward", "advantage")),
        "carrier": (carrier, ("grpo", "ppo")),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise ConfigError(f"{key}={value!r}: use one of {allowed}")
    if weighting == "advantage" and carrier == "ppo":
        raise ConfigError("weighting='advantage' is an option of group advantages: carrier='grpo'")
    if alpha and not base:
        warnings.warn(
            "base=0 trains on the efficiency reward alone, and in the paper that collapsed to short guesses: keep a correctness term",
            stacklevel=3,
        )


def _credit(
    extra: str | None,
    weights: tuple[float, float],
    norm_by_std: bool,
    weighting: str,
    carrier: str,
    gamma: float,
    lam: float,
) -> list[Any]:
    """From the two sources to advantages; the same links with or without the second one."""
    std: Literal["sample"] | None = "sample" if norm_by_std else None
    if extra is not None and weighting == "advantage":
        link = WeightedAdvantages(("answer", extra), weights, "reward", std, 1e-6)
        return [link, ToTokens("reward", "whole")]
    live: str = "answer"
    links: list[Any] = [On(live, Scale(weights[0]))] if weights[0] != 1 else []
    if extra is not None:
        live, links = "reward", [Fuse("answer", extra, weights=weights, into="reward")]
    if carrier == "ppo":
        return [*links, ToTokens(live, "end"), GAE(live, gamma, lam), Whiten(live)]
    return [*links, GroupNorm(live, std=std, eps=1e-6, singleton="raw"), ToTokens(live, "whole")]


_ANSWER = re.compile(r"-?(?:\\[dt]?frac\s*\{\s*-?\d+(?:\.\d+)?\s*\}\s*\{\s*-?\d+(?:\.\d+)?\s*\}|\d[\d,]*(?:\.\d+)?)")


def last_number_or_fraction(text: str) -> str | None:
    r"""The answer as the official verifier finds it: the last number or \frac{a}{b} of plain numbers, without thousands commas.

    For the same correctness: `sar(verifier=guerdon.signals.Math(extract=last_number_or_fraction))`.
    """
    found = _ANSWER.findall(text)
    return found[-1].replace(",", "") if found else None


# --- the functions of the conformance vectors ----------------------------------------------------------------------------


def response_perplexity(logprobs: Any, response_mask: Any) -> Tensor:
    """exp of minus the masked mean of log-probabilities, [B, T] to [B]."""
    return likelihood.mean_nll(_grid(logprobs), _grid(response_mask)).exp()


def self_aligned_reward(
    ppl_given_question: float,
    ppl_alone: float,
    use_log: bool = False,
    use_denominator: bool = True,
    use_comparison: bool = True,
    clip_value: float = -1,
) -> Tensor:
    """The reward of one response from its two perplexities."""
    question, alone = (torch.tensor(float(x), dtype=torch.float64).log() for x in (ppl_given_question, ppl_alone))
    return likelihood.relative_perplexity(
        question,
        alone,
        use_log=use_log,
        use_denominator=use_denominator,
        use_comparison=use_comparison,
        clip_value=clip_value,
    )


def sar_total_reward(
    correctness: float,
    ppl_given_question: float,
    ppl_alone: float,
    alpha: float = 0.2,
    progress: float = 0.0,
    scheduler: Mapping[str, Any] | None = None,
) -> Tensor:
    """correctness + alpha x schedule(progress) x the default form: the system's chain up to its reward."""
    options = dict(scheduler or {})
    kind = options.pop("type", "constant")
    options = {"peak" if key == "peak_pos" else key: value for key, value in options.items()}
    system = sar(verifier=Placeholder("verifier"), alpha=alpha, scheduler=kind, **(options if kind == "linear" else {}))
    done = Fraction(progress).limit_denominator(10**6)
    clock = Clock(done.numerator, done.denominator, training=True)
    rollouts = replace(Rollouts.from_texts(["q"], ["a"], group_ids=[0]), clock=clock)
    given = {
        "answer": correctness,
        "sar.score": float(self_aligned_reward(ppl_given_question, ppl_alone)),
        "sar.nll_question": 0.0,  # only in the log
        "sar.nll_alone": 0.0,
    }
    sources = {
        name: Rewards.sequence(torch.tensor([value], dtype=torch.float64), rollouts)
        for name, value in given.items()
        if alpha or name == "answer"
    }
    reward = system.credit(replace(Scores.empty(rollouts), sources=sources), rollouts).reward
    assert reward is not None
    return reward[0]


def o1_pruner_penalty(length: float, group_lengths: Sequence[float]) -> Tensor:
    """-clip((len - group mean) / len, -1, 1)."""
    sizes = torch.tensor([float(x) for x in group_lengths], dtype=torch.float64)
    return o1_pruner_reward(torch.tensor(float(length)), sizes.mean())


def efficient_reasoner_penalty(
    length: float, correctness: float, group_lengths: Sequence[float], group_correctness: Sequence[float]
) -> Tensor:
    """Minus the squashed z-score of the length among the correct; 0 where wrong or alone."""
    right = torch.tensor([float(c) for c in group_correctness]) > 0
    sizes = torch.tensor([float(x) for x in group_lengths], dtype=torch.float64)[right]
    return efficient_reasoner_reward(
        torch.tensor(float(length)), torch.tensor(correctness), sizes.mean(), sizes.std(correction=0), right.sum()
    )


def group_advantages(rewards: Any, group_ids: Sequence[Any], response_mask: Any, norm_by_std: bool = False) -> Tensor:
    """[B, T]: reward minus group mean, optionally over the sample std; a group of one keeps its reward."""
    values = torch.as_tensor(rewards, dtype=torch.float64).reshape(-1)
    std: Literal["sample"] | None = "sample" if norm_by_std else None
    advantages = group_normalise(values, _ids(group_ids), std=std, eps=1e-6, singleton="raw", dtype=torch.float64)
    return advantages[:, None] * _grid(response_mask)


VECTORS: VectorFunctions = {
    "response_perplexity": response_perplexity,
    "self_aligned_reward": self_aligned_reward,
    "sar_total_reward": sar_total_reward,
    "o1_pruner_penalty": o1_pruner_penalty,
    "efficient_reasoner_penalty": efficient_reasoner_penalty,
    "group_advantages": group_advantages,
}

PUBLISHED = Published(
    slug="sar",
    title="SAR (self-aligned reward)",
    arxiv="2509.05489",
    kinds=("sequence reward", "reward shaping"),
    summary="Correctness plus how much more probable the question makes the response: padding is as probable without it.",
    vectors=VECTORS,
    settings=settings(
        code={
            "num_generations": 6,
            "beta": 0.001,
            "loss_type": "dr_grpo",
            "learning_rate": 1e-6,
            "max_completion_length": 4096,
        },
        shown={
            "batch": "128 prompts, updates of 64; 500 steps [code]",
            "prompt length": "1024 [code]",
            "PPO": "no KL term, critic 2e-6 [code]",
        },
    ),
)
