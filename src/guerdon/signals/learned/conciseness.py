"""How concise a piece of reasoning is, in [0.1, 1], as a language model says it: CRM's score (arXiv 2511.09158).

A conciseness reward model (CRM) reads a question and a solution and writes "Score: 0.8"; it is trained by `train_crm` on what a large judge
said, and the same signal asks a judge directly. It is meant to judge content (repetition, irrelevant steps, wasted words), not to
count tokens. The prompt's wording is ours: the paper's was not available.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from guerdon.errors import ConfigError
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.placing import OnDevice, place

LOWEST, HIGHEST = 0.1, 1.0
CARD = "conciseness.json"  # beside a trained CRM: the prompt it was trained with
TEMPLATE = """Rate how concise the solution below is, from 0.1 (very redundant) to 1.0 (nothing could be left out). Judge three things:
1. Repetition: no calculation, explanation or check is made twice.
2. Relevance: every step is needed; no tangents, no needless tools.
3. Economy: few words, good notation.
Do not judge whether the answer is right, and do not judge by length alone: a long problem needs a long solution.

Question:
{question}

Solution:
{solution}

Answer in one line, in the form "Score: x"."""

_NUMBER = r"(-?(?:\d+\.?\d*|\.\d+))(?:\s*/\s*(\d+\.?\d*)|\s*(%))?"
_EXPLICIT = re.compile(r"score\**\s*(?:is|of|[:=])?\s*\**\s*" + _NUMBER, re.IGNORECASE)
_ANY = re.compile(_NUMBER)


def parse_score(text: str) -> float:
    """The score in an answer, clipped to [0.1, 1]: the last "Score: x" if there is one, else the last number. "0.8/1" is 0.8.

    Raises:
        ValueError: there is no number.
    """
    found = [*_EXPLICIT.finditer(text)] or [*_ANY.finditer(text)]
    if not found:
        raise ValueError("there is no number in it")
    number, whole, percent = found[-1].groups()
    value = float(number) / (100.0 if percent else (float(whole) if whole and float(whole) else 1.0))
    return min(HIGHEST, max(LOWEST, value))


def conciseness_prompt(question: Any, solution: str, template: str = TEMPLATE) -> str:
    """The prompt that asks for a score. question: a text, or chat messages, of which the last user message is the question."""
    if not isinstance(question, str):
        asked = [str(m["content"]) for m in question if m.get("role") == "user"]
        question = asked[-1] if asked else ""
    return template.replace("{question}", question).replace("{solution}", solution)


class Conciseness(OnDevice):
    """Signal: conciseness in [0.1, 1] of the completions that are right.

    An empty completion is never asked about and scores 0.1. An answer without a number gives `unreadable`, with the reason; a call
    that failed is NaN, with the reason.

    model: path or hub id of a generative CRM (`train_crm` writes one), anything with `chat` (a judge: RemoteModel,
        LocalModel), or a sequence signal such as `RewardModel`, whose unbounded score x becomes 0.1 + 0.9 sigma(x).
    by: the outcome source; rows where it is not above 0 are masked and not asked about. None = ask about all of them, which an
        additive reward needs.
    question: data column with the question; None = the prompt.
    unreadable: for an answer without a number (0.5 is a guess); None = NaN.
    template: with {question} and {solution}; None = what the CRM was trained with, else `TEMPLATE`.
    """

    head = "causal"
    scope = "row"
    level = "sequence"
    needs: frozenset[str] = frozenset()

    @property
    def asked(self) -> str | None:
        """A judge is asked once; a model of our own scores each rank's rows."""
        return "once" if hasattr(self.source, "chat") else None

    def __init__(
        self,
        model: Any,
        *,
        by: str | None = "answer",
        question: str | None = None,
        unreadable: float | None = 0.5,
        template: str | None = None,
        max_tokens: int = 16,
    ) -> None:
        if unreadable is not None and not LOWEST <= unreadable <= HIGHEST:
            raise ConfigError(f"unreadable={unreadable}: a score in [{LOWEST}, {HIGHEST}], or None")
        self.source, self.by, self.question, self.unreadable = model, by, question, unreadable
        self.template, self.max_tokens = template, max_tokens
        self._device, self._dtype, self._model = None, None, None

    def __repr__(self) -> str:
        name = self.source if isinstance(self.source, str) else type(self.source).__name__
        return f"Conciseness({name!r}, by={self.by!r}, unreadable={self.unreadable!r})"

    def load(self) -> Any:
        """The model, loaded on the first call."""
        if self._model is None:
            self._model = self.source
            if self._device is not None and not isinstance(self.source, str | Path):
                place(self._model, self._device, self._dtype)
            if isinstance(self.source, str | Path):
                from guerdon.lm import LocalModel

                card = Path(self.source) / CARD
                if self.template is None and card.exists():
                    self.template = json.loads(card.read_text("utf-8"))["template"]
                self._model = LocalModel(self.source, dtype=self._dtype or torch.float32, device=self._device)
            if not (hasattr(self._model, "chat") or callable(self._model)):
                raise ConfigError(f"{self.source!r} is neither a model that can be asked nor a signal")
        return self._model

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> Rewards:
        applies = torch.ones(len(rollouts), dtype=torch.bool)
        if self.by is not None:
            if scores is None:
                raise ConfigError(f"{self!r} reads the source {self.by!r}: put it after that one, or say by=None")
            applies = (scores[self.by].filled()[:, 0] > 0).cpu()
        values = torch.full((len(rollouts),), LOWEST)
        written = torch.tensor([bool(text.strip()) for text in rollouts.policy_texts], dtype=torch.bool)
        rows = (applies & written).nonzero()[:, 0].tolist()
        reasons = {row: "the completion is empty" for row in (applies & ~written).nonzero()[:, 0].tolist()}
        if rows:
            found, why = self._asked(rollouts.select(rows))
            values[rows] = found
            reasons |= {rows[i]: text for i, text in why.items()}
        given = Rewards.sequence(values, rollouts, reasons)
        spans = type(given.spans)(given.spans.start, given.spans.end, applies[:, None], given.spans.unit, "sequence")
        return Rewards(torch.where(spans.mask, given.values, 0.0), spans, given.reasons)

    def _asked(self, rollouts: Rollouts) -> tuple[torch.Tensor, dict[int, str]]:
        """Scores of rows that are all asked about, and {row: why}."""
        model = self.load()
        if not hasattr(model, "chat"):
            given = model(rollouts, Scores.empty(rollouts))
            raw = given.values[:, 0].float().cpu()
            return LOWEST + (HIGHEST - LOWEST) * raw.sigmoid(), {row: text for (row, _), text in given.reasons.items()}
        questions = rollouts.column(self.question) if self.question is not None else rollouts.prompts
        prompts = [
            conciseness_prompt(question, text, self.template or TEMPLATE)
            for question, text in zip(questions, rollouts.policy_texts, strict=True)
        ]
        return ask_scores(model, prompts, unreadable=self.unreadable, max_tokens=self.max_tokens)


def ask_scores(
    model: Any, prompts: Sequence[str], *, unreadable: float | None = None, max_tokens: int = 16
) -> tuple[torch.Tensor, dict[int, str]]:
    """[N] scores a model gives to finished prompts, decoded greedily, and {row: why it is `unreadable` or NaN}."""
    from guerdon.lm.judging import judge

    found = judge(model, list(prompts), parse_score, reasks=0, temperature=0.0, max_tokens=max_tokens)
    values, reasons = found.values.clone(), dict(found.reasons)
    for row in found.reasons:
        if unreadable is not None and any(reply.ok for reply in found.replies[row]):
            values[row] = unreadable
    return values, reasons
