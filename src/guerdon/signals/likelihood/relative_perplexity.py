"""How much more probable the question makes a response: the self-aligned reward (SAR, arXiv 2509.05489).

    R = clip( (ppl(a) - ppl(a|q)) / ppl(a), -1, 1 ) = 1 - exp( nll(a|q) - nll(a) ),    nll = mean over the response's tokens

ppl(a|q) is the policy's perplexity of its own response after the prompt, ppl(a) that of the SAME token ids after a prompt in which the
question is left out and everything else (system text, chat scaffold) stays. Text that only the question explains scores high; what
would be as probable anyway (padding, repetition, self-talk) pulls the mean, and so the score, towards 0.

Computed from mean negative log-likelihoods, so that nothing overflows. Temperature 1 always: log-probabilities that a trainer
tempered are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from guerdon.errors import CapabilityError, ConfigError
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts

EMPTY = "the policy wrote nothing: there is no perplexity, and the score is the worst, -1"


# --- pure functions --------------------------------------------------------------------------------------------------


def mean_nll(logprobs: Tensor, mask: Tensor) -> Tensor:
    """-1/n sum of the log-probabilities inside the mask: the logarithm of the perplexity.

    Args:
        logprobs: [B, T] natural logs at temperature 1; what stands outside the mask does not matter.
        mask: [B, T], non-zero = a token of the response (its end-of-sequence token too).

    Returns:
        [B] float64; NaN for an empty mask.
    """
    inside = mask.bool()
    total = torch.where(inside, logprobs.double(), 0.0).sum(-1)
    return -total / inside.sum(-1)


def relative_perplexity(
    nll_question: Tensor,
    nll_alone: Tensor,
    *,
    use_log: bool = False,
    use_denominator: bool = True,
    use_comparison: bool = True,
    clip_value: float | None = None,
) -> Tensor:
    """max( (A - Q) / A, -1 ) with A = exp(nll_alone), Q = exp(nll_question); below 1 because Q > 0.

    Args:
        nll_question, nll_alone: [...] mean negative log-likelihoods with and without the question, at least 0.
        use_log: A and Q are the mean negative log-likelihoods themselves.
        use_denominator: False gives A - Q, unbounded.
        use_comparison: False gives 5 - Q, the policy's own confidence (not with `use_denominator`).
        clip_value: above 1: A and Q are capped at it first, after `use_log`, as in the official code. None = no cap.

    Returns:
        [...] float64; NaN where an input is.

    Raises:
        ConfigError: use_denominator without use_comparison.
    """
    check_variant(use_denominator, use_comparison)
    question, alone = nll_question.double(), nll_alone.double()
    cap = clip_value if clip_value is not None and clip_value > 1 else math.inf
    if not use_log:
        question, alone = question.clamp(max=math.log(cap)), alone.clamp(max=math.log(cap))
        if use_denominator:
            gap = torch.where(question == alone, 0.0, question - alone)  # also where both are infinite
            return (-torch.expm1(gap)).clamp(min=-1.0)
        question, alone = question.exp(), alone.exp()
    else:
        question, alone = question.clamp(max=cap), alone.clamp(max=cap)
    if not use_comparison:
        return 5.0 - question  # the 5 changes nothing in a group; it keeps usual values positive
    gap = torch.where(question == alone, 0.0, alone - question)
    return (gap / (alone + 1e-9)).clamp(min=-1.0) if use_denominator else gap


def check_variant(use_denominator: bool, use_comparison: bool) -> None:
    """Raise ConfigError for the one combination that has no formula."""
    if use_denominator and not use_comparison:
        raise ConfigError("use_comparison=False (confidence alone) has no denominator: set use_denominator=False too")


def without_question(prompt: Any, question: str | None = None, *, has_template: bool = True) -> Any:
    """A prompt with its question left out and everything else kept.

    Args:
        prompt: chat messages or a text.
        question: the question's own words. Where given, these are cut out of the last user message (or of the text), and
            instructions around them stay. None = the official rule: chat messages become their system messages and one empty user
            message; a text becomes the empty text.
        has_template: the tokenizer has a chat template; without one, messages become "System: ...\\nUser: \\nAssistant: ".

    Returns:
        Chat messages or a text.

    Raises:
        ValueError: the question does not occur in the prompt.
    """
    if isinstance(prompt, str):
        if question is None:
            return ""
        return _cut(prompt, question)
    messages = [dict(message) for message in prompt]
    if question is None:
        system = [m for m in messages if m.get("role") == "system"]
        messages = [*system, {"role": "user", "content": ""}]
    else:
        asked = [i for i, m in enumerate(messages) if m.get("role") == "user"]
        if not asked:
            raise ValueError("the prompt has no user message")
        last = messages[asked[-1]]
        messages[asked[-1]] = {**last, "content": _cut(str(last["content"]), question)}
    if has_template:
        return messages
    return "".join(f"{str(m['role']).capitalize()}: {m['content']}\n" for m in messages) + "Assistant: "


def _cut(text: str, question: str) -> str:
    at = text.rfind(question)  # the last place: examples may come first
    if not question.strip() or at < 0:
        raise ValueError("the question is not part of the prompt")
    return text[:at] + text[at + len(question) :]


def encode_context(tokenizer: Any, prompt: Any) -> Tensor:
    """[P] ids of a prompt, never empty: an empty one becomes the token that begins (or ends) a document.

    A chat template that refuses a system message gets its text in the user message, followed by a line break.
    """
    from guerdon.lm.encode import encode_prompt

    if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
        try:
            return encode_prompt(tokenizer, prompt)
        except ConfigError as refused:
            system = [m for m in prompt if m.get("role") == "system"]
            if not system or refused.__cause__ is None:  # there is no template at all, or it refuses something else
                raise
            rest = [dict(m) for m in prompt if m.get("role") != "system"]
            text = "".join(f"{m['content']}\n" for m in system)
            rest[0] = {**rest[0], "content": f"{text}{rest[0]['content']}"}
            return encode_prompt(tokenizer, rest)
    ids = encode_prompt(tokenizer, prompt)
    if len(ids):
        return ids
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise ConfigError(
            "an empty prompt needs a begin- or end-of-sequence token to stand in its place; this tokenizer has neither"
        )
    return torch.tensor([first], dtype=torch.long)


# --- the signal ------------------------------------------------------------------------------------------------------


class RelativePerplexity:
    """Signal: the policy's perplexity of its own response with the question, relative to that without it.

    With `likelihoods` it gives `<name>.score`, and for the log `<name>.nll_question` and `<name>.nll_alone` (mean negative
    log-likelihoods: the perplexities' logarithms, which stay finite); these are no rewards, so a chain drops them. An empty response scores -1 with the reason, and has no likelihoods (masked). Tokens
    the policy did not sample (tool output) are context in both passes and count in neither.

    question: data column with the question's own words, cut out of the prompt; see `without_question`. A row whose question is not
        part of its prompt is NaN. None = the whole user message, or the whole text, is the question.
    questionless: the prompt without its question, in place of `question`: a text, or a function of the prompt that returns a
        text, chat messages or ids.
    role: log-probabilities of the rollouts to use with the question, where they are there and at temperature 1.
    use_log, use_denominator, use_comparison, clip_value: see `relative_perplexity`.
    """

    scope = "row"
    needs = frozenset({"policy"})
    roles = ("policy",)

    def __init__(
        self,
        *,
        question: str | None = None,
        questionless: str | Callable[[Any], Any] | None = None,
        likelihoods: bool = False,
        role: str = "old",
        use_log: bool = False,
        use_denominator: bool = True,
        use_comparison: bool = True,
        clip_value: float | None = None,
    ) -> None:
        check_variant(use_denominator, use_comparison)
        if question is not None and questionless is not None:
            raise ConfigError("question= and questionless= are two ways to say the same thing: give one")
        self.question, self.questionless, self.role = question, questionless, role
        parts = ("score", "nll_question", "nll_alone")
        self.level: str | dict[str, str] = dict.fromkeys(parts, "sequence") if likelihoods else "sequence"
        self.variant: dict[str, Any] = {
            "use_log": use_log,
            "use_denominator": use_denominator,
            "use_comparison": use_comparison,
            "clip_value": clip_value,
        }
        self._model: Any = None

    def __repr__(self) -> str:
        usual = {"use_log": False, "use_denominator": True, "use_comparison": True, "clip_value": None}
        shown = [f"{key}={value!r}" for key, value in self.variant.items() if value != usual[key]]
        if self.question is not None:
            shown.append(f"question={self.question!r}")
        if self.questionless is not None:
            own = self.questionless
            shown.append(f"questionless={own if isinstance(own, str) else getattr(own, '__qualname__', 'callable')!r}")
        return f"RelativePerplexity({', '.join(shown)})"

    def bind(self, role: str, instrument: Any) -> None:
        """The policy, as a `guerdon.lm.LocalModel`."""
        self._model = instrument

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> Rewards | dict[str, Rewards]:
        if self._model is None:
            raise CapabilityError(
                f"{self!r} needs the model 'policy': an engine binds it, or call system.bind('policy', guerdon.lm.LocalModel(...))"
            )
        responses, wanted = self._responses(rollouts)
        contexts, reasons = self._questionless(rollouts)
        question, alone, failed = self._likelihoods(rollouts, responses, wanted, contexts)
        reasons = {**failed, **reasons}
        values = relative_perplexity(question, alone, **self.variant)
        empty = torch.tensor([not bool(w.any()) for w in wanted], dtype=torch.bool)
        values = torch.where(empty, -1.0, values)
        for row in reasons:
            values[row] = question[row] = alone[row] = float("nan")
        reasons = {row: EMPTY for row in empty.nonzero()[:, 0].tolist()} | reasons
        why = {row: text for row, text in reasons.items() if text != EMPTY}
        score = Rewards.sequence(values.float(), rollouts, reasons)
        if isinstance(self.level, str):
            return score
        return {
            "score": score,
            "nll_question": _masked(Rewards.sequence(question.float(), rollouts, why), empty),
            "nll_alone": _masked(Rewards.sequence(alone.float(), rollouts, why), empty),
        }

    # -- details ------------------------------------------------------------------------------------------------------

    def _responses(self, rollouts: Rollouts) -> tuple[list[Tensor], list[Tensor]]:
        """Each response's ids, and which of them count (those the policy sampled)."""
        from guerdon.lm.encode import encode_continuation

        if rollouts.completion_ids is None:
            ids = [encode_continuation(self._model.tokenizer, text) for text in rollouts.completions]
            return ids, [torch.ones(len(row), dtype=torch.bool) for row in ids]
        assert rollouts.policy_mask is not None
        masks = rollouts.mask.cpu()
        ids = [row[mask] for row, mask in zip(rollouts.completion_ids.cpu(), masks, strict=True)]
        return ids, [row[mask] for row, mask in zip(rollouts.policy_mask.cpu(), masks, strict=True)]

    def _questionless(self, rollouts: Rollouts) -> tuple[list[Tensor], dict[int, str]]:
        """Ids of each row's prompt without its question; {row: why there is none}."""
        tokenizer = self._model.tokenizer
        has_template = getattr(tokenizer, "chat_template", None) is not None
        questions = rollouts.column(self.question) if self.question is not None else [None] * len(rollouts)
        known: dict[str, Tensor] = {}
        contexts, reasons = [], {}
        for row, (prompt, question) in enumerate(zip(rollouts.prompts, questions, strict=True)):
            try:
                if self.questionless is None:
                    if self.question is not None and question is None:
                        raise ValueError("the row has no question")
                    left = without_question(prompt, question, has_template=has_template)
                else:
                    left = self.questionless(prompt) if callable(self.questionless) else self.questionless
            except ValueError as error:
                reasons[row] = f"column {self.question!r}: {error}"
                left = ""
            key = repr(left)
            if key not in known:
                known[key] = encode_context(tokenizer, left)
            contexts.append(known[key])
        return contexts, reasons

    def _likelihoods(
        self, rollouts: Rollouts, responses: list[Tensor], wanted: list[Tensor], contexts: list[Tensor]
    ) -> tuple[Tensor, Tensor, dict[int, str]]:
        """[B], [B] float64 mean NLLs with and without the question, and {row: why they are NaN}."""
        from guerdon.lm.scorer import SpanScorer

        size = len(rollouts)
        given = rollouts.logprobs.get(self.role)
        stored = given is not None and given.temperature == 1.0 and rollouts.has_tokens
        before = list(contexts)
        if not stored:
            before += [encode_context(self._model.tokenizer, _prompt(rollouts, row)) for row in range(size)]
        sequences = [torch.cat([context, responses[i % size]]) for i, context in enumerate(before)]
        positions = [
            torch.cat([torch.zeros(len(context), dtype=torch.bool), wanted[i % size]])
            for i, context in enumerate(before)
        ]
        values, why = SpanScorer(self._model).score_positions(sequences, positions)
        counts = torch.tensor([int(p.sum()) for p in positions])
        scored = mean_nll(values.detach().cpu(), torch.arange(values.shape[1])[None] < counts[:, None])
        alone = scored[:size]
        if stored:
            assert given is not None and rollouts.policy_mask is not None
            question = mean_nll(given.values.cpu(), rollouts.policy_mask.cpu())
        else:
            question = scored[size:]
        written = counts[:size] > 0
        broken = written & (question.isnan() | alone.isnan())
        reasons = {
            row: why.get(row) or why.get(row + size) or "the model gave no probability"
            for row in broken.nonzero()[:, 0].tolist()
        }
        return torch.where(written, question, 0.0), torch.where(written, alone, 0.0), reasons


def _masked(rewards: Rewards, rows: Tensor) -> Rewards:
    """The rewards, with some rows marked as not applying."""
    return replace(rewards, spans=replace(rewards.spans, mask=rewards.mask & ~rows[:, None]))


def _prompt(rollouts: Rollouts, row: int) -> Any:
    """The prompt as ids where they are known, so that what the policy saw is what is scored; else as it is."""
    if rollouts.prompt_ids is None or rollouts.prompt_mask is None:
        return rollouts.prompts[row]
    return rollouts.prompt_ids[row][rollouts.prompt_mask[row].bool()].cpu()
