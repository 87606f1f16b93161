r"""Is an answer equal to a reference? The comparison, from words over lists and units to expressions.

`same(reference, answer)` works down from what is cheap and certain: the same writing; words; dates, times and bases; lists, tuples
and sets item by item; units; plain numbers exactly (`plain_numbers`); and only what is left goes to sympy (`symbolic`).
docs/verdicts.md has the table of what counts as equal.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from guerdon.signals.verifiable import structure, symbolic
from guerdon.signals.verifiable.notation import notation
from guerdon.signals.verifiable.plain_numbers import PlainNumber, plain_number, same_number
from guerdon.signals.verifiable.quantities import (
    is_clock,
    quantity,
    same_words,
    special,
    unit_factor,
    words_of,
)
from guerdon.signals.verifiable.structure import Group, Item
from guerdon.signals.verifiable.symbolic import Unreadable

_SET_SIGNS = re.compile(r"\\(?:cup|cap|setminus|mathbb|emptyset|le|ge|ne)(?![A-Za-z])|[<>]")
_MIXED_UNITS = re.compile(r"(\d+(?:\.\d+)?)\s*(?:\\text\s*\{\s*([A-Za-z]+)[^{}]*\}|([A-Za-z]+))\s*,?\s*")
_DECIMAL_COMMA = re.compile(r"-?(?:0,\d+|\d+,\d{2}|\d{4,},\d+)")
_CHOICE_LABEL = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf)\s*\{\s*\(([A-J])\)\s*[.:]?\s*\}[\\\s~,:;]*(?=[^\s\\~])|\\(?:text|textbf)\s*\{\s*\(([A-J])\)\s*\}(?:\\ |~|\s)*(?=\\)"
)
_OR = re.compile(r"(?<![A-Za-z])or(?![A-Za-z])")
CLOSE = 0.05  # an approximation further than this from what it stands behind is another answer


def same(reference: str, answer: str) -> bool:
    """Whether an answer is right.

    Raises:
        Unreadable: the reference is no mathematics, and the answer not the same text.
    """
    words = words_of(reference)
    if (label := _CHOICE_LABEL.match(answer)) and (words is None or len(words.strip("().: ")) == 1):
        if words is not None:
            return same_words(label[1] or label[2], words)
        answer = answer[label.end() :]
    if words is not None:
        if same_words(_spoken(answer), words):
            return True
        if len(words.strip("().: ")) > 1:
            return False
    expected_text, given_text = canonical(reference), canonical(answer)
    if not expected_text:
        raise Unreadable(reference)
    if expected_text == given_text:
        return True
    verdict = _same_special(reference, answer)
    if verdict is not None:
        return verdict
    expected, given = _read(expected_text), _read(given_text)
    if given is None:
        return False
    if expected is None:
        raise Unreadable(reference)
    if _same(expected, given):
        return True
    if isinstance(expected, Item) and isinstance(given, Group) and not given.brackets and _OR.search(answer):
        return all(_same(expected, item) for item in given.items)  # one value said twice
    return any(
        _same(first, second)
        for first in (expected, _decimal_comma(reference))
        for second in (given, _decimal_comma(answer))
        if first is not None and second is not None and (first is not expected or second is not given)
    )


@functools.lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """One writing of an expression."""
    # A blank after a comma stays: 32,349 is a number, 32, 349 are two.
    return re.sub(r"\s*([-+=<>:/(){}\[\]|^])\s*|\s+(?=[,;])", lambda found: found[1] or "", notation(text)).strip(" .$")


@functools.lru_cache(maxsize=8192)
def plain_item(text: str) -> PlainNumber | None:
    """The number an expression is; None for anything with a unit, a percent sign, a second value or a second reading."""
    if special(text) is not None or _DECIMAL_COMMA.fullmatch(text.strip()):
        return None
    item = _read(canonical(text))
    if not isinstance(item, Item) or item.relation or item.about is not None or item.name is not None:
        return None
    return plain_number(item.value)


def _spoken(answer: str) -> str:
    """An answer's words; an equals sign or a label before them does not belong to them."""
    words = words_of(answer)
    if words is not None:
        return words
    return re.sub(r"\\[A-Za-z]+\s*\{?|[{}$]", " ", answer.split("=")[-1])


