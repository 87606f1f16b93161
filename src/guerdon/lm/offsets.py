"""Character offsets of tokens, from our own decoding of ids. Text is never tokenised again to find out where a token stands.

A token is turned into the bytes it stands for once and the bytes are kept; a row is then a concatenation and a running
sum, not T calls of `decode`. Three kinds of tokenizer are known by their decoder (byte-level BPE, SentencePiece with byte
fallback, plain concatenation). Each row's text is compared with the tokenizer's own `decode`; where they differ (WordPiece,
tokenizers that join with blanks, ...) that row goes through windowed decoding, which works for any tokenizer with `decode`.

What is text: every token but those that control a conversation, `control_ids` - beginning and end of sequence, padding, unknown,
ends of turns. Tags that a tokenizer holds as special tokens (`<think>`, `[/THINK]`, `<answer>`) and the headers of turns are part
of the layout that rewards read, so they are text.

Rules: a token that is left out, or a position that is masked, has zero width. A token that holds part of a
multi-byte character spans that whole character, so several tokens may share one (and so does a special token that is skipped
between two parts of a character); apart from that the spans tile the text. Starts and ends never decrease.
Bytes that are no valid UTF-8 appear as U+FFFD, as in the tokenizer's own decoding.
"""

from __future__ import annotations

import inspect
import json
import re
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

Ids = Sequence[int] | Tensor


def decode_offsets(
    tokenizer: Any, ids: Ids, *, skip_special: bool = True, leave_out: Iterable[int] = ()
) -> tuple[str, Tensor]:
    """Decode one sequence and say which characters each token covers.

    Args:
        tokenizer: a transformers tokenizer (fast or slow), or any object with `decode(ids) -> str`.
        ids: [T] token ids, all real (cut or mask padding yourself, or use `decode_offsets_batch`).
        skip_special: leave the control tokens out of the text (zero width), see `control_ids`.
        leave_out: further ids to leave out with them, where they are special tokens: what else ends a completion.

    Returns:
        text, and offsets [T, 2] int64: token i covers text[offsets[i, 0] : offsets[i, 1]]. Starts and ends never decrease.

    Raises:
        ValueError: an id is negative (-100 labels are not tokens).
    """
    text, spans = _decode_row(tokenizer, _as_list(ids), _left_out(tokenizer, skip_special, leave_out))
    return text, torch.tensor(spans, dtype=torch.long).reshape(-1, 2)


def decode_offsets_batch(
    tokenizer: Any, ids: Tensor, mask: Tensor, *, skip_special: bool = True, leave_out: Iterable[int] = ()
) -> tuple[list[str], Tensor]:
    """`decode_offsets` for a padded batch.

    Args:
        tokenizer: as in `decode_offsets`.
        ids: [B, T] int64; whatever stands at masked positions is ignored.
        mask: [B, T] bool, True = a real token. Padding on either side, or holes, are fine.
        skip_special, leave_out: as in `decode_offsets`.

    Returns:
        B texts, and offsets [B, T, 2] int64; masked positions have zero width at the place where they stand.
    """
    offsets = torch.zeros(*ids.shape, 2, dtype=torch.long)
    texts = []
    left_out = _left_out(tokenizer, skip_special, leave_out)
    for row, (row_ids, row_mask) in enumerate(zip(ids.tolist(), mask.bool().tolist(), strict=True)):
        kept = [i for i, real in enumerate(row_mask) if real]
        text, spans = _decode_row(tokenizer, [row_ids[i] for i in kept], left_out)
        texts.append(text)
        if len(kept) < len(row_mask):
            spans = _spread(spans, row_mask)
        if spans:
            offsets[row] = torch.tensor(spans, dtype=torch.long)
    return texts, offsets


def decode_text(tokenizer: Any, ids: Ids, *, leave_out: Iterable[int] = ()) -> str:
    """The text of `decode_offsets` without the offsets."""
    return _table(tokenizer).reference(_as_list(ids), _left_out(tokenizer, True, leave_out))


# Ends of turns and of texts by their usual names; most are some tokenizer's eos, but not of every checkpoint that writes them.
_ENDS = re.compile(
    r"<\|?(im_end|eot(_id)?|eom(_id)?|end(_of_(turn|text|sentence|message))?|endoftext|endofturn|eos|return|turn_end|/s)\|?>|</s>|<turn\|>"
)
_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def control_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that are no part of a text: the tokenizer's own bos, eos, unk, sep, pad, cls and mask, and special tokens that end a turn."""
    named = {getattr(tokenizer, f"{name}_token_id", None) for name in _NAMED}
    ends = {number for number, text in _special_tokens(tokenizer).items() if _ENDS.fullmatch(text)}
    return frozenset({number for number in named if isinstance(number, int)} | ends)


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {
        int(i): str(getattr(token, "content", token)) for i, token in added.items() if getattr(token, "special", False)
    }
    numbers, texts = getattr(tokenizer, "all_special_ids", ()), getattr(tokenizer, "all_special_tokens", ())
    return found | {int(i): str(text) for i, text in zip(numbers, texts, strict=False)}


