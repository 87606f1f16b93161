"""Scoring references in the place of answers: what every member of the likelihood family shares.

A data column holds one reference a row, or a list of equally right ones. Each is spliced into its row's completion
(`splice`), the spliced sequences are scored in one call (`guerdon.lm.scorer`), and what comes out are PAIRS (row, reference)
with the log-probabilities of the scored tokens. A number per row comes from an aggregation over tokens and, where there are
several references, a reduction over pairs.

Ids that are known stay: prompts as the policy saw them, the kept part of a completion as it was sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.errors import CapabilityError, ConfigError
from guerdon.options import checked, require_range
from guerdon.rollouts import Rollouts
from guerdon.signals.likelihood.splice import Splice, Splicer
from guerdon.signals.verifiable.references import reference_values

Reduction = Literal["max", "first", "mean"]
REDUCTIONS = ("max", "first", "mean")


@dataclass(frozen=True)
class Placed:
    """N references in place, of B rows.

    Attributes:
        sequences: N id tensors [T_n].
        targets: N bool tensors [T_n], the tokens that are scored.
        rows: [N] int64, the row each belongs to, ascending; a row's references in the order of its column.
        failing: {row: why it could not be spliced}: the policy's doing.
        missing: {row: why there is nothing to splice}: no reference.
        reasoning: [B] int64, tokens of each completion before its answer (all of them where it could not be spliced).
        asked: [N], each pair's place among the splices that were asked for; those longer than the limit are left out.
    """

    sequences: list[Tensor]
    targets: list[Tensor]
    rows: Tensor
    failing: dict[int, str] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)
    reasoning: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    asked: Sequence[int] = ()


@dataclass(frozen=True)
class PairScores:
    """Log-probabilities of N references.

    Attributes:
        logprobs: [N, L] float32, 0 outside `mask`.
        mask: [N, L] bool, scored tokens, on the device of `logprobs`.
        failed: {pair: why the model gave no number}.
    """

    logprobs: Tensor
    mask: Tensor
    failed: dict[int, str]


def references_of(cell: Any) -> list[str]:
    """The references of one data cell, as texts: `read_references` of the kind "literal"; those that are missing are none."""
    return [str(value) for value in reference_values(cell, "literal")]


def pair_weights(values: Tensor, rows: Tensor, reduction: Reduction) -> Tensor:
    """[N] weights that turn pairs into rows: row value = sum over its pairs of weight x value.

    Args:
        values: [N], compared by "max" (the earliest of equals wins).
        rows: [N] int64, ascending.
        reduction: "max" the best reference, "first" the first, "mean" all alike.

    Returns:
        [N] float32 without a graph, summing to 1 in each row.
    """
    if reduction not in REDUCTIONS:
        raise ConfigError(f"references={reduction!r}: use one of {', '.join(REDUCTIONS)}")
    size = int(rows[-1]) + 1 if len(rows) else 0
    index = torch.arange(len(rows))
    if reduction == "mean":
        return 1.0 / torch.bincount(rows, minlength=size).clamp(min=1)[rows].float()
    allowed = torch.ones(len(rows), dtype=torch.bool)
    if reduction == "max":
        values = values.detach().cpu().nan_to_num(nan=float("inf"))  # a failed pair is not hidden behind another
        best = torch.full((size,), float("-inf"), dtype=values.dtype).scatter_reduce(0, rows, values, "amax")
        allowed = values == best[rows]
    first = torch.full((size,), len(rows)).scatter_reduce(0, rows[allowed], index[allowed], "amin")
    return (index == first[rows]).float()


def to_rows(values: Tensor, weights: Tensor, rows: Tensor, size: int, fill: float) -> Tensor:
    """[B]: weighted sums of the pairs of each row; `fill` where a row has none."""
    chosen = torch.where(weights > 0, values * weights, 0.0)
    total = torch.zeros(size, dtype=values.dtype).index_add(0, rows, chosen)
    owned = torch.zeros(size, dtype=torch.bool).index_fill(0, rows, True)
    return torch.where(owned, total, fill)


@checked
class ReferenceScorer:
    """Finds, splices and scores references.

    Args:
        column: data column of the references.
        splice: (response, reference) -> Splice.
        temperature: the logits are divided by it; the rollouts' sampling temperature in the official codes.
        max_tokens: a sequence longer than this with the reference in place fails. None = no limit.
        truncated: a completion cut at the length cap: "fail" like one without an answer (VeriFree), or "score" what is there.
    """

    def __init__(
        self,
        column: str,
        splice: Splicer,
        *,
        temperature: float = 1.0,
        max_tokens: int | None = None,
        truncated: Literal["fail", "score"] = "score",
    ) -> None:
        if truncated not in ("fail", "score"):
            raise ConfigError(f"truncated={truncated!r}: use 'fail' or 'score'")
        require_range(0, temperature=temperature, above=True)
        self.column, self.splice, self.temperature = column, splice, temperature
        self.max_tokens, self.truncated = max_tokens, truncated

    def place(self, tokenizer: Any, rollouts: Rollouts) -> Placed:
        """Every row's references in the place of its answer."""
        failing: dict[int, str] = {}
        missing: dict[int, str] = {}
        asked: list[tuple[int, Splice]] = []
        ends = [len(text) + 1 for text in rollouts.completions]  # one more: the end-of-sequence token, too
        for row, (cell, response) in enumerate(zip(rollouts.column(self.column), rollouts.masked_texts, strict=True)):
            references = references_of(cell)
            cut = self.truncated == "fail" and rollouts.finished is not None and not bool(rollouts.finished[row])
            splices = [self.splice(response, reference) for reference in references]
            if not references:
                missing[row] = f"no reference in column {self.column!r}"
            elif cut or splices[0].why:
                failing[row] = "cut at the length cap" if cut else splices[0].why
            else:
                ends[row] = splices[0].reasoning
                asked += [(row, splice) for splice in splices]
        return self.encode(tokenizer, rollouts, asked, failing, missing, _tokens_before(tokenizer, rollouts, ends))

    def encode(
        self,
        tokenizer: Any,
        rollouts: Rollouts,
        asked: Sequence[tuple[int, Splice]],
        failing: dict[int, str] | None = None,
        missing: dict[int, str] | None = None,
        reasoning: Tensor | None = None,
    ) -> Placed:
        """Splices of rows, in ids. A row none of whose sequences fits `max_tokens` fails."""
        from guerdon.lm.encode import encode_with_target

        failing = {} if failing is None else failing
        contexts: dict[tuple[int, int], Tensor] = {}
        pairs = []
        for row, splice in asked:
            key = (row, splice.kept)
            if key not in contexts:
                contexts[key] = _context(tokenizer, rollouts, row, splice.kept)
            part = encode_with_target(tokenizer, splice.text, splice.start, splice.end, context=contexts[key])
            pairs.append((row, part))
        short = [i for i, (_, p) in enumerate(pairs) if self.max_tokens is None or len(p.ids) <= self.max_tokens]
        kept = {pairs[i][0] for i in short}
        long = f"longer than {self.max_tokens} tokens with the reference in place"
        failing |= {row: long for row, _ in pairs if row not in kept}
        return Placed(
            [pairs[i][1].ids for i in short],
            [pairs[i][1].target for i in short],
            torch.tensor([pairs[i][0] for i in short], dtype=torch.long),
            failing,
            missing or {},
            rollouts.lengths if reasoning is None else reasoning,
            short,
        )

    def score(self, model: Any, placed: Placed, *, grad: bool = False) -> PairScores:
        """Log-probabilities under a `guerdon.lm.LocalModel`; `grad` keeps the graph (and the device)."""
        from guerdon.lm.scorer import SpanScorer

        if not placed.sequences:
            return PairScores(torch.zeros(0, 0), torch.zeros(0, 0, dtype=torch.bool), {})
        logprobs, failed = SpanScorer(model).score_positions(
            placed.sequences, placed.targets, temperature=self.temperature, grad=grad
        )
        counts = torch.tensor([int(target.sum()) for target in placed.targets])
        logprobs = logprobs if grad else logprobs.detach().cpu()
        mask = torch.arange(logprobs.shape[1])[None] < counts[:, None]
        mask = mask.to(logprobs.device)
        broken = (logprobs.detach().isnan() & mask).any(1)
        return PairScores(
            logprobs,
            mask,
            {i: failed.get(i, "the model gave no probability") for i in broken.nonzero()[:, 0].tolist()},
        )


