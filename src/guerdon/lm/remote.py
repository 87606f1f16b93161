"""An OpenAI-compatible endpoint (OpenAI, vLLM, SGLang, llama.cpp, ...) as a model: chat, completions, log-probabilities.

    judge = RemoteModel("gpt-4o-mini")                                     # key from OPENAI_API_KEY
    judge = RemoteModel("my-model", base_url="http://127.0.0.1:8000/v1")   # a server of one's own
    replies = judge.chat(["Is 7 prime? Answer yes or no."])

Synchronous methods work from plain code, threads and inside a running event loop (which they block; `achat` and
`acomplete` do not). Whatever goes wrong with one request - time-outs, 429, 5xx, a cut connection, a body that is no JSON, no
choices - is tried again with exponential back-off and jitter, the server's Retry-After honoured, and then becomes a Reply
with a reason. What asking again cannot mend (400, 401, 403, 404, exhausted quota) fails at once; after 401, 403 or 404 the
requests of the same call that still queue are not sent.

No paid answer is bought twice: answers are kept on disk under a digest of the whole request, and identical requests in
flight - of any thread, client or process that uses the same cache - are sent once (`guerdon.lm.kept`). An answer that was paid
for and has no text (`content: null`) is kept as that; an empty text is a failure, which is tried again and not kept.

Left out: streaming, tools, images.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from guerdon.cache import cache_root
from guerdon.errors import ConfigError
from guerdon.extras import require
from guerdon.lm import answers
from guerdon.lm.background import InFlight, background_loop, blocking
from guerdon.lm.chat import ChatPrompt, Reply, as_messages, numbered, request_key
from guerdon.lm.kept import KeptAnswers
from guerdon.redact import without_credentials

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
_IN_FLIGHT: dict[int, InFlight] = {}  # by background loop


class RemoteModel:
    """A model behind an OpenAI-compatible HTTP interface.

    Args:
        model: the name the server knows.
        base_url: "https://host/v1"; None = OpenAI (or $OPENAI_BASE_URL).
        api_key: None = $OPENAI_API_KEY; a server of one's own usually needs none. Never cached, never logged.
        concurrency: requests under way at once.
        timeout_s: for one try, whole answer included.
        retries: tries after the first.
        backoff_s, max_backoff_s: the k-th wait is drawn from [half, whole] of backoff_s * 2^k, at most max_backoff_s.
        max_retry_after_s: a server that asks for a longer pause than this is given up.
        cache: folder for answers; None = `cache_root()/replies`; False = no cache.
        extra: more fields for every request body ({"seed": 1}, {"reasoning_effort": "low"}).
        max_tokens_field: some servers want "max_completion_tokens".

    Attributes:
        counts: requests sent, cache hits, joins, failures, and tokens paid for, by name.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        concurrency: int = 16,
        timeout_s: float = 60.0,
        retries: int = 5,
        backoff_s: float = 0.5,
        max_backoff_s: float = 30.0,
        max_retry_after_s: float = 120.0,
        cache: str | Path | bool | None = None,
        extra: Mapping[str, Any] | None = None,
        max_tokens_field: str = "max_tokens",
    ) -> None:
        if concurrency < 1 or retries < 0 or not timeout_s > 0:
            raise ConfigError(
                f"concurrency={concurrency} (at least 1), retries={retries} (at least 0), timeout_s={timeout_s} (positive)"
            )
        self.model, self.base_url, self._api_key = model, base_url, api_key
        self.concurrency, self.timeout_s, self.retries = concurrency, timeout_s, retries
        self.backoff_s, self.max_backoff_s, self.max_retry_after_s = backoff_s, max_backoff_s, max_retry_after_s
        self.extra, self.max_tokens_field = dict(extra or {}), max_tokens_field
        self._openai = require("openai", extra="judge")
        default = cache is None or cache is True
        self.kept = None if cache is False else KeptAnswers(cache_root() / "replies" if default else str(cache))
        self._live: tuple[asyncio.AbstractEventLoop, Any, asyncio.Semaphore] | None = None
        self._jitter = random.Random()  # waits only; no result depends on it
        self._refused: str | None = None
        self.counts: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"RemoteModel({self.model!r}, base_url={without_credentials(str(self.base_url)) if self.base_url else None!r})"

    # -- asking ----------------------------------------------------------------------------------------------------------------

    async def achat(
        self,
        prompts: Sequence[ChatPrompt],
        *,
        draws: Sequence[int] | None = None,
        temperature: float = 0.0,
        max_tokens: int = 512,
        stop: Sequence[str] = (),
        logprobs: bool = False,
        top_logprobs: int = 0,
        progress: Progress | bool = False,
    ) -> list[Reply]:
        """One reply for each prompt, in order; a failed one has `error` set. To be awaited, on any loop; `chat` waits.

        Args:
            prompts: texts (one user message) or chat messages.
            draws: number of the sample for each prompt, part of the cache key: draw 0 asked again is the same answer.
            temperature, max_tokens, stop: as in the OpenAI interface.
            logprobs, top_logprobs: ask for them; `Reply.logprobs` is None where the server gives none.
            progress: True for a bar, or a function (done, total), called from the background thread.
        """
        shared = {"temperature": temperature, self.max_tokens_field: max_tokens} | (
            {"stop": list(stop)} if stop else {}
        )
        if logprobs or top_logprobs:
            shared |= {"logprobs": True} | ({"top_logprobs": top_logprobs} if top_logprobs else {})
        bodies = [{"messages": as_messages(prompt)} | shared for prompt in prompts]
        return await self._on_background("chat", bodies, numbered(draws, len(bodies)), progress)

    async def acomplete(
        self,
        prompts: Sequence[str],
        *,
        draws: Sequence[int] | None = None,
        temperature: float = 0.0,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        progress: Progress | bool = False,
    ) -> list[Reply]:
        """Plain text completions (the older interface, which vLLM and others keep). `logprobs`: how many tops to ask for."""
        shared: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens} | (
            {"stop": list(stop)} if stop else {}
        )
        shared |= {"logprobs": logprobs} if logprobs is not None else {}
        return await self._on_background(
            "completion", [{"prompt": prompt} | shared for prompt in prompts], numbered(draws, len(prompts)), progress
        )

    async def aprompt_logprobs(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        style: Literal["echo", "prompt_logprobs"] = "echo",
        progress: Progress | bool = False,
    ) -> list[Reply]:
        """Log-probabilities of given texts, from a server that scores prompts (`guerdon.lm.endpoint` builds on this).

        Args:
            prompts: N texts, or token ids (sent as they are: nothing is tokenised again).
            style: "echo" (completions with echo and logprobs), or "prompt_logprobs" (vLLM's own field).

        Returns:
            N replies whose `logprobs` are the prompt's tokens; the first has no context, and NaN. A server that cannot do it
            gives replies with a reason.
        """
        if style not in ("echo", "prompt_logprobs"):
            raise ConfigError(f"style={style!r}: use echo or prompt_logprobs")
        asked: dict[str, Any] = {"prompt_logprobs": 0, "max_tokens": 1}
        if style == "echo":
            asked = {"echo": True, "logprobs": 1, "max_tokens": 0}
        bodies = [
            {"prompt": p if isinstance(p, str) else [int(i) for i in p], "temperature": 1.0} | asked for p in prompts
        ]
        return await self._on_background("prompt", bodies, [0] * len(bodies), progress)

    chat = blocking(achat)
    complete = blocking(acomplete)
    prompt_logprobs = blocking(aprompt_logprobs)

    # -- the road there ----------------------------------------------------------------------------------------------------------

    async def _on_background(
        self, kind: str, bodies: list[dict[str, Any]], draws: list[int], progress: Progress | bool
    ) -> list[Reply]:
        work = self._many(kind, bodies, draws, progress)
        loop = background_loop()
        if asyncio.get_running_loop() is loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))

    async def _many(
        self, kind: str, bodies: list[dict[str, Any]], draws: list[int], progress: Progress | bool
    ) -> list[Reply]:
        self._refused = None
        with answers.progress_bar(progress, len(bodies), f"asking {self.model}") as advance:

            async def one(body: dict[str, Any], draw: int) -> Reply:
                reply = await self._one(kind, body, draw)
                advance()
                return reply

            replies = await asyncio.gather(*(one(body, draw) for body, draw in zip(bodies, draws, strict=True)))
        failures = Counter(reply.error for reply in replies if reply.error is not None)
        for reason, count in failures.most_common(3):
            logger.warning("%s: %d of %d requests failed: %s", self.model, count, len(replies), reason)
        return list(replies)

    async def _one(self, kind: str, body: dict[str, Any], draw: int) -> Reply:
        """From the cache, from an identical request in flight, or from the server."""
        body = {"model": self.model} | body | self.extra
        loop = asyncio.get_running_loop()
        if self._live is None or self._live[0] is not loop:
            self._live = (loop, self._client(), asyncio.Semaphore(self.concurrency))
        key = request_key(without_credentials(str(self._live[1].base_url)), kind, body, draw)
        if (kept := self._recall(key)) is not None:
            return kept
        flight = _IN_FLIGHT.setdefault(id(loop), InFlight())
        scope = str(self.kept.folder) if self.kept is not None else id(self)
        reply, joined = await flight.join((scope, key), lambda wanted: self._buy(kind, body, key, wanted))
        self.counts["joined"] += joined
        return answers.as_cached(reply) if joined and reply.ok else reply

    def _recall(self, key: str) -> Reply | None:
        reply = self.kept.get(key) if self.kept is not None else None
        self.counts["cache_hits"] += reply is not None
        return reply

    async def _buy(self, kind: str, body: dict[str, Any], key: str, wanted: Callable[[], bool]) -> Reply:
        assert self._live is not None
        _, client, gate = self._live
        pause = 0.01
        while True:
            async with gate:
                if not wanted():
                    return Reply(None, "cancelled before it was sent")
                if self._refused is not None:
                    return Reply(None, self._refused, retryable=False)
                if (kept := self._recall(key)) is not None:  # another client may have bought it while this one queued
                    return kept
                if self.kept is None or self.kept.claim(key, self._lease_s):
                    return await self._bought(client, kind, body, key)
            await asyncio.sleep(pause)  # another process is asking the same; its answer will be kept
            pause = min(2 * pause, 0.25)

    async def _bought(self, client: Any, kind: str, body: dict[str, Any], key: str) -> Reply:
        """The answer to a request that this process has claimed, kept."""
        settled = False
        try:
            reply = await self._tries(client, kind, body, key)
            self.counts.update(prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens)
            self.counts["failed"] += not reply.ok
            if self.kept is not None and (reply.ok or reply.paid):
                self.kept.put(key, reply)
                settled = True
            return reply
        finally:
            if self.kept is not None and not settled:
                self.kept.release(key)

    @property
    def _lease_s(self) -> float:
        """How long one try and the pause after it may take at most."""
        return self.timeout_s + max(self.max_backoff_s, self.max_retry_after_s) + 30.0

    async def _tries(self, client: Any, kind: str, body: dict[str, Any], key: str) -> Reply:
        tenacity = require("tenacity", extra="judge")
        tries = 0

        async def once() -> Reply:
            nonlocal tries
            tries += 1
            if tries > 1 and self.kept is not None:
                self.kept.claim(key, self._lease_s)  # renewed: the others go on waiting
            self.counts["requests"] += 1
            return await self._send(client, kind, body)

        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.retries + 1),
            wait=self._wait,
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, answers.Failed) and error.retryable),
            reraise=True,
        )
        try:
            reply = await retrying(once)
        except answers.Failed as failure:
            if failure.refuses_all:
                self._refused = failure.reason
            after = f" (after {tries} tries)" if tries > 1 else ""
            reason = f"{self.model}: {failure.reason}{after}"
            reply = Reply(None, reason, attempts=tries, retryable=failure.retryable, paid=failure.paid)
            return replace(reply, **failure.usage)  # type: ignore[arg-type]
        return answers.with_attempts(reply, tries)

    async def _send(self, client: Any, kind: str, body: dict[str, Any]) -> Reply:
        """One try. Raises `answers.Failed` for everything that can go wrong."""
        interface = client.chat.completions if kind == "chat" else client.completions
        own = {name: body[name] for name in ("prompt_logprobs",) if name in body} | self.extra
        plain = {name: value for name, value in body.items() if name not in own}
        try:
            async with asyncio.timeout(
                self.timeout_s
            ):  # the client's own time-out is per read: a dripping server outlives it
                raw = await interface.with_raw_response.create(**plain, extra_body=own or None)
                text = raw.http_response.text
        except UnicodeEncodeError as error:  # lone surrogates: a policy can write them, JSON cannot carry them
            raise answers.Failed(f"the request cannot be sent as UTF-8 ({error})", retryable=False) from error
        except TimeoutError:
            raise answers.Failed(f"no answer within {self.timeout_s:g} s") from None
        except self._openai.OpenAIError as error:
            raise answers.failure_of(error, self._openai, self.timeout_s, self.max_retry_after_s) from error
        try:
            document = json.loads(text)
        except ValueError:
            raise answers.Failed(f"the server's answer is no JSON: {text[:80]!r}") from None
        return {"chat": answers.read_chat, "completion": answers.read_completion, "prompt": answers.read_prompt}[kind](
            document, body
        )

    def _wait(self, state: Any) -> float:
        failure = state.outcome.exception()
        if getattr(failure, "retry_after_s", None) is not None:
            return failure.retry_after_s
        whole = min(self.backoff_s * 2 ** (state.attempt_number - 1), self.max_backoff_s)
        return whole * (0.5 + 0.5 * self._jitter.random())

    def _client(self) -> Any:
        key = self._api_key
        if key is None and self.base_url is not None:
            key = os.environ.get("OPENAI_API_KEY") or "none"  # the client insists on one
        try:
            return self._openai.AsyncOpenAI(api_key=key, base_url=self.base_url, max_retries=0, timeout=self.timeout_s)
        except self._openai.OpenAIError as error:
            raise ConfigError(f"{self.model}: {error}; set OPENAI_API_KEY or pass api_key=") from error
