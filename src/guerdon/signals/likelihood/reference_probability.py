"""How probable the reference answer is after the policy's own reasoning: RLPR's signal (arXiv 2506.18254).

The policy's answer is swapped for the reference and one forward pass of the same policy gives the probability of each reference
token; their arithmetic mean is the score B, in [0, 1]. What the initial policy believed without any reasoning is the score A, computed
once for each (prompt, reference) and never refreshed. Rules and defaults follow the official code where the paper is silent.

Finding, splicing and scoring references is `guerdon.signals.likelihood.reference`, shared with the rest of the family.

Left out: a verifier beside the probability (the code's mixed rewards); shaping, which is in `guerdon.credit.shaping`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import Any

import torch
from torch import Tensor

from guerdon.options import checked
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.likelihood.aggregate import Aggregation, aggregate, check_aggregation
from guerdon.signals.likelihood.reference import (
    Bound,
    PairScores,
    Placed,
    Reduction,
    ReferenceScorer,
    pair_weights,
    prompt_of,
    references_of,
    to_rows,
)
from guerdon.signals.likelihood.splice import Mode, RLPRSplice, Splice, Splicer, splice_reference, splicer


@checked
class ReferenceProbability(Bound):
    """Signal: the probability of the reference answer after the policy's reasoning, and (debias) without it.

    Gives `<name>.score` (B, of the current policy) and, with `debias`, `<name>.baseline` (A, of the initial policy). A response that
    cannot be spliced scores 0 with the reason: that is the policy's doing. A row without a reference is NaN.

    reference: the data column with the reference answer, or a list of equally right ones.
    mode: tag layout, "R1", "R1_opened" (the prompt writes the <think>, as some chat templates do) or "R1_nothink".
    splice: where the reference goes in responses of another layout: a name of `SPLICES` or a callable; None = the mode's.
    aggregation: see `aggregate`.
    temperature: what logits are divided by; the rollouts' sampling temperature in the official code.
    debias: also give the baseline. The System then needs models={"initial": Model("policy", "phase_start")}.
    max_tokens: prompt and spliced response longer than this score 0, as in the official code. None = no limit.
    references: of several references, score and baseline each take the "max", the "first" or the "mean".
    """

    scope = "row"
    needs = frozenset({"policy"})

    def __init__(
        self,
        *,
        reference: str = "answer",
        mode: Mode = "R1",
        splice: str | Splicer | None = None,
        aggregation: Aggregation = "mean_prob",
        temperature: float = 1.0,
        debias: bool = True,
        round_bfloat16: bool = False,
        max_tokens: int | None = None,
        references: Reduction = "max",
    ) -> None:
        super().__init__()
        check_aggregation(aggregation)
        pair_weights(torch.zeros(0), torch.zeros(0, dtype=torch.long), references)  # refuses an unknown name here
        rule = RLPRSplice(mode) if splice is None else splicer(splice)
        self.scorer = ReferenceScorer(reference, rule, temperature=temperature, max_tokens=max_tokens)
        self.mode, self.aggregation, self.references = mode, aggregation, references
        self.debias, self.round_bfloat16 = debias, round_bfloat16
        self.roles = ("policy", "initial") if debias else ("policy",)
        self.level: Any = {"score": "sequence", "baseline": "sequence"} if debias else "sequence"
        self._baselines: dict[str, float] = {}
        self._prompts_read = False

    @property
    def sampling_temperature(self) -> float:
        """What logits are divided by: meant to be what the rollouts were sampled at."""
        return self.scorer.temperature

    def __repr__(self) -> str:
        layout = self.mode if self.scorer.splice == RLPRSplice(self.mode) else self.scorer.splice
        return f"ReferenceProbability({self.scorer.column!r}, {layout!r}, {self.aggregation!r}, debias={self.debias})"

    def state_dict(self) -> dict[str, Any]:
        return {"baselines": dict(self._baselines)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._baselines = dict(state["baselines"])

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> Rewards | dict[str, Rewards]:
        model = self.model("policy")
        self._read_prompts(model.tokenizer, rollouts)
        placed = self.scorer.place(model.tokenizer, rollouts)
        pairs = self.scorer.score(model, placed)
        reasons = placed.failing | placed.missing | {int(placed.rows[i]): why for i, why in pairs.failed.items()}
        after = self._reduced(self._values(pairs), placed, len(rollouts))
        score = Rewards.sequence(after, rollouts, reasons)
        if not self.debias:
            return score
        return {"score": score, "baseline": Rewards.sequence(*self._without_reasoning(rollouts))}

    # -- details ------------------------------------------------------------------------------------------------------

    def _read_prompts(self, tokenizer: Any, rollouts: Rollouts) -> None:
        """Warn, once, where the layout wants a <think> of the response that the prompt has written already."""
        if self._prompts_read or not len(rollouts):
            return
        self._prompts_read = True
        from guerdon.lm.encode import encode_prompt

        ending = tokenizer.decode(encode_prompt(tokenizer, prompt_of(rollouts, 0))[-16:])
        if self.scorer.splice == RLPRSplice("R1") and ending.rstrip().endswith("<think>"):
            warnings.warn(
                "the prompt ends in an open <think> (the chat template writes it), so no response has the tag that the layout 'R1' asks for, and "
                "all score 0: use format_mode='R1_opened' (mode='R1_opened' of ReferenceProbability, opened_by_prompt=True of ThinkFormat)",
                stacklevel=3,
            )

    def _values(self, pairs: PairScores) -> Tensor:
        """[N] of the pairs, NaN where the model failed."""
        values = aggregate(pairs.logprobs, pairs.mask, self.aggregation, round_bfloat16=self.round_bfloat16)
        return values.index_fill(0, torch.tensor(list(pairs.failed), dtype=torch.long), float("nan"))

    def _reduced(self, values: Tensor, placed: Placed, size: int) -> Tensor:
        """[B]: 0 where the response could not be spliced, NaN where there is no reference."""
        weights = pair_weights(values, placed.rows, self.references)
        rows = to_rows(values, weights, placed.rows, size, 0.0)
        return rows.index_fill(0, torch.tensor(list(placed.missing), dtype=torch.long), float("nan"))

    def _without_reasoning(self, rollouts: Rollouts) -> tuple[Tensor, Rollouts, dict[int, str]]:
        """Score A of each row, from the cache where it is known; with what `Rewards.sequence` takes besides."""
        cells = [references_of(cell) for cell in rollouts.column(self.scorer.column)]
        pairs = [(row, reference) for row, references in enumerate(cells) for reference in references]
        keys = [_key(rollouts.prompts[row], reference) for row, reference in pairs]
        wanted: dict[str, tuple[int, Splice]] = {}
        for key, (row, reference) in zip(keys, pairs, strict=True):
            if key not in self._baselines:
                wanted.setdefault(key, (row, Splice(f" {reference} ", 1, 1 + len(reference))))
        if wanted:
            model = self.model("initial")
            placed = self.scorer.encode(model.tokenizer, rollouts, list(wanted.values()))
            found = self._values(self.scorer.score(model, placed)).tolist()
            names = list(wanted)
            # One too long for the limit has the value 0, as a response that is too long.
            self._baselines |= dict.fromkeys(names, 0.0)
            self._baselines |= {names[i]: value for i, value in zip(placed.asked, found, strict=True)}
        values = torch.tensor([self._baselines[key] for key in keys], dtype=torch.float32)
        missing = {row: f"no reference in column {self.scorer.column!r}" for row, refs in enumerate(cells) if not refs}
        rows = Placed([], [], torch.tensor([row for row, _ in pairs], dtype=torch.long), missing=missing)
        return self._reduced(values, rows, len(rollouts)), rollouts, missing


def _key(prompt: Any, reference: str) -> str:
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(f"{text}\n\n\n{reference}".encode(), digest_size=16).hexdigest()


__all__ = [
    "Aggregation",
    "Mode",
    "ReferenceProbability",
    "Splice",
    "aggregate",
    "splice_reference",
]
