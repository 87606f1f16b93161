r"""What stands beside a number and decides: units, percent, number bases, dates, clock times, and answers that are words.

Everything here works on text that went through `notation` (or, for `words_of`, on the text as written) and needs no parser.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

# Unit -> (dimension, factor to its base unit). The plural s is taken off before.
_UNITS: dict[str, tuple[str, Fraction]] = {}
for _dimension, _table in {
    "length": "m meter metre=1 km kilometer kilometre=1000 cm centimeter centimetre=1/100 mm millimeter millimetre=1/1000 "
    "dm=1/10 in inch inche=127/5000 ft foot feet=381/1250 yd yard=1143/1250 mi mile=201168/125",
    "mass": "kg kilogram=1 g gram gm=1/1000 mg milligram=1/1000000 t ton tonne=1000 lb pound=45359237/100000000 oz ounce=45359237/1600000000",
    "time": "s sec second=1 min minute=60 h hr hour=3600 d day=86400 week=604800 month=2629746 yr year=31556952",
    "volume": "l liter litre=1 ml milliliter millilitre=1/1000 gallon gal=473176473/125000000",
    "angle": "degree deg=1 rad radian=radian",
    "money": "usd dollar buck=usd cent=cent eur euro=eur pound_sterling gbp=gbp yen=yen yuan rmb=yuan rupee r inr=rupee",
    "temperature": "celsiu=c fahrenheit=f kelvin=k",
    "other": "n newton=n j joule=j w watt=w pa pascal=pa hz hertz=hz v volt=v ohm=ohm mol mole=mol mph=mph kmh kmph=kmh",
}.items():
    _waiting: list[str] = []
    for _word in _table.split():
        _name, _, _factor = _word.partition("=")
        _waiting.append(_name)
        if _factor:
            _numeric = _factor[0].isdigit()
            for _unit in _waiting:
                _UNITS[_unit] = (
                    _dimension if _numeric else f"{_dimension}:{_factor}",
                    Fraction(_factor) if _numeric else Fraction(1),
                )
            _waiting = []
# Words that say nothing about which unit it is.
_GENERIC = frozenset(
    [
        "unit",
        "units",
        "square",
        "squareunits",
        "sq",
        "cubic",
        "total",
        "way",
        "ways",
        "answer",
        "approx",
        "approximately",
        "exactly",
        "about",
    ]
)
_CURRENCY = {
    "$": "usd",
    "\\$": "usd",
    "€": "eur",
    "£": "gbp",
    "¥": "yen",
    "₹": "rupee",
    "US$": "usd",
    "USD": "usd",
    "EUR": "eur",
}
_CURRENCY_BEFORE = re.compile(r"\s*(-?)\s*(US\$|\\\$|[$€£¥₹]|USD|EUR|[₽₩₫₪฿₱₺])\s*(?=[-+.\d])")
_CURRENCY_AFTER = re.compile(r"(?<=[\d.}])\s*(\\\$|[$€£¥₹₽₩₫₪฿₱₺])\s*$")
_PERCENT = re.compile(
    r"\s*(?:\\?%|(?<![A-Za-z])(?:percent|percentage|pct|per cent)\b|\\text\s*\{\s*(?:\\?%|percent|percentage|pct|per cent)\s*\})\s*$",
    re.I,
)
TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_DEGREES = re.compile(r"\s*\^\s*\\circ\s*\\?(?:text\{\s*)?([CFK]?)(?:\s*\})?\s*$")
_TEXT_UNIT = re.compile(r"\s*\\text\{([^{}]*)\}\s*(?:\^\s*\{?\s*(-?\d)\s*\}?)?\s*$")
_NAMES = "|".join(
    sorted((name for name in _UNITS if len(name) > 1 and name not in ("in", "oz")), key=len, reverse=True)
)
_WORD_UNIT = re.compile(
    rf"(?<=[\d}})])(?P<gap>\s*)(?P<unit>(?:(?:square|sq\.?|cubic|cu\.?)\s+)?(?:{_NAMES})(?:s|es)?|(?<=\s)(?:[mgshlLdNJWVK]|oz|in))"
    r"(?:\s*\^\s*\{?\s*(?P<power>\d)\s*\}?)?(?P<per>\s*/\s*(?:s|h|hr|hour|sec|second|min|minute|day|year|m|kg|l)(?:\^\{?\d\}?)?)?\s*$"
)
_PLAIN_WORDS = re.compile(
    r"(?<=[\d}])\s+[A-Za-z][A-Za-z'-]+(?:\s+[A-Za-z][A-Za-z'-]+){0,4}\s*$|(?<=\d)\s*[A-Za-z]{3,}\s*$"
)


class Quantity(NamedTuple):
    """A value and what stands beside it.

    Attributes:
        value: the expression without its unit.
        unit: as one canonical text; None where none is written.
        percent: whether a percent sign follows.
    """

    value: str
    unit: str | None
    percent: bool = False


def quantity(expression: str) -> Quantity:
    """An expression's value, unit and percent sign. Compound quantities (7 hours 30 minutes) keep their words in the value."""
    text, unit = expression.strip(), None
    if found := _PERCENT.search(text):
        return Quantity(text[: found.start()].strip(), None, True)
    if found := _CURRENCY_BEFORE.match(text):
        text, unit = found[1] + text[found.end() :], _CURRENCY.get(found[2], found[2])
    elif found := _CURRENCY_AFTER.search(text):
        text, unit = text[: found.start()], _CURRENCY.get(found[1], found[1])
    if (found := _DEGREES.search(text)) and found.start() and not TRIGONOMETRIC.search(text):
        return Quantity(
            text[: found.start()].strip(), {"": "degree", "C": "celsiu", "F": "fahrenheit", "K": "kelvin"}[found[1]]
        )
    parts = []
    for _ in range(4):  # \text{m}/\text{s}^2 and \text{ cm } \text{tall}
        found = _TEXT_UNIT.search(text)
        if not found or not text[: found.start()].strip():
            break
        before = text[: found.start()].rstrip()
        per = before.endswith("/")
        parts.append(f"{'/' if per else ''}{found[1]}{'^' + found[2] if found[2] else ''}")
        text = before.rstrip("/").rstrip().removesuffix("\\cdot").rstrip()
    if parts:
        unit = canonical_unit(" ".join(reversed(parts)))
    elif unit is None and (found := _WORD_UNIT.search(text)):
        power = f"^{found['power']}" if found["power"] else ""
        unit = canonical_unit(f"{found['unit']}{power}{found['per'] or ''}")
        text = text[: found.start()].strip()
    elif unit is None and "\\" not in text and (found := _PLAIN_WORDS.search(text)):
        unit = canonical_unit(found[0])
        text = text[: found.start()].strip()
    if unit in ("percent", "percentage", "pct"):
        return Quantity(text, None, True)
    return Quantity(text, unit)


