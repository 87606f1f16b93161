r"""Reading the references of a row: the one place where a data cell becomes acceptable answers.

A cell is a text, a number, bytes (UTF-8), a NumPy or torch value, or a list of them, of which any is right; a text may be the JSON of a
list of texts. What is missing (None, NaN, "", the text "nan" that pandas writes) is no reference. A mapping is none either: which of
its fields is right is not guessed but named by a dotted path (`reference=reward_model.ground_truth`, see `guerdon.paths`).

A worked solution is read as its kind needs: what stands after the `####` of its last line, or in its last `\boxed{}`.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from guerdon.signals.verifiable.answer_part import answer_part
from guerdon.signals.verifiable.extraction import last_boxed, last_tag
from guerdon.signals.verifiable.verdict import shown

Kind = Literal["text", "exact", "math", "number", "choice", "literal"]
_MISSING_TEXTS = frozenset({"nan", "NaN", "<NA>", "NaT"})  # how data frames write a missing value
_MISSING_WORDS = frozenset({"None", "null", "NULL"})  # words of the language where the answer may be one
_QUOTED = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_LIST_OF_TEXTS = re.compile(rf"\s*\[\s*{_QUOTED}(?:[\s,]+{_QUOTED})*\s*,?\s*\]\s*", re.S)
_SOLUTION_MARK = re.compile(r"####[ \t]*(\S.*)")


class References(NamedTuple):
    """What a row's answer is compared with.

    Attributes:
        values: acceptable references: texts, or numbers as they are (whole ones as int).
        problem: why there is none; None where there is one.
    """

    values: list[Any]
    problem: str | None = None


def read_references(cell: Any, kind: Kind = "text") -> References:
    """The acceptable references in a data cell.

    Args:
        cell: see the module's header.
        kind: what they are for: "text" words, "exact" one text (a list or a solution written as text may be meant itself, so both count),
            "math", "number", "choice" (a letter, an index, or the option's text), "literal" (as written; only lists are opened).
    """
    values, problem = _read(cell, kind)
    if values:
        return References(list(dict.fromkeys(values)))
    return References([], f"no usable reference in this row: {problem or shown(cell)}")


def reference_values(cell: Any, kind: Kind = "text") -> list[Any]:
    """The values of `read_references`; empty where the row has none."""
    return read_references(cell, kind).values


def _read(cell: Any, kind: Kind) -> tuple[list[Any], str | None]:
    """Values, and why there are none where that needs words."""
    if hasattr(cell, "tolist"):  # numpy and torch values
        cell = cell.tolist()
    if isinstance(cell, (bytes, bytearray, memoryview)):
        try:
            cell = bytes(cell).decode("utf-8")
        except UnicodeDecodeError:
            return [], f"{shown(bytes(cell))}: bytes that are not UTF-8 text"
    if isinstance(cell, (list, tuple, set, frozenset)):
        read = [_read(item, kind) for item in cell]
        return [v for values, _ in read for v in values], next((why for _, why in read if why), None)
    if isinstance(cell, Mapping):
        return [], _mapping(cell)
    if isinstance(cell, str):
        return _read_text(cell, kind)
    if cell is None or isinstance(cell, bool) or (isinstance(cell, (float, Decimal)) and not math.isfinite(cell)):
        return [], None
    whole = isinstance(cell, (float, Decimal)) and cell == int(
        cell
    )  # a column of whole numbers with a gap is one of floats
    return [int(cell) if whole else cell], None


def _mapping(cell: Mapping[Any, Any]) -> str:
    keys = ", ".join(str(key) for key in list(cell)[:8])
    return f"{shown(dict(cell))} is a mapping: name the field that is right by a dotted path, reference=COLUMN.FIELD (fields: {keys})"


def _read_text(text: str, kind: Kind) -> tuple[list[Any], str | None]:
    bare = text.strip()
    if not bare or bare in _MISSING_TEXTS or (kind in ("math", "number", "choice") and bare in _MISSING_WORDS):
        return [], None
    opened = _opened(bare, kind)
    if isinstance(opened, Mapping):
        return ([text], None) if kind in ("exact", "literal") else ([], _mapping(opened))
    if opened is not None:
        inner, why = _read(opened, kind)
        return ([text, *inner] if kind == "exact" else inner), why
    if kind == "literal":
        return [text], None
    answer = solution_answer(bare, kind)
    if kind == "exact":
        return [text] if answer is None or answer == bare else [text, answer], None
    return [bare if answer is None else answer], None


def _opened(text: str, kind: Kind) -> Any:
    """What a JSON text (or Python's way of printing it) holds where that is a mapping, a list of alternatives or a quoted text, else None.

    A list of bare numbers is an interval or a vector in mathematics and a text elsewhere, so only numbers and choices take it for
    alternatives.
    """
    if text[0] not in "[{\"'" or len(text) > 100_000:
        return None
    if _LIST_OF_TEXTS.fullmatch(text):
        # Quoted items one by one: NumPy prints no commas, and Python would join "['a' 'b']" to one text.
        return [_unquoted(found[0]) for found in re.finditer(_QUOTED, text, re.S)]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text) if text[0] == "{" and ":" in text else None
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    if isinstance(value, str):
        return None if kind == "literal" else [value]
    if isinstance(value, list):
        texts = any(isinstance(item, str) for item in value)
        numbers = kind in ("number", "choice") and all(isinstance(item, (int, float)) for item in value)
        return value if texts or numbers or (not value and kind != "exact") else None
    return value if isinstance(value, Mapping) else None


def _unquoted(quoted: str) -> str:
    try:
        return str(json.loads(quoted) if quoted[0] == '"' else ast.literal_eval(quoted))
    except (ValueError, SyntaxError):
        return quoted[1:-1]


def solution_answer(text: str, kind: Kind = "text") -> str | None:
    r"""The answer in a worked solution: after the `####` of its last line, in its `<answer>` or its last `\boxed{}`, behind its reasoning.

    None where the text has none of these. For mathematics a box is left where it is: whoever reads mathematics reads boxes.
    """
    part = answer_part(text)
    if part.text is None:
        return None
    bare = part.text.strip()
    found = _SOLUTION_MARK.search(bare.splitlines()[-1])
    if found:
        return found[1].strip()
    tagged = last_tag(bare)
    if tagged:
        return tagged
    boxed = last_boxed(bare) if kind != "math" else None
    if boxed:
        return boxed
    return bare if bare != text else None


__all__ = ["Kind", "References", "read_references", "reference_values", "solution_answer"]