@functools.lru_cache(maxsize=1024)
def _read(text: str) -> Item | Group | None:
    if not text:
        return None
    read = structure.read(text)
    return _expanded(read)


def _decimal_comma(text: str) -> Item | None:
    """1000,99 and 1,22 with a decimal comma, a second reading of what may be a list."""
    bare = text.strip(" $€£¥\\")
    return Item(bare.replace(",", ".")) if _DECIMAL_COMMA.fullmatch(bare) else None


def _same_special(reference: str, answer: str) -> bool | None:
    """Dates, times, spans and bases; None where both are to be compared as values."""
    expected, given = special(reference), special(answer)
    if expected is None and given is None:
        return None
    if expected is not None and given is not None and expected[0] == given[0]:
        if expected[0] == "time":
            halves = {expected[4], given[4]}
            same_time = expected[1:3] == given[1:3] and (expected[3] or "00") == (given[3] or "00")
            if same_time and ("" in halves or len(halves) == 1):
                return True
            return False if is_clock(expected) or is_clock(given) else None
        return expected == given
    kind = expected or given
    assert kind is not None
    if kind[0] == "time" and not is_clock(kind):
        return None
    if kind[0] == "base" and kind[2] == "10":
        return None
    if kind[0] == "time" and expected is None:
        return None if ":" in reference else False
    return False


def _expanded(item: Item | Group) -> Item | Group:
    r"""With \pm written out as two values, and groups of one opened."""
    if isinstance(item, Item):
        if not re.search(r"\\(?:pm|mp)(?![A-Za-z])", item.value) or item.relation:
            return item
        plus = re.sub(r"\\pm(?![A-Za-z])", "+", re.sub(r"\\mp(?![A-Za-z])", "-", item.value))
        minus = re.sub(r"\\pm(?![A-Za-z])", "-", re.sub(r"\\mp(?![A-Za-z])", "+", item.value))
        pair = tuple(replace(item, value=notation(value), about=None) for value in (plus, minus))
        return Group(pair)
    items: list[Item | Group] = []
    for part in map(_expanded, item.items):
        items += part.items if isinstance(part, Group) and not part.brackets and item.brackets in ("", "{}") else [part]
    if len(items) == 1 and not item.brackets:
        return items[0]
    return replace(item, items=tuple(items))


def _same(expected: Item | Group, given: Item | Group) -> bool:
    """Equality of two structures."""
    if isinstance(expected, Item) and isinstance(given, Item):
        return _same_item(expected, given)
    if not _names_agree(expected, given):
        return False
    if isinstance(expected, Group) and isinstance(given, Group):
        return _same_group(expected, given)
    group, item = (expected, given) if isinstance(expected, Group) else (given, expected)
    assert isinstance(group, Group) and isinstance(item, Item)
    if group.brackets == "{}" and len(group.items) == 1:
        return _same(*((group.items[0], item) if group is expected else (item, group.items[0])))
    vector = symbolic.vector_items(item.value)
    if vector is not None and group.brackets in ("()", "[]", ""):
        as_group = Group(tuple(Item(value) for value in vector), group.brackets)
        return _same_group(group, as_group) if group is expected else _same_group(as_group, group)
    conditions = [part.value for part in group.items if isinstance(part, Item) and part.relation]
    if len(conditions) == len(group.items) > 1 and _SET_SIGNS.search(item.value):
        try:
            return symbolic.same_union(conditions, item.value)
        except Unreadable:
            return False
    if _SET_SIGNS.search(item.value) and group.brackets:
        return _as_sets(expected, given)
    return False


def _names_agree(expected: Item | Group, given: Item | Group) -> bool:
    if expected.name is None or given.name is None or expected.name == given.name:
        return True
    return {expected.name[-2:], given.name} in ({"()", "y"}, {"()", "f"}) or {given.name[-2:], expected.name} == {
        "()",
        "y",
    }


