"""Texts to what a reward model reads: the layouts of `conventions`, and where in the ids each step's score stands.

Positions come from how the text was put together, never from a search for the separator's id: a policy that writes the
separator itself gains nothing. A separator that is a special token is also taken out of the steps' texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.errors import ConfigError
from guerdon.lm.encode import render_chat
from guerdon.signals.learned.conventions import Convention


class PrmInput(NamedTuple):
    """What a reward model reads.

    Attributes:
        ids: [B, L] int64, right-padded.
        mask: [B, L] bool.
        positions: [B, S] where each step's score is read, -1 where there is no step.
        prompt_lengths: [B] tokens before the first step's; None = unknown.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    prompt_lengths: Tensor | None = None

    def cpu(self) -> PrmInput:
        """The same on the CPU."""
        return PrmInput(*(None if tensor is None else tensor.cpu() for tensor in self))  # type: ignore[arg-type]


class Placed(NamedTuple):
    """One row: its ids, the position of each step's score, tokens before the solution."""

    ids: list[int]
    positions: list[int]
    prompt_length: int


def place_steps(tokenizer: Any, convention: Convention, prompt: Any, steps: Sequence[str]) -> Placed:
    """The ids of a prompt and its steps in the layout of a convention.

    Args:
        tokenizer: the reward model's.
        convention: of the table.
        prompt: a text or chat messages.
        steps: texts, with or without line breaks at their ends.

    Raises:
        ConfigError: chat messages or a chat layout without a chat template; a separator that is not one token where it stands.
    """
    if convention.layout == "as_given":
        return _as_given(tokenizer, convention, prompt, steps)
    special = convention.separator in set(getattr(tokenizer, "all_special_tokens", ()))
    texts = [(step.replace(convention.separator, "") if special else step).strip() for step in steps]
    if convention.layout == "turns":
        return _turns(tokenizer, convention, prompt, texts)
    return _written(tokenizer, convention, prompt, texts)


def _as_given(tokenizer: Any, convention: Convention, prompt: Any, steps: Sequence[str]) -> Placed:
    """Prompt, then each step's own tokens and one separator token."""
    separator = single_token_id(tokenizer, convention.separator)
    ids = encode_prompt(tokenizer, question_of(prompt) + convention.between if convention.between else prompt)
    length, positions = len(ids), []
    for step in steps:
        text = step.rstrip("\n")
        ids += (tokenizer(text, add_special_tokens=False)["input_ids"] if text else []) + [separator]
        positions.append(len(ids) - 1)
    return Placed(ids, positions, length)


def _written(tokenizer: Any, convention: Convention, prompt: Any, steps: Sequence[str]) -> Placed:
    """One text, tokenised in one piece, and the token that each separator became."""
    tail = convention.before + convention.separator
    answer, ends = "", []
    for number, step in enumerate(steps):
        answer += (convention.after if number else "") + step + tail
        ends.append(len(answer))
    if convention.layout == "chat":
        text, start = _chat(tokenizer, convention, prompt, answer)
    else:
        lead = question_of(prompt) + convention.between
        text, start = lead + answer, len(lead)
    ids, offsets = encoded(tokenizer, text)
    expected = single_token_id(tokenizer, convention.separator) if steps else -1
    positions = []
    for end in ends:
        place = _last_token_in(offsets, start + end - len(convention.separator), start + end)
        if place < 0 or ids[place] != expected:
            raise ConfigError(
                f"the separator {convention.separator!r} of {convention.name!r} is no token of its own in the reward model's text; "
                "is its tokenizer the published one?"
            )
        positions.append(place)
    return Placed(ids, positions, int((offsets[:, 1] <= start).sum()))