class Bound:
    """Models by role, handed over by an engine (`bind`) and asked for by name (`model`)."""

    def __init__(self) -> None:
        self._models: dict[str, Any] = {}

    def bind(self, role: str, instrument: Any) -> None:
        """Take the model of a role: a `guerdon.lm.LocalModel`."""
        self._models[role] = instrument

    def model(self, role: str) -> Any:
        if role not in self._models:
            raise CapabilityError(
                f"{self!r} needs the model {role!r}: an engine binds it, or call system.bind({role!r}, guerdon.lm.LocalModel(...))"
            )
        return self._models[role]


# -- details -----------------------------------------------------------------------------------------------------------


def prompt_of(rollouts: Rollouts, row: int) -> Any:
    """The prompt as ids where they are known, so that what the policy saw is what is scored; else as it is."""
    if rollouts.prompt_ids is None or rollouts.prompt_mask is None:
        return rollouts.prompts[row]
    return rollouts.prompt_ids[row][rollouts.prompt_mask[row].bool()].cpu()


def _context(tokenizer: Any, rollouts: Rollouts, row: int, kept: int) -> Tensor:
    """Ids of the prompt and of the first `kept` characters of the completion; a token cut in two is written anew."""
    from guerdon.lm.encode import encode_continuation, encode_prompt

    before = encode_prompt(tokenizer, prompt_of(rollouts, row))
    if kept == 0:
        return before
    text = rollouts.completions[row]
    if rollouts.completion_ids is None or rollouts.offsets is None:
        return torch.cat([before, encode_continuation(tokenizer, text[:kept])])
    whole, reached = 0, 0
    for start, end in rollouts.offsets[row][rollouts.mask[row]].tolist():
        if start >= kept or end > kept:
            break
        whole, reached = whole + 1, end
    sampled = rollouts.completion_ids[row][rollouts.mask[row]][:whole].cpu()
    rest = encode_continuation(tokenizer, text[reached:kept]) if reached < kept else sampled[:0]
    return torch.cat([before, sampled, rest])


def _tokens_before(tokenizer: Any, rollouts: Rollouts, ends: Sequence[int]) -> Tensor:
    """[B] int64: tokens of each completion that begin before a character."""
    if rollouts.completion_ids is not None and rollouts.offsets is not None:
        begins = rollouts.offsets[..., 0].cpu() < torch.tensor(list(ends), dtype=torch.long)[:, None]
        return (begins & rollouts.mask.cpu()).sum(1)
    from guerdon.lm.encode import encode_continuation

    return torch.tensor(
        [len(encode_continuation(tokenizer, text[:end])) for text, end in zip(rollouts.completions, ends, strict=True)],
        dtype=torch.long,
    )
