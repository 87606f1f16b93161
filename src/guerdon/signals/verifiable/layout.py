"""How a completion looks: tag layouts, length, repetition. Pure functions of text; they need no reference."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Literal

from guerdon.signals.verifiable.words import BARE_SCRIPTS

FormatMode = Literal["R1", "R1_nothink"]
LengthUnit = Literal["token", "char", "word"]
LONG_RUN = 200  # characters without a blank: no word of any language, and longer than a line of dashes or a web address
_RUN_WORD = 10  # so many of its characters count as a word
_BARE_CHARACTER = re.compile(f"[{BARE_SCRIPTS}]")
_PIECE = re.compile(rf"[{BARE_SCRIPTS}]|[^\s_{BARE_SCRIPTS}]+")
_LAYOUT: dict[str, tuple[str, ...]] = {
    "R1": ("<think>", "</think>", "<answer>", "</answer>"),
    "R1_nothink": ("<answer>", "</answer>"),
}


def format_reward(response: str, format_mode: FormatMode = "R1") -> float:
    """1.0 if every tag of the mode occurs exactly once and in order, else 0.0.

    "R1": the text starts with <think>, then </think>, <answer>, </answer>; anything between and after. "R1_nothink": only the
    answer tags, any prefix allowed. With single occurrences this equals a full match of `<think>.*</think>.*<answer>.*</answer>.*`
    with dot matching newlines, in linear time. Contents may be empty.

    Source: RLPR (arXiv 2506.18254), official code verl/workers/reward_manager/prob.py, format_reward.
    """
    if format_mode not in _LAYOUT:
        raise ValueError(f"format_mode={format_mode!r}: use one of {sorted(_LAYOUT)}")
    tags = _LAYOUT[format_mode]
    if any(response.count(tag) != 1 for tag in tags):
        return 0.0
    places = [response.index(tag) for tag in tags]
    return float(places == sorted(places) and (format_mode != "R1" or places[0] == 0))


def is_filled(content: str) -> bool:
    """Whether a tag's content says anything: more than white space and punctuation ("..." is a template copied)."""
    return any(unicodedata.category(char)[0] not in "ZPC" for char in content)


def filled_format(response: str, format_mode: FormatMode = "R1") -> float:
    """`format_reward` with contents: 1.0 if the tags are once and in order and none is empty, else 0.0.

    White space before the first tag is allowed: many chat templates make the policy write a line break.
    """
    text = response.lstrip()
    if not format_reward(text, format_mode):
        return 0.0
    tags = _LAYOUT[format_mode]
    pairs = zip(tags[::2], tags[1::2], strict=True)
    return float(all(is_filled(text[text.index(o) + len(o) : text.index(c)]) for o, c in pairs))


def answer_tag_format(response: str) -> float:
    """1.0 if there is exactly one <answer>...</answer> and it is not empty (`is_filled`), else 0.0."""
    return filled_format(response, "R1_nothink")


def think_format(response: str, *, opened_by_prompt: bool = False) -> float:
    """1.0 for `<think>reasoning</think>answer`: each tag exactly once, <think> first but for white space, neither part empty.

    Args:
        opened_by_prompt: the chat template already wrote <think>, so the completion must hold </think> only.
    """
    if response.count("</think>") != 1 or response.count("<think>") != (0 if opened_by_prompt else 1):
        return 0.0
    head, _, answer = response.lstrip().partition("</think>")
    if not opened_by_prompt:
        if not head.startswith("<think>"):
            return 0.0
        head = head.removeprefix("<think>")
    return float(is_filled(head) and is_filled(answer))


def nothing_but_tags(response: str) -> float:
    """1.0 if the response is <think>...</think><answer>...</answer> and nothing else, white space aside; else 0.0.

    Both contents are what the first match of each tag holds, and may be empty. Source: NOVER (arXiv 2505.16022), official code
    reward_functions.py, tag_format_reward.
    """
    contents = []
    for tag in ("think", "answer"):
        found = re.search(f"<{tag}>(.*?)</{tag}>", response, re.DOTALL)
        contents.append(found[1] if found else "")
    expected = f"<think>{contents[0]}</think><answer>{contents[1]}</answer>"
    return float("".join(response.split()) == "".join(expected.split()))


