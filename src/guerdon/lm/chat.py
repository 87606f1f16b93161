"""What a chat model is here: prompts in, replies out, a failed call a reply with a reason. Local, remote and scripted.

A reply never turns a failure into a value: `text` is None and `error` says why, so that a signal can write NaN with that
reason. Draws are numbered: draw 0 of a request asked for twice is the same answer (from the cache, or the same seed), draw 1
is another sample. That is what lets a vote be resumed without paying twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

Messages = list[dict[str, Any]]
ChatPrompt = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class TokenLogProb:
    """One token of a reply (or of an echoed prompt).

    Attributes:
        token: its text as the server shows it.
        logprob: natural log; NaN where the server has none (the first token of a prompt has no context).
        top: the most likely tokens at this place and their log-probabilities, as far as asked for and given.
        start: first character in the text, where the server says so, else None.
        id: the token's number, where the server says so, else None.
    """

    token: str
    logprob: float
    top: dict[str, float] = field(default_factory=dict)
    start: int | None = None
    id: int | None = None


@dataclass(frozen=True)
class Reply:
    """One answer of a model, or the reason why there is none.

    Attributes:
        text: the answer; None when the call failed.
        error: why it failed; None when it did not.
        logprobs: per token, where asked for and given.
        finish_reason: "stop", "length", "content_filter", ... as the server says.
        prompt_tokens, completion_tokens: what the server counted; 0 where it does not say.
        cached: the answer came from the disk cache or from an identical call in flight, and was not paid for again.
        attempts: requests sent for it by this call.
        retryable: for a failure: False = asking again cannot help (bad key, no such model, request too long).
        paid: for a failure: the server answered, without a text, and is not asked the same again.
    """

    text: str | None
    error: str | None = None
    logprobs: tuple[TokenLogProb, ...] | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False
    attempts: int = 0
    retryable: bool = True
    paid: bool = False

    def __post_init__(self) -> None:
        if (self.text is None) == (self.error is None):
            raise ValueError(f"a reply has a text or an error, not both and not neither: {self.text!r}, {self.error!r}")

    @property
    def ok(self) -> bool:
        return self.error is None

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=True)

    @staticmethod
    def from_json(text: str) -> Reply:
        fields = json.loads(text)
        if fields["logprobs"] is not None:
            fields["logprobs"] = tuple(TokenLogProb(**token) for token in fields["logprobs"])
        return Reply(**fields)


@runtime_checkable
class ChatModel(Protocol):
    """Anything a judge can be."""

    def chat(
        self,
        prompts: Sequence[ChatPrompt],
        *,
        draws: Sequence[int] | None = None,
        temperature: float = 0.0,
        max_tokens: int = 512,
    ) -> list[Reply]:
        """One reply a prompt, in order. `draws[i]` numbers the sample asked for (default 0 for all)."""
        ...


class ScriptedModel:
    """A function in a model's place, for tests and demonstrations.

    Args:
        script: (messages, draw) -> the answer, or a Reply (for failures: `Reply(None, error="...")`). An exception in it is
            a bug of the script and goes through to the caller.

    Attributes:
        calls: every (messages, draw) it was asked, in order.
    """

    def __init__(self, script: Callable[[Messages, int], str | Reply]) -> None:
        self.script = script
        self.calls: list[tuple[Messages, int]] = []

    def chat(
        self,
        prompts: Sequence[ChatPrompt],
        *,
        draws: Sequence[int] | None = None,
        temperature: float = 0.0,
        max_tokens: int = 512,
    ) -> list[Reply]:
        replies = []
        for prompt, draw in zip(prompts, numbered(draws, len(prompts)), strict=True):
            messages = as_messages(prompt)
            self.calls.append((messages, draw))
            answer = self.script(messages, draw)
            replies.append(answer if isinstance(answer, Reply) else Reply(answer, finish_reason="stop", attempts=1))
        return replies


def as_messages(prompt: ChatPrompt) -> Messages:
    """A text is one user message."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(message) for message in prompt]


def numbered(draws: Sequence[int] | None, size: int) -> list[int]:
    """The draw of each prompt, 0 by default."""
    if draws is None:
        return [0] * size
    if len(draws) != size:
        raise ValueError(f"{len(draws)} draws for {size} prompts")
    return list(draws)


def request_key(*parts: Any) -> str:
    """A digest of a whole request, the same in every process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
