"""What the policy said last in a conversation: the text that a completion of chat messages stands for, everywhere in Guerdon.

`guerdon score`, reward functions for TRL, and the answer part of texts with a chat template's marks all read it here, so that one
conversation has one verdict. Left out: who speaks in a text without marks ("Human: ...").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ASSISTANTS = frozenset({"assistant", "model", "gpt", "ai", "bot", "chatbot"})


def last_words(turns: Iterable[tuple[str, str]]) -> str:
    """What the assistant said in its last turn: the last words of the last run of its messages; "" where it said nothing.

    Args:
        turns: (role, text) of the messages, in order.
    """
    words, running = "", False
    for role, text in turns:
        if role.lower() not in ASSISTANTS:
            running = False
            continue
        words = text if text.strip() or not running else words
        running = True
    return words


def completion_text(completion: Any) -> str:
    """The text of a completion: itself, or what the last assistant turn of a conversation says, never a tool's or a user's words.

    Args:
        completion: a text, a message, or a list of messages ({"role", "content"}; content: text, parts, or None as beside a tool
            call). A message without a role is the assistant's.
    """
    if isinstance(completion, str):
        return completion
    messages = [completion] if isinstance(completion, Mapping) else completion or ()
    return last_words((str(message.get("role") or "assistant"), message_text(message)) for message in messages)


def message_text(message: Mapping[str, Any]) -> str:
    """The text of one message. Of content in parts only texts count: images have none, and thoughts are no part of the answer."""
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        return "".join(
            part if isinstance(part, str) else str(part.get("text") or "")
            for part in content
            if isinstance(part, str)
            or (isinstance(part, Mapping) and part.get("type") not in ("thinking", "reasoning"))
        )
    return "" if content is None else str(content)


def is_conversation(value: Any) -> bool:
    """Whether a completion is one message or a list of messages: mappings with a content, a role, or tool calls."""
    messages = [value] if isinstance(value, Mapping) else value
    return isinstance(messages, (list, tuple)) and all(
        isinstance(one, Mapping) and bool({"content", "role", "tool_calls"} & one.keys()) for one in messages
    )
