r"""The structure of a written answer: lists, tuples, sets, names, chains of equalities. No sympy, no values.

    x = 3, y = 4          two items, named x and y
    \{1, 2\}              a set of two items        (1, 2]          a bracketed pair, its brackets kept
    3 + 4 = 7             one item, whose value is 7          2x - 5y = 0     one item, an equation

Input is the output of `notation`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

_OPEN, _CLOSE = "([{", ")]}"
_THOUSANDS = re.compile(r"(?<![\d,.])([1-9]\d{0,2})((?:,\d{3})+)(?![\d,]*\d|,\d)")
_AND_OR = re.compile(r"(?<![A-Za-z\\])(?:and|or)(?![a-z])|\\(?:lor|vee|land|wedge)(?![A-Za-z])")
_CONCLUSION = re.compile(
    r"\\(?:Rightarrow|implies|Longrightarrow|therefore|rightarrow|iff|Leftrightarrow)(?![A-Za-z])|=>|\u21d2|\u2234"
)
RELATION = re.compile(r"\\(?:le|ge|ne)(?![A-Za-z])|[<>]")
_EQUALS = re.compile(r"(?<![<>!:\\])=|\\equiv(?![A-Za-z])|(?<![:]):=")
_APPROX = re.compile(r"\\approx(?![A-Za-z])")
_MEMBER = re.compile(r"\\in(?![A-Za-z])")
_SUBSCRIPT = re.compile(r"_\s*(?:\{[^{}]*\}|\w|\\[A-Za-z]+)")
_WORD_NAME = re.compile(
    r"\\text\{[^{}]*\}|(?:(?:final\s+)?answer|ans|result|total|sum|value|solution|area|volume|probability|length)", re.I
)
# P(X = 2), E[X], Var(X)
_OPERATOR_NAME = re.compile(r"(?:\\?(?:P|Pr|E|Var|Cov|N)|\\mathbb\{[PE]\})\s*[(\[][^()\[\]]*[)\]]")
MAX_ITEMS = 200
MAX_DEPTH = 16  # of brackets: the parser needs minutes to refuse a deeper text


@dataclass(frozen=True)
class Item:
    """One value of an answer.

    Attributes:
        value: LaTeX of the value, of the whole relation where it is one.
        name: what stands before the equals sign, tidied; None where nothing does.
        relation: whether `value` is an equation or an inequality that says something about its symbols.
        about: another writing of the value behind an approximation sign.
    """

    value: str
    name: str | None = None
    relation: bool = False
    about: str | None = None


@dataclass(frozen=True)
class Group:
    """Several values.

    Attributes:
        items: in the order written.
        brackets: "" for a bare list, else the opening and the closing bracket: "()", "[)", "{}", ...
    """

    items: tuple[Item | Group, ...]
    brackets: str = ""
    name: str | None = field(default=None, compare=False)


def depth(text: str) -> int:
    """How deep brackets and braces nest, unclosed ones included."""
    deepest = open_ones = 0
    for char in text:
        if char in _OPEN:
            open_ones += 1
            deepest = max(deepest, open_ones)
        elif char in _CLOSE and open_ones:
            open_ones -= 1
    return deepest


def read(text: str) -> Item | Group:
    """The structure of an expression; one whose brackets nest deeper than `MAX_DEPTH` stays one item."""
    if depth(text) > MAX_DEPTH:
        return Item(text)
    text = _CONCLUSION.split(text)[-1].strip()
    text = _trimmed(text)
    if (group := _bracketed(text)) is not None:
        return group
    text = _without_thousands(text)
    parts = split(text, ";") if ";" in text else [text]
    if len(parts) > 1:
        read_parts = [read(part) for part in parts[:MAX_ITEMS]]
        return Group(tuple(_as_tuple(part) for part in read_parts))
    parts = split(text, ",")
    if len(parts) > 1:
        items: list[Item | Group] = []
        for part in parts[:MAX_ITEMS]:
            item = _one(part)
            items += item.items if isinstance(item, Group) and not item.brackets else [item]
        return Group(tuple(_with_names(items)))
    return _one(text)


def _trimmed(text: str) -> str:
    """Without a full stop, a comma or a stray dollar at the ends."""
    text = text.strip().strip("$").strip()
    while text and text[-1] in ".,;:!?" and not text.endswith(("!", "...")):
        text = text[:-1].rstrip()
    return text.lstrip(":,;").strip() if text[:1] in ":,;" else text


def _as_tuple(part: Item | Group) -> Item | Group:
    return replace(part, brackets="()") if isinstance(part, Group) and not part.brackets else part


def _without_thousands(text: str) -> str:
    """Commas of thousands outside brackets: 1,234,567 is a number, 32, 349 two of them."""
    if "," not in text:
        return text
    out, depth, at = [], 0, 0
    for found in re.finditer(r"[(\[{]|[)\]}]", text):
        if depth == 0:
            out.append(_THOUSANDS.sub(lambda m: m[0].replace(",", ""), text[at : found.start()]))
        else:
            out.append(text[at : found.start()])
        depth = max(0, depth + (1 if found[0] in _OPEN else -1))
        out.append(found[0])
        at = found.end()
    rest = text[at:]
    out.append(rest if depth else _THOUSANDS.sub(lambda m: m[0].replace(",", ""), rest))
    return "".join(out)


def split(text: str, mark: str) -> list[str]:
    """Parts between a mark (and, for commas, the words and / or) outside all brackets; empty ones left out."""
    parts, depth, start, place = [], 0, 0, 0
    words = {found.start(): found.end() for found in _AND_OR.finditer(text)} if mark == "," else {}
    while place < len(text):
        char = text[place]
        if char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth = max(0, depth - 1)
        elif depth == 0 and (char == mark or place in words):
            parts.append(text[start:place])
            start = words.get(place, place + 1)
            place = start
            continue
        place += 1
    parts.append(text[start:])
    return [part for part in (p.replace("\\{ }", "").strip() for p in parts) if part]


def _bracketed(text: str) -> Group | None:
    r"""A text that is one pair of brackets, (..), [..], {..}, \{..\}, with several values or a set in it."""
    text = text.replace("\\langle", "(").replace("\\rangle", ")") if "\\langle" in text else text
    body, kind = text, ""
    if text.startswith("\\{") and text.endswith("\\}"):
        body, kind = text[2:-2], "{}"
        if _closes_before_end(text[1:-2] + "}"):
            return None
    elif text[:1] in ("(", "[", "{", "]") and text[-1:] in (")", "]", "}", "[") and len(text) > 2:
        if text[0] == "]" or text[-1] == "[":  # ]0, 1[ is (0, 1)
            text = ("(" if text[0] == "]" else text[0]) + text[1:-1] + (")" if text[-1] == "[" else text[-1])
        if _closes_before_end(text):
            return None
        body, kind = text[1:-1], text[0] + text[-1]
    else:
        return None
    if kind not in ("()", "[]", "(]", "[)", "{}"):
        return None
    if ("|" in body and kind == "{}") or "\\mid" in body or (":" in body and kind == "{}"):
        return None  # set-builder notation
    has_spaces = re.search(r"[,;]\s", body) is not None
    whole = kind in ("()", "[]", "{}") and re.fullmatch(r"\s*-?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?\s*", body)
    inner = split(
        _without_thousands(body) if has_spaces or whole else body, ";" if ";" in body and "," not in body else ","
    )
    if len(inner) < 2:
        alone = read(body) if body.strip() else None
        if alone is None:
            return Group((), "{}") if kind == "{}" else None
        if kind == "{}" and text.startswith("\\{"):
            return alone if isinstance(alone, Group) else Group((alone,), "{}")
        return alone if isinstance(alone, Group) else Group((alone,), "") if kind in ("[]", "()", "{}") else None
    items = [read(part) for part in inner[:MAX_ITEMS]]
    # ${1, 2}$ shows no braces: a bare list
    return Group(tuple(items), "" if kind == "{}" and not text.startswith("\\{") else kind)


def _closes_before_end(text: str) -> bool:
    """Whether the first bracket closes before the last character: (1,2),(3,4) is no pair."""
    depth = 0
    for place, char in enumerate(text):
        if char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
            if depth == 0 and place < len(text) - 1:
                return True
    return depth != 0


def parts_at(pattern: re.Pattern[str], text: str) -> list[str]:
    """Parts between matches of a pattern outside all brackets."""
    depths, depth = [], 0
    for char in text:
        if char in _CLOSE:
            depth -= 1
        depths.append(depth)
        if char in _OPEN:
            depth += 1
    parts, start = [], 0
    for found in pattern.finditer(text):
        if depths[found.start()] == 0:
            parts.append(text[start : found.start()].strip())
            start = found.end()
    return [*parts, text[start:].strip()]


def _one(text: str) -> Item | Group:
    """An item, or a group with the name it was given: (p, q) = (3, 2)."""
    text = _trimmed(text)
    about = None
    sides = parts_at(_APPROX, text)
    if len(sides) > 1:
        sides = [side for side in sides if side]
        text = sides[0] if sides else ""
        about = sides[-1] if len(sides) > 1 else None
        if (
            about is not None
            and "=" not in text
            and is_name(text)
            and not re.search(r"\\pi|(?<![A-Za-z])e(?![A-Za-z])", text)
        ):
            text, about = f"{text} = {about}", None
        elif about is not None and (equals := parts_at(_EQUALS, about))[1:]:
            about = equals[-1]
    member = parts_at(_MEMBER, text)
    if len(member) == 2 and is_name(member[0]) and not RELATION.search(member[1]):
        return _named(read(member[1]), None if not member[0] else name_of(member[0]))
    sides = parts_at(_EQUALS, text)
    if len(sides) > 1 and not sides[0]:
        sides = sides[1:]  # "= 42"
    if len(sides) == 1:
        if (group := _bracketed(sides[0])) is not None:
            return group.items[0] if len(group.items) == 1 and not group.brackets else group
        if RELATION.search(sides[0]) and len(parts_at(RELATION, sides[0])) > 1:
            return Item(sides[0], relation=True)
        return Item(sides[0], about=about)
    if any(len(parts_at(RELATION, side)) > 1 for side in sides):
        return Item(text, relation=True)
    first, last = sides[0], sides[-1]
    if is_name(first):
        value = read(last)
        if isinstance(value, Group):
            return _named(value, name_of(first))
        return Item(value.value, name_of(first), about=about)
    if len(sides) == 2 and is_name(last) and not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", first)):
        return Item(first, name_of(last), about=about)  # 5 = x
    if len(sides) > 2 or (not _has_symbols(first) and not _has_symbols(last)):
        return Item(last, about=about)
    return Item(text, relation=True)


def _named(value: Item | Group, name: str | None) -> Item | Group:
    return replace(value, name=name) if name else value


def _has_symbols(text: str) -> bool:
    return bool(re.search(r"[A-Za-z]", re.sub(r"\\(?:pi|text\{[^{}]*\}|[a-z]+)", "", text)))


def is_name(text: str) -> bool:
    """Whether a left side only names what the right side is: x, f(x), |AB|, (p, q), \\frac{NO}{BO}, V_1 : V_2."""
    bare = _SUBSCRIPT.sub("", text).strip()
    if not bare or len(bare) > 60:
        return False
    if _WORD_NAME.fullmatch(bare) or _OPERATOR_NAME.fullmatch(bare):
        return True
    if re.search(r"\d|[<>=^!]|\\(?:sqrt|sum|int|lim|pi|infty|pm|cup|sin|cos|tan|log|ln|exp)(?![A-Za-z])", bare):
        return bool(
            re.fullmatch(r"[A-Za-z]'?\s*(?:\^\s*\{?\s*(?:-1|\\prime|\([a-z]\))\s*\}?)?\s*\(\s*-?[\w+\-,. ]+\s*\)", bare)
        )
    return bool(re.search(r"[A-Za-z]", re.sub(r"\\text\{[^{}]*\}", "x", bare)))


def name_of(text: str) -> str | None:
    """A name without what does not tell it from another; None for words such as "Answer"."""
    if _WORD_NAME.fullmatch(text.strip()):
        return None
    bare = re.sub(
        r"\\(?:overline|overrightarrow|vec|mathrm|text|left|right|angle|triangle|widehat|hat|bar)(?![A-Za-z])|[\s|{}$]",
        "",
        text,
    )
    if found := re.fullmatch(r"([A-Za-z]+)\([a-z]\)", bare):
        return f"{found[1]}()"
    return bare


def _with_names(items: list[Item | Group]) -> list[Item | Group]:
    """x = 4, -8, -10 are three values of x."""
    out: list[Item | Group] = []
    for item in items:
        if item.name is None and out and out[-1].name is not None and not (isinstance(item, Item) and item.relation):
            item = replace(item, name=out[-1].name)
        out.append(item)
    return out


__all__ = ["RELATION", "Group", "Item", "is_name", "name_of", "parts_at", "read", "split"]
