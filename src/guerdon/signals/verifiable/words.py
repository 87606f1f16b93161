r"""Short answers compared as words, in any script, with the signs that decide kept: the rule "words" of `QA`.

SQuAD v1.1 deletes ASCII punctuation and splits at blanks, which makes -5 and 5, C# and C++, 3.14 and 314 the same, and a Chinese sentence
one word. Here:

- Unicode NFKC, case-folded; typographic quotes, dashes and the minus sign as their ASCII forms; invisible characters out.
- A token is a word or a number; in scripts that write no blanks (Chinese, Japanese, Thai, ...) each character is one.
- Signs that belong to a number stay (-5, 3.14, 1/2, 10:30, 50%, 1914-1918), and so do those at the end of a name (C++, F#, A+, A-), between
  the parts of a name with underscores, and `= < > ^`. Thousands separators go. Other punctuation is a border between tokens.
- Words joined by a hyphen, slash or full stop count as one word or as several, whichever agrees (Spider-Man, U.S.).
- A currency sign counts where both sides have one. Percent is %.
- The articles a, an, the go where something follows them.
- Two whole answers that are plain numbers are compared by value (48.0 is 48).
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from decimal import Decimal

_ASCII = str.maketrans(
    {**dict.fromkeys("\u2018\u2019\u201a\u2032\u02bc`\u00b4", "'"), **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb\u2033", '"'),
     **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"), "\u2044": "/", "\u2215": "/", "\u00d7": "x"}
)  # fmt: skip
_VULGAR = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")
_MATH_DOLLARS = re.compile(r"\$(?=\S)([^$\n]*?\S)\$(?!\d)")
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|boxed|fbox|emph)\s*\{([^{}]*)\}")
_TAGS = re.compile(r"</?(?:b|i|u|em|strong|span|p|mark|code|br)\b[^<>]*>", re.I)
# Scripts without blanks: ideographs, kana, Thai, Lao, Tibetan, Myanmar, Khmer. A base with its marks is one character.
BARE_SCRIPTS = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u0e01-\u0eff\u0f40-\u0fbc\u1000-\u109f\u1780-\u17d3"
_NUMBER = (
    r"(?:(?<![\w.])-)?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)?(?:\.?\d+)(?:[.,:/\u00b7]\d+)*(?:e[-+]?\d+(?!\w))?(?:-\d+)*"
)
_WORD = rf"[^\W{BARE_SCRIPTS}](?:[^\W{BARE_SCRIPTS}]|['&.\-/](?=[^\W\d_{BARE_SCRIPTS}])|[\u0300-\u036f])*"
_TOKEN = re.compile(
    rf"{_NUMBER}(?:%|[a-z\u00b5\u03bc]*(?:[+#]+(?![\w]))?)|{_WORD}(?:[+#]+(?!\w)|(?<=\b[a-z])-(?=[\s,.;)]|$))?"
    rf"|[{BARE_SCRIPTS}][\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u1031\u1036-\u103a\u17b4-\u17d3\u3099\u309a]*|[=<>^\u2264\u2265\u2260\u00b1]|[$\u20ac\u00a3\u00a5\u20b9\u20bd\u20a9]"
)
_JOINS = "-/.\u2010\u2011\u2013\u2212"
_JOINED = re.compile(r"(?<=[^\W\d_])[-/.](?=[^\W\d_])|(?<=[^\W\d_])-(?=\d)|(?<=\d)-(?=[^\W\d_])")
_EXPONENT = re.compile(r"-?[\d.]+e[-+]?\d+")
_CURRENCY = frozenset("$\u20ac\u00a3\u00a5\u20b9\u20bd\u20a9")
_ARTICLES = frozenset({"a", "an", "the"})
_PLAIN_NUMBER = re.compile(r"-?\d+(?:\.\d+)?|-?\.\d+")


def words(text: str, *, join: bool = False) -> list[str]:
    """The tokens of a short answer, by the rules of the module's header.

    Args:
        text: any text.
        join: words joined by a hyphen, slash or full stop are one word (else several).
    """
    text = unicodedata.normalize("NFKC", _VULGAR.sub(" ", _MATH_DOLLARS.sub(r" \1 ", text))).translate(_ASCII)
    text = "".join(char for char in text if unicodedata.category(char) != "Cf").casefold()
    for _ in range(3):
        text = _WRAPPER.sub(r" \1 ", text)
    text = _TAGS.sub(" ", text).replace("\\%", "%").replace("**", " ").replace(" & ", " and ")
    text = re.sub(r"(?<=\d)\s?(?:per\s?cent\b|%)", "%", text)
    text = re.sub(r"\b(?:minus|negative)\s+(?=[\d.])", " -", text)
    text = re.sub(r"(?<=\d)\s+-\s+(?=\d)", "-", text)
    text = re.sub(
        r"(?<![\w.])([-+]?)\s?([$\u20ac\u00a3\u00a5\u20b9\u20bd\u20a9])\s?([-+]?)(?=[\d.])", r" \2 \1\3", text
    )
    tokens: list[str] = []
    for found in _TOKEN.finditer(text):
        token = found[0].strip("_'").replace("'", "")
        if len(token) < 2 or _EXPONENT.fullmatch(token):
            tokens.append(token)
        else:
            tokens += [_tidied(part) for part in _JOINED.sub("" if join else " ", token).split()]
    tokens = [token for token in tokens if token]
    return [token for i, token in enumerate(tokens) if token not in _ARTICLES or i == len(tokens) - 1]


def _tidied(token: str) -> str:
    """One way of writing for a token: no thousands separators, 0.5 for .5, 48 for 48.0."""
    token = token.rstrip(".:,/")
    if not any(char.isdigit() for char in token):
        return token
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?", token):
        token = token.replace(",", "")
    token = re.sub(r"^(-?)\.(?=\d)", r"\g<1>0.", token)
    return re.sub(r"^(-?\d+)\.0+(?=%?$)", r"\1", token)


def _forms(answer: str, reference: str) -> list[tuple[list[str], list[str]]]:
    """The ways in which the two may be read, both alike in what only one of them writes."""
    pairs = []
    for left in _readings(answer):
        for right in _readings(reference):
            both = _CURRENCY & set(left) and _CURRENCY & set(right)
            pairs.append((left, right) if both else (_without_currency(left), _without_currency(right)))
    return pairs


@functools.lru_cache(maxsize=1024)
def _readings(text: str) -> list[list[str]]:
    """The tokens with joined words as several and, where that differs, as one."""
    apart, joined = words(text), words(text, join=True) if any(mark in text for mark in _JOINS) else None
    return [apart] if joined is None or joined == apart else [apart, joined]


def _without_currency(tokens: list[str]) -> list[str]:
    return [token for token in tokens if token not in _CURRENCY]


def same_words(answer: str, reference: str) -> bool:
    """Whether two short answers are the same words, or the same plain number."""
    return any(_equal(left, right, answer, reference) for left, right in _forms(answer, reference))


def _equal(left: list[str], right: list[str], answer: str, reference: str) -> bool:
    if not left or not right:  # signs alone: they are all there is
        return not left and not right and " ".join(answer.split()) == " ".join(reference.split())
    if len(left) == len(right) == 1 and _PLAIN_NUMBER.fullmatch(left[0]) and _PLAIN_NUMBER.fullmatch(right[0]):
        return Decimal(left[0]) == Decimal(right[0])
    return left == right


def words_f1(answer: str, reference: str) -> float:
    """Token F1 in [0, 1], tokens counted with multiplicity; the best over the ways in which joined words can be read."""
    best = 0.0
    for left, right in _forms(answer, reference):
        if _equal(left, right, answer, reference):
            return 1.0
        common = sum((Counter(left) & Counter(right)).values())
        best = max(best, 2 * common / (len(left) + len(right)) if common else 0.0)
    return best


__all__ = ["BARE_SCRIPTS", "same_words", "words", "words_f1"]