def repetition_penalty(text: str, window_size: int = 10, max_repetitions_limit: int = 6) -> int:
    """-1 if any window of `window_size` consecutive words occurs at least `max_repetitions_limit` times, else 0.

    Words: the text split on white space, then each piece on "_" (empty pieces of a split on "_" count as words, as in the
    source). A text of at most `window_size` words gives 0. Occurrences may overlap.

    Source: RLPR, official code verl/utils/reward_score/repetition.py, detect_repetition_with_hash; its trainer passes 10.
    """
    if window_size < 1 or max_repetitions_limit < 1:
        raise ValueError(
            f"window_size={window_size} and max_repetitions_limit={max_repetitions_limit} must be at least 1"
        )
    words = [word for piece in text.split() for word in piece.split("_")]
    if len(words) <= window_size:
        return 0
    counts = Counter(tuple(words[i : i + window_size]) for i in range(len(words) - window_size + 1))
    return -1 if max(counts.values()) >= max_repetitions_limit else 0


def pieces(text: str) -> tuple[list[str], int]:
    """What of a text can repeat itself, and how many pieces make what a word is: (pieces, 1 or 2).

    Pieces are words (split at white space and "_"); in scripts without blanks, and in runs of more than `LONG_RUN` characters, each
    character is one. Where most pieces are characters, two of them count as a word.
    """
    found: list[str] = []
    characters = 0
    for piece in _PIECE.findall(text):
        single = len(piece) > LONG_RUN or bool(_BARE_CHARACTER.match(piece))
        found += piece if single else [piece]
        characters += len(piece) if single else 0
    return found, 2 if 2 * characters > len(found) else 1


def word_count(text: str) -> int:
    """Words of a text: pieces between white space; in scripts without blanks each character, in a long run every tenth."""
    words = 0
    for piece in text.split():
        bare = len(_BARE_CHARACTER.findall(piece))
        rest = len(piece) - bare
        words += bare + (-(-rest // _RUN_WORD) if rest > LONG_RUN else rest > 0)
    return words


def repeats_itself(text: str, window_size: int = 10, max_repetitions: int = 10) -> int:
    """-1 if any window of `window_size` consecutive words occurs at least `max_repetitions` times, else 0; words as in `pieces`."""
    if window_size < 1 or max_repetitions < 1:
        raise ValueError(f"window_size={window_size} and max_repetitions={max_repetitions} must be at least 1")
    units, scale = pieces(text)
    size = window_size * scale
    if len(units) <= size:
        return 0
    counts = Counter(tuple(units[i : i + size]) for i in range(len(units) - size + 1))
    return -1 if max(counts.values()) >= max_repetitions else 0


def repeated_fraction(text: str, n: int = 4) -> float:
    """Fraction of n-grams of words that repeat an earlier one: 1 - distinct / total, in [0, 1); 0 below n + 1 words; words as in `pieces`."""
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    units, scale = pieces(text)
    size = n * scale
    total = len(units) - size + 1
    if total <= 1:
        return 0.0
    return 1.0 - len({tuple(units[i : i + size]) for i in range(total)}) / total


def length_reward(length: int, *, target: int | None = None, cap: int | None = None, buffer: int = 0) -> float:
    """A penalty in [-1, 0] for a length (tokens, characters or words).

    With `target`: -min(1, |length - target| / target). With `cap`: 0 up to cap - buffer, then linear, -1 from cap on (DAPO's soft
    overlong punishment, arXiv 2503.14476 eq. 13; buffer = 0 is a hard cap, where a length of exactly cap is still 0).

    Raises:
        ValueError: unless exactly one of target (> 0) and cap (> buffer >= 0) is given.
    """
    if (target is None) == (cap is None):
        raise ValueError("give exactly one of target and cap")
    if target is not None:
        if target <= 0:
            raise ValueError(f"target={target} must be positive")
        return -min(1.0, abs(length - target) / target)
    assert cap is not None
    if not 0 <= buffer < cap:
        raise ValueError(f"buffer={buffer} must be at least 0 and below cap={cap}")
    if length <= cap - buffer:
        return 0.0
    return -min(1.0, (length - (cap - buffer)) / buffer) if buffer else -1.0