def canonical_unit(words: str) -> str | None:
    """One way of writing a unit: "square centimeters" = "cm^2", "miles per hour" = "mile/hour"; None where it says nothing."""
    text = " ".join(
        words.lower().replace("(", " ").replace(")", " ").replace(".", " ").replace("{", "").replace("}", "").split()
    )
    text = re.sub(r"\s*\bper\b\s*|\s*/\s*", "/", text)
    text = re.sub(r"\s*\^\s*", "^", text)
    power = ""
    if found := re.match(r"(?:square|sq|cubic|cu)\s+(?=\w)", text):
        power, text = ("^2" if text.startswith("sq") else "^3"), text[found.end() :]
    text = re.sub(r"(?<=[a-z])\s+(?:squared|square)$", "^2", re.sub(r"(?<=[a-z])\s+cubed$", "^3", text))
    names = [_singular(name) for name in text.split("/")]
    unit = "/".join(names) + power
    return None if not unit.strip() or unit in _GENERIC or unit.split("^")[0] in _GENERIC else unit


def _singular(name: str) -> str:
    base, hat, power = name.strip().partition("^")
    base = base.strip()
    if base not in _UNITS or base == "s":
        for suffix in ("s", "es"):
            if len(base) > 3 and base.endswith(suffix) and base[: -len(suffix)] in _UNITS:
                base = base[: -len(suffix)]
                break
        else:
            base = base[:-1] if len(base) > 3 and base.endswith("s") and not base.endswith("ss") else base
    return f"{base}{hat}{power}"


