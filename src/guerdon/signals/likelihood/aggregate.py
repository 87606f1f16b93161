"""From the log-probabilities of a reference's tokens to one number, and that number's derivative. Pure functions.

| aggregation | R | dR / dl_j | known as |
| --- | --- | --- | --- |
| logprob | S = sum_j l_j | 1 | log-prob |
| mean_logprob | S / n | 1/n | average log-prob |
| prob (prod_prob) | exp(S) | exp(S) | VeriFree |
| mean_prob | 1/n sum_j exp(l_j) | exp(l_j) / n | AvgProb, RLPR |
| geo_mean_prob | exp(S / n) | exp(S/n) / n | an option of RLPR's code |

The names are those of arXiv 2602.03979 and of RLPR's code (arXiv 2506.18254), which calls the probability `prod_prob`.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from guerdon.errors import ConfigError

Aggregation = Literal["logprob", "mean_logprob", "prob", "mean_prob", "geo_mean_prob", "prod_prob"]
LOG_FORMS = ("logprob", "mean_logprob")


def check_aggregation(aggregation: str) -> None:
    """Raise ConfigError for an unknown name."""
    if aggregation not in get_args(Aggregation):
        raise ConfigError(f"aggregation={aggregation!r}: use one of {', '.join(get_args(Aggregation))}")


def aggregate(
    logprobs: Tensor,
    mask: Tensor,
    aggregation: Aggregation = "mean_prob",
    *,
    empty_log: float = 0.0,
    round_bfloat16: bool = False,
) -> Tensor:
    """One score from the log-probabilities of a reference's tokens; the table above has the formulas.

    exp(S) is 0 in float32 below S = -103: a probability of a long reference carries no gradient, its logarithm does.

    Args:
        logprobs: [..., L] natural logs.
        mask: [..., L] bool, the reference's tokens.
        aggregation: which.
        empty_log: what an empty mask gives under the two logarithms (0, or -inf for "nothing was found to score"). The
            probabilities give 0.
        round_bfloat16: round the result as RLPR's code does (about 0.4 % relative).

    Returns:
        [...] float32 (float64 for float64).
    """
    check_aggregation(aggregation)
    inside = mask.bool()
    precise = logprobs if logprobs.dtype == torch.float64 else logprobs.float()
    values = torch.where(inside, precise, 0.0)
    count = inside.sum(-1)
    size = count.clamp(min=1)
    total = values.sum(-1)
    if aggregation == "mean_prob":
        score = torch.where(inside, values.exp(), 0.0).sum(-1) / size
    elif aggregation in LOG_FORMS:
        score = total / size if aggregation == "mean_logprob" else total
    else:
        score = (total / size if aggregation == "geo_mean_prob" else total).exp()
    score = torch.where(count > 0, score, empty_log if aggregation in LOG_FORMS else 0.0)
    return score.bfloat16().float() if round_bfloat16 else score


def token_weights(logprobs: Tensor, mask: Tensor, aggregation: Aggregation) -> Tensor:
    """dR/dl_j, detached: what each reference token's log-probability is multiplied by in the answer term.

    grad R = sum_j (dR/dl_j) grad l_j, so `-(token_weights * logprobs).sum()` has the gradient of -R.

    Args:
        logprobs, mask, aggregation: as in `aggregate`.

    Returns:
        [..., L] in the dtype of `aggregate`, 0 outside the mask, no graph.
    """
    check_aggregation(aggregation)
    inside = mask.bool()
    precise = logprobs.detach() if logprobs.dtype == torch.float64 else logprobs.detach().float()
    values = torch.where(inside, precise, 0.0)
    size = inside.sum(-1, keepdim=True).clamp(min=1)
    total = values.sum(-1, keepdim=True)
    if aggregation == "logprob":
        weights = torch.ones_like(values)
    elif aggregation == "mean_logprob":
        weights = torch.ones_like(values) / size
    elif aggregation == "mean_prob":
        weights = values.exp() / size
    elif aggregation == "geo_mean_prob":
        weights = ((total / size).exp() / size).expand_as(values)
    else:
        weights = total.exp().expand_as(values)
    return torch.where(inside, weights, 0.0)
