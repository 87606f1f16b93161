r"""Prose: taking its markup off, and finding the expressions in it. Linear in a text's length.

A number is never cut out of a longer expression: in "x^2 + 53" one expression is found, the whole of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from guerdon.signals.verifiable.notation import CONSTANTS, FUNCTIONS

_HTML = re.compile(
    r"</?(?:b|i|u|em|strong|span|p|br|div|code|pre|font|center|mark|h[1-6]|li|ul|ol|td|tr|th|table|a|s|del|ins|small|big|blockquote|response|solution|final|result|output)\b[^<>]{0,200}>|<\|[^<>|]{1,40}\|>",
    re.I,
)
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n?|~~~\w*\n?")
_EMPHASIS = re.compile(
    r"(?<![\\\w*])(\*{1,3})(?=[^\s*])(.{0,300}?[^\s*\\])\1(?![\w*])|(?<![\\\w])(_{1,3})(?=[^\s_])(.{0,300}?[^\s_\\])\3(?!\w)"
)
_LOOSE_STARS = re.compile(r"(?<!\S)\*{2,3}(?=\S)|(?<=\S)\*{2,3}(?!\S)|^\s*\*{2,3}\s*$", re.M)
_TICKS = re.compile(r"`{1,2}([^`\n]{1,300})`{1,2}")
_HEADING = re.compile(
    r"^[ \t]*(?:>[ \t]*)*(?:#{1,6}[ \t]+|[-*+\u2022\u25cf\u25aa][ \t]+(?:\[[ xX]\][ \t]+)?(?=\S)|[-=*_]{3,}[ \t]*$)?",
    re.M,
)
_SYMBOLS = re.compile("[\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff\ufe0f\u200d\u25a0-\u25a1\u220e\u25fb-\u25fe]")
_SIGN_WORD = re.compile(r"(?<![\d)\]}] )(?<![A-Za-z])(?:minus|negative)\s+(?=[\d.])", re.I)
_ARROWS = re.compile(r"^[ \t]*(?:=>|->|\u2192|\u21d2|\u2234|\u27f9|\u27a1)[ \t]*", re.M)


def without_markup(text: str) -> str:
    """Prose without markdown, HTML and emoji; operators and LaTeX stay."""
    text = _HTML.sub(
        lambda found: "\n" if found[0][:2].lower() in ("<p", "<b") and found[0][:3].lower() in ("<p>", "<br") else " ",
        text,
    )
    text = re.sub(r"(?<=[\d)])or(?=[A-Za-z]\s*\()", " or ", _FENCE.sub("\n", text))
    text = _TICKS.sub(r" \1 ", text)
    text = _HEADING.sub("", text)
    for _ in range(2):
        text = _EMPHASIS.sub(lambda found: f" {found[2] or found[4]} ", text)
    text = _SIGN_WORD.sub("-", text)
    text = _LOOSE_STARS.sub(" ", text)
    text = _ARROWS.sub("", _SYMBOLS.sub(lambda m: m[0] if m[0] in "\u2212\u25b3" else " ", text))
    return text.replace("|", " ").replace("\t", " ") if re.search(r"^\s*\|.*\|\s*$", text, re.M) else text


# -- expressions ---------------------------------------------------------------------------------------------------------------

WORDS_OF_MATHS = "|".join(
    sorted(
        [*FUNCTIONS, *(name for name in CONSTANTS if len(name) > 1), "abs", "cbrt", "asin", "acos", "atan"],
        key=len,
        reverse=True,
    )
)
MULTIPLIER = r"(?:thousand|million|billion|trillion|hundred|dozen)"
_SPAN = (
    r"\$\$(?P<dd>[^$]{1,1500}?)\$\$|(?<!\\)\$(?P<d>(?:[^$\\]|\\.){1,600}?)\$(?!\d)|\\\((?P<p>.{1,600}?)\\\)|\\\[(?P<b>.{1,1500}?)\\\]"
    r"|\\begin\{(?P<env>(?:align|aligned|equation|gather|multline|eqnarray|displaymath)\*?)\}(?P<e>.{1,1500}?)\\end\{(?P=env)\}"
)
_NUMBER = r"\d*\.\d*\(\d+\)|(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+(?:[ \u00a0\u202f\u2009]\d{3})*(?![\d])|\d+)(?:[.,]\d+)*(?:[eE][-+]?\d+(?![\w]))?|\.\d+"
# A letter that is no raised, lowered or fraction sign, all of which are letters to \w.
_LETTER = r"[^\W\d_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209f\u2150-\u215e\u2460-\u2473]"
_TOKEN = re.compile(
    rf"(?P<span>{_SPAN})"
    rf"|(?P<tex>\\(?:begin\{{[a-z]*matrix\}}.{{1,600}}?\\end\{{[a-z]*matrix\}}|text\s*\{{[^{{}}]*\}}|[A-Za-z]+(?:\s*\[[^\[\]]{{0,20}}\])?|[,;:! {{}}%$]))"
    rf"|(?P<glued>\d[\d.,]*[A-Za-z]*[A-Za-z][A-Za-z0-9]*(?:\^?\d)?|[A-Za-z]{{2,}}\d[A-Za-z0-9]*)"
    rf"|(?P<number>{_NUMBER})"
    rf"|(?P<function>(?<![A-Za-z])(?:{WORDS_OF_MATHS})(?![A-Za-z]))"
    # before words: a raised digit is a letter to a regular expression
    r"|(?P<raised>[\u2070\u00b9\u00b2\u00b3\u2074-\u207f\u2080-\u208e\u00b0\u2032\u221e\u00bc-\u00be\u2150-\u215e\u03c0\u0660-\u0669\uff10-\uff19\u2460-\u2473])"
    rf"|(?P<word>{_LETTER}{{2,}}(?:['\u2019-]{_LETTER}+)*|[^\W\d_A-Za-z\u0370-\u03ff])"
    r"|(?P<letter>[A-Za-z\u0370-\u03ff])"
    r"|(?P<operator>\*\*|[-+*/^=<>\u2264\u2265\u2260\u00b1\u2213\u00d7\u00f7\u00b7\u22c5\u2212\u2013\u221a\u2208\u222a\u2229\u2248\u2192!_]|:=)"
    r"|(?P<bracket>[()\[\]{}\uff08\uff09])"
    r"|(?P<money>[$\u20ac\u00a3\u00a5\u20b9])"
    r"|(?P<percent>%|\uff05)"
    r"|(?P<join>[,;:\u3001\uff0c&])"
    r"|(?P<break>\n)|(?P<stop>[.?!\u3002\uff01\uff1f](?=\s|$|[^\w\s])|\u3002)|(?P<quote>[\"'\u201c\u201d\u2018\u2019\u300c\u300d])|(?P<space>[^\S\n]+)|(?P<other>.)",
    re.S,
)  # fmt: skip


class Segment(NamedTuple):
    """One expression found in prose: where it stands, and its text without delimiters."""

    start: int
    end: int
    text: str


def _is_maths(content: str) -> bool:
    """Whether what stands between two dollars is mathematics: no prose, no loose end."""
    bare = re.sub(r"\\(?:text\w*|mbox|mathrm|operatorname)\s*\{[^{}]*\}", "", content)
    if re.search(r"(?<![\\A-Za-z])[A-Za-z]{3,}\s+[A-Za-z]{2,}(?![A-Za-z]*\()", bare) and not re.search(
        r"\\begin|\\text", content
    ):
        return False
    return not re.search(r"(?:[-+*/=,;]|\b(?:and|or|is|for|each|to))\s*$", bare) and bool(content.strip())


def segments(text: str) -> list[Segment]:
    """The expressions of a text, left to right. A line break or a word ends one."""
    out: list[Segment] = []
    run: list[re.Match[str]] = []
    place = 0

    def close() -> None:
        out.extend(_segments_of(run, text))
        run.clear()

    while place < len(text):
        found = _TOKEN.match(text, place)
        assert found is not None  # the last alternative takes any character
        kind = found.lastgroup if found["span"] is None else "span"
        if kind == "span":
            content = next(found[g] for g in ("dd", "d", "p", "b", "e") if found[g] is not None)
            if found["d"] is not None and not _is_maths(content):
                place += 1  # a currency's sign
                close()
                if amount := re.compile(rf"\s?-?(?:{_NUMBER})").match(text, place):
                    out.append(Segment(found.start(), amount.end(), text[found.start() : amount.end()]))
                    place = amount.end()
                continue
            close()
            out.append(Segment(found.start(), found.end(), _environment(content)))
            place = found.end()
            continue
        if kind in ("word", "break", "stop", "quote", "other", "glued") and not _keeps_on(found, run, text):
            close()
            if kind == "glued" and (piece := _unglued(found, text)):
                out.append(piece)
        else:
            run.append(found)
        place = found.end()
    close()
    return out


def _keeps_on(found: re.Match[str], run: list[re.Match[str]], text: str) -> bool:
    """Whether a word or a mark continues an expression: "3 times 10", "5 million", "2x", "x'"."""
    if found.lastgroup == "word":
        following = text[found.end() : found.end() + 3].lstrip()
        if found[0].lower() in ("times", "plus", "minus") and run and following[:1].isdigit():
            return True
        return bool(
            run
            and re.fullmatch(MULTIPLIER, found[0], re.I)
            and run[-1].lastgroup in ("space", "number")
            and any(t.lastgroup == "number" for t in run[-2:])
        )
    if found.lastgroup == "glued":
        return bool(
            re.fullmatch(rf"\d[\d.,]*(?:[A-Za-z]|{WORDS_OF_MATHS}|[a-z]\^?\d|[b-hj-z]{{2}})", found[0])
        ) and not _unit_glued(found, text)
    if found.lastgroup == "quote":
        return (
            found[0] == "'"
            and bool(run)
            and run[-1].lastgroup == "letter"
            and run[-1].end() == found.start()
            and text[found.end() : found.end() + 1] in " (=,)\n"
        )
    return False


_GLUED_UNIT = re.compile(
    r"(\d[\d.,]*?)(km|cm|mm|dm|kg|mg|ml|m|g|s|h|L|ft|in|lb|oz|hr|min|mph|kmh|th|st|nd|rd|pct|percent|hours?|minutes?|dollars?|euros?|degrees?)(\^?[23\u00b2\u00b3])?$"
)


def _unit_glued(found: re.Match[str], text: str) -> bool:
    """53m and 53cm are numbers with units, unless an operator follows: 53m + 2 is an expression."""
    return bool(_GLUED_UNIT.match(found[0])) and not re.match(
        r"\s*[-+*/^=(]\s*[\w(\\]", text[found.end() : found.end() + 4]
    )


def _unglued(found: re.Match[str], text: str) -> Segment | None:
    unit = _GLUED_UNIT.match(found[0])
    if not unit or (found.start() and re.match(r"[\w\\_^.]", text[found.start() - 1])):
        return None
    words = unit[2] if unit[2] not in ("th", "st", "nd", "rd") else ""
    start = found.start()
    sign = re.search(r"(?:^|[\s=:(])([-\u2212])$", text[:start])
    if sign:
        start -= 1
    power = f"^{unit[3].lstrip('^')}" if unit[3] else ""
    return Segment(
        start,
        found.end(),
        f"{'-' if sign else ''}{unit[1].rstrip('.,')}" + (f"\\text{{{words}{power}}}" if words else ""),
    )


def _environment(content: str) -> str:
    """The last line of a display of several; alignment marks left out."""
    content = content.strip()
    if re.search(r"\\begin\{(?:[a-z]*matrix|array|cases)", content):
        return content
    content = re.sub(
        r"\\(?:begin|end)\{(?:align|aligned|split|gathered|gather|equation|alignedat)\*?\}(?:\{\d\})?|\\(?:no)?tag\*?(?:\{[^{}]*\})?|\\nonumber|\\label\{[^{}]*\}",
        "",
        content,
    )
    # two backslashes before a letter are an escaped command, unless a display has alignment marks
    row = r"\\\\(?:\[[^\]]*\])?" if "&" in content else r"\\\\(?![A-Za-z])(?:\[[^\]]*\])?"
    lines = [line.strip() for line in re.split(row, content) if line.strip(" &\n\t")]
    return lines[-1].replace("&", " ").strip() if lines else ""


def _segments_of(run: list[re.Match[str]], text: str) -> Iterator[Segment]:
    """Expressions in a run of tokens without words: the run, without what hangs over at its ends."""
    pieces: list[list[re.Match[str]]] = [[]]
    depth = 0
    for i, token in enumerate(run):
        if token.lastgroup == "bracket":
            depth = max(0, depth + (1 if token[0] in "([{\uff08" else -1))
        if (
            (token.lastgroup == "join" and not depth and not _is_ratio(run, i))
            or (token.lastgroup == "letter" and token[0] in "aIA" and _is_article(run, i))
            or (token.lastgroup == "space" and _parts_numbers(run, i))
        ):
            pieces.append([])
        else:
            pieces[-1].append(token)
    for piece in pieces:
        tokens = _trimmed(piece)
        if not tokens or not any(
            t.lastgroup in ("number", "raised", "letter", "tex", "glued", "function") for t in tokens
        ):
            continue
        start, end = tokens[0].start(), tokens[-1].end()
        if start and (text[start - 1] in "^_" or (tokens[0].lastgroup == "raised" and text[start - 1].isalpha())):
            continue  # the power of a unit: cm^2
        yield Segment(start, end, text[start:end])


def _is_ratio(run: list[re.Match[str]], i: int) -> bool:
    """A colon between numbers is a ratio's or a time's; commas and other colons part expressions."""
    if run[i][0] != ":":
        return False
    before = next((t for t in reversed(run[:i]) if t.lastgroup != "space"), None)
    after = next((t for t in run[i + 1 :] if t.lastgroup != "space"), None)
    return before is not None and after is not None and before.lastgroup == after.lastgroup == "number"


def _is_article(run: list[re.Match[str]], i: int) -> bool:
    """A lone a, A or I with no operator beside it."""
    near = [t for t in (*run[max(0, i - 2) : i], *run[i + 1 : i + 3]) if t.lastgroup != "space"]
    return not any(t.lastgroup in ("operator", "raised") or t[0] in "()" for t in near)


def _parts_numbers(run: list[re.Match[str]], i: int) -> bool:
    """Blanks between two values without an operator part two expressions: "4 2"; not "1 1/2"."""
    before = run[i - 1] if i else None
    after = run[i + 1] if i + 1 < len(run) else None
    if before is None or after is None:
        return False
    closed = before.lastgroup == "number" or before[0] in ")]}" or before.lastgroup == "letter"
    if before.lastgroup == "number" and after.lastgroup == "number":
        mixed = i + 3 < len(run) and run[i + 2][0] == "/" and run[i + 3].lastgroup == "number"
        return not mixed
    return closed and (after[0] == "(" and before.lastgroup == "number") and _words_in_brackets(run, i + 1)


def _words_in_brackets(run: list[re.Match[str]], i: int) -> bool:
    depth = 0
    for token in run[i:]:
        depth += (token[0] == "(") - (token[0] == ")")
        if depth == 0:
            return False
    return True


def _trimmed(tokens: list[re.Match[str]]) -> list[re.Match[str]]:
    """Without blanks, dangling operators and brackets that do not close."""
    tokens = list(tokens)
    while True:
        before = len(tokens)
        while tokens and (
            tokens[0].lastgroup in ("space", "join", "quote", "percent")
            or (tokens[0].lastgroup == "operator" and tokens[0][0] not in "-+\u2212\u2013\u00b1\u221a")
            or tokens[0][0] in ")]}"
            or tokens[0][0] in ("\\,", "\\ ", "\\;")
        ):
            tokens.pop(0)
        while tokens and (
            tokens[-1].lastgroup in ("space", "join", "word")
            or (tokens[-1].lastgroup == "operator" and not _is_factorial(tokens))
            or tokens[-1][0] in "([{"
            or tokens[-1][0] in ("\\,", "\\ ", "\\;", "\\quad")
        ):
            if tokens[-1].lastgroup == "word" and re.fullmatch(MULTIPLIER, tokens[-1][0], re.I):
                break
            tokens.pop()
        tokens = _balanced(tokens)
        if len(tokens) == before or not tokens:
            return tokens


def _is_factorial(tokens: list[re.Match[str]]) -> bool:
    """Whether the last token is a factorial's sign: no blank before it, and no end of a sentence after it."""
    last = tokens[-1]
    if last[0] != "!" or len(tokens) < 2 or tokens[-2].lastgroup == "space":
        return False
    return tokens[0].start() == 0 or not re.match(
        r"\s*$|\s+[A-Z\U0001f000-\U0001ffff]", last.string[last.end() : last.end() + 8]
    )


def _balanced(tokens: list[re.Match[str]]) -> list[re.Match[str]]:
    """Cut before the first bracket that never closes, after the last that never opened; half-open intervals stay."""
    opened: list[int] = []
    for i, token in enumerate(tokens):
        if token.lastgroup != "bracket":
            continue
        if token[0] in "([{\uff08":
            opened.append(i)
        elif opened:
            opened.pop()
        else:
            return tokens[:i] if i > len(tokens) // 2 else tokens[i + 1 :]
    return tokens[: opened[0]] if opened else tokens


__all__ = ["MULTIPLIER", "Segment", "segments", "without_markup"]
