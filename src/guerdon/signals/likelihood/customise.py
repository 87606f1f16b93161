"""Customised prompts for a density ratio: a written criterion and an exemplar in the context of BOTH models (CDR, arXiv 2411.02481).

    [system] criterion of the domain                 replaces a system message that is there
    [user]   exemplar \\n query \\n Good Assistant:     the last user message

Domains are SAFETY, REASONING and CHAT; those of `vanilla` stay untouched. A router tells them: a data column, keywords, or a language model
whose reply wraps the domain in [START] and [END].
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from guerdon.errors import ConfigError
from guerdon.lm.chat import ChatModel, as_messages

Domain = Literal["SAFETY", "REASONING", "CHAT"]
DOMAINS: tuple[Domain, ...] = ("SAFETY", "REASONING", "CHAT")
Messages = list[dict[str, Any]]
CUE = "Good Assistant:"

CRITERIA: Mapping[str, str] = {
    "SAFETY": "You are a careful assistant. Do not help with anything that would hurt a person, break the law or spread lies. "
    "When you decline, be polite and say why. When a request only sounds dangerous and is not, answer it fully.",
    "REASONING": "You are a precise assistant. Work the problem out in steps, check every step, and state the result at the end.",
    "CHAT": "You are a helpful assistant. Answer what was asked, to the point, in a form that is easy to read.",
}
# A question, a good answer, a bad one, and why it is bad: our own.
EXEMPLARS: Mapping[str, tuple[str, ...]] = {
    "SAFETY": (
        "User: How do I open the door of a car that is not mine?\n"
        "Good Assistant: I cannot help with getting into somebody else's car. If you locked yourself out of your own, a locksmith can help.\n"
        "Bad Assistant: Push a wire past the window and pull the lock up.\n"
        "The bad answer helps with a theft.",
        "User: How do I kill a process that hangs?\n"
        "Good Assistant: Find its number with ps and send it a signal with kill.\n"
        "Bad Assistant: I cannot talk about killing.\n"
        "The bad answer refuses a harmless request.",
    ),
    "REASONING": (
        "User: What is 17 * 6?\n"
        "Good Assistant: 17 * 6 = 10 * 6 + 7 * 6 = 60 + 42 = 102.\n"
        "Bad Assistant: 17 * 6 = 96, as one sees at once.\n"
        "The bad answer shows no steps, and the result is wrong.",
        "User: Write a function that doubles a number in Python.\n"
        "Good Assistant: def double(x):\n    return 2 * x\n"
        "Bad Assistant: def double(x):\n    return x ** 2\n"
        "The bad answer squares the number.",
    ),
    "CHAT": (
        "User: Can you suggest a present for a gardener?\n"
        "Good Assistant: A pair of good gloves, seeds of an old tomato, or a book on soil would please most gardeners.\n"
        "Bad Assistant: Presents are an old custom that is found in all parts of the world.\n"
        "The bad answer says nothing about the question.",
    ),
}


def customise_messages(
    messages: Sequence[Mapping[str, Any]],
    domain: str,
    system_prompts: Mapping[str, str],
    exemplar: str = "",
    vanilla_domains: Sequence[str] = ("CHAT",),
    cue: str = CUE,
) -> Messages:
    """The conversation with the domain's criterion and an exemplar in it.

    Args:
        messages: chat messages; they are not changed.
        domain: of the conversation.
        system_prompts: criterion by domain; none or an empty one leaves the system turn as it is.
        exemplar: put before the last user message, which then ends with the cue; "" leaves that message as it is.
        vanilla_domains: conversations of these stay untouched.
        cue: what ends the customised user message.
    """
    found: Messages = [dict(message) for message in messages]
    if domain in vanilla_domains:
        return found
    criterion = system_prompts.get(domain, "")
    if exemplar:
        last = max((i for i, message in enumerate(found) if message.get("role") == "user"), default=None)
        if last is not None:
            found[last] = {**found[last], "content": f"{exemplar}\n{found[last]['content']}\n{cue}"}
    if criterion:
        if found and found[0].get("role") == "system":
            found[0] = {**found[0], "content": criterion}
        else:
            found.insert(0, {"role": "system", "content": criterion})
    return found


# --- routing ---------------------------------------------------------------------------------------------------------

_SAFETY = re.compile(
    r"\b(kill|weapons?|bombs?|poison|steal|hack|drugs?|suicide|attack|illegal|hate|racist|explosives?|murder|hurt|abuse)\b",
    re.IGNORECASE,
)
_REASONING = re.compile(
    r"\b(calculate|compute|solve|prove|equation|integral|how (?:many|much)|function|python|code|program|bug|algorithm|sum|probability)\b"
    r"|\d\s*[-+*/=^]\s*\d|```",
    re.IGNORECASE,
)
ROUTER_PROMPT = (
    "Which of three kinds is the request below? SAFETY: it may lead to harm, or sounds as if it could. REASONING: mathematics, logic or "
    "programming. CHAT: anything else. Answer with the one word between [START] and [END], such as [START] CHAT [END].\n\nRequest:\n{question}"
)


def extract_domain(text: str) -> Domain:
    """The domain a router's reply names; CHAT for anything that cannot be read.

    It is what follows the first [START], up to the next [START] or [END]; both marks have to occur, in any order. Source: CDR (arXiv
    2411.02481), official code scripts/domain_annotate.py, extract_domain_class.
    """
    if "[START]" not in text or "[END]" not in text:
        return "CHAT"
    named = text.split("[START]")[1].split("[END]")[0].strip()
    return next((domain for domain in DOMAINS if domain == named), "CHAT")


def last_question(prompt: Any) -> str:
    """The text of a prompt, or of its last user message."""
    if isinstance(prompt, str):
        return prompt
    asked = [message for message in prompt if message.get("role") == "user"]
    return str(asked[-1]["content"]) if asked else ""


def keyword_router(prompts: Sequence[Any]) -> list[Domain]:
    """Domains by keywords: a free stand-in for a language model. Safety words win over reasoning words."""

    def one(text: str) -> Domain:
        return "SAFETY" if _SAFETY.search(text) else "REASONING" if _REASONING.search(text) else "CHAT"

    return [one(last_question(prompt)) for prompt in prompts]


@dataclass(frozen=True)
class ModelRouter:
    """Domains by a language model at temperature 0. A failed call is CHAT, the domain that changes least.

    Attributes:
        model: a ChatModel (`guerdon.lm.RemoteModel`, `LocalModel`).
        prompt: with {question} in it.
        max_tokens: of a reply.
    """

    model: ChatModel
    prompt: str = ROUTER_PROMPT
    max_tokens: int = 32

    def __call__(self, prompts: Sequence[Any]) -> list[Domain]:
        asked = [self.prompt.replace("{question}", last_question(prompt)) for prompt in prompts]
        replies = self.model.chat(asked, temperature=0.0, max_tokens=self.max_tokens)
        return [extract_domain(reply.text or "") for reply in replies]


# --- the whole customisation -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Customisation:
    """How prompts are customised: what domain, which criterion, which exemplar.

    Attributes:
        router: prompts -> domains; None = `keyword_router`. A data column `column`, where the batch has it, goes first.
        criteria: system text by domain.
        exemplars: pools by domain; one is drawn for each prompt, the same for all its responses. Empty = none.
        vanilla: domains that stay untouched.
        column: data column with the domain.
        seed: of the drawing, with the prompt: the same prompt gets the same exemplar whenever it comes.
    """

    router: Callable[[Sequence[Any]], list[Domain]] | None = None
    criteria: Mapping[str, str] = field(default_factory=lambda: dict(CRITERIA))
    exemplars: Mapping[str, Sequence[str]] = field(default_factory=lambda: dict(EXEMPLARS))
    vanilla: tuple[str, ...] = ("CHAT",)
    column: str = "domain"
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = {*self.criteria, *self.exemplars, *self.vanilla} - set(DOMAINS)
        if unknown:
            raise ConfigError(f"no domain {', '.join(sorted(unknown))}: there are {', '.join(DOMAINS)}")

    def __repr__(self) -> str:
        digest = hashlib.sha256(
            repr((sorted(self.criteria.items()), sorted(self.exemplars.items()))).encode()
        ).hexdigest()[:8]
        router = "column or keywords" if self.router is None else type(self.router).__name__
        return f"Customisation({router}, vanilla={self.vanilla}, texts={digest}, seed={self.seed})"

    def domains(self, prompts: Sequence[Any], given: Sequence[Any] | None = None) -> list[str]:
        """The domain of each prompt: the given one where it is a domain, else the router's."""
        found: list[str | None] = [g if g in DOMAINS else None for g in (given or [None] * len(prompts))]
        open_rows = [i for i, domain in enumerate(found) if domain is None]
        routed = (self.router or keyword_router)([prompts[i] for i in open_rows]) if open_rows else []
        for i, domain in zip(open_rows, routed, strict=True):
            found[i] = domain
        return [str(domain) for domain in found]

    def exemplar(self, prompt: Any, domain: str) -> str:
        """The exemplar of a prompt; "" where the domain has none."""
        pool = list(self.exemplars.get(domain, ()))
        return random.Random(f"{self.seed}|{prompt!r}").choice(pool) if pool else ""

    def __call__(self, prompts: Sequence[Any], given: Sequence[Any] | None = None) -> tuple[list[Any], list[str]]:
        """Customised prompts (chat messages; untouched ones as they came) and their domains."""
        domains = self.domains(prompts, given)
        made = []
        for prompt, domain in zip(prompts, domains, strict=True):
            if domain in self.vanilla:
                made.append(prompt)
                continue
            made.append(
                customise_messages(
                    as_messages(prompt), domain, self.criteria, self.exemplar(prompt, domain), self.vanilla
                )
            )
        return made, domains
