"""A model behind an endpoint as an instrument that scores given text: log-probabilities of a prompt's own tokens.

    endpoint = Endpoint(RemoteModel("Qwen/Qwen2.5-7B", base_url="http://127.0.0.1:8000/v1"), tokenizer="Qwen/Qwen2.5-7B")
    SpanScorer(endpoint).score(contexts, targets)             # where a LocalModel could stand, in ids
    Endpoint(remote).score_texts(contexts, targets)           # without the model's tokenizer: by the server's characters

Both give `SpanScores`. In ids nothing is tokenised again, by nobody: the server gets the numbers, and what it answers is
checked against them. By text the server tokenises context and target joined, so a token may straddle the seam; it belongs to
the target if it shares a character with it, and `ids` are -1 where the server does not say them.

Log-probabilities of a prompt come from the completions protocol: `echo` with `logprobs` (the older OpenAI interface, which
vLLM and SGLang keep), or vLLM's `prompt_logprobs`. Which of them a server knows is asked once, with the first prompt. A chat
endpoint has neither and is refused.

Left out: temperatures other than 1 (servers give untempered log-probabilities of prompts), logits, gradients.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.errors import CapabilityError, ConfigError
from guerdon.lm import answers
from guerdon.lm.chat import Reply, TokenLogProb
from guerdon.lm.remote import RemoteModel
from guerdon.lm.scores import SpanScores

Style = Literal["echo", "prompt_logprobs"]
FIRST = "the endpoint gives no log-probability for the first token of a prompt: nothing comes before it"


class Endpoint:
    """A scoring endpoint.

    Args:
        remote: the client.
        tokenizer: the served model's own, or where to load it from; needed for scoring in ids.
        style: how to ask; None = try echo, then prompt_logprobs, and keep what works.
    """

    def __init__(self, remote: RemoteModel, tokenizer: Any = None, *, style: Style | None = None) -> None:
        if (remote.base_url or "").rstrip("/").endswith("/chat/completions"):
            raise CapabilityError(_refusal(str(remote.base_url), "it is the address of a chat interface"))
        if isinstance(tokenizer, str):
            from guerdon.lm.load import load_tokenizer

            tokenizer = load_tokenizer(tokenizer)
        self.remote, self.style, self._tokenizer = remote, style, tokenizer

    def __repr__(self) -> str:
        return f"Endpoint({self.remote!r}, style={self.style!r})"

    @property
    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise ConfigError(
                f"{self.remote!r}: scoring in ids needs the served model's tokenizer: Endpoint(remote, tokenizer=...), a "
                f"hub id or a folder (score_texts works without)"
            )
        return self._tokenizer

    def token_logprobs(self, sequences: Sequence[Tensor]) -> tuple[list[Tensor], dict[int, str]]:
        """Log-probability of each token given those before it in its sequence.

        Args:
            sequences: N id tensors [T_n], as `encode_prompt` makes them (begin-of-sequence token included).

        Returns:
            N tensors [T_n] float32, NaN at the first token and in sequences that failed; {n: why it failed}.

        Raises:
            CapabilityError: the endpoint does not score prompts.
        """
        replies = self._ask([sequence.tolist() for sequence in sequences])
        found, reasons = [], {}
        for n, (sequence, reply) in enumerate(zip(sequences, replies, strict=True)):
            why = reply.error or self._other_tokens(sequence, reply)
            if why:
                reasons[n] = why
                found.append(torch.full((len(sequence),), float("nan")))
            else:
                found.append(torch.tensor([token.logprob for token in reply.logprobs or ()], dtype=torch.float32))
        return found, reasons

    def score_texts(self, contexts: Sequence[str], targets: Sequence[str] | str) -> SpanScores:
        """Log-probabilities of each target after its context, both as texts.

        Args:
            contexts: N texts. The server may put a begin-of-sequence token in front.
            targets: N texts, or one for all.

        Returns:
            scores whose tokens are the server's: those that share a character with the target. A target without tokens has an
            empty row; one that failed is a single NaN with its reason.

        Raises:
            CapabilityError: the endpoint does not score prompts. ConfigError: numbers of contexts and targets differ.
        """
        wanted = [targets] * len(contexts) if isinstance(targets, str) else list(targets)
        if len(wanted) != len(contexts):
            raise ConfigError(f"{len(contexts)} contexts and {len(wanted)} targets: give as many, or one text for all")
        live = [n for n, target in enumerate(wanted) if target]
        replies = dict(zip(live, self._ask([contexts[n] + wanted[n] for n in live]), strict=True))
        rows: list[Sequence[TokenLogProb]] = []
        reasons: dict[int, str] = {}
        for n, (context, target) in enumerate(zip(contexts, wanted, strict=True)):
            reply = replies.get(n)
            if reply is not None and reply.error:
                reasons[n] = reply.error
                rows.append([TokenLogProb(target, float("nan"), start=0)])
                continue
            inside = answers.restricted(reply, context, target).logprobs or () if reply is not None else ()
            rows.append(inside)
            if any(token.logprob != token.logprob for token in inside):
                reasons[n] = FIRST
        return _as_scores(rows, wanted, reasons)

    # -- details -----------------------------------------------------------------------------------------------------------

    def _ask(self, prompts: list[Any]) -> list[Reply]:
        """One reply a prompt, by the style this server knows."""
        if not prompts:
            return []
        if self.style is None:
            refusals = []
            styles: tuple[Style, ...] = ("echo", "prompt_logprobs")
            for style in styles:
                (first,) = self.remote.prompt_logprobs(prompts[:1], style=style)
                if first.ok or first.retryable:  # a server that is down says nothing about what it knows
                    self.style = style if first.ok else None
                    replies = [first]
                    break
                refusals.append(f"{style}: {first.error}")
            else:
                raise CapabilityError(_refusal(repr(self.remote), "; ".join(refusals)))
            return replies + (self.remote.prompt_logprobs(prompts[1:], style=style) if len(prompts) > 1 else [])
        return self.remote.prompt_logprobs(prompts, style=self.style)

    def _other_tokens(self, sequence: Tensor, reply: Reply) -> str:
        """Why these are not the tokens that were meant; "" where they are.

        Servers number prompts with their own vocabulary. If that is not this tokenizer's, every number would look like a result.
        """
        ids = sequence.tolist()
        theirs = "".join(token.token for token in (reply.logprobs or ())[1:])  # vLLM does not spell the first
        ours = [self.tokenizer.decode(ids[1:], skip_special_tokens=skip) for skip in (False, True)]
        if not _plain(theirs) or _plain(theirs) in [_plain(text) for text in ours]:
            return ""
        return (
            f"the endpoint reads these ids as {theirs[:60]!r}, the tokenizer as {ours[0][:60]!r}: it is not that of the served "
            f"model"
        )


def _refusal(where: str, why: str) -> str:
    return (
        f"{where} does not score given text ({why}). Log-probabilities of a reference come from the completions protocol "
        f"(echo with logprobs, or vLLM's prompt_logprobs); a chat endpoint only tells those of tokens it samples itself, which "
        f"say nothing about a text it was given. Serve the model with vLLM or SGLang and use its /v1, or score with a local model"
    )


def _plain(text: str) -> str:
    """What survives every server's way of writing tokens: ASCII letters, digits and signs."""
    return "".join(
        c for c in re.sub(r"bytes:(\\x[0-9a-f]{2})+", "", text) if c.isascii() and c.isprintable() and not c.isspace()
    )


def _as_scores(rows: list[Sequence[TokenLogProb]], targets: list[str], reasons: dict[int, str]) -> SpanScores:
    width = max((len(row) for row in rows), default=0)
    values, offsets = torch.zeros(len(rows), width), torch.zeros(len(rows), width, 2, dtype=torch.long)
    ids = torch.full((len(rows), width), -1, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for n, row in enumerate(rows):
        starts = [token.start or 0 for token in row] + [len(targets[n])]
        for k, token in enumerate(row):
            values[n, k], mask[n, k] = token.logprob, True
            offsets[n, k] = torch.tensor(starts[k : k + 2])
            ids[n, k] = -1 if token.id is None else token.id
    return SpanScores(values, mask, ids, offsets, list(targets), 1.0, reasons)
