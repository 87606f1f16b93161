"""CDR / Dr. SoW: the log-density ratio of a strong over a weak language model as a reward, with prompts customised by domain.

Problem: preference data need human labels or an expensive judge. Idea: two models that are there anyway, one better aligned than the other
(DPO-tuned over its SFT, instruct over base), disagree most where alignment matters: what the strong one finds much likelier than the weak one is
good. A criterion and an exemplar in both models' prompts turn the ratio to a domain. The pair needs no training relation; the reward gets better
with the gap between the two, and two equally good models give noise.

The paper annotates n sampled responses of each prompt (`guerdon.preference.annotate_file`: the best against a random other one) and tunes with SimPO.
`cdr` is the reward as a system, which scores files and trains online; that use is ours.

Source: "Dr. SoW: Density Ratio of Strong-over-weak LLMs", arXiv 2411.02481 (v1: CDR); code github.com/gx-ai-architect/CDR-preference-annotation and
github.com/Red-Hat-AI-Innovation-Team/reward_hub. Differs on purpose: exact offsets; a missing format lowers the reward (the first code raises it);
"vanilla" domains customise the others by their own text (the first code looks up an empty one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from guerdon.credit import Drop, GroupNorm, OnFailure, ToTokens
from guerdon.objectives.simpo import simpo_loss as _simpo_loss
from guerdon.options import checked
from guerdon.preference import pairs
from guerdon.signals.likelihood import customise as custom
from guerdon.signals.likelihood.density_ratio import DensityRatio, Reduction, density_ratio
from guerdon.system import System
from guerdon.systems.base import Placeholder, Published, VectorFunctions
from guerdon.systems.settings import settings


@checked
def cdr(
    *,
    strong: Any,
    weak: Any,
    reduction: Reduction = "sum",
    customise: bool | custom.Customisation = False,
    mask_special: bool = False,
    max_prompt_tokens: int | None = 2048,
    required: Sequence[str] = (),
    eps: float = 1e-4,
) -> System:
    """The density ratio as a system: group-normalised, on every token.

    Args:
        strong, weak: models: path, hub id, "smollm2", `LocalModel`, `Endpoint`.
        reduction: "sum" (paper) or "mean" over the strong model's tokens (reward_hub).
        customise: True = the built-in criteria and exemplars, by keywords or the column "domain"; or a `Customisation`.
        mask_special, max_prompt_tokens, required: see `DensityRatio`.
        eps: of the group's std.
    """
    if isinstance(strong, Placeholder):  # a description
        strong, weak = strong.name, getattr(weak, "name", weak)
    made = custom.Customisation() if customise is True else (customise or None)
    signal = DensityRatio(
        strong,
        weak,
        reduction=reduction,
        mask_special=mask_special,
        customise=made,
        max_prompt_tokens=max_prompt_tokens,
        required=required,
    )
    chain = [
        OnFailure("row"),
        Drop("sow.strong", "sow.weak", "sow.tokens"),
        GroupNorm("sow.ratio", eps=eps),
        ToTokens("sow.ratio", "whole"),
    ]
    return System({"sow": signal}, chain, name="cdr")


# --- the functions of the conformance vectors ----------------------------------------------------------------------------


def density_ratio_reward(
    strong_tokens: Sequence[str],
    strong_logprobs: Sequence[float | None],
    weak_tokens: Sequence[str],
    weak_logprobs: Sequence[float | None],
    strong_start: int,
    weak_start: int,
    special_tokens: Sequence[str] = (),
    pad_token: str | None = None,
    mask_special_tokens: bool = False,
) -> dict[str, Tensor]:
    """Sum and mean form of one response, from tokens and log-probabilities of the whole sequences."""
    out = {pad_token, *(special_tokens if mask_special_tokens else ())}

    def side(tokens: Sequence[str], logprobs: Sequence[float | None], start: int) -> tuple[Tensor, Tensor]:
        keep = torch.tensor([i >= start and token not in out for i, token in enumerate(tokens)], dtype=torch.bool)
        values = [float("nan") if value is None else float(value) for value in logprobs]
        return torch.tensor(values, dtype=torch.float64), keep

    strong = side(strong_tokens, strong_logprobs, strong_start)
    weak = side(weak_tokens, weak_logprobs, weak_start)
    return {"reward": density_ratio(*strong, *weak), "mean_reward": density_ratio(*strong, *weak, "mean")}


def best_of_n_pair(rewards: Sequence[float | None], responses: Sequence[str]) -> dict[str, Any] | None:
    """Indices of the chosen and of those it may be paired with."""
    found = pairs.best_of_n_pair([float("nan") if r is None else float(r) for r in rewards], responses)
    return None if found is None else found._asdict()


def simpo_loss(
    chosen_logprob_sum: float,
    chosen_length: int,
    rejected_logprob_sum: float,
    rejected_length: int,
    beta: float = 2.5,
    gamma: float = 1.375,
) -> dict[str, Tensor]:
    """Margin and loss of one pair."""

    def number(value: float) -> Tensor:
        return torch.tensor(float(value), dtype=torch.float64)

    better, worse = number(chosen_logprob_sum), number(rejected_logprob_sum)
    lengths = number(chosen_length), number(rejected_length)
    return _simpo_loss(better, lengths[0], worse, lengths[1], beta, gamma)._asdict()


def customise_messages(
    messages: Sequence[Mapping[str, Any]],
    domain: str,
    system_prompts: Mapping[str, str],
    exemplar: str = "",
    vanilla_domains: Sequence[str] = ("CHAT",),
) -> custom.Messages:
    """The conversation as both models read it."""
    return custom.customise_messages(messages, domain, system_prompts, exemplar, vanilla_domains)


def pairwise_accuracy(
    chosen: Sequence[float | None], rejected: Sequence[float | None], categories: Sequence[Any]
) -> dict[str, Any]:
    """Accuracy by category, and the mean over categories."""
    numbers = [[float("nan") if value is None else float(value) for value in side] for side in (chosen, rejected)]
    shares, average = pairs.pairwise_accuracy(numbers[0], numbers[1], categories)
    return {"per_category": shares, "average": average}


VECTORS: VectorFunctions = {
    "density_ratio_reward": density_ratio_reward,
    "extract_domain": custom.extract_domain,
    "best_of_n_pair": best_of_n_pair,
    "simpo_loss": simpo_loss,
    "customise_messages": customise_messages,
    "pairwise_accuracy": pairwise_accuracy,
}

PUBLISHED = Published(
    slug="cdr",
    title="CDR / Dr. SoW (density ratio of strong over weak models)",
    arxiv="2411.02481",
    kinds=("reward model", "preference data", "preference loss"),
    summary="How much likelier a better aligned model finds a response than a weaker one, with prompts customised by domain.",
    vectors=VECTORS,
    settings=settings(
        shown={
            "what is trained": "no policy gradient: SimPO on annotated pairs, beta 2.5, gamma / beta 0.55, learning rate 1e-6 [recall]",
            "epochs": "1 [code]",
            "sampling of responses": "temperature 0.7 (1.0 in the demo), top_p 0.85 or 1.0, top_k 50, at most 1024 tokens, 8 a prompt [code]",
        },
    ),
)