def _left_out(tokenizer: Any, skip_special: bool, leave_out: Iterable[int]) -> frozenset[int]:
    if not skip_special:
        return frozenset()
    table = _table(tokenizer)
    return table.control | (frozenset(leave_out) & table.special)


def overlapping_tokens(offsets: Tensor, start: int | Tensor, end: int | Tensor) -> Tensor:
    """Which tokens share a character with text[start:end] (RLPR's rule: char_start < end and char_end > start).

    Args:
        offsets: [..., T, 2] int64.
        start, end: first character, and one past the last; an int, or a tensor that broadcasts with [..., T].

    Returns:
        [..., T] bool. Zero-width tokens never belong, and an empty target (start == end) has no tokens.
    """
    begins, ends = offsets[..., 0], offsets[..., 1]
    target = torch.as_tensor(end) > torch.as_tensor(start)
    return (begins < end) & (ends > start) & (ends > begins) & target.to(offsets.device)


def _as_list(ids: Ids) -> list[int]:
    return ids.tolist() if isinstance(ids, Tensor) else [int(i) for i in ids]


# -- one row ---------------------------------------------------------------------------------------------------------------


def _decode_row(tokenizer: Any, ids: list[int], left_out: frozenset[int]) -> tuple[str, list[tuple[int, int]]]:
    if not ids:
        return "", []
    if min(ids) < 0:
        raise ValueError(
            f"token id {min(ids)} is negative: ignored labels (-100) are not tokens; pass a mask that leaves them out"
        )
    table = _table(tokenizer)
    if table.kind != "windowed":
        text, spans = table.decode(ids, left_out)
        if text == table.reference(ids, left_out):
            return text, spans
    return _windowed(table, ids, left_out)


@dataclass
class _Table:
    """What each id of one tokenizer stands for, filled as ids are met."""

    tokenizer: Any
    size: int
    kind: str
    special: frozenset[int]
    control: frozenset[int]
    strip: bool = False
    decode_options: dict[str, Any] = field(default_factory=dict)
    pieces: dict[int, bytes] = field(default_factory=dict)
    lone_bytes: set[int] = field(default_factory=set)  # ids of <0xNN> tokens

    def reference(self, ids: list[int], left_out: frozenset[int]) -> str:
        return self.tokenizer.decode([i for i in ids if i not in left_out], **self.decode_options)

    def piece(self, token_id: int) -> bytes:
        """The bytes of one token, before any rule that depends on its neighbours."""
        known = self.pieces.get(token_id)
        if known is None:
            token = self.tokenizer.convert_ids_to_tokens(token_id)
            known = self.pieces[token_id] = self._bytes(token_id, token if isinstance(token, str) else "")
        return known

    def _bytes(self, token_id: int, token: str) -> bytes:
        if self.kind == "byte_level":
            table = _byte_level_alphabet()
            # The decoder's own rule: a token with any character outside the alphabet (an added token) is taken literally.
            return (
                bytes(table[c] for c in token)
                if all(c in table for c in token)
                else token.encode("utf-8", "surrogatepass")
            )
        if self.kind == "sentencepiece":
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                self.lone_bytes.add(token_id)
                return bytes([int(token[3:5], 16)])
            token = token.replace("\u2581", " ")
        return token.encode("utf-8", "surrogatepass")

    def decode(self, ids: list[int], left_out: frozenset[int]) -> tuple[str, list[tuple[int, int]]]:
        pieces = [b"" if i in left_out else self.piece(i) for i in ids]
        if self.kind == "sentencepiece":
            pieces = self._join_lone_bytes(ids, pieces)
        data = b"".join(pieces)
        text, char_of = _characters(data)
        edges = list(accumulate(map(len, pieces), initial=0))
        spans = _spans_of_edges(edges, char_of)
        if self.strip and text.startswith(
            " "
        ):  # the decoder drops the blank that SentencePiece put before the first word
            text, spans = text[1:], [(max(s - 1, 0), max(e - 1, 0)) for s, e in spans]
        return text, spans

    def _join_lone_bytes(self, ids: list[int], pieces: list[bytes]) -> list[bytes]:
        """A run of byte tokens that is no valid UTF-8 becomes one U+FFFD a byte (the ByteFallback decoder's rule)."""
        begin = 0
        while begin < len(ids):
            stop = begin
            while stop < len(ids) and (ids[stop] in self.lone_bytes or not pieces[stop]):
                stop += 1
            if stop > begin:
                try:
                    b"".join(pieces[begin:stop]).decode()
                except UnicodeDecodeError:
                    pieces[begin:stop] = ["\ufffd".encode() if piece else b"" for piece in pieces[begin:stop]]
            begin = max(stop, begin + 1)
        return pieces


