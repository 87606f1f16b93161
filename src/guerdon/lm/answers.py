"""Reading what an OpenAI-compatible server sends back: replies, log-probabilities, and what a failure means.

Servers differ and misbehave; whatever is missing or of the wrong kind raises `Failed` with a reason, and says whether asking
again may help. Nothing here talks to the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from guerdon.lm.chat import Reply, TokenLogProb
from guerdon.redact import without_credentials

_REMEDIES = {
    401: "the API key is missing or wrong: set OPENAI_API_KEY or pass api_key=",
    403: "this key may not use this model",
    404: "no such model or path: look at the model's name and at base_url (it usually ends in /v1)",
    400: "the server refuses this request",
    413: "the request is too large",
    422: "the server does not understand this request",
}
_TRANSIENT = frozenset({408, 409, 425, 429})


class Failed(Exception):
    """One try failed.

    Args:
        reason: for people.
        retryable: whether asking again may help.
        retry_after_s: how long the server asks to wait.
        refuses_all: the next request would fail for the same reason (a wrong key).
        usage: tokens the server counted, where it answered at all.
        paid: the server did answer, and would answer the same again: worth remembering.
    """

    def __init__(
        self,
        reason: str,
        *,
        retryable: bool = True,
        retry_after_s: float | None = None,
        refuses_all: bool = False,
        usage: dict[str, int] | None = None,
        paid: bool = False,
    ) -> None:
        reason = without_credentials(reason)
        super().__init__(reason)
        self.usage, self.paid = usage or {}, paid
        self.reason, self.retryable, self.retry_after_s, self.refuses_all = (
            reason,
            retryable,
            retry_after_s,
            refuses_all,
        )


def failure_of(error: Exception, openai: Any, timeout_s: float, max_retry_after_s: float) -> Failed:
    """What an exception of the official client means."""
    if isinstance(error, openai.APITimeoutError):
        return Failed(f"no answer within {timeout_s:g} s")
    if isinstance(error, openai.APIConnectionError):
        return Failed(f"connection failed or was cut: {error.__cause__ or error}")
    if not isinstance(error, openai.APIStatusError):
        return Failed(f"{type(error).__name__}: {error}")
    status, code = error.status_code, getattr(error, "code", None)
    said = str(getattr(error, "message", error)).strip()[:300]
    if status == 429 and code == "insufficient_quota":
        return Failed(f"429: the account's quota is used up: {said}", retryable=False, refuses_all=True)
    if status not in _TRANSIENT and status < 500:
        return Failed(
            f"{status}: {_REMEDIES.get(status, 'the server refuses this request')} ({said})",
            retryable=False,
            refuses_all=status in (401, 403, 404),
        )
    wait = _retry_after(error.response.headers)
    if wait is not None and wait > max_retry_after_s:
        return Failed(
            f"{status}: the server asks to wait {wait:g} s, longer than max_retry_after_s={max_retry_after_s:g}",
            retryable=False,
        )
    return Failed(f"{status}: {said}", retry_after_s=wait)


def _retry_after(headers: Any) -> float | None:
    """Seconds to wait, from retry-after-ms, or Retry-After in seconds or as a date."""
    import email.utils
    import time

    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


# -- bodies ------------------------------------------------------------------------------------------------------------------


def read_chat(document: Any, body: dict[str, Any]) -> Reply:
    """The reply in a chat completion."""
    choice = _choice(document)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise Failed("the server's answer has a choice without a message")
    finish = choice.get("finish_reason")
    text = message.get("content")
    text = message.get("refusal") if text is None else text
    if not isinstance(text, str):  # it was paid for, and asking again would pay again
        why = f"the answer has no text (finish_reason={finish!r}){_too_short(finish)}"
        raise Failed(why, retryable=False, usage=_usage(document), paid=True)
    if not text.strip():
        why = f"the answer is empty (finish_reason={finish!r}){_too_short(finish)}"
        cut = finish == "length"  # all tokens went into reasoning: the next try would end the same way
        raise Failed(why, retryable=not cut, usage=_usage(document), paid=cut)
    logprobs = (choice.get("logprobs") or {}).get("content")
    tokens = tuple(_chat_token(entry) for entry in logprobs) if isinstance(logprobs, list) else None
    return Reply(text, logprobs=tokens, finish_reason=finish, **_usage(document))


def _too_short(finish: Any) -> str:
    return "; max_tokens was used up before the answer began: raise it" if finish == "length" else ""


def read_completion(document: Any, body: dict[str, Any]) -> Reply:
    """The reply in a text completion."""
    choice = _choice(document)
    text = choice.get("text")
    if not isinstance(text, str):
        raise Failed("the server's answer has a choice without a text")
    return Reply(
        text,
        logprobs=_completion_tokens(choice.get("logprobs")),
        finish_reason=choice.get("finish_reason"),
        **_usage(document),
    )


def read_prompt(document: Any, body: dict[str, Any]) -> Reply:
    """The log-probabilities of the prompt's own tokens: echoed, or in vLLM's `prompt_logprobs`.

    Of a prompt in ids, `text` is what the server spells it as.
    """
    choice, prompt = _choice(document), body["prompt"]
    own = choice.get("prompt_logprobs")
    if isinstance(own, list):
        tokens: tuple[TokenLogProb, ...] | None = tuple(_vllm_token(entry) for entry in own)
    else:
        tokens = _completion_tokens(choice.get("logprobs")) if body.get("echo") else None
    if not tokens or (all(math.isnan(token.logprob) for token in tokens[1:]) and len(tokens) > 1):
        raise Failed(
            "the server gives no log-probabilities of the prompt (it ignored echo or prompt_logprobs)",
            retryable=False,
            refuses_all=True,
        )
    if isinstance(prompt, str):
        located, text = _located(tokens, prompt), prompt
        if located is None:
            raise Failed(f"the tokens the server sent do not spell the prompt {prompt[:60]!r}", retryable=False)
    else:
        located = _numbered(tokens, prompt)
        text = "".join(token.token for token in located)
    return Reply(text, logprobs=located, finish_reason=choice.get("finish_reason"), **_usage(document))


def _numbered(tokens: tuple[TokenLogProb, ...], ids: list[int]) -> tuple[TokenLogProb, ...]:
    """The tokens of a prompt that was sent in ids: one for each, and the same where the server numbers them."""
    if len(tokens) < len(ids):
        raise Failed(
            f"the server gives {len(tokens)} log-probabilities for a prompt of {len(ids)} tokens", retryable=False
        )
    for n, (token, wanted) in enumerate(zip(tokens, ids, strict=False)):
        if token.id is not None and token.id != wanted:
            raise Failed(
                f"token {n} of the prompt is {wanted}, the server's is {token.id}: it put tokens of its own in, or its "
                f"tokens are others",
                retryable=False,
            )
    return tuple(replace(token, id=number) for token, number in zip(tokens, ids, strict=False))


def restricted(reply: Reply, context: str, target: str) -> Reply:
    """Of a scored prompt, only the tokens that overlap the target."""
    if reply.logprobs is None:
        return reply
    ends = [token.start for token in reply.logprobs[1:]] + [len(context) + len(target)]
    inside = [
        t for t, end in zip(reply.logprobs, ends, strict=True) if end is not None and end > len(context) and target
    ]
    return replace(
        reply, text=target, logprobs=tuple(replace(t, start=max(0, (t.start or 0) - len(context))) for t in inside)
    )


def _choice(document: Any) -> dict[str, Any]:
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        said = document.get("error") if isinstance(document, dict) else None
        raise Failed(f"the server's answer has no choices{f': {said}' if said else ''}")
    return choices[0]


def _usage(document: dict[str, Any]) -> dict[str, Any]:
    usage = document.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
    return {name: int(n) if isinstance(n, int | float) and math.isfinite(n) else 0 for name, n in counts.items()}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _chat_token(entry: dict[str, Any]) -> TokenLogProb:
    top = {str(t.get("token")): _number(t.get("logprob")) for t in entry.get("top_logprobs") or []}
    return TokenLogProb(str(entry.get("token")), _number(entry.get("logprob")), top)


def _completion_tokens(block: Any) -> tuple[TokenLogProb, ...] | None:
    if not isinstance(block, dict) or not isinstance(block.get("tokens"), list):
        return None
    tokens = block["tokens"]
    size = len(tokens)

    def column(name: str) -> list[Any]:
        given = block.get(name)
        return given if isinstance(given, list) and len(given) == size else [None] * size

    rows = zip(tokens, column("token_logprobs"), column("top_logprobs"), column("text_offset"), strict=True)
    return tuple(
        TokenLogProb(
            str(t), _number(lp), {k: _number(v) for k, v in (top or {}).items()}, at if isinstance(at, int) else None
        )
        for t, lp, top, at in rows
    )


def _vllm_token(entry: Any) -> TokenLogProb:
    """One place of `prompt_logprobs`: None for the first, else {token id: {logprob, decoded_token, ...}}, the token itself first."""
    if not entry:
        return TokenLogProb("", float("nan"))
    number, first = next(iter(entry.items()))
    known = int(number) if str(number).isdigit() else None
    return TokenLogProb(str(first.get("decoded_token") or ""), _number(first.get("logprob")), id=known)


def _located(tokens: tuple[TokenLogProb, ...], prompt: str) -> tuple[TokenLogProb, ...] | None:
    """The tokens of the prompt with their first characters, or None where they cannot be laid along it."""
    if all(token.start is not None for token in tokens):
        base = tokens[0].start or 0  # some servers count from the end of an earlier prompt
        moved = tuple(replace(t, start=(t.start or 0) - base) for t in tokens)
        return tuple(t for t in moved if (t.start or 0) < len(prompt))
    if tokens and not tokens[0].token:  # vLLM leaves the first token out: its text is what the others do not spell
        rest = "".join(t.token for t in tokens[1:])
        if not prompt.endswith(rest):
            return None
        tokens = (replace(tokens[0], token=prompt[: len(prompt) - len(rest)]), *tokens[1:])
    placed, at = [], 0
    for token in tokens:
        if at >= len(prompt):
            break
        if not prompt.startswith(token.token, at):
            return None
        placed.append(replace(token, start=at))
        at += len(token.token)
    return tuple(placed) if at >= len(prompt) else None


# -- small things ------------------------------------------------------------------------------------------------------------


def as_cached(reply: Reply) -> Reply:
    """The same answer, not paid for by this call."""
    return replace(reply, cached=True, attempts=0)


def with_attempts(reply: Reply, attempts: int) -> Reply:
    return replace(reply, attempts=attempts)


@contextmanager
def progress_bar(progress: Callable[[int, int], None] | bool, total: int, label: str) -> Iterator[Callable[[], None]]:
    """A function to call after each piece of work: shows a bar, calls the caller's function, or does nothing."""
    done = 0

    def report() -> None:
        nonlocal done
        done += 1
        if callable(progress):
            progress(done, total)

    if progress is not True:
        yield report
        return
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)
