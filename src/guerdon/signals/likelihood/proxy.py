"""The reference's perplexity under a PROXY of the policy that follows it slowly: NOVER's measure (arXiv 2505.16022).

The proxy starts as a copy of the policy and every `every` steps becomes decay x proxy + (1 - decay) x policy, so that the measure
neither stands still nor moves with every step of what it measures.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from guerdon.errors import ConfigError
from guerdon.options import checked
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.likelihood.aggregate import aggregate
from guerdon.signals.likelihood.group import normalised_perplexity
from guerdon.signals.likelihood.reference import Bound, Reduction, ReferenceScorer, pair_weights, to_rows
from guerdon.signals.likelihood.splice import Splicer, splicer


@checked
class ProxyPerplexity(Bound):
    """Signal: perplexity of the reference after each completion's reasoning, under the proxy.

    Gives four sources: `perplexity` (normalised by the length of the reasoning), `raw` (not), `reasoning` (its tokens) and `placed`
    (1, or 0 where the completion has no place for the reference; perplexities are then `missing`, with the reason). A row without a
    reference is NaN. The System needs models={"proxy": Model("policy", "phase_start")}.

    Args:
        reference: the data column with the reference, or a list of equally right ones.
        splice: see `SPLICES`.
        references: of several, the one of least normalised perplexity ("max" likelihood), the "first", or the "mean".
        every: optimiser steps between two syncs of the proxy; 0 = never.
        decay: share of the proxy that stays.
        truncated, max_tokens: as in `ReferenceLikelihood`.
        missing: perplexity where there is none; finite, and never compared.
    """

    scope = "row"
    needs = frozenset({"policy"})
    roles = ("proxy", "policy")
    writes = ("proxy",)
    update_at = "after_policy_step"

    def __init__(
        self,
        *,
        reference: str = "answer",
        splice: str | Splicer = "nover",
        references: Reduction = "max",
        every: int = 100,
        decay: float = 0.9,
        truncated: Literal["fail", "score"] = "fail",
        max_tokens: int | None = None,
        missing: float = 1e6,
    ) -> None:
        super().__init__()
        if not 0 <= decay <= 1 or every < 0:
            raise ConfigError(f"decay={decay} must be in [0, 1] and every={every} at least 0")
        pair_weights(torch.zeros(0), torch.zeros(0, dtype=torch.long), references)  # refuses an unknown name here
        self.scorer = ReferenceScorer(reference, splicer(splice), max_tokens=max_tokens, truncated=truncated)
        self.references, self.every, self.decay, self.missing = references, every, decay, missing
        self.level: Any = dict.fromkeys(("perplexity", "raw", "reasoning", "placed"), "sequence")
        self._synced_at = 0

    def __repr__(self) -> str:
        return f"ProxyPerplexity({self.scorer.column!r}, every={self.every}, decay={self.decay})"

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> dict[str, Rewards]:
        model = self.model("proxy")
        placed = self.scorer.place(model.tokenizer, rollouts)
        pairs = self.scorer.score(model, placed)
        nll = -aggregate(pairs.logprobs, pairs.mask, "mean_logprob")
        nll = nll.index_fill(0, torch.tensor(list(pairs.failed), dtype=torch.long), float("nan"))
        normalised = normalised_perplexity(nll, placed.reasoning[placed.rows])
        weights = pair_weights(-normalised.nan_to_num(nan=-float("inf")), placed.rows, self.references)
        size = len(rollouts)
        columns = {
            "perplexity": to_rows(normalised.float(), weights, placed.rows, size, self.missing),
            "raw": to_rows(nll.exp(), weights, placed.rows, size, self.missing),
            "reasoning": placed.reasoning.float(),
            "placed": to_rows(torch.ones_like(weights), weights, placed.rows, size, 0.0),
        }
        columns["placed"][columns["perplexity"].isnan()] = float("nan")
        for column in columns.values():
            column[list(placed.missing)] = float("nan")
        reasons = placed.failing | placed.missing | {int(placed.rows[i]): why for i, why in pairs.failed.items()}
        return {name: Rewards.sequence(column, rollouts, reasons) for name, column in columns.items()}

    # -- the proxy -----------------------------------------------------------------------------------------------------

    def update(self, rollouts: Rollouts, scores: Scores) -> dict[str, float]:
        """Every `every` steps the proxy moves towards the policy. Returns 1 under "synced" where it did."""
        step = rollouts.clock.step + 1
        due = self.every > 0 and step - self._synced_at >= self.every
        if due:
            sync_models(self.model("proxy").model, self.model("policy").model, self.decay)
            self._synced_at = step
        return {"synced": float(due)}

    def state_dict(self) -> dict[str, Any]:
        """When the last sync was and, once there was one, the proxy's weights: they can be had from nowhere else."""
        weights = {}
        if self._synced_at and "proxy" in self._models:
            weights = {name: p.detach().cpu().clone() for name, p in self.model("proxy").model.named_parameters()}
        return {"synced_at": self._synced_at, "weights": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._synced_at = int(state["synced_at"])
        if state["weights"]:
            with torch.no_grad():
                for name, parameter in self.model("proxy").model.named_parameters():
                    parameter.copy_(state["weights"][name])


@torch.no_grad()
def sync_models(proxy: nn.Module, policy: nn.Module, decay: float) -> None:
    """proxy <- decay proxy + (1 - decay) policy, weight by weight, in place.

    A policy with LoRA adapters counts with the weights it computes with: base plus the adapters' product. (Averaging the two
    factors instead, as the official code does, is not the average of what they stand for.)

    Raises:
        ConfigError: the two models have no weight of the same name.
    """
    current = dict(effective_weights(policy))
    matched = 0
    for name, parameter in proxy.named_parameters():
        if name in current:
            parameter.lerp_(current[name].to(parameter.device, parameter.dtype), 1 - decay)
            matched += 1
    if not matched:
        raise ConfigError("the proxy and the policy share no weight by name: the proxy must be a copy of the policy")


def effective_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of a model as if it had no adapters: names and values of the plain model, adapters merged in."""
    deltas = {}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer"):
            active = [adapter for adapter in module.active_adapters if adapter in getattr(module, "lora_A", {})]
            deltas[name] = [module.get_delta_weight(adapter) for adapter in active]
    for name, parameter in model.named_parameters():
        owner, base, leaf = name.partition(".base_layer.")
        if base and owner in deltas:
            merged = parameter.detach()
            for delta in deltas[owner] if leaf == "weight" else []:
                merged = merged + delta.to(merged)
            yield f"{owner.removeprefix('base_model.model.')}.{leaf}", merged
        elif ".lora_" not in name:
            yield name.removeprefix("base_model.model."), parameter.detach()
