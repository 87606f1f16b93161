"""Gold chains: reasoning the policy itself writes once it is told the answer, and the filter that keeps the best (P2S, arXiv 2601.20649).

    candidates  z_1 .. z_K   sampled after question + hint (the reference answer), in the layout of a rollout
    filter      malformed ones go; of the rest the one with the greatest log pi(y* | q, z_k) stays, the first of equals

The filter's context is the question WITHOUT the hint, and the reasoning without the candidate's own answer, which would make y* likely
whatever was reasoned. Nothing is verified step by step: a wrong chain that leads to y* may win.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from guerdon.errors import ConfigError
from guerdon.options import checked
from guerdon.rollouts import Rollouts
from guerdon.segment.reasoning import ChainLayout, equal_pieces, whole_tokens
from guerdon.signals.likelihood.reference import prompt_of, references_of

HINT = (
    "\n\nThe correct answer is: {answer}\nWrite the reasoning that leads to this answer, step by step, in the format asked for. "
    "Reach the answer at the end; do not begin with it."
)
Choose = Literal["likelihood", "first"]


@dataclass(frozen=True)
class Chain:
    """A gold chain.

    Attributes:
        ids: [T] int64, the reasoning's tokens.
        logprob: mean log pi(y* | q, chain) a token.
        survived: share of the candidates that were well-formed.
    """

    ids: Tensor
    logprob: float
    survived: float = 1.0


class ChainSource(Protocol):
    """Gives rows their gold chains: a chain, or why there is none (a text)."""

    needs: frozenset[str]

    def __call__(self, model: Any, rollouts: Rollouts, rows: Sequence[int]) -> list[Chain | str]: ...


def select_gold_chain(format_ok: Sequence[Any], answer_logprobs: Sequence[float]) -> int | None:
    """The well-formed candidate after whose reasoning the answer is likeliest; the first of equals.

    Args:
        format_ok: K flags.
        answer_logprobs: K log-probabilities of the reference; NaN = could not be scored, never chosen.

    Returns:
        its index; None where there is none.
    """
    live = [k for k, (ok, value) in enumerate(zip(format_ok, answer_logprobs, strict=True)) if ok and value == value]
    return max(live, key=lambda k: (answer_logprobs[k], -k)) if live else None


def hinted(prompt: Any, answer: str, hint: str | Callable[[Any, str], Any] = HINT) -> Any:
    """The prompt of the synthesis: the hint, with the answer put in, after the prompt's text or its last user message.

    hint: a text with {answer}; "" asks the question alone, and the filter does all the work; or a function (prompt, answer) -> prompt.
    """
    if callable(hint):
        return hint(prompt, answer)
    text = hint.replace("{answer}", answer)
    if isinstance(prompt, str) or not text:
        return prompt + text if text else prompt
    messages = [dict(message) for message in prompt]
    last = max((i for i, m in enumerate(messages) if m.get("role") == "user"), default=None)
    if last is None:
        raise ConfigError("the prompt has no user message to put the hint into: give a function as hint")
    messages[last] = {**messages[last], "content": f"{messages[last]['content']}{text}"}
    return messages


def chain_contexts(model: Any, prompt: Any, layout: ChainLayout, chain: Tensor) -> Tensor:
    """[T] ids of question, opening tag, chain, and the texts between it and the answer."""
    from guerdon.lm.encode import encode_continuation, encode_prompt

    opening = encode_continuation(model.tokenizer, layout.think[0])
    bridge = encode_continuation(model.tokenizer, layout.bridge)
    return torch.cat([encode_prompt(model.tokenizer, prompt), opening, chain.cpu(), bridge])


def leaks(text: str, answer: str, pieces: int) -> bool:
    """Whether the first of `pieces` parts of a chain says the answer already."""
    first = equal_pieces(len(text), pieces)[:1]
    return bool(first) and answer.strip().lower() in text[slice(*first[0])].lower()


@checked
@dataclass(frozen=True)
class SynthesisedChains:
    """Chains of the current policy, for every question anew.

    Attributes:
        layout: of rollouts and chains.
        reference: data column of the answer; of several the first.
        candidates: K.
        hint: see `hinted`.
        choose: "likelihood" = the filter above; "first" = the first well-formed one (the ablation).
        temperature: of the sampling.
        max_new_tokens: of a candidate; None = twice the longest rollout of the batch, at least 32.
        leak_pieces: drop candidates that say the answer in the first of so many parts; 0 = keep them.
        scoring_temperature: divides the logits of the filter.
    """

    layout: ChainLayout
    reference: str = "answer"
    candidates: int = 4
    hint: str | Callable[[Any, str], Any] = HINT
    choose: Choose = "likelihood"
    temperature: float = 1.0
    max_new_tokens: int | None = None
    leak_pieces: int = 0
    scoring_temperature: float = 1.0
    needs = frozenset({"policy", "policy.generate"})

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.choose not in ("likelihood", "first"):
            raise ConfigError(
                f"candidates={self.candidates} must be at least 1, choose={self.choose!r} 'likelihood' or 'first'"
            )

    def __call__(self, model: Any, rollouts: Rollouts, rows: Sequence[int]) -> list[Chain | str]:
        from guerdon.lm.ranks import shared_work

        return shared_work(list(rows), lambda share, rank: self._made(model, rollouts, share, rank))

    def _made(self, model: Any, rollouts: Rollouts, rows: Sequence[int], rank: int) -> list[Chain | str]:
        """The chains of this rank's share of the questions, which draws by itself."""
        if not rows:
            return []
        answers = [references_of(rollouts.column(self.reference)[row])[0].strip() for row in rows]
        shown = [rollouts.prompts[row] for row in rows]
        asked = [prompt_of(rollouts, row) for row in rows]
        longest = int(rollouts.lengths.max()) if rollouts.has_tokens else 256
        cap = self.max_new_tokens or max(32, 2 * longest)
        generator = rollouts.clock.generator("gold chains", *([rank] if rank else []))
        chains, shares = self.sample(model, shown, answers, cap, generator)
        return self.filter(model, asked, answers, chains, shares)

    def sample(
        self, model: Any, prompts: Sequence[Any], answers: Sequence[str], cap: int, generator: torch.Generator
    ) -> tuple[list[list[Tensor | None]], list[float]]:
        """For each question K reasonings (None = malformed), and the share of well-formed ones."""
        found = model.generate(
            [hinted(prompt, answer, self.hint) for prompt, answer in zip(prompts, answers, strict=True)],
            n=self.candidates,
            max_new_tokens=cap,
            temperature=self.temperature,
            generator=generator,
        )
        chains: list[list[Tensor | None]] = []
        for q, answer in enumerate(answers):
            group: list[Tensor | None] = []
            for n in range(q * self.candidates, (q + 1) * self.candidates):
                parsed = self.layout.parse(found.texts[n])
                text = found.texts[n][slice(*parsed.reasoning)]
                good = parsed.ok and not (self.leak_pieces and leaks(text, answer, self.leak_pieces))
                first, last = whole_tokens(found.offsets[n][found.mask[n]], *parsed.reasoning) if good else (0, 0)
                group.append(found.ids[n][found.mask[n]][first:last] if last > first else None)
            chains.append(group)
        return chains, [sum(c is not None for c in group) / self.candidates for group in chains]

    def filter(
        self,
        model: Any,
        prompts: Sequence[Any],
        answers: Sequence[str],
        chains: Sequence[Sequence[Tensor | None]],
        shares: Sequence[float],
    ) -> list[Chain | str]:
        """The gold chain of each question, or why there is none."""
        from guerdon.lm.encode import encode_continuation
        from guerdon.lm.scorer import SpanScorer

        asked = [(q, k) for q, group in enumerate(chains) for k, chain in enumerate(group) if chain is not None]
        contexts = [chain_contexts(model, prompts[q], self.layout, chains[q][k]) for q, k in asked]  # type: ignore[arg-type]
        targets = [encode_continuation(model.tokenizer, answers[q]) for q, _ in asked]
        means = [[math.nan] * len(group) for group in chains]
        if asked:
            scored = SpanScorer(model).score(contexts, targets, temperature=self.scoring_temperature).mean()
            for (q, k), value in zip(asked, scored.tolist(), strict=True):
                means[q][k] = value
        chosen: list[Chain | str] = []
        for group, values, share in zip(chains, means, shares, strict=True):
            order = [0.0] * len(values) if self.choose == "first" else values
            best = select_gold_chain([chain is not None for chain in group], order)
            ids = None if best is None else group[best]
            if best is None or ids is None:
                chosen.append(f"none of {len(group)} candidate chains is well-formed")
            else:
                chosen.append(Chain(ids, values[best], share))
        return chosen