def _same_group(expected: Group, given: Group) -> bool:
    first, second = expected, given
    kinds = {first.brackets, second.brackets}
    if len(kinds) == 2 and "{}" in kinds and kinds & {"[]", "(]", "[)"}:
        return False
    if first.brackets == "{}":
        first = _distinct(first)
    if second.brackets == "{}":
        second = _distinct(second)
    if len(first.items) != len(second.items):
        return False
    if first.brackets in ("", "{}"):
        ordered = _distinctly_named(first.items) and not _named_all(second.items)
        ordered = ordered or (_distinctly_named(second.items) and not _named_all(first.items) and second.brackets == "")
        return _in_order(first.items, second.items) if ordered else _as_multisets(first.items, second.items)
    if second.brackets in ("", "{}"):
        # A list may stand for a point or a vector, in its order; it says nothing of closed ends.
        return first.brackets == "()" and _in_order(first.items, second.items)
    vectors = len(first.items) > 2 and kinds <= {"()", "[]"}
    if first.brackets != second.brackets and not vectors:
        return False
    return _in_order(first.items, second.items)


def _named_all(items: Sequence[Item | Group]) -> bool:
    return all(item.name is not None for item in items)


def _distinctly_named(items: Sequence[Item | Group]) -> bool:
    """Whether items are values of different things (A = 6, B = 5), so that their order counts; x_1 and x_2 are one thing's."""
    names = {(item.name or "").partition("_")[0] for item in items if item.name is not None}
    return _named_all(items) and len(names) > 1


def _distinct(group: Group) -> Group:
    kept: list[Item | Group] = []
    for item in group.items:
        if not any(_same(item, other) for other in kept):
            kept.append(item)
    return replace(group, items=tuple(kept))


def _in_order(expected: Sequence[Item | Group], given: Sequence[Item | Group]) -> bool:
    return all(_same(first, second) for first, second in zip(expected, given, strict=True))


def _as_multisets(expected: Sequence[Item | Group], given: Sequence[Item | Group]) -> bool:
    """Whether each expected item has a given one of its own."""
    left = list(given)
    for item in expected:
        place = next((i for i, other in enumerate(left) if _same(item, other)), None)
        if place is None:
            return False
        del left[place]
    return True


def _same_item(expected: Item, given: Item) -> bool:
    if expected.relation or given.relation:
        return _same_relation(expected, given)
    if not _names_agree(expected, given):
        return False
    if _same_value(expected.value, given.value):
        return True
    return any(
        _same_value(first, second)
        for first in _writings(expected)
        for second in _writings(given)
        if (first, second) != (expected.value, given.value)
    )


def _writings(item: Item) -> list[str]:
    """A value and the approximation behind it, where that is one."""
    if item.about is None:
        return [item.value]
    first, second = symbolic.as_float(item.value), symbolic.as_float(item.about)
    if first is None or second is None or abs(first - second) > CLOSE * max(abs(first), abs(second)):
        return [item.value]
    return [item.value, item.about]


def _same_relation(expected: Item, given: Item) -> bool:
    if expected.relation != given.relation:
        scalar, other = (given, expected) if expected.relation else (expected, given)
        # A set against the condition for it; a number is no answer to an equation, nor an equation to a number.
        if _SET_SIGNS.search(other.value) and _SET_SIGNS.search(scalar.value):
            return symbolic.same_sets(_whole(expected), _whole(given))
        if "=" in other.value and scalar.name is not None:
            return symbolic.same_relation(_whole(expected), _whole(given))
        if other is given and "=" in other.value and not _SET_SIGNS.search(other.value):
            left, _, right = other.value.rpartition("=")
            return _same_value(scalar.value, right) and "=" not in left and _same_value(left, right)  # an identity
        return False
    return symbolic.same_relation(expected.value, given.value)


def _whole(item: Item) -> str:
    return (
        item.value
        if item.name is None or item.relation or _SET_SIGNS.search(item.value)
        else f"{item.name}={item.value}"
    )


