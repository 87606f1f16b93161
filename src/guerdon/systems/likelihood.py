"""Likelihood rewards: how probable the reference answer is after the policy's own reasoning, as one family. No verifier.

Problem: most questions come with a reference answer and no checker. Idea: sample a reasoning z, put the REFERENCE a* after it (never a
sampled answer), and let one forward pass of the policy say how likely it is; some function of that is the reward. Members differ
in the function, in what a group makes of it, and in whether the reference's tokens are trained, too:

| form | reward | second term's weight | known as |
| --- | --- | --- | --- |
| logprob | S = log p(a* given z) | 1 | log-prob |
| mean_logprob | S / n | 1 / n | average log-prob |
| prob, verifree | exp(S) | exp(S) | the probability; the second as VeriFree splices it |
| mean_prob | mean of exp(l_j) | exp(l_j) / n | AvgProb; RLPR (`rlpr`) debiases and filters it |
| geo_mean_prob | exp(S / n) | exp(S/n) / n | |
| jepo | log 1/K sum_k exp(S_k), of the group | softmax(S) | JEPO, multi-sample; `jepo_single` is its one-sample bound |
| nover | rank and efficiency by a slow proxy's perplexity | none | NOVER, see `nover` |

The finding of the paper: only log-probabilities work everywhere. exp(S) is 0 for a reference of a few dozen tokens, the reward is
flat and the second term's weight with it; S has no such floor, and is the loss of pretraining, so perplexity improves with it.

Sources: "Likelihood-Based Reward Designs for General LLM Reasoning", arXiv 2602.03979 (no official code); VeriFree, 2505.21493,
github.com/sail-sg/VeriFree; JEPO, 2503.19618 (no code); NOVER, 2505.16022, github.com/thinkwee/NOVER.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit import (
    Drop,
    DropTruncated,
    Fuse,
    GroupNorm,
    LeaveOneOut,
    On,
    ToTokens,
    group_normalise,
    place_on_whole,
)
from guerdon.credit.groups import leave_one_out_mean
from guerdon.credit.likelihood import (
    FloorAtGroupMin,
    JensenAdvantage,
    WatchLikelihood,
    jensen_advantages,
    jensen_weights,
)
from guerdon.credit.transforms import Clamp
from guerdon.errors import ConfigError
from guerdon.objectives.answer_likelihood import AnswerLikelihood, Weight, weighted_log_likelihood
from guerdon.options import checked, require_range
from guerdon.signals.likelihood.aggregate import LOG_FORMS, Aggregation, aggregate
from guerdon.signals.likelihood.group import (
    EfficiencyInGroup,
    JensenWeights,
    RankInGroup,
    efficiency_rewards,
    normalised_perplexity,
    rank_rewards,
)
from guerdon.signals.likelihood.proxy import ProxyPerplexity
from guerdon.signals.likelihood.reference import Reduction
from guerdon.signals.likelihood.reference_likelihood import MISSING_LOGPROB, ReferenceLikelihood
from guerdon.spans import Spans
from guerdon.system import Model, System
from guerdon.systems.base import Published, VectorFunctions
from guerdon.systems.settings import settings

Form = Literal[
    "logprob", "mean_logprob", "prob", "mean_prob", "geo_mean_prob", "verifree", "jepo", "jepo_single", "nover"
]
Estimator = Literal["rloo", "mean", "std"]
_AGGREGATIONS: dict[str, Aggregation] = {"verifree": "prob", "jepo": "logprob", "jepo_single": "logprob"}
_PLAIN = ("logprob", "mean_logprob", "prob", "mean_prob", "geo_mean_prob")


@checked
def likelihood(
    *,
    reference: str = "answer",
    form: Form = "logprob",
    estimator: Estimator = "rloo",
    answer_term: bool = True,
    answer_weight: Weight = "gradient",
    answer_coefficient: float = 1.0,
    splice: Any = None,
    references: Reduction = "max",
    missing: float | Literal["group_min"] = "group_min",
    truncated: Literal["fail", "score", "drop"] = "fail",
    span: Literal["reasoning", "completion"] = "reasoning",
    length_bonus: float = 0.0,
    clip_advantage: float | None = None,
    temperature: float = 1.0,
    max_tokens: int | None = None,
) -> System:
    """One member of the family; the default is the paper's recommendation, log-prob with RLOO and both terms of its gradient.

    Args:
        reference: the data column with the reference answer, or a list of equally right ones.
        form: see the table above. "nover" takes only `reference`, `references`, `splice`, `truncated` and `max_tokens`; see `nover`.
        estimator: "rloo" (minus the mean of the others), "mean" (minus the group mean) or "std" (also divided by the sample std +
            1e-8). JEPO's multi-sample form has its own advantage and ignores none of them: it refuses all but "rloo".
        answer_term: also train the reference's tokens (the second term; one more forward and backward pass).
        answer_weight: "gradient" (the exact one), "advantage" or "one" (VeriFree's switches).
        answer_coefficient: of the second term; 1 is the gradient of the objective.
        splice: where the reference goes, a name of `SPLICES` or a callable; None = "verifree" for that form, else "answer".
        references: of several references the "max", the "first" or the "mean".
        missing: log forms: the reward where the reference has no place. "group_min" = the group's least minus 1, or a number.
        truncated: completions cut at the length cap: "fail" (as without an answer), "score", or "drop" from training.
        span: where the advantage stands: on the "reasoning" before the reference's place, or on the whole "completion".
        length_bonus: added to the reward for each token of reasoning, against its collapse.
        clip_advantage: bound on advantages, because log-probabilities have no lower bound.
        temperature: the rollouts' sampling temperature.
        max_tokens: a longer sequence with the reference in place counts as without one.
    """
    require_range(length_bonus=length_bonus)
    if form == "nover":
        return _as_nover(locals())
    aggregation = _AGGREGATIONS.get(form, form)
    if form not in (*_AGGREGATIONS, *_PLAIN):
        raise ConfigError(f"form={form!r}: use {', '.join([*_PLAIN, *_AGGREGATIONS])} or nover")
    if form == "jepo" and (estimator != "rloo" or answer_weight != "gradient"):
        raise ConfigError(
            "form='jepo' has its own advantages and weights: leave estimator and answer_weight as they are"
        )
    signal = ReferenceLikelihood(
        reference=reference,
        aggregation=aggregation,  # type: ignore[arg-type]
        splice=splice or ("verifree" if form == "verifree" else "answer"),
        temperature=temperature,
        references=references,
        truncated="score" if truncated == "drop" else truncated,
        missing=MISSING_LOGPROB if missing == "group_min" else float(missing),
        span=span,
        max_tokens=max_tokens,
    )
    signals: dict[str, Any] = {"likelihood": signal}
    chain: list[Any] = [WatchLikelihood("likelihood")]
    if truncated == "drop":
        chain.insert(0, DropTruncated())
    if missing == "group_min" and aggregation in LOG_FORMS:
        chain.append(FloorAtGroupMin("likelihood.score", by="likelihood.answered"))
    unused = ["likelihood.logprob", "likelihood.tokens", "likelihood.answered"]
    if form == "jepo" and answer_term:
        signals["weight"] = JensenWeights("likelihood.logprob", by="likelihood.answered")
        unused.append("weight")
    if length_bonus:
        chain.append(Fuse("likelihood.score", "likelihood.reasoning", weights=(1.0, length_bonus)))
    else:
        unused.append("likelihood.reasoning")
    chain += [Drop(*unused), _advantage(form, estimator)]
    if clip_advantage is not None:
        chain.append(On("likelihood.score", Clamp(-clip_advantage, clip_advantage)))
    objectives = []
    if answer_term:
        by = "weight" if form == "jepo" else None
        objectives = [AnswerLikelihood(signal, weight=answer_weight, by=by, coefficient=answer_coefficient)]
    return System(
        signals, [*chain, ToTokens("likelihood.score", "whole")], objectives=objectives, name=f"likelihood:form={form}"
    )


def _advantage(form: str, estimator: Estimator) -> Any:
    name = "likelihood.score"
    if form == "jepo":
        return JensenAdvantage(name)
    links = {
        "rloo": lambda: LeaveOneOut(name),
        "mean": lambda: GroupNorm(name, std=None),
        "std": lambda: GroupNorm(name, eps=1e-8),
    }
    if estimator not in links:
        raise ConfigError(f"estimator={estimator!r}: use one of {', '.join(links)}")
    return links[estimator]()


@checked
def nover(
    *,
    reference: str = "answer",
    references: Reduction = "max",
    every: int = 100,
    decay: float = 0.9,
    weights: Sequence[float] = (1.0, 1.0, 1.0),
    scale: bool = False,
    splice: Any = None,
    truncated: Literal["fail", "score"] = "fail",
    max_tokens: int | None = None,
    opened_by_prompt: bool = False,
) -> System:
    """NOVER: format, rank by the proxy's perplexity, and efficiency, added up and centred on the group.

    Args:
        reference: the data column with the reference answer, or a list of equally right ones.
        references: of several references the one of least perplexity ("max" likelihood), the "first" or the "mean".
        every: optimiser steps between two syncs of the proxy with the policy.
        decay: share of the proxy that stays at a sync.
        weights: of format, rank and efficiency.
        scale: divide by the group's std + 1e-4. The official configuration asks for no scaling and the trainer it drives never
            hears of it; here the default is what was asked for.
        splice: where the reference goes in responses of another layout, see `SPLICES`; such responses are not asked for the layout's
            tags, but for a place where the reference can stand.
        truncated, max_tokens: as in `likelihood`.
        opened_by_prompt: the chat template writes the <think> itself, so that none is asked of the response.
    """
    from guerdon.signals import text_signal
    from guerdon.signals.verifiable.layout import nothing_but_tags

    if len(weights) != 3:
        raise ConfigError(f"weights={weights}: three numbers, for format, rank and efficiency")
    proxy = ProxyPerplexity(
        reference=reference,
        splice="nover" if splice is None else splice,
        references=references,
        every=every,
        decay=decay,
        truncated=truncated,
        max_tokens=max_tokens,
    )
    tags = splice is None
    form = "format" if tags else "proxy.placed"
    opening = "<think>" if opened_by_prompt else ""

    def layout(text: str) -> float:
        return 0.0 if opening and opening in text else nothing_but_tags(opening + text)

    named = "nothing_but_tags" + (", <think> in the prompt" if opening else "")
    signals: dict[str, Any] = {"format": text_signal(layout, name=named)} if tags else {}
    signals |= {
        "proxy": proxy,
        "rank": RankInGroup("proxy.perplexity", valid=form),
        "efficiency": EfficiencyInGroup("proxy.perplexity", "proxy.reasoning", valid=form),
    }
    unused = ("proxy.perplexity", "proxy.raw", "proxy.reasoning", *(("proxy.placed",) if tags else ()))
    chain = [
        Drop(*unused),
        Fuse(form, "rank", "efficiency", weights=tuple(weights), into="reward"),
        GroupNorm("reward", std="sample" if scale else None),
        ToTokens("reward", "whole"),
    ]
    return System(signals, chain, models={"proxy": Model("policy", "phase_start")}, name="nover")


def _as_nover(given: dict[str, Any]) -> System:
    """`likelihood(form="nover")`: only what NOVER has may differ from its default."""
    import inspect

    shared = ("reference", "references", "splice", "truncated", "max_tokens")
    parameters = inspect.signature(likelihood).parameters
    other = [k for k, p in parameters.items() if k not in (*shared, "form") and given[k] != p.default]
    if other or given["truncated"] == "drop":
        raise ConfigError(
            f"form='nover' has no {', '.join(other) or 'truncated=drop'}; its own options are those of the system 'nover'"
        )
    return nover(**{name: given[name] for name in shared})


# --- the functions of the conformance vectors ----------------------------------------------------------------------------

_KINDS: dict[str, Aggregation] = {
    "log_prob": "logprob",
    "avg_log_prob": "mean_logprob",
    "prob": "prob",
    "avg_prob": "mean_prob",
    "geo_mean_prob": "geo_mean_prob",
}


def likelihood_reward(logprobs: Any, answer_mask: Any, kind: str) -> Tensor:
    """[K] rewards from [K, T] log-probabilities; an empty mask gives 0, or -inf under the logarithms."""
    if kind not in _KINDS:
        raise ConfigError(f"kind={kind!r}: use one of {', '.join(_KINDS)}")
    mask = _grid(answer_mask) > 0
    return aggregate(_grid(logprobs), mask, _KINDS[kind], empty_log=float("-inf"))


def rloo_advantages(rewards: Any, num_samples: int) -> Tensor:
    """[B] rewards, K rows a prompt: r minus the mean of the others; 0 for K = 1."""
    values = torch.as_tensor(rewards, dtype=torch.float64).reshape(-1)
    groups = torch.arange(len(values)) // num_samples
    baseline = leave_one_out_mean(values, groups)
    return torch.where(baseline.isnan(), 0.0, values - baseline)


def group_mean_advantages(rewards: Any, num_samples: int, scale_by_std: bool = False) -> Tensor:
    """[B] rewards, K rows a prompt: r minus the group mean, divided by the sample std + 1e-8 where asked for."""
    values = torch.as_tensor(rewards, dtype=torch.float64).reshape(-1)
    groups = torch.arange(len(values)) // num_samples
    return group_normalise(values, groups, std="sample" if scale_by_std else None, eps=1e-8, dtype=torch.float64)


def think_answer_masks(attention_mask: Any, prompt_lens: Any, think_lens: Any, answer_lens: Any) -> dict[str, Tensor]:
    """Which of the T - 1 next-token log-probabilities belong to reasoning and answer, of right-padded rows.

    As advantages are put on the reasoning (`ToTokens(..., "whole")`): two spans a row, placed on the grid that begins at token 1.
    """
    real = torch.as_tensor(attention_mask).bool()[:, 1:]
    prompt, think, answer = (torch.as_tensor(x).long()[:, None] for x in (prompt_lens, think_lens, answer_lens))
    masks = {}
    for name, start, size in (("think_mask", prompt, think), ("answer_mask", prompt + think, answer)):
        spans = Spans((start - 1).clamp(min=0), start + size - 2, torch.ones_like(start, dtype=torch.bool), name=name)
        masks[name] = place_on_whole(torch.ones_like(start), spans, real)
    return masks


def verifree_loss(
    new_logps: Any,
    think_mask: Any,
    answer_mask: Any,
    advantages: Any,
    rewards: Any,
    loss_mask: Any,
    answer_coef: str = "reward",
) -> dict[str, Tensor]:
    """VeriFree's two terms and their sum; the coefficient of the answer is the advantage, the reward or 1."""
    credit, paid = (torch.as_tensor(x, dtype=torch.float64) for x in (advantages, rewards))
    coefficients = {"adv": credit, "reward": paid, "1": torch.ones_like(paid)}
    if str(answer_coef) not in coefficients:
        raise ConfigError(f"answer_coef={answer_coef!r}: use adv, reward or 1")
    logprobs, rows = _grid(new_logps), torch.as_tensor(loss_mask, dtype=torch.float64)
    # A row at 0 (a truncated one) adds nothing and stays in the denominator.
    policy = -(rows * weighted_log_likelihood(logprobs, _grid(think_mask), credit)).mean()
    answer = -(rows * weighted_log_likelihood(logprobs, _grid(answer_mask), coefficients[str(answer_coef)])).mean()
    return {"pg_loss": policy, "answer_loss": answer, "loss": policy + answer}


def jepo_terms(answer_logprobs: Any, multi_sample: bool = True) -> dict[str, Tensor]:
    """One prompt's K log-probabilities: advantages, weights of the supervised term and the bound's value."""
    values = torch.as_tensor(answer_logprobs, dtype=torch.float64).reshape(-1)
    group = torch.zeros(len(values), dtype=torch.long)
    if multi_sample:
        advantages, objective = jensen_advantages(values, group)
        return {"advantages": advantages, "answer_weights": jensen_weights(values, group), "objective": objective[0]}
    baseline = leave_one_out_mean(values, group).nan_to_num(nan=0.0)
    even = torch.full_like(values, 1 / len(values))
    return {"advantages": values - baseline, "answer_weights": even, "objective": values.mean()}


def nover_format_reward(completions: Sequence[str]) -> list[float]:
    """1 for think and answer tags and nothing else."""
    from guerdon.signals.verifiable.layout import nothing_but_tags

    return [nothing_but_tags(text) for text in completions]


def nover_reasoning_reward(perplexities: Any, valid: Any) -> Tensor:
    """Ranks of one group's perplexities."""
    values, live = _row(perplexities), torch.as_tensor(valid) > 0
    return rank_rewards(values, live, torch.zeros(len(values), dtype=torch.long))


def nover_efficiency_reward(perplexities: Any, lengths: Any, valid: Any) -> Tensor:
    """Shares of one group's rollouts that are longer and worse."""
    values, live = _row(perplexities), torch.as_tensor(valid) > 0
    return efficiency_rewards(values, _row(lengths), live, torch.zeros(len(values), dtype=torch.long))


def nover_perplexity(target_logprobs: Any, reasoning_length: float) -> dict[str, Tensor]:
    """Perplexity of a target, normalised by the length of the reasoning and not."""
    nll = -_row(target_logprobs).mean()
    norm = normalised_perplexity(nll[None], torch.tensor([float(reasoning_length)]))
    return {"perplexity_normalised": norm[0], "perplexity": nll.exp()}


def _row(values: Any) -> Tensor:
    return torch.tensor([float(v) for v in values], dtype=torch.float64)


def _grid(values: Any) -> Tensor:
    """[B, T] float64."""
    tensor = torch.as_tensor(values, dtype=torch.float64)
    return tensor if tensor.dim() == 2 else tensor.reshape(1, -1)


VECTORS: VectorFunctions = {
    "likelihood_reward": likelihood_reward,
    "rloo_advantages": rloo_advantages,
    "group_mean_advantages": group_mean_advantages,
    "think_answer_masks": think_answer_masks,
    "verifree_loss": verifree_loss,
    "jepo_terms": jepo_terms,
    "nover_format_reward": nover_format_reward,
    "nover_reasoning_reward": nover_reasoning_reward,
    "nover_efficiency_reward": nover_efficiency_reward,
    "nover_perplexity": nover_perplexity,
}

PUBLISHED = Published(
    slug="likelihood",
    title="Likelihood rewards (log-prob, VeriFree, AvgProb, JEPO, NOVER)",
    arxiv="2602.03979",
    kinds=("sequence reward", "advantage estimator", "policy loss"),
    summary="How probable the reference answer is after the policy's own reasoning, in every published form, with the direct gradient of its tokens.",
    vectors=VECTORS,
    settings=settings(
        note={
            "num_generations": 32,
            "beta": 0.001,
            "learning_rate": 1e-5,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 20,
            "max_grad_norm": 1.0,
        },
        shown={
            "references that cannot be verified": "4 rollouts and no KL term [note]",
            "VeriFree": "8 rollouts, learning rate 1e-6, beta 0, temperature 1, response 3000, 16 prompts a step [code]",
        },
    ),
    variants={
        "nover": settings(
            code={
                "num_generations": 8,
                "temperature": 0.6,
                "epsilon": 0.1,
                "epsilon_high": 0.2,
                "beta": 0.1,
                "learning_rate": 1e-5,
                "num_train_epochs": 2,
                "max_completion_length": 2048,
            },
            shown={"weights": "LoRA [code]", "proxy": "0.9 of itself, 0.1 of the policy, every 100 steps [code]"},
        )
    },
)
