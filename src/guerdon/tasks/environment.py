"""What a multi-turn task answers to a policy's turn. The loop that samples, calls it and puts the answers into the context is an
engine's (`guerdon.engines.trl.multi_turn`); here is what the two agree on, and how a tool call is read out of text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
CallStyle = Literal["json", "text"]


class Environment(Protocol):
    """Answers turns; keeps no state between calls, so that rollouts can be sampled in any order and resumed.

    Attributes:
        stop: texts that end a turn, besides the end-of-sequence token.
        max_turns: turns of the policy in one rollout; the last one is not answered.
        turn_tokens: the most tokens of one turn; None = what is left of the rollout's.
    """

    @property
    def stop(self) -> tuple[str, ...]: ...

    @property
    def max_turns(self) -> int: ...

    @property
    def turn_tokens(self) -> int | None: ...

    def respond(self, turns: Sequence[str]) -> list[str | None]:
        """What each of B turns is answered; None = the rollout ends with this turn."""
        ...


def parse_call(turn: str, style: CallStyle = "json", tool: str = "search", argument: str = "query") -> str | None:
    """The query of a turn's one tool call; None where the turn answers, or calls nothing, or not as the style asks.

    Args:
        turn: what the policy wrote. One with an <answer> ends the rollout whatever else it holds.
        style: "json": {"name": tool, "arguments": {argument: query}}; "text": the query itself.
        tool, argument: the names that count.
    """
    found = _CALL.findall(turn)
    if "<answer>" in turn or len(found) != 1:
        return None
    if style == "text":
        return found[0].strip() or None
    try:
        call = json.loads(found[0])
    except ValueError:
        return None
    given = call.get("arguments") if isinstance(call, dict) and call.get("name") == tool else None
    query = given.get(argument) if isinstance(given, dict) else None
    return query.strip() or None if isinstance(query, str) else None


@dataclass(frozen=True)
class ToolEnvironment:
    """One tool behind <tool_call>, its answer between <tool_response> tags.

    tool: queries -> texts, one each. style: how a call is written, see `parse_call`. The rest as in `Environment`.
    """

    tool: Callable[[Sequence[str]], list[str]]
    style: CallStyle = "json"
    max_turns: int = 10
    turn_tokens: int | None = None
    stop: tuple[str, ...] = field(default=("</tool_call>", "</answer>"))

    def respond(self, turns: Sequence[str]) -> list[str | None]:
        queries = [parse_call(turn, self.style) for turn in turns]
        found = iter(self.tool([query for query in queries if query is not None]))
        return [None if query is None else f"<tool_response>{next(found)}</tool_response>" for query in queries]
