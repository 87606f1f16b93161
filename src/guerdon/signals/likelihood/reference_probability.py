"""How probable the reference answer is after the policy's own reasoning: RLPR's signal (arXiv 2506.18254).

The policy's answer is swapped for the reference and one forward pass of the same policy gives the probability of each reference
token; their arithmetic mean is the score B, in [0, 1]. What the initial policy believed without any reasoning is the score A, computed
once for each (prompt, reference) and never refreshed. Rules and defaults follow the official code where the paper is silent.

Left out: a verifier beside the probability (the code's mixed rewards); shaping, which is in `guerdon.credit.shaping`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.errors import CapabilityError, ConfigError
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts

Aggregation = Literal["mean_prob", "mean_logprob", "prod_prob", "geo_mean_prob"]
Mode = Literal["R1", "R1_nothink"]


# --- pure functions --------------------------------------------------------------------------------------------------


def aggregate(
    logprobs: Tensor, mask: Tensor, aggregation: Aggregation = "mean_prob", *, round_bfloat16: bool = False
) -> Tensor:
    """One score from the log-probabilities of a reference's tokens.

    mean_prob 1/n sum exp(l);  mean_logprob 1/n sum l;  prod_prob exp(sum l) (VeriFree-like);  geo_mean_prob exp(1/n sum l)

    Args:
        logprobs: [..., L] natural logs.
        mask: [..., L] bool, the reference's tokens; an empty mask gives 0.
        aggregation: which.
        round_bfloat16: round the result as the official code does (about 0.4 % relative).

    Returns:
        [...] float32.
    """
    inside = mask.bool()
    values = torch.where(inside, logprobs.float(), 0.0)
    count = inside.sum(-1)
    total = values.sum(-1)
    if aggregation == "mean_prob":
        score = torch.where(inside, values.exp(), 0.0).sum(-1) / count.clamp(min=1)
    elif aggregation == "mean_logprob":
        score = total / count.clamp(min=1)
    elif aggregation == "prod_prob":
        score = total.exp()
    elif aggregation == "geo_mean_prob":
        score = (total / count.clamp(min=1)).exp()
    else:
        raise ConfigError(f"aggregation={aggregation!r}: use mean_prob, mean_logprob, prod_prob or geo_mean_prob")
    score = torch.where(count > 0, score, 0.0)
    return score.bfloat16().float() if round_bfloat16 else score


@dataclass(frozen=True)
class Splice:
    """A response with its answer swapped for the reference.

    Attributes:
        text: the spliced response; "" where the response cannot be spliced.
        start, end: characters of the reference in it, end exclusive.
        why: why it cannot be spliced; "" where it can.
    """

    text: str
    start: int
    end: int
    why: str = ""


def splice_reference(response: str, reference: str, mode: Mode = "R1") -> Splice:
    """Swap the text after <answer> for the reference.

    Valid iff there is exactly one <answer>, in mode "R1" also exactly one <think> and one </think>, in the order <think>, </think>,
    <answer>, and something that is not blank after <answer>. A missing </answer> does not matter. Kept: everything up to <answer>,
    and the model's own white space after it (one space if none); then reference, space, </answer>.
    """
    if mode not in ("R1", "R1_nothink"):
        raise ConfigError(f"mode={mode!r}: use 'R1' or 'R1_nothink'")
    tags = ("<think>", "</think>", "<answer>") if mode == "R1" else ("<answer>",)
    for tag in tags:
        if response.count(tag) != 1:
            return Splice("", 0, 0, f"{tag} occurs {response.count(tag)} times, expected once")
    places = [response.index(tag) for tag in tags]
    if places != sorted(places):
        return Splice("", 0, 0, f"the tags are not in the order {' '.join(tags)}")
    head, answer = response.split("<answer>")
    own = answer.removesuffix("</answer>")
    if not own.strip():
        return Splice("", 0, 0, "nothing after <answer>")
    lead = answer[: len(answer) - len(answer.lstrip(" \n\t\r"))] or " "
    before = f"{head}<answer>{lead}"
    return Splice(f"{before}{reference} </answer>", len(before), len(before) + len(reference))


def rlpr_reward(
    score_b: Tensor,
    score_a: Tensor,
    format_score: Tensor,
    *,
    format_coefficient: float = 0.1,
    shaping: str = "threshold_0",
    num_bins: int = 0,
) -> Tensor:
    """R = (1 - c) s + c format with s = shape(scoreB - scoreA); c = -1 means s where the format is right, else -1.

    Args:
        score_b, score_a, format_score: [B], scores in [0, 1], format 0 or 1.
        format_coefficient: c.
        shaping: a name of `credit.shaping.shaping_function`.
        num_bins: 0 = off, else s is rounded to multiples of 1/N (halves to even).
    """
    from guerdon.credit.shaping import shaping_function

    shaped = shaping_function(shaping)(score_b - score_a)
    if num_bins:
        shaped = torch.round(shaped * num_bins) / num_bins
    if format_coefficient == -1:
        return torch.where(format_score == 1, shaped, -1.0)
    return (1 - format_coefficient) * shaped + format_coefficient * format_score


# --- the signal ------------------------------------------------------------------------------------------------------


class ReferenceProbability:
    """Signal: the probability of the reference answer after the policy's reasoning, and (debias) without it.

    Gives `<name>.score` (B, of the current policy) and, with `debias`, `<name>.baseline` (A, of the initial policy). A response that
    cannot be spliced scores 0 with the reason: that is the policy's doing. A row without a reference is NaN.

    reference: the data column with the reference answer.
    mode: tag layout, "R1" or "R1_nothink".
    aggregation: see `aggregate`.
    temperature: what logits are divided by; the rollouts' sampling temperature in the official code.
    debias: also give the baseline. The System then needs models={"initial": Model("policy", "phase_start")}.
    max_tokens: prompt and spliced response longer than this score 0, as in the official code. None = no limit.
    """

    scope = "row"
    needs = frozenset({"policy"})

    def __init__(
        self,
        *,
        reference: str = "answer",
        mode: Mode = "R1",
        aggregation: Aggregation = "mean_prob",
        temperature: float = 1.0,
        debias: bool = True,
        round_bfloat16: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        splice_reference("", "", mode)  # refuses an unknown mode here
        aggregate(torch.zeros(1), torch.ones(1), aggregation)
        self.reference, self.mode, self.aggregation = reference, mode, aggregation
        self.temperature, self.debias, self.round_bfloat16 = temperature, debias, round_bfloat16
        self.max_tokens = max_tokens
        self.roles = ("policy", "initial") if debias else ("policy",)
        self.level: Any = {"score": "sequence", "baseline": "sequence"} if debias else "sequence"
        self._models: dict[str, Any] = {}
        self._baselines: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"ReferenceProbability({self.reference!r}, {self.mode!r}, {self.aggregation!r}, debias={self.debias})"

    def bind(self, role: str, instrument: Any) -> None:
        """Take the model of a role: a `guerdon.lm.LocalModel`."""
        self._models[role] = instrument

    def state_dict(self) -> dict[str, Any]:
        return {"baselines": dict(self._baselines)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._baselines = dict(state["baselines"])

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> Rewards | dict[str, Rewards]:
        references = [_reference_text(cell) for cell in rollouts.column(self.reference)]
        after, reasons = self._after_reasoning(rollouts, references)
        score = Rewards.sequence(after, rollouts, reasons)
        if not self.debias:
            return score
        baseline = torch.tensor(self._without_reasoning(rollouts, references))
        missing = {row: text for row, text in reasons.items() if references[row] is None}
        return {"score": score, "baseline": Rewards.sequence(baseline, rollouts, missing)}

    # -- details ------------------------------------------------------------------------------------------------------

    def _model(self, role: str) -> Any:
        if role not in self._models:
            raise CapabilityError(
                f"{self!r} needs the model {role!r}: an engine binds it, or call system.bind({role!r}, guerdon.lm.LocalModel(...))"
            )
        return self._models[role]

    def _after_reasoning(self, rollouts: Rollouts, references: Sequence[str | None]) -> tuple[Tensor, dict[int, str]]:
        """[B] score B, NaN where there is no reference, and the reasons."""
        values = torch.zeros(len(rollouts))
        reasons: dict[int, str] = {}
        rows, spliced = [], []
        for row, (response, reference) in enumerate(zip(rollouts.completions, references, strict=True)):
            if reference is None:
                values[row], reasons[row] = float("nan"), f"no reference in column {self.reference!r}"
                continue
            splice = splice_reference(response, reference, self.mode)
            if splice.why:
                reasons[row] = splice.why
            else:
                rows.append(row)
                spliced.append((_prompt(rollouts, row), splice.text, splice.start, splice.end))
        found, failed = self._score("policy", spliced)
        for index, row in enumerate(rows):
            values[row] = found[index]
            if index in failed:
                reasons[row] = failed[index]
        return values, reasons

    def _without_reasoning(self, rollouts: Rollouts, references: Sequence[str | None]) -> list[float]:
        """B times score A, from the cache where it is known."""
        keys = [None if ref is None else _key(rollouts.prompts[row], ref) for row, ref in enumerate(references)]
        wanted: dict[str, int] = {}
        for row, key in enumerate(keys):
            if key is not None and key not in self._baselines:
                wanted.setdefault(key, row)
        asked = [
            (_prompt(rollouts, row), f" {references[row]} ", 1, 1 + len(references[row] or ""))
            for row in wanted.values()
        ]
        if asked:
            found, _ = self._score("initial", asked)
            self._baselines |= dict(zip(wanted, found.tolist(), strict=True))
        return [float("nan") if key is None else self._baselines[key] for key in keys]

    def _score(self, role: str, asked: Sequence[tuple[Any, str, int, int]]) -> tuple[Tensor, dict[int, str]]:
        """Scores of marked parts of texts after contexts, and {index: why it is 0 or NaN}."""
        from guerdon.lm.encode import encode_with_target
        from guerdon.lm.scorer import SpanScorer

        if not asked:
            return torch.zeros(0), {}
        scorer = SpanScorer(self._model(role))
        parts = [
            encode_with_target(scorer.tokenizer, text, start, end, context=prompt) for prompt, text, start, end in asked
        ]
        too_long = [self.max_tokens is not None and len(part.ids) > self.max_tokens for part in parts]
        targets = [part.target & ~torch.tensor(long) for part, long in zip(parts, too_long, strict=True)]
        logprobs, failed = scorer.score_positions([part.ids for part in parts], targets, temperature=self.temperature)
        counts = torch.tensor([int(target.sum()) for target in targets])
        mask = torch.arange(logprobs.shape[1])[None] < counts[:, None]
        logprobs = logprobs.detach().cpu()
        score = aggregate(logprobs, mask, self.aggregation, round_bfloat16=self.round_bfloat16)
        broken = (logprobs.isnan() & mask).any(1)
        reasons = {
            i: f"longer than {self.max_tokens} tokens with the reference in place"
            for i, long in enumerate(too_long)
            if long
        }
        reasons |= {i: failed.get(i, "the model gave no probability") for i in broken.nonzero()[:, 0].tolist()}
        return torch.where(broken, float("nan"), score), reasons


def _reference_text(cell: Any) -> str | None:
    """The reference as text: the first of several; None where there is none."""
    if isinstance(cell, list | tuple):
        cell = cell[0] if cell else None
    text = "" if cell is None else str(cell)
    return text if text.strip() else None


def _prompt(rollouts: Rollouts, row: int) -> Any:
    """The prompt as ids where they are known, so that what the policy saw is what is scored; else as it is."""
    if rollouts.prompt_ids is None or rollouts.prompt_mask is None:
        return rollouts.prompts[row]
    return rollouts.prompt_ids[row][rollouts.prompt_mask[row].bool()].cpu()


def _key(prompt: Any, reference: str) -> str:
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(f"{text}\n\n\n{reference}".encode(), digest_size=16).hexdigest()
