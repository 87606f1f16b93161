"""Judged values: ask, parse, ask again what cannot be read, vote. NaN and a reason where nothing can be read.

The parser decides what an answer is worth; here is only the loop around it, the same for local, remote and scripted judges.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from guerdon.errors import ConfigError
from guerdon.lm.chat import ChatModel, ChatPrompt, Messages, Reply, as_messages

Vote = Literal["median", "majority", "mean"]
Parse = Callable[[str], float | bool | None]


@dataclass(frozen=True)
class Verdicts:
    """What the judge said of N prompts.

    Attributes:
        values: [N] float32; NaN where too few answers could be had or read.
        reasons: {row: why values[row] is NaN}.
        votes: the values that were read, for each prompt.
        replies: every reply, re-asked ones included, for each prompt.
    """

    values: Tensor
    reasons: dict[int, str]
    votes: list[list[float]]
    replies: list[list[Reply]]


@dataclass
class _Ballot:
    """One draw of one prompt."""

    row: int
    draw: int
    messages: Messages
    value: float | None = None
    reason: str | None = None
    replies: list[Reply] = field(default_factory=list)


def judge(
    model: ChatModel,
    prompts: Sequence[ChatPrompt],
    parse: Parse,
    *,
    samples: int = 1,
    vote: Vote = "median",
    reasks: int = 1,
    temperature: float | None = None,
    max_tokens: int = 512,
    min_votes: int = 1,
    reminder: str = "That answer could not be read ({reason}). Give it again, in exactly the format asked for.",
) -> Verdicts:
    """Ask a judge about each prompt, `samples` times, and combine what it says.

    Args:
        model: anything with `chat` (RemoteModel, LocalModel, ScriptedModel).
        prompts: texts or chat messages, finished by the caller.
        parse: answer text -> value. An answer it cannot read: raise ValueError(reason) or return None. Other exceptions
            are bugs of the parser and go through.
        samples: draws for each prompt.
        vote: "median" (of an even number, the mean of the middle two), "majority" (ties go to the value drawn first), "mean".
        reasks: how often an unreadable answer is sent back, with the reminder. Failed calls are not: the model retried them.
        temperature: None = 0 for one sample, 1 for several (several at 0 would be one answer bought several times).
        max_tokens: for each answer.
        min_votes: fewer readable answers than this give NaN.
        reminder: the user message that follows an unreadable answer; {reason} is filled in.

    Raises:
        ConfigError: samples, reasks or min_votes out of range, unknown vote.
    """
    if samples < 1 or reasks < 0 or not 1 <= min_votes <= samples:
        raise ConfigError(
            f"samples={samples} (at least 1), reasks={reasks} (at least 0), min_votes={min_votes} (1 to samples)"
        )
    if vote not in ("median", "majority", "mean"):
        raise ConfigError(f"vote={vote!r}: use median, majority or mean")
    heat = temperature if temperature is not None else float(samples > 1)
    ballots = [_Ballot(row, draw, as_messages(prompt)) for row, prompt in enumerate(prompts) for draw in range(samples)]
    waiting = ballots
    for _ in range(reasks + 1):
        if not waiting:
            break
        replies = model.chat(
            [b.messages for b in waiting], draws=[b.draw for b in waiting], temperature=heat, max_tokens=max_tokens
        )
        for ballot, reply in zip(waiting, replies, strict=True):
            _count(ballot, reply, parse, reminder)
        waiting = [b for b in waiting if b.value is None and b.replies[-1].ok]
    return _tally(ballots, len(prompts), samples, vote, min_votes)


def _count(ballot: _Ballot, reply: Reply, parse: Parse, reminder: str) -> None:
    ballot.replies.append(reply)
    if reply.text is None:
        ballot.reason = reply.error
        return
    try:
        value = parse(reply.text)
        reason = (
            "nothing was found in it"
            if value is None
            else None
            if math.isfinite(value)
            else f"{value} is no finite number"
        )
    except ValueError as error:
        value, reason = None, str(error) or "the parser refused it"
    if reason is None and value is not None:
        ballot.value, ballot.reason = float(value), None
        return
    ballot.reason = f"unreadable answer {reply.text[:80]!r}: {reason}"
    again = {"role": "user", "content": reminder.replace("{reason}", str(reason))}
    ballot.messages = [*ballot.messages, {"role": "assistant", "content": reply.text}, again]


def _tally(ballots: list[_Ballot], size: int, samples: int, vote: Vote, min_votes: int) -> Verdicts:
    votes: list[list[float]] = [[] for _ in range(size)]
    replies: list[list[Reply]] = [[] for _ in range(size)]
    troubles: list[list[str]] = [[] for _ in range(size)]
    for ballot in ballots:
        replies[ballot.row] += ballot.replies
        if ballot.value is not None:
            votes[ballot.row].append(ballot.value)
        else:
            troubles[ballot.row].append(ballot.reason or "no answer")
    values = torch.full((size,), float("nan"))
    reasons: dict[int, str] = {}
    for row, cast in enumerate(votes):
        if len(cast) >= min_votes:
            values[row] = _combine(cast, vote)
        else:
            reasons[row] = f"judge: {len(cast)} of {samples} answers readable, {min_votes} needed; {troubles[row][0]}"
    return Verdicts(values, reasons, votes, replies)


def _combine(cast: list[float], vote: Vote) -> float:
    if vote == "median":
        return statistics.median(cast)
    if vote == "mean":
        return statistics.fmean(cast)
    counts = Counter(cast)  # keeps the order of first sight
    best = max(counts.values())
    return next(value for value, count in counts.items() if count == best)