def unit_factor(given: str, expected: str) -> Fraction | None:
    """What a value in the first unit is multiplied with to be in the second; None where they are not of one kind.

    Words that are no units ("apples") only match themselves, or a longer wording of themselves ("red apples").
    """
    if given == expected:
        return Fraction(1)
    first, second = _measure(given), _measure(expected)
    if first is not None and second is not None:
        return first[1] / second[1] if first[0] == second[0] else None
    if first is None and second is None and (set(given.split()) & set(expected.split())):
        return Fraction(1)
    return None


def _measure(unit: str) -> tuple[tuple[str, ...], Fraction] | None:
    """(dimension, factor) of a unit made of known ones; None where a word in it is none."""
    factor, dimension = Fraction(1), []
    for i, part in enumerate(unit.split("/")):
        base, _, power = part.partition("^")
        known = _UNITS.get(base.strip())
        if known is None or (power and not re.fullmatch(r"-?\d", power)):
            return None
        exponent = (int(power) if power else 1) * (-1 if i else 1)
        dimension.append(f"{known[0]}^{exponent}")
        factor *= known[1] ** exponent
    return tuple(sorted(dimension)), factor


# -- answers that are compared as text ---------------------------------------------------------------------------------------

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_MONTH = r"(?:january|february|march|april|may|june|july|august|september|october|november|december|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\.?"
_DATE = re.compile(
    rf"\d{{4}}-\d{{1,2}}-\d{{1,2}}|\d{{4}}/\d{{1,2}}/\d{{1,2}}|\d{{1,2}}[./-]\d{{1,2}}[./-]\d{{4}}|{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?(?:\s*,?\s*\d{{4}})?|"
    rf"\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}(?:\s*,?\s*\d{{4}})?",
    re.I,
)
_CLOCK = re.compile(
    r"(\d{1,2})\s*:\s*(\d{2})(?:\s*:\s*(\d{2}))?\s*(?:\\?(?:text\s*\{)?\s*([ap])\.?\s*m\.?\s*\}?)?", re.I
)
_HOUR = re.compile(r"(\d{1,2})\s*(?:\\text\s*\{)?\s*([ap])\.?\s*m\.?\s*\}?", re.I)
_SPAN = re.compile(r"\d+(?:\.\d+)?\s*[\u2013\u2014]\s*\d+(?:\.\d+)?")
_BASE = re.compile(
    r"\(?\s*([0-9A-Fa-f]+(?:\.[0-9A-Fa-f]+)?)\s*\)?\s*_\s*\{?\s*(?:\\text\s*\{)?\s*(\d{1,2}|[a-z]+)\s*\}?\s*\}?"
)
_BASE_WORDS = {
    w: i
    for i, w in enumerate(
        ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"], 2
    )
} | {"sixteen": 16}


def special(text: str) -> tuple[str, ...] | None:
    """A date, a clock time, a span of numbers or a number in a base as a tuple to compare; None for everything else."""
    bare = text.strip().strip("$").strip().removesuffix(".")
    bare = re.sub(r"\\text(?:bf|rm)?\s*\{([^{}]*)\}", r" \1 ", bare).strip()
    bare = " ".join(bare.split())
    if len(bare) > 40:
        return None
    if _DATE.fullmatch(bare):
        return _date(bare)
    if found := _CLOCK.fullmatch(bare):
        hour, minute, second, half = found.groups()
        # A ratio is written 10:6 or 5:3; a time has a leading zero, an hour of the day, or am / pm.
        if half or (int(minute) < 60 and int(hour) <= 24):
            return ("time", str(int(hour)), minute, second or "", (half or "").lower())
    if found := _HOUR.fullmatch(bare):
        return ("time", str(int(found[1])), "00", "", found[2].lower())
    if _SPAN.fullmatch(bare):
        return ("span", re.sub(r"\s", "", bare).replace("\u2014", "\u2013"))
    if (found := _BASE.fullmatch(bare)) and re.search(r"\d|_", found[1]):
        base = int(found[2]) if found[2].isdigit() else _BASE_WORDS.get(found[2].lower())
        if base and 2 <= base <= 36 and all(int(c, 36) < base for c in found[1] if c != "."):
            return ("base", found[1].upper().lstrip("0") or "0", str(base))
    return None


