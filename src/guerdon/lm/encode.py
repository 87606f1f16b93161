"""Text to ids: prompts, chat messages, and continuations that are joined to other ids.

Ids that exist are never tokenised again: a context or a completion given as ids stays as it is, and what follows it is
tokenised by itself (`encode_continuation`). Where a published method tokenises a text in one piece and looks for a part of
it by characters (RLPR's splice), `encode_with_target` does that and says which tokens overlap the part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.errors import ConfigError
from guerdon.lm.offsets import decode_offsets, overlapping_tokens

Message = Mapping[str, Any]
Text = str | Sequence[int] | Tensor
Prompt = str | Sequence[Message] | Sequence[int] | Tensor

_ANCHOR = "\n"  # something a continuation can follow: no tokenizer puts a blank before what comes after a line break


def render_chat(
    tokenizer: Any, messages: Sequence[Message], *, ask: bool = False, owner: str = "this tokenizer", **options: Any
) -> str:
    """A conversation as a tokenizer's chat template writes it.

    Args:
        tokenizer: a transformers tokenizer.
        messages: {"role", "content"} each.
        ask: with the prompt for an answer.
        owner: whose tokenizer it is, for errors.
        options: the template's own switches (`enable_thinking=False`).

    Raises:
        ConfigError: there is no template, or it refuses these messages (many know no system role).
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError(
            f"the prompt is a list of chat messages, and {owner} has no chat template; give texts, or set tokenizer.chat_template"
        )
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask, **options)
    except Exception as error:  # a template is a program of its author's, and raises what it likes
        roles = ", ".join(str(message.get("role")) for message in messages)
        cure = (
            "put the system message's text before the first user message in the data, or give the tokenizer a template that knows the role"
            if any(message.get("role") == "system" for message in messages)
            else "change the messages in the data, or give the tokenizer a template that takes them (tokenizer.chat_template)"
        )
        raise ConfigError(
            f"the chat template of {owner} refuses messages of the roles {roles} ({error}): {cure}"
        ) from error


def encode_prompt(tokenizer: Any, prompt: Prompt, **options: Any) -> Tensor:
    """[T] ids of a prompt.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: ids (kept), a text, or chat messages (the tokenizer's chat template, with the generation prompt).
            A text gets the begin-of-sequence token that the tokenizer would add, unless the text begins with it already
            (a rendered chat template does); no other special token is added.
        options: switches of the chat template.

    Raises:
        ConfigError: chat messages, and the tokenizer has no chat template, or one that refuses them.
    """
    if isinstance(prompt, Tensor):
        return prompt.long().cpu()
    if not isinstance(prompt, str):
        if prompt and isinstance(prompt[0], Mapping):
            prompt = render_chat(tokenizer, prompt, ask=True, **options)  # type: ignore[arg-type]
        else:
            return torch.tensor([int(i) for i in prompt], dtype=torch.long)  # type: ignore[call-overload, arg-type]
    ids = _plain(tokenizer, str(prompt))
    first = _begin_token(tokenizer)
    return torch.tensor(([first] if first is not None and ids[:1] != [first] else []) + ids, dtype=torch.long)


def encode_continuation(tokenizer: Any, text: Text) -> Tensor:
    """[T] ids of a text that follows other tokens: no special token, no blank put before the first word. Ids are kept."""
    if not isinstance(text, str):
        return torch.as_tensor(text, dtype=torch.long).cpu().reshape(-1)
    ids = _plain(tokenizer, text)
    anchor = _plain(tokenizer, _ANCHOR)
    if text and decode_offsets(tokenizer, anchor + ids, skip_special=False)[0] != _ANCHOR + text:
        whole = _plain(tokenizer, _ANCHOR + text)
        if whole[: len(anchor)] == anchor:  # SentencePiece: alone, the text would have got a blank in front
            ids = whole[len(anchor) :]
    return torch.tensor(ids, dtype=torch.long)