def _as_sets(expected: Item | Group, given: Item | Group) -> bool:
    return symbolic.same_sets(_latex(expected), _latex(given))


def _latex(item: Item | Group) -> str:
    if isinstance(item, Item):
        return item.value
    inner = ",".join(map(_latex, item.items))
    opening, closing = (item.brackets or "{}")[0], (item.brackets or "{}")[1]
    return f"\\{opening}{inner}\\{closing}" if opening == "{" else f"{opening}{inner}{closing}"


def _same_value(expected: str, given: str) -> bool:
    """Two single values with their units."""
    if expected == given:
        return True
    first, second = _compound(expected), _compound(given)
    if first is not None or second is not None:
        return _same_compound(expected, given)
    left, right = quantity(expected), quantity(given)
    if "\\text" in left.value or "\\text" in right.value:
        return canonical(left.value) == canonical(right.value) and left.unit == right.unit
    factor = Fraction(1)
    if left.unit is not None and right.unit is not None:
        found = unit_factor(right.unit, left.unit)
        if found is None:
            return False
        factor = found
    if left.percent != right.percent:
        return _same_percent(left.value, right.value, left.percent)
    return _equal(left.value, right.value, factor)


def _same_percent(expected: str, given: str, expected_is_percent: bool) -> bool:
    """50% is 0.5; and 50 where the other side left the sign out, which a share below 1 would not have done."""
    hundredth = f"\\frac{{{expected if expected_is_percent else given}}}{{100}}"
    if _equal(hundredth, given if expected_is_percent else expected):
        return True
    written = plain_number(given if expected_is_percent else expected)
    share = written is None or abs(written.value) < 1 or not _plain_decimal(given if expected_is_percent else expected)
    return not share and _equal(expected, given)


def _plain_decimal(text: str) -> bool:
    return bool(re.fullmatch(r"-?[\d,]+(?:\.\d+)?", text.strip()))


def _compound(text: str) -> Fraction | None:
    """7 hours 30 minutes, 5 feet 3 inches: the amount in the smallest unit named first."""
    parts = list(_MIXED_UNITS.finditer(text))
    if (
        len(parts) < 2
        or "".join(part[0] for part in parts) != text.replace(" , ", "")
        or _MIXED_UNITS.sub("", text).strip()
    ):
        return None
    total = Fraction(0)
    base = (parts[0][2] or parts[0][3]).lower()
    for part in parts:
        name = quantity(f"1\\text{{{part[2] or part[3]}}}").unit
        first = quantity(f"1\\text{{{base}}}").unit
        factor = unit_factor(name, first) if name and first and len(name.split()) == 1 else None
        if factor is None:
            return None
        total += Fraction(part[1]) * factor
    return total


def _same_compound(expected: str, given: str) -> bool:
    """Compound quantities against each other, or against a quantity in one unit of the same kind."""
    totals = []
    for text in (expected, given):
        parts = list(_MIXED_UNITS.finditer(text))
        if not parts:
            return False
        total, first = _compound(text), quantity(f"1\\text{{{parts[0][2] or parts[0][3]}}}").unit
        if total is None:
            single = quantity(text)
            number = plain_number(single.value)
            if number is None or single.unit is None:
                return False
            total, first = number.value, single.unit
        if first is None:
            return False
        totals.append((total, first))
    factor = unit_factor(totals[1][1], totals[0][1])
    return factor is not None and totals[0][0] == totals[1][0] * factor


def _equal(expected: str, given: str, factor: Fraction = Fraction(1)) -> bool:
    """Two values without units; `given` is multiplied by `factor` first."""
    first, second = plain_number(expected), plain_number(given)
    if first is not None and second is not None:
        if factor != 1:
            return first.value == second.value * factor
        return same_number(first, second)
    if factor != 1:
        given = f"\\frac{{{factor.numerator}}}{{{factor.denominator}}} \\cdot ({given})"
    return symbolic.same_value(expected, given, first, second if factor == 1 else None)


__all__ = ["canonical", "same"]