def _date(text: str) -> tuple[str, ...]:
    parts = [p for p in re.split(r"[\s,./-]+", re.sub(r"(?<=\d)(?:st|nd|rd|th)\b|\bof\b", "", text.lower())) if p]
    month = next((p for p in parts if p[0].isalpha()), None)
    if month is None:
        return ("date", *(str(int(p)) for p in parts))
    numbers = [str(int(p)) for p in parts if p.isdigit()]
    return ("date", *numbers[1:], str(_MONTHS.index(month[:3]) + 1), numbers[0])


def is_clock(kind: tuple[str, ...]) -> bool:
    """Whether a time can only be one: 10:15 may be a ratio, 12:00, 7:05 and 3:30 pm may not."""
    return kind[0] == "time" and bool(kind[2].startswith("0") or kind[3] or kind[4])


_SHORT = "yes no odd even true false none red one two six ten man dog cat box boy sun mon tue wed thu fri sat son win tie all any both"
_SMALL_WORDS = frozenset(_SHORT.split())
_WRAPPED = re.compile(
    r"\\(?:text(?:normal|bf|it|rm|sf|tt)?|math(?:rm|bf|it|sf|tt)|mbox|operatorname)\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_SYMBOL_NAMES = "pi theta alpha beta gamma delta lambda omega phi mu sigma epsilon rho tau infinity inf oo sin cos tan log ln exp sqrt e i"
_MATH_NAMES = frozenset(_SYMBOL_NAMES.split())


def words_of(text: str) -> str | None:
    r"""The words of an answer that is words ("no solution", \text{Marion}, BACD), else None."""
    bare = text.strip().strip("$").strip()
    wrapped = _WRAPPED.sub(r" \1 ", bare)
    inner = re.sub(r"\\[,;:! ]|~|\\q?quad", " ", wrapped.replace("$", " ")).strip()
    inner = " ".join(inner.split())
    if not inner or len(inner) > 300 or re.search(r"[=<>^_+*\\{}]|\d", inner.replace("-", " ")):
        return None
    letters = re.findall(r"[^\W\d_]+", inner)
    if not letters:
        return None
    if wrapped != bare and any(len(word) > 1 for word in letters):
        return inner
    if all(word in _MATH_NAMES for word in letters):
        return None
    if wrapped != bare or re.fullmatch(r"\(?[A-Z]\)?[.:]?", inner):
        return inner
    if len(letters) > 1 and any(len(word) > 2 for word in letters):
        return inner
    word = letters[0]
    if len(letters) == 1 and re.fullmatch(r"[\W_]*\w+[\W_]*", inner):
        capitals = len(word) > 1 and word.isupper()
        long = len(word) >= 4 or not word.isascii() or (len(word) > 1 and word.istitle() and len(word) > 2)
        if capitals or long or word.lower() in _SMALL_WORDS:
            return inner
    return None


def same_words(given: str, expected: str) -> bool:
    """Two texts compared without case, accents' composition, edge punctuation, articles and doubled spaces. Capitals alone keep order."""
    first, second = _tidy(given), _tidy(expected)
    if len(second) == 1 and second not in "abcd":  # v is not V; (a) and A are one choice
        return given.strip("().: ") == expected.strip("().: ")
    return first == second != ""


def _tidy(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"^[\s(\[\"'`*]+|[\s)\]\"'`*.,;:!]+$", "", text)
    text = " ".join(re.sub(r"[-\u2013_]", " ", text).split())
    return re.sub(r"^(?:the|an?)\s+(?=\w)", "", text)


__all__ = ["Quantity", "canonical_unit", "is_clock", "quantity", "same_words", "special", "unit_factor", "words_of"]
