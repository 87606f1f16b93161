"""The direct gradient of the reference's likelihood: the second term of every likelihood reward's own gradient.

J = E_z f(p(a*|q,z)) depends on the policy twice, through the reasoning z that is sampled and through f itself:

    grad J = E[ R(z) grad log p(z|q) ] + E[ sum_j w_j grad log p(a*_j | q, z, a*_<j) ],     w_j = dR/dl_j, detached

The first term is the policy gradient an engine takes anyway. The second is here, as an auxiliary loss: the live policy scores the
reference in the place of the answer, with gradients. For the log-probability every w_j is 1, and the term is supervised learning
of the reference after the policy's own reasoning; for VeriFree's probability w_j = p(a*|q,z), which is 0 for long references.

Sources: VeriFree (arXiv 2505.21493), official code `learning_step`; JEPO (2503.19618); arXiv 2602.03979.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.errors import ConfigError
from guerdon.options import checked, require_range
from guerdon.signals.likelihood.aggregate import token_weights
from guerdon.signals.likelihood.reference import Bound, pair_weights
from guerdon.signals.likelihood.reference_likelihood import ReferenceLikelihood

Weight = Literal["gradient", "advantage", "one"]


def weighted_log_likelihood(logprobs: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """sum_j w_j l_j of each row, differentiable in l alone.

    Args:
        logprobs: [B, T] of the policy, with their graph; what stands outside the mask does not matter.
        mask: [B, T], the tokens that count.
        weights: [B] or [B, T], treated as constants.

    Returns:
        [B].
    """
    factors = weights.detach() if weights.dim() == 2 else weights.detach()[:, None]
    return torch.where(mask.bool(), factors * logprobs, 0.0).sum(1)


@checked
class AnswerLikelihood(Bound):
    """Objective: raise the likelihood of the reference after the policy's own reasoning.

    The loss is - sum_k s_k w_k sum_j l_kj over kept rows, with s_k the scale of the row in the policy loss (`ObjectiveBatch.row_scale`),
    so that both terms are in the proportion of the gradient above whatever the engine divides by. Several references of a row
    are weighed as the signal reduces them. It costs one more forward and backward over prompt, reasoning and reference.

    Args:
        signal: the reward's signal; splice, temperature and references are its own.
        weight: "gradient" = dR/dl_j of the signal's aggregation at the current policy; "advantage" = the row's advantage; "one".
            The last two are switches of VeriFree's code (`sft_coef_source`), there for comparison.
        by: a source whose value multiplies each row (JEPO's softmax weights); None = 1.
        coefficient: of the whole term.
    """

    roles = ("policy",)
    needs = frozenset({"policy"})
    scope = "row"

    def __init__(
        self,
        signal: ReferenceLikelihood,
        *,
        weight: Weight = "gradient",
        by: str | None = None,
        coefficient: float = 1.0,
    ) -> None:
        super().__init__()
        if weight not in ("gradient", "advantage", "one"):
            raise ConfigError(f"weight={weight!r}: use 'gradient', 'advantage' or 'one'")
        require_range(0, answer_coefficient=coefficient)
        self.signal, self.weight, self.by, self.coefficient = signal, weight, by, coefficient

    def __repr__(self) -> str:
        by = f", by={self.by!r}" if self.by else ""
        return f"AnswerLikelihood(weight={self.weight!r}{by}, coefficient={self.coefficient})"

    def __call__(self, models: Mapping[str, Any], batch: Any) -> tuple[Tensor, dict[str, float]]:
        """The loss of a micro-batch (`guerdon.engines.trl.batch.ObjectiveBatch`) and what to log about it."""
        model = self.model("policy")
        kept = batch.keep.nonzero()[:, 0]
        placed = self.signal.scorer.place(model.tokenizer, batch.rollouts.select(kept))
        pairs = self.signal.scorer.score(model, placed, grad=True)
        fine = torch.ones(len(placed.rows), dtype=torch.bool)
        fine[list(pairs.failed)] = False
        if not bool(fine.any()):
            return torch.zeros((), device=batch.inputs["advantages"].device), {}
        rows = kept[placed.rows]
        chosen = pair_weights(self.signal.values(pairs), placed.rows, self.signal.references)
        factors = torch.where(fine, chosen * self._row_weights(batch)[rows], 0.0).to(pairs.logprobs.device)
        tokens = self._token_weights(pairs.logprobs, pairs.mask)
        logprobs = torch.where(pairs.mask, pairs.logprobs.nan_to_num(nan=0.0), 0.0)
        terms = factors * weighted_log_likelihood(logprobs, pairs.mask, tokens)
        used = fine & (chosen > 0)
        count = pairs.mask.sum(1).cpu()[used]
        nll = -(logprobs.detach().sum(1).cpu()[used] / count.clamp(min=1)).mean()
        per_token = tokens.abs().sum(1).cpu()[used] / count.clamp(min=1)
        metrics = {"answer_nll": float(nll), "answer_token_weight": float(per_token.mean())}
        return -self.coefficient * terms.sum(), metrics

    def _token_weights(self, logprobs: Tensor, mask: Tensor) -> Tensor:
        if self.weight == "gradient":
            return token_weights(logprobs, mask, self.signal.aggregation)
        return mask.to(logprobs.dtype)

    def _scale(self, batch: Any) -> Tensor:
        size = len(batch.keep)
        return torch.full((size,), 1.0 / size) if batch.row_scale is None else batch.row_scale.detach().float().cpu()

    def _row_weights(self, batch: Any) -> Tensor:
        """[b] on the CPU: scale, times the source `by`, times the advantage where asked for."""
        weights = self._scale(batch)
        if self.by is not None:
            weights = weights * batch.rewards[self.by].values[:, 0].nan_to_num(nan=0.0)
        if self.weight == "advantage":
            advantages = batch.inputs["advantages"].detach().float().cpu()
            largest = advantages.abs().argmax(1, keepdim=True)  # one number a row, 0 on tokens that carry no credit
            weights = weights * advantages.gather(1, largest)[:, 0]
        return weights