def continuation_offsets(tokenizer: Any, ids: Tensor) -> tuple[str, Tensor]:
    """Text and offsets [T, 2] of ids that follow other tokens (special tokens have zero width)."""
    anchor = torch.tensor(_plain(tokenizer, _ANCHOR), dtype=torch.long)
    text, offsets = decode_offsets(tokenizer, torch.cat([anchor, ids.cpu()]))
    if not text.startswith(_ANCHOR):  # a character tokenizer without a line break
        return decode_offsets(tokenizer, ids)
    return text[len(_ANCHOR) :], (offsets[len(anchor) :] - len(_ANCHOR)).clamp(min=0)


class Spliced(NamedTuple):
    """A text in ids, with one part of it marked.

    Attributes:
        ids: [T] int64, context ids first.
        offsets: [T, 2] int64, characters [start, end) in `text`; (0, 0) for the context.
        target: [T] bool, the tokens that share a character with the part.
        text: the text the offsets count in.
    """

    ids: Tensor
    offsets: Tensor
    target: Tensor
    text: str


def encode_with_target(tokenizer: Any, text: str, start: int, end: int, *, context: Text | None = None) -> Spliced:
    """Tokenise a text in one piece and mark the tokens that overlap text[start:end].

    A token belongs iff char_start < end and char_end > start (RLPR): one merged with the blank before the part counts. The
    offsets come from decoding the ids; where a tokenizer changes the text (normalises it, drops blanks), its own offset
    mapping is used, and without one the text is refused.

    Args:
        tokenizer: a transformers tokenizer.
        text: the whole text, for instance reasoning, tag, reference answer, closing tag.
        start, end: the part, in characters, end exclusive.
        context: ids (or a text) before it, which are not marked and not tokenised again. None: the text is a prompt by
            itself, and gets the begin-of-sequence token.

    Raises:
        ValueError: start and end are no part of the text, or the tokenizer does not preserve the text.
    """
    if not 0 <= start <= end <= len(text):
        raise ValueError(f"characters {start}:{end} are no part of a text of {len(text)} characters")
    own = encode_prompt(tokenizer, text) if context is None else encode_continuation(tokenizer, text)
    # Special tokens written in the text ("</s>") are part of it: their characters count.
    begins_with_special = (
        context is None
        and len(own) > 0
        and _begin_token(tokenizer) == int(own[0])
        and not text.startswith(tokenizer.decode(own[:1].tolist()))
    )
    lead = int(begins_with_special)
    decoded, offsets = _offsets_with_special(tokenizer, own[lead:], follows=context is not None)
    if decoded != text:
        offsets = _mapped_offsets(tokenizer, text, own[lead:])
    offsets = torch.cat([torch.zeros(lead, 2, dtype=torch.long), offsets])
    target = overlapping_tokens(offsets, start, end)
    if context is None:
        return Spliced(own, offsets, target, text)
    before = encode_prompt(tokenizer, context)
    zeros = torch.zeros(len(before), 2, dtype=torch.long)
    return Spliced(torch.cat([before, own]), torch.cat([zeros, offsets]), torch.cat([zeros[:, 0].bool(), target]), text)


# -- details -----------------------------------------------------------------------------------------------------------------


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _begin_token(tokenizer: Any) -> int | None:
    """The token this tokenizer puts before every text, if any."""
    added = list(tokenizer("")["input_ids"])
    first = getattr(tokenizer, "bos_token_id", None)
    return first if added and added[0] == first else None


def _offsets_with_special(tokenizer: Any, ids: Tensor, *, follows: bool) -> tuple[str, Tensor]:
    if not follows:
        return decode_offsets(tokenizer, ids, skip_special=False)
    anchor = _plain(tokenizer, _ANCHOR)
    text, offsets = decode_offsets(tokenizer, [*anchor, *ids.tolist()], skip_special=False)
    return text.removeprefix(_ANCHOR), offsets[len(anchor) :] - len(_ANCHOR)


def _mapped_offsets(tokenizer: Any, text: str, ids: Tensor) -> Tensor:
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if list(encoded["input_ids"]) == ids.tolist():
            return torch.tensor(encoded["offset_mapping"], dtype=torch.long).reshape(-1, 2)
    raise ValueError(
        f"this tokenizer does not give back the text it is given ({text[:60]!r} ...), and has no offset mapping: the target's tokens cannot be told"
    )
