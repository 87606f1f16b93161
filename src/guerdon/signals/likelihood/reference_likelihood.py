"""How likely the reference is after the policy's own reasoning, in every form the literature uses (arXiv 2602.03979).

One forward pass of the policy over (prompt, reasoning, reference) gives l_j, the log-probability of each reference token, and
`guerdon.signals.likelihood.aggregate` makes one number of them. Only the logarithm keeps a gradient whatever the length.

No answer is sampled or read: what the completion says after the place of the reference changes nothing, and the reward
therefore stands on the tokens before it. Whether the reference's own tokens are trained, too, is an objective's business
(`guerdon.objectives.answer_likelihood`), which uses the same `scorer`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.errors import ConfigError
from guerdon.options import checked
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.likelihood.aggregate import LOG_FORMS, Aggregation, aggregate, check_aggregation
from guerdon.signals.likelihood.reference import (
    Bound,
    PairScores,
    Placed,
    Reduction,
    ReferenceScorer,
    pair_weights,
    to_rows,
)
from guerdon.signals.likelihood.splice import Splicer, splicer
from guerdon.spans import Spans

MISSING_LOGPROB = -100.0  # where not one row of a group has a place for the reference; the rows are then all alike


@checked
class ReferenceLikelihood(Bound):
    """Signal: the reference's likelihood after each completion's reasoning.

    Gives five sources, one value a row:

    score: the aggregate, what is optimised. logprob: S, of the whole reference. tokens: n. reasoning: tokens of the completion before
    the place of the reference. answered: 1, or 0 where the completion has no such place; then score and logprob are 0 (a
    probability) or `missing` (a logarithm), with the reason.

    A row without a reference is NaN in all of them.

    Args:
        reference: the data column with the reference, or a list of equally right ones.
        aggregation: see `aggregate`.
        splice: where the reference goes, a name of `SPLICES` or a callable (response, reference) -> Splice.
        temperature: what logits are divided by; the rollouts' sampling temperature.
        references: of several references the "max" (by score), the "first", or the "mean".
        truncated: a completion cut at the length cap: "fail" (as if it had no place for the reference) or "score".
        missing: a finite number in the place of -inf, so that no mean ever holds one.
        span: "reasoning" = the reward stands on the tokens before the place of the reference (what follows has no influence on
            it), "completion" = on all.
        max_tokens: a sequence longer than this with the reference in place counts as one without a place. None = no limit.
    """

    scope = "row"
    needs = frozenset({"policy"})
    roles = ("policy",)
    subs = ("score", "logprob", "tokens", "reasoning", "answered")

    def __init__(
        self,
        *,
        reference: str = "answer",
        aggregation: Aggregation = "logprob",
        splice: str | Splicer = "answer",
        temperature: float = 1.0,
        references: Reduction = "max",
        truncated: Literal["fail", "score"] = "fail",
        missing: float = MISSING_LOGPROB,
        span: Literal["reasoning", "completion"] = "reasoning",
        max_tokens: int | None = None,
    ) -> None:
        super().__init__()
        check_aggregation(aggregation)
        pair_weights(torch.zeros(0), torch.zeros(0, dtype=torch.long), references)  # refuses an unknown name here
        if not abs(missing) < float("inf"):
            raise ConfigError(f"missing={missing}: a finite number, or group means would not be")
        if span not in ("reasoning", "completion"):
            raise ConfigError(f"span={span!r}: use 'reasoning' or 'completion'")
        self.scorer = ReferenceScorer(
            reference, splicer(splice), temperature=temperature, max_tokens=max_tokens, truncated=truncated
        )
        self.aggregation, self.references, self.missing, self.span = aggregation, references, missing, span
        self.splice = splice if isinstance(splice, str) else repr(splice)
        self.level: Any = dict.fromkeys(self.subs, "sequence")

    @property
    def sampling_temperature(self) -> float:
        """What logits are divided by: meant to be what the rollouts were sampled at."""
        return self.scorer.temperature

    def __repr__(self) -> str:
        return f"ReferenceLikelihood({self.scorer.column!r}, {self.aggregation!r}, splice={self.splice!r})"

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> dict[str, Rewards]:
        model = self.model("policy")
        placed = self.scorer.place(model.tokenizer, rollouts)
        pairs = self.scorer.score(model, placed)
        columns = self.rows_of(placed, pairs, len(rollouts))
        reasons = placed.failing | placed.missing | {int(placed.rows[i]): why for i, why in pairs.failed.items()}
        spans = self._spans(rollouts, placed)
        cells = {(row, 0): why for row, why in reasons.items()}
        return {name: Rewards(columns[name][:, None], spans, cells) for name in self.subs}

    def values(self, pairs: PairScores) -> Tensor:
        """[N] aggregates of the pairs, NaN where the model failed, detached."""
        values = aggregate(pairs.logprobs.detach(), pairs.mask, self.aggregation).cpu()
        return values.index_fill(0, torch.tensor(list(pairs.failed), dtype=torch.long), float("nan"))

    def rows_of(self, placed: Placed, pairs: PairScores, size: int) -> dict[str, Tensor]:
        """The five sources as [B] tensors."""
        values = self.values(pairs)
        weights = pair_weights(values, placed.rows, self.references)
        lacking = self.missing if self.aggregation in LOG_FORMS else 0.0
        total = aggregate(pairs.logprobs.detach(), pairs.mask, "logprob").cpu()
        found = {
            "score": to_rows(values, weights, placed.rows, size, lacking),
            "logprob": to_rows(total, weights, placed.rows, size, self.missing),
            "tokens": to_rows(pairs.mask.sum(1).cpu().float(), weights, placed.rows, size, 0.0),
            "reasoning": placed.reasoning.float(),
            "answered": to_rows(torch.ones(len(values)), weights, placed.rows, size, 0.0),
        }
        unknown = torch.zeros(size, dtype=torch.bool)
        unknown[list(placed.missing)] = True
        unknown |= found["score"].isnan()
        return {name: column.masked_fill(unknown, float("nan")) for name, column in found.items()}

    def _spans(self, rollouts: Rollouts, placed: Placed) -> Spans:
        if self.span == "completion" or not rollouts.has_tokens:
            return Spans.sequence(rollouts.lengths)
        return Spans.sequence(torch.minimum(placed.reasoning.cpu(), rollouts.lengths.cpu()))
