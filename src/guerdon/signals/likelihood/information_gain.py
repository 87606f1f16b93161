"""What each turn of an agent adds to the policy's own belief in the true answer: IGPO's signal (arXiv 2510.14967).

Before every turn the policy is asked, in one teacher-forced forward, how probable the reference answer would be if it had to answer now:

    prefix_t + head + ANSWER          c_t = exp( 1/L sum_j log pi(a_j | prefix_t, head, a_<j) )          gain_t = c_{t+1} - c_t

Turn t is paid what the history gained between the beginning of turn t and the beginning of the next: its own text and what the tool
answered. The last turn (the answer, or a malformed call) has no gain. Gains of a rollout add up to c_last - c_first.

The prefix is ids as they were sampled, head and answer are tokenised by themselves and appended, so that the answer's tokens are the
same after every prefix and none merges with its surroundings. What the official template has after the answer (a closing tag) cannot
change the probability of what stands before it, so it is not there. The answer never enters a rollout: these are copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.errors import CapabilityError, ConfigError
from guerdon.options import checked
from guerdon.rewards import Reasons, Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.verifiable.tagged_answer import alternatives
from guerdon.spans import Spans

Confidence = Literal["prob", "logprob"]
# What the official code puts before the answer. Its prompts end with the opening think tag; there, leave the tag out.
ANSWER_HEAD = "<think>\nNow there's enough information to answer\n</think>\n<answer>\n"


# --- pure functions --------------------------------------------------------------------------------------------------


def answer_confidence(logprobs: Tensor, mask: Tensor, mode: Confidence = "prob") -> Tensor:
    """How sure the policy is of an answer: exp(mean log-probability), the geometric mean, or the mean log-probability.

    Args:
        logprobs: [..., L] natural logs of the answer's tokens.
        mask: [..., L] bool, the answer's tokens.
        mode: "prob" in [0, 1] (arXiv v1 and code; underflows to 0 for very unlikely answers) or "logprob" (ICLR text; does not).

    Returns:
        [...] float64; NaN for an answer without tokens.
    """
    if mode not in ("prob", "logprob"):
        raise ConfigError(f"confidence={mode!r}: use 'prob' or 'logprob'")
    mean = torch.where(mask, logprobs.double(), 0.0).sum(-1) / mask.sum(-1)
    return mean.exp() if mode == "prob" else mean


def information_gains(confidences: Tensor) -> Tensor:
    """c_{t+1} - c_t along the last dimension. [..., S] -> [..., max(S - 1, 0)]."""
    return confidences.diff(dim=-1)


# --- the signal ------------------------------------------------------------------------------------------------------


@checked
class InformationGain:
    """Signal: how much each turn raised the policy's probability of the reference answer.

    Gives `<name>.gain` at the level of the turns, one value for every turn but the last, and for the log the confidences
    `<name>.start` (before the first turn) and `<name>.end` (before the last). A row without a reference is NaN, and so is one whose
    answer the model gives no finite log-probability.

    reference: the data column; of several answers (a list, or `<|answer_split|>` in the text) the first is scored.
    confidence: "prob" or "logprob", see `answer_confidence`.
    head: text between the history and the answer. It has to fit how the policy answers.
    turns: the segmentation; in token spans where there are tokens. Where a turn begins is where the state before it ends.
    temperature: what logits are divided by.
    """

    scope = "row"
    needs = frozenset({"policy"})
    roles = ("policy",)

    def __init__(
        self,
        *,
        reference: str = "answer",
        confidence: Confidence = "prob",
        head: str = ANSWER_HEAD,
        turns: str = "turns",
        temperature: float = 1.0,
    ) -> None:
        answer_confidence(torch.zeros(1), torch.ones(1, dtype=torch.bool), confidence)  # refuses an unknown mode here
        self.reference, self.confidence, self.head = reference, confidence, head
        self.turns, self.temperature = turns, temperature
        self.level = {"gain": turns, "start": "sequence", "end": "sequence"}
        self._model: Any = None

    def __repr__(self) -> str:
        return f"InformationGain({self.reference!r}, {self.confidence!r}, head={self.head!r}, temperature={self.temperature})"

    def bind(self, role: str, instrument: Any) -> None:
        """Take the policy: a `guerdon.lm.LocalModel`."""
        self._model = instrument

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> dict[str, Rewards]:
        rollouts = rollouts.to("cpu")  # turns are worked with one by one
        spans = rollouts.segment(self.turns)
        paid = replace(spans, mask=_all_but_last(spans.mask))
        confidences, why = self.confidences(rollouts)
        values = torch.zeros(spans.mask.shape, dtype=torch.float64)
        start, end = torch.zeros(len(rollouts)), torch.zeros(len(rollouts))
        for row, states in enumerate(confidences):
            gains = information_gains(states)
            values[row, : len(gains)] = gains
            start[row], end[row] = states[0], states[-1]
        reasons: Reasons = {
            (row, span): text for row, text in why.items() for span in paid.mask[row].nonzero()[:, 0].tolist()
        }
        return {
            "gain": Rewards(torch.where(paid.mask, values, 0.0).float(), paid, reasons),
            "start": Rewards.sequence(start, rollouts, why),
            "end": Rewards.sequence(end, rollouts, why),
        }

    def confidences(self, rollouts: Rollouts) -> tuple[list[Tensor], dict[int, str]]:
        """The policy's confidence in the answer before each turn.

        Returns:
            B tensors [max(1, T_b)] float64, in order of the turns (a row without turns has the state of its prompt), all NaN where
            a row cannot be scored; {row: why}.
        """
        if self._model is None:
            raise CapabilityError(
                f"{self!r} needs the model 'policy': an engine binds it, or call system.bind('policy', guerdon.lm.LocalModel(...))"
            )
        from guerdon.lm.encode import encode_continuation

        tokenizer = self._model.tokenizer
        spans = rollouts.segment(self.turns)
        counts = spans.counts.clamp(min=1).tolist()
        found = [torch.full((count,), float("nan"), dtype=torch.float64) for count in counts]
        reasons: dict[int, str] = {}
        head = encode_continuation(tokenizer, self.head)
        asked: list[tuple[int, list[Tensor], Tensor]] = []
        for row, cell in enumerate(rollouts.column(self.reference)):
            answers = alternatives(cell)
            if not answers:
                reasons[row] = f"no reference in column {self.reference!r}"
                continue
            prefixes = [torch.cat([state, head]) for state in turn_states(rollouts, spans, row, tokenizer)]
            asked.append((row, prefixes, encode_continuation(tokenizer, answers[0].strip())))
        scored = answer_logprobs(
            self._model, [p for _, p, _ in asked], [a for *_, a in asked], temperature=self.temperature
        )
        for (row, _, _), logprobs in zip(asked, scored, strict=True):
            states = answer_confidence(logprobs, torch.ones_like(logprobs, dtype=torch.bool), self.confidence)
            if bool(torch.isfinite(logprobs).all()) and logprobs.numel():
                found[row] = states
            else:
                reasons[row] = "the model gave the answer no finite log-probability"
        return found, reasons


def answer_logprobs(
    model: Any,
    prefixes: Sequence[Sequence[Tensor]],
    answers: Sequence[Tensor],
    *,
    temperature: float = 1.0,
    share: Any = "auto",
) -> list[Tensor]:
    """Log-probabilities of a row's answer after each of the row's prefixes.

    Args:
        model: a LocalModel.
        prefixes: for each row its prefixes, id tensors.
        answers: for each row the answer's ids [L].
        temperature: divides the logits.
        share: "auto" forwards what the prefixes have in common once, in one packed pass where the model allows; "padded" is a row
            for each prefix (`guerdon.lm.shared`). The numbers are the same.

    Returns:
        for each row [S, L] float32 on the CPU, without a graph.
    """
    from guerdon.lm.scorer import SpanScorer

    contexts = [prefix for row in prefixes for prefix in row]
    if not contexts:
        return [torch.zeros(0, len(answer)) for answer in answers]
    targets = [answer for row, answer in zip(prefixes, answers, strict=True) for _ in row]
    scores = SpanScorer(model, share=share).score(contexts, targets, temperature=temperature)
    rows = iter(scores.rows())
    return [
        torch.stack([next(rows).detach().cpu() for _ in row]) if row else torch.zeros(0, len(answer))
        for row, answer in zip(prefixes, answers, strict=True)
    ]


def turn_states(rollouts: Rollouts, spans: Spans, row: int, tokenizer: Any) -> list[Tensor]:
    """The history before each turn of a row, as ids: the prompt, and the completion up to where the turn begins.

    Rows without tokens are cut by characters and tokenised piece by piece. A row without turns has one state, its prompt.
    """
    from guerdon.lm.encode import encode_continuation, encode_prompt
    from guerdon.segment import to_token_spans

    if rollouts.completion_ids is None:
        prompt = encode_prompt(tokenizer, rollouts.prompts[row])
        text = rollouts.completions[row]
        starts = spans.start[row][spans.mask[row]].tolist() or [0]
        return [torch.cat([prompt, encode_continuation(tokenizer, text[:start])]) for start in starts]
    tokens = (
        to_token_spans(spans.select([row]), rollouts.select([row])) if spans.unit == "char" else spans.select([row])
    )
    if rollouts.prompt_ids is None or rollouts.prompt_mask is None:
        prompt = encode_prompt(tokenizer, rollouts.prompts[row])
    else:
        prompt = rollouts.prompt_ids[row][rollouts.prompt_mask[row].bool()].cpu()
    completion = rollouts.completion_ids[row][rollouts.mask[row]].cpu()
    starts = tokens.start[0][tokens.mask[0]].tolist() or [0]
    return [torch.cat([prompt, completion[:start]]) for start in starts]


def _all_but_last(mask: Tensor) -> Tensor:
    """[B, S] bool: the spans of each row that another one follows."""
    following = torch.nn.functional.pad(mask[:, 1:], (0, 1)) if mask.shape[1] else mask
    return mask & following
