"""SimPO: a preference loss on mean log-probabilities, without a reference model (arXiv 2405.14734).

x = beta (log pi(y_w) / |y_w| - log pi(y_l) / |y_l|) - gamma            L = -log sigmoid(x)
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid


class SimPO(NamedTuple):
    """margin [N]: x. loss [N]: take the mean to train."""

    margin: Tensor
    loss: Tensor


def simpo_loss(
    chosen: Tensor,
    chosen_length: Tensor,
    rejected: Tensor,
    rejected_length: Tensor,
    beta: float = 2.5,
    gamma: float = 1.375,
) -> SimPO:
    """The loss of pairs.

    Args:
        chosen, rejected: [N] summed log-probabilities.
        chosen_length, rejected_length: [N] tokens; an empty response counts as one token.
        beta: 2.5 for Llama-3-8B-Instruct, as gamma / beta = 0.55.
        gamma: the margin asked for.
    """
    better = chosen / chosen_length.clamp(min=1).to(chosen.dtype)
    worse = rejected / rejected_length.clamp(min=1).to(rejected.dtype)
    margin = beta * (better - worse) - gamma
    return SimPO(margin, -logsigmoid(margin))