@dataclass(frozen=True)
class ChainColumn:
    """Chains from a data column: written by hand, by another model, or by `guerdon.io.chains` beforehand.

    Attributes:
        column: texts of reasoning, without tags and answer; a missing one leaves its question without a chain.
        layout, reference, scoring_temperature: as for `SynthesisedChains`.
    """

    column: str
    layout: ChainLayout
    reference: str = "answer"
    scoring_temperature: float = 1.0
    needs = frozenset({"policy"})

    def __call__(self, model: Any, rollouts: Rollouts, rows: Sequence[int]) -> list[Chain | str]:
        from guerdon.lm.ranks import shared_work

        return shared_work(list(rows), lambda share, rank: self._scored(model, rollouts, share))

    def _scored(self, model: Any, rollouts: Rollouts, rows: Sequence[int]) -> list[Chain | str]:
        """The chains of this rank's share of the questions."""
        from guerdon.lm.encode import encode_continuation
        from guerdon.lm.scorer import SpanScorer

        cells = [rollouts.column(self.column)[row] for row in rows]
        live = [i for i, cell in enumerate(cells) if cell is not None and str(cell).strip()]
        found: list[Chain | str] = [f"no gold chain in column {self.column!r}"] * len(rows)
        if not live:
            return found
        ids = {i: encode_continuation(model.tokenizer, str(cells[i])) for i in live}
        contexts = [chain_contexts(model, prompt_of(rollouts, rows[i]), self.layout, ids[i]) for i in live]
        references = [references_of(rollouts.column(self.reference)[rows[i]])[0].strip() for i in live]
        targets = [encode_continuation(model.tokenizer, reference) for reference in references]
        scored = SpanScorer(model).score(contexts, targets, temperature=self.scoring_temperature).mean()
        for i, value in zip(live, scored.tolist(), strict=True):
            found[i] = Chain(ids[i], value)
        return found


__all__ = ["HINT", "Chain", "ChainColumn", "ChainSource", "SynthesisedChains", "hinted", "select_gold_chain"]
