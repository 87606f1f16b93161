"""What scoring gives: log-probabilities of targets, token by token, and the plain aggregates."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class SpanScores:
    """N targets of up to L tokens.

    Attributes:
        values: [N, L], or [N, L, K] for gather="token_ids"; natural logs in float32 (or raw logits). 0 where `mask` is False.
        mask: [N, L] bool, a token of the target.
        ids: [N, L] int64, the target's tokens (-1 at padding, and for a next-token question).
        offsets: [N, L, 2] int64, characters of each token in `texts[n]`.
        texts: N target texts, decoded from the ids.
        temperature: what the logits were divided by.
        reasons: {row: why values[row] holds NaN}.
    """

    values: Tensor
    mask: Tensor
    ids: Tensor
    offsets: Tensor
    texts: list[str]
    temperature: float = 1.0
    reasons: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> Tensor:
        """[N] int64, tokens of each target."""
        return self.mask.sum(1)

    def rows(self) -> list[Tensor]:
        """The values of each target without padding."""
        return [values[mask] for values, mask in zip(self.values, self.mask.to(self.values.device), strict=True)]

    def sum(self) -> Tensor:
        """[N] log-probability of the whole target; 0 for an empty one."""
        return self.values.sum(1)

    def mean(self) -> Tensor:
        """[N] mean log-probability a token; NaN for an empty target."""
        return self.values.sum(1) / self.lengths.to(self.values.device)

    def mean_prob(self) -> Tensor:
        """[N] mean probability a token (RLPR); NaN for an empty target."""
        return (self.values.exp() * self.mask.to(self.values.device)).sum(1) / self.lengths.to(self.values.device)