def _turns(tokenizer: Any, convention: Convention, prompt: Any, steps: Sequence[str]) -> Placed:
    """Each step a user's turn; its score stands before the label that answers it."""
    label = single_token_id(tokenizer, convention.separator, "label")
    messages: list[dict[str, str]] = []
    ends = []
    for number, step in enumerate(steps):
        asked = question_of(prompt) + convention.between + step if number == 0 else step
        messages.append({"role": "user", "content": asked})
        ends.append(len(render(tokenizer, messages, ask=True)))
        messages.append({"role": "assistant", "content": convention.separator})
    text = render(tokenizer, messages, ask=False) if messages else ""
    ids, offsets = encoded(tokenizer, text)
    positions = []
    for end in ends:
        place = _last_token_in(offsets, end, end + len(convention.separator))
        if place < 1 or ids[place] != label:
            raise ConfigError(f"the chat template does not leave the label {convention.separator!r} a token of its own")
        positions.append(place - 1)
    return Placed(ids, positions, _first_words(offsets, text, prompt))


def _first_words(offsets: Tensor, text: str, prompt: Any) -> int:
    place = text.find(question_of(prompt).strip())
    return int((offsets[:, 1] <= max(place, 0) + len(question_of(prompt).strip())).sum())


def _chat(tokenizer: Any, convention: Convention, prompt: Any, answer: str) -> tuple[str, int]:
    """The conversation as text, and the character at which the answer begins."""
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    if convention.system is not None:
        asked = [{"role": "system", "content": convention.system}, *(m for m in asked if m.get("role") != "system")]
    text = render(tokenizer, [*asked, {"role": "assistant", "content": answer}], ask=False)
    start = text.rfind(answer)
    if start < 0:
        raise ConfigError(
            "the reward model's chat template changes the answer's text, so that its steps cannot be found"
        )
    return text, start


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, ask: bool = False) -> str:
    """A conversation as the tokenizer's chat template writes it; `ask` = with the prompt for an answer."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError(
            "this reward model is read through a chat template and its tokenizer has none: use the tokenizer published with it, set its "
            "chat_template, or give prompts as texts"
        )
    return render_chat(tokenizer, messages, ask=ask, owner="the reward model's tokenizer")


def _last_token_in(offsets: Tensor, start: int, end: int) -> int:
    """The last token that shares a character with [start, end), or -1."""
    inside = ((offsets[:, 0] < end) & (offsets[:, 1] > start)).nonzero()[:, 0]
    return int(inside[-1]) if len(inside) else -1


def encoded(tokenizer: Any, text: str) -> tuple[list[int], Tensor]:
    """Ids of a text and the characters [T, 2] of each, exact; a begin-of-sequence token has no width."""
    from guerdon.lm.encode import encode_with_target

    spliced = encode_with_target(tokenizer, text, 0, len(text))
    return spliced.ids.tolist(), spliced.offsets


def question_of(prompt: Any) -> str:
    """The question of a prompt: a text as it is, of chat messages what the users wrote."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(message.get("content", "")) for message in prompt if message.get("role") == "user")


def encode_prompt(tokenizer: Any, prompt: Any) -> list[int]:
    """A prompt's ids: a text as it is, chat messages through the tokenizer's template."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    text = render(tokenizer, prompt, ask=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def single_token_id(tokenizer: Any, text: str, what: str = "step delimiter") -> int:
    """The id of a text that is one token, by itself or in running text (SentencePiece puts a blank before what stands alone).

    Raises:
        ConfigError: it is several tokens, or an unknown one.
    """
    from guerdon.lm.encode import encode_continuation

    alone = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    inside = alone if len(alone) == 1 else encode_continuation(tokenizer, text).tolist()
    if len(inside) != 1 or inside[0] == tokenizer.unk_token_id:
        raise ConfigError(
            f"the {what} {text!r} is {inside} to the reward model's tokenizer; it must be one known token"
        )
    return int(inside[0])


def padding_id(tokenizer: Any) -> int:
    """An id to fill rows with; what stands there is masked, so that a tokenizer without one is no obstacle."""
    numbers = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(number) for number in numbers if number is not None)


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids [B, L] and mask [B, L] bool."""
    width = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = True
    return ids, mask