def _characters(data: bytes) -> tuple[str, list[int] | None]:
    """Decode UTF-8 with replacement; second: for every byte the index of its character (None: one byte a character)."""
    if data.isascii():
        return data.decode("ascii"), None
    text: list[str] = []
    char_of: list[int] = []
    at = 0
    while at < len(data):
        try:
            good, bad = data[at:].decode(), 0
        except UnicodeDecodeError as error:
            good, bad = data[at : at + error.start].decode(), error.end - error.start
        for character in good:
            char_of += [len(text)] * len(character.encode())
            text.append(character)
        if bad:
            char_of += [len(text)] * bad
            text.append("\ufffd")
        at = len(char_of)
    return "".join(text), char_of


def _spans_of_edges(edges: list[int], char_of: list[int] | None) -> list[tuple[int, int]]:
    """Byte ranges to character ranges. An empty range stands before the character its byte would begin, or spans the
    character it is in the middle of."""
    if char_of is None:
        return list(pairwise(edges))
    total = (char_of[-1] + 1) if char_of else 0
    char_of = [*char_of, total]
    inside = [s > 0 and char_of[s] == char_of[s - 1] for s in edges]
    return [
        (char_of[s], char_of[max(s, e - 1)] + 1 if e > s or within else char_of[s])
        for (s, e), within in zip(pairwise(edges), inside, strict=False)
    ]


def _windowed(table: _Table, ids: list[int], left_out: frozenset[int]) -> tuple[str, list[tuple[int, int]]]:
    """Any tokenizer: decode a short window with and without the new token, and take the difference.

    Tokens whose text is not complete yet (it ends in U+FFFD) wait for the next ones and share their characters.
    """
    text = ""
    spans: list[tuple[int, int]] = []
    prefix = read = 0
    for end in range(1, len(ids) + 1):
        if ids[end - 1] in left_out and read == end - 1:
            spans.append((len(text), len(text)))
            read = end
            continue
        before = table.reference(ids[prefix:read], left_out)
        now = table.reference(ids[prefix:end], left_out)
        if now.endswith("\ufffd") and end < len(ids) and end - read < 8:
            continue
        piece = now[len(before) :]
        spans += [(len(text), len(text) + len(piece))] * (end - read)
        text += piece
        if piece:
            prefix, read = read, end
        else:
            read = end
        prefix = max(prefix, read - 16)  # keeps windows short behind long runs of zero-width tokens
    return text, spans


def _spread(spans: list[tuple[int, int]], row_mask: list[bool]) -> list[tuple[int, int]]:
    """Put zero-width spans in the masked places."""
    full, real, at = [], iter(spans), 0
    for kept in row_mask:
        if kept:
            full.append(next(real))
            at = full[-1][1]
        else:
            full.append((at, at))
    return full


# -- what kind of tokenizer it is --------------------------------------------------------------------------------------------

_TABLES: weakref.WeakKeyDictionary[Any, _Table] = weakref.WeakKeyDictionary()


def _table(tokenizer: Any) -> _Table:
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else 0
    try:
        known = _TABLES.get(tokenizer)
    except TypeError:  # neither hashable nor weakly referable: worked out anew each time
        return _new_table(tokenizer, size)
    if known is None or known.size != size:  # tokens were added since
        known = _new_table(tokenizer, size)
        _TABLES[tokenizer] = known
        known.tokenizer = weakref.proxy(tokenizer)  # the table must not keep its own key alive
    return known


def _new_table(tokenizer: Any, size: int) -> _Table:
    kind, strip = _kind(tokenizer)
    accepted = inspect.signature(tokenizer.decode).parameters
    transformers_like = "skip_special_tokens" in accepted
    options: dict[str, Any] = {"skip_special_tokens": False} if transformers_like else {}
    if transformers_like and (
        "clean_up_tokenization_spaces" in accepted or any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    ):
        options["clean_up_tokenization_spaces"] = False
    special = frozenset(_special_tokens(tokenizer))
    return _Table(tokenizer, size, kind, special, control_ids(tokenizer), strip, options)


def _kind(tokenizer: Any) -> tuple[str, bool]:
    """byte_level, sentencepiece, plain or windowed; second: does the decoder drop a leading blank."""
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        return "windowed", False
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return "plain", False
    described = json.loads(decoder.__getstate__())
    parts = described["decoders"] if described.get("type") == "Sequence" else [described]
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        return "byte_level", False
    if kinds & {"ByteFallback", "Metaspace"} or any(
        part["type"] == "Replace" and "\u2581" in str(part) for part in parts
    ):
        return "sentencepiece", "Strip" in kinds or any(
            part.get("prepend_scheme", "never") != "never" for part in parts
        )
    return "plain", False


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, reversed: character -> byte. Printable Latin-1 stands for itself."""
    own = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("\u00a1"), ord("\u00ac") + 1),
        *range(ord("\u00ae"), ord("\u00ff") + 1),
    ]
    shifted = (b for b in range(256) if b not in set(own))
    return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(shifted)}
