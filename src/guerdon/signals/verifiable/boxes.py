r"""Boxes and answer tags: where a policy marks its answer. Linear in a text's length."""

from __future__ import annotations

import re
from typing import NamedTuple


class Located(NamedTuple):
    """An answer's text.

    Attributes:
        text: the expression as written, without the delimiters around it; None where there is none.
        reason: why there is none.
    """

    text: str | None
    reason: str | None = None


_OPEN_TAG = re.compile(r"<\s*(?:final_?)?answer\s*>", re.I)
_CLOSE_TAG = re.compile(r"<\s*/\s*(?:final_?)?answer\s*>", re.I)
BOX = re.compile(r"\\(?:boxed|fbox|framebox|Box)(?![A-Za-z])\s*")
_BETWEEN = re.compile(
    # what may stand between two boxes of one list: separators, the delimiters of mathematics, a unit or a name
    r"(?:\s|\$|\\[()\[\],;!]|\\q?quad|~|\\ |[A-Za-z]+(?=\s+(?:and|or)\b))*"
    r"(?:,|;|and|or|\\text\s*\{\s*(?:,\s*)?(?:and|or)\s*\}|\\(?:text|mbox)\s*\{\s*[\w\s()]{0,30}\b(?:and|or)\s*\}|\u3001|\u548c|\u6216)"
    r"(?:\s|\$|\\[()\[\],;!]|\\q?quad|~|\\ |and\b|or\b|\\text\s*\{\s*(?:and|or)\s*\}|\w+(?:_\{?\w+\}?)?\s*=)*"
)
_PERCENT_AFTER = re.compile(r"\s*\$?\s*(\\?%|percent(?:age)?\b|pct\b)", re.I)


def box_end(text: str, start: int) -> int | None:
    r"""Where the brace that opens at `start` closes; \{ and \} are signs, not braces. None where it never does."""
    depth, place = 0, start
    while place < len(text):
        char = text[place]
        if char == "\\":
            place += 2
            continue
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth == 0:
            return place
        place += 1
    return None


_LABEL = re.compile(
    r"^\\(?:text|mathrm|mbox|textbf)\s*\{[^{}]*(?:\b(?:is|are|answer)|[:=])\s*\}\s*[:=]?\s*(?=\S)", re.I
)


class Boxed(NamedTuple):
    start: int
    end: int
    content: str | None


def boxes_in(text: str) -> list[Boxed]:
    """Boxes in order, inner ones of nested ones left out; the content of one that never closes is None."""
    boxes: list[Boxed] = []
    end = 0
    for found in BOX.finditer(text):
        if found.start() < end:
            continue
        place = found.end()
        if text[place : place + 1] != "{":
            bare = re.compile(r"(\\[A-Za-z]+(?:\{[^{}]*\})*|-?[\d.,]*\d|[A-Za-z])").match(text, place)
            end = bare.end() if bare else place
            boxes.append(Boxed(found.start(), end, bare[1] if bare else None))
            continue
        closing = box_end(text, place)
        if closing is None:
            boxes.append(Boxed(found.start(), len(text), None))
            break
        boxes.append(Boxed(found.start(), closing + 1, text[place + 1 : closing]))
        end = closing + 1
    return boxes


def from_boxes(text: str, boxes: list[Boxed]) -> Located:
    last = boxes[-1]
    if last.content is None:
        return Located(None, "the last box is not closed")
    parts = [last]
    for box in reversed(boxes[:-1]):
        between = text[box.end : parts[0].start]
        if box.content is None or len(between) > 80 or not _BETWEEN.fullmatch(between):
            break
        parts.insert(0, box)
    contents = [inner for box in parts if (inner := _content(box.content or ""))]
    if not contents or not _content(last.content):
        return Located(None, "the last box is empty")
    answer = ", ".join(dict.fromkeys(contents))
    percent = _PERCENT_AFTER.match(text, last.end)
    return Located(f"{answer}\\%" if percent and "%" not in answer else answer)


def _content(content: str) -> str:
    """What stands in a box, without boxes and delimiters in it."""
    while found := BOX.search(content):
        end = box_end(content, found.end()) if content[found.end() : found.end() + 1] == "{" else None
        if end is None:
            break
        content = content[: found.start()] + content[found.end() + 1 : end] + content[end + 1 :]
    return _LABEL.sub("", undelimited(content))


def undelimited(text: str) -> str:
    """Without dollars and \\( \\) around mathematics."""
    text = re.sub(r"\\[()]|\\\[|\\\]|\$\$", " ", text)
    return re.sub(r"(?<!\\)\$(?!\s*\d[\d,.]*\s*$)", "", text).strip() if text.count("$") != 1 else text.strip()


def last_answer_tag(text: str) -> tuple[int, str] | None:
    """(start, content) of the last answer tag; one that never closes reaches to the end."""
    openings = list(_OPEN_TAG.finditer(text))
    if not openings:
        return None
    opening = openings[-1]
    closing = _CLOSE_TAG.search(text, opening.end())
    return opening.start(), text[opening.end() : closing.start() if closing else len(text)]


__all__ = ["BOX", "Boxed", "Located", "box_end", "boxes_in", "from_boxes", "last_answer_tag", "undelimited"]
