r"""Single expressions, relations and sets, through latex2sympy, sympy and math-verify. Runs in a worker: anything here may hang.

Two expressions are equal where their difference is: expanded to zero, or zero at 50 digits for numbers, or zero at several points for
expressions with symbols. A point at which either side is not real says nothing (\sqrt{1/n} and 1/\sqrt{n} are equal wherever both
are real) unless an imaginary unit is written. Decimals are taken as the fractions they write, so that no float decides anything.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

from guerdon.signals.verifiable.plain_numbers import SURE_DIGITS, PlainNumber
from guerdon.signals.verifiable.quantities import TRIGONOMETRIC
from guerdon.signals.verifiable.structure import MAX_DEPTH, depth

MAX_CHARS = 1500
MAX_RESULT_DIGITS = 60_000  # of a number that is evaluated exactly
PRECISION = 50
_DECIMAL = re.compile(r"(?<![_\d.])(\d+)\.(\d+)(?!\d*\.)")
_SIDE_BY_SIDE = re.compile(r"\d\s+\d|(?<!\\)\}\s+\d(?!\s*\})")
_AFTER_INDEX = re.compile(r"_\s*\{[^{}]*\}\s+|\\(?:sin|cos|tan|cot|sec|csc)\s*\^\s*\{[^{}]*\}\s+|\\sqrt\s+")
_MATRIX = re.compile(r"\\begin\s*\{([bpvBV]?matrix|array)\}(?:\s*\{[^{}]*\})?(.*)\\end\s*\{\1\}", re.S)
_COMPLEX = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])|\\(?:Re|Im|arg|det)(?![A-Za-z])|\\mathbb\{C\}")
_POINTS = (("1.37", "2.91", "0.63", "3.49"), ("-1.83", "0.71", "-2.39", "1.27"), ("2.17", "-0.53", "1.61", "-3.11"), ("3", "2", "5", "4"),
           ("0.29", "5.83", "7.07", "0.47"), ("4", "7", "3", "2"))  # fmt: skip
_INVERSE = {"StrictLessThan": "StrictGreaterThan", "LessThan": "GreaterThan"}


class Unreadable(Exception):
    """A text is no mathematics that can be parsed."""


class TooLarge(Exception):
    """A number with more digits than are worth computing."""


def latex_of(text: str) -> str:
    """An expression as latex2sympy should read it. Raises Unreadable where it cannot be one expression."""
    if len(text) > MAX_CHARS or depth(text) > MAX_DEPTH:
        raise Unreadable(text[:60])  # the parser needs minutes to refuse such a text
    if _SIDE_BY_SIDE.search(_AFTER_INDEX.sub("_", text)) and "\\begin" not in text:
        raise Unreadable(text[:60])  # latex2sympy reads `2 3` as 5
    text = re.sub(r"\\text\{([A-Za-z])\}", r"\1", text)
    if "\\circ" in text and TRIGONOMETRIC.search(text):
        text = re.sub(r"(\d+(?:\.\d+)?)\s*\^\s*\{?\s*\\circ\s*\}?", r"(\\frac{\1\\pi}{180})", text)
    text = _DECIMAL.sub(lambda found: f"\\frac{{{int(found[1] + found[2])}}}{{{10 ** len(found[2])}}}", text)
    while (
        flatter := re.sub(r"\{\{([^{}]*)\}\}", r"{\1}", text)
    ) != text:  # each redundant pair doubles the parser's time
        text = flatter
    return text


@functools.lru_cache(maxsize=1024)
def parsed(text: str) -> Any:
    """The sympy object of an expression. Raises Unreadable."""
    from latex2sympy2_extended.latex2sympy2 import (
        ConversionConfig,
        NormalizationConfig,
        latex2sympy,
        normalize_latex,
    )
    from sympy import Basic, MatrixBase, nan, zoo

    latex = latex_of(text)
    config = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
    )
    try:
        value = latex2sympy(
            normalize_latex(latex, config),
            is_real=not _COMPLEX.search(latex),
            convert_degrees=False,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # whatever a generated parser raises, the writer wrote it
        raise Unreadable(text[:60]) from error
    value = _imaginary(value)
    if not isinstance(value, (Basic, MatrixBase)) or value in (nan, zoo):
        raise Unreadable(text[:60])
    if _digits(value) > MAX_RESULT_DIGITS:
        raise TooLarge(text[:60])
    return value


def _imaginary(value: Any) -> Any:
    """With the imaginary unit for a free i; latex2sympy takes it for a symbol."""
    from sympy import Basic, I, Symbol

    if isinstance(value, Basic) and any(isinstance(s, Symbol) and s.name == "i" for s in value.free_symbols):
        try:
            return value.subs({s: I for s in value.free_symbols if getattr(s, "name", "") == "i"})
        except (TypeError, ValueError, AttributeError):
            return value
    return value


def readable(text: str) -> bool:
    """Whether an expression can be parsed."""
    try:
        parsed(text)
    except (Unreadable, TooLarge):
        return False
    return True


def _digits(value: Any) -> float:
    """About how many digits the largest exact number inside an expression would have; inf where that cannot be told."""
    from sympy import Basic, Integer, Pow, factorial

    worst = 0.0
    for node in value.atoms(Pow, factorial) if isinstance(value, Basic) else ():
        if isinstance(node, Pow) and not node.free_symbols:
            base, exponent = _log10(node.base), _log10(node.exp)
            if base is not None and exponent is not None:
                worst = max(worst, abs(base) * 10.0 ** min(exponent, 300.0) if exponent < 300 else math.inf)
        elif isinstance(node, factorial) and not node.free_symbols:
            inner = node.args[0]
            size = _log10(inner)
            if size is not None and size > 1:
                worst = max(worst, math.inf if size > 8 else 10.0**size * size)
            elif isinstance(inner, factorial) and not isinstance(inner.args[0], Integer):
                worst = math.inf
    return worst


def _log10(value: Any) -> float | None:
    """log10 of a positive number's size without computing it; None where it has symbols."""
    from sympy import Integer, Pow, Rational, factorial

    if isinstance(value, (Integer, Rational)):
        top, bottom = abs(int(value.p)), int(value.q)
        return (math.log10(top) if top else -math.inf) - math.log10(bottom)
    if isinstance(value, Pow):
        base, exponent = _log10(value.base), _log10(value.exp)
        if base is None or exponent is None:
            return None
        return math.inf if exponent > 300 else base * 10.0**exponent
    if isinstance(value, factorial):
        inner = _log10(value.args[0])
        return None if inner is None else math.inf if inner > 300 else 10.0**inner * max(inner - 0.43, 0.1)
    try:
        return math.log10(abs(float(value))) if value else -math.inf
    except (TypeError, ValueError, OverflowError, AttributeError):
        return None


@functools.lru_cache(maxsize=512)
def as_float(text: str) -> float | None:
    """A value as a float, for telling whether two are near; None where it has none."""
    try:
        number = complex(_numeric(parsed(text), 15))
    except (Unreadable, TooLarge, TypeError, ValueError, OverflowError, ArithmeticError, AttributeError):
        return None
    return number.real if number.imag == 0 and math.isfinite(number.real) else None


def vector_items(text: str) -> list[str] | None:
    """The entries of a matrix of one row or one column, else None."""
    found = _MATRIX.fullmatch(text.strip().removeprefix("(").removesuffix(")").strip()) if "\\begin" in text else None
    if not found:
        return None
    rows = [row.strip() for row in re.split(r"\\\\", found[2]) if row.strip()]
    if len(rows) == 1:
        return [entry.strip() for entry in rows[0].split("&")]
    return rows if all("&" not in row for row in rows) else None


def same_value(expected: str, given: str, first: PlainNumber | None, second: PlainNumber | None) -> bool:
    """Equality of two expressions.

    Args:
        expected, given: what was written.
        first, second: the same as plain numbers where they are.

    Raises:
        Unreadable: `expected` cannot be parsed.
    """
    if ":" in expected or ":" in given:
        return _same_ratio(expected, given)
    left = parsed(expected)
    try:
        right = parsed(given)
    except Unreadable:
        return False
    return _same_parsed(left, right, first, second)


def _same_ratio(expected: str, given: str) -> bool:
    """a:b is a/b; longer ratios are compared part by part."""
    first, second = expected.split(":"), given.split(":")
    if len(first) <= 2 and len(second) <= 2:
        quotients = [f"\\frac{{{side[0]}}}{{{side[1]}}}" if len(side) == 2 else side[0] for side in (first, second)]
        return same_value(quotients[0], quotients[1], None, None)
    if len(first) != len(second):
        return False
    pairs = zip(first[1:], second[1:], strict=True)
    return all(same_value(f"({a})({second[0]})", f"({b})({first[0]})", None, None) for a, b in pairs)


def _same_parsed(left: Any, right: Any, first: PlainNumber | None = None, second: PlainNumber | None = None) -> bool:
    from sympy import Expr, MatrixBase, MatrixExpr, Set

    left, right = (v.doit() if isinstance(v, MatrixExpr) else v for v in (left, right))
    if isinstance(left, MatrixBase) and isinstance(right, MatrixBase):
        return left.shape == right.shape and all(map(_same_parsed, left.flat(), right.flat()))
    if isinstance(left, Set) or isinstance(right, Set):
        return _verified(left, right)
    if not isinstance(left, Expr) or not isinstance(right, Expr):
        return bool(left == right)
    if left == right:
        return True
    if left.has(*_infinite()) or right.has(*_infinite()):
        return bool(left.doit() == right.doit())
    if not left.free_symbols and not right.free_symbols and not _undefined(left) and not _undefined(right):
        return _same_numbers(left, right, first, second)
    return _same_functions(left, right)


def _infinite() -> tuple[Any, ...]:
    from sympy import nan, oo, zoo

    return oo, -oo, zoo, nan


def _undefined(value: Any) -> bool:
    from sympy.core.function import AppliedUndef

    return bool(value.has(AppliedUndef))


def _numeric(value: Any, digits: int = PRECISION) -> Any:
    """A value in floating point with `digits` digits; raises or stays symbolic where it has none."""
    from sympy import UnevaluatedExpr

    if value.has(UnevaluatedExpr):
        value = value.doit()
    number = value.evalf(digits)
    return number if (number.is_number and number.is_comparable) or number.is_complex else value.doit().evalf(digits)


def _same_numbers(left: Any, right: Any, first: PlainNumber | None, second: PlainNumber | None) -> bool:
    """Two constants: exactly where both are rational, else to 40 of 50 digits; or a decimal that stands for what has no end."""
    from sympy import Rational

    a, b = left.doit(), right.doit()
    if isinstance(a, Rational) and isinstance(b, Rational):
        return bool(a == b) or _stands_for(first, b) or _stands_for(second, a)
    x, y = _numeric(a), _numeric(b)
    if not x.is_finite or not y.is_finite or not x.is_number or not y.is_number:
        return bool(a == b)  # log 0 is near nothing
    size = max(abs(x), abs(y))
    if size == 0:
        return True
    if bool(abs(x - y) <= size * 10 ** -(PRECISION - 10)):
        return True
    if abs(x) < 10 ** -(PRECISION - 10) or abs(y) < 10 ** -(PRECISION - 10):
        return bool((a - b).equals(0))  # digits cancelled on one side
    return _stands_for(first, y) or _stands_for(second, x)


def _stands_for(decimal: PlainNumber | None, value: Any) -> bool:
    """Whether a decimal with enough digits is a value without end, cut or rounded."""
    from sympy import Rational

    if decimal is None or decimal.digits < SURE_DIGITS:
        return False
    if isinstance(value, Rational) and _ends(int(value.q)):
        return False
    if value.is_real is False:
        return False
    written = Rational(decimal.value.numerator, decimal.value.denominator)
    return bool(abs(written - value) < Rational(decimal.step.numerator, decimal.step.denominator))


def _ends(bottom: int) -> bool:
    for prime in (2, 5):
        while bottom % prime == 0:
            bottom //= prime
    return bottom == 1


def _same_functions(left: Any, right: Any) -> bool:
    """Two expressions with symbols."""
    from sympy import expand

    left, right = _doit(_named(left)), _doit(_named(right))
    if left == right:
        return True
    if left.is_polynomial() and right.is_polynomial():
        return bool(expand(left - right) == 0)
    verdict = _same_at_points(left, right)
    if verdict is not None:
        return verdict
    return _verified(left, right)


def _doit(value: Any) -> Any:
    try:
        return value.doit()
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return value


def _named(value: Any) -> Any:
    """Undefined functions as symbols: f(x) is something else than f(y), and both are real."""
    from sympy import Symbol
    from sympy.core.function import AppliedUndef

    functions = value.atoms(AppliedUndef)
    return value.xreplace({f: Symbol(str(f), real=True) for f in functions}) if functions else value


def _same_at_points(left: Any, right: Any) -> bool | None:
    """Equality at several points; None where too few of them say anything."""
    from sympy import I, Rational

    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    whole = left.has(I) or right.has(I)
    agreed = 0
    for point in _POINTS:
        values = {s: Rational(point[i % 4]) + Rational(i // 4, 7) for i, s in enumerate(symbols)}
        try:
            x, y = left.xreplace(values).evalf(PRECISION), right.xreplace(values).evalf(PRECISION)
            if not (x.is_number and y.is_number) or x.free_symbols or y.free_symbols:
                return None
            if not whole and not (x.is_extended_real and y.is_extended_real):
                continue
            if not (x.is_finite and y.is_finite):
                continue
            size = max(abs(x), abs(y))
            if (
                size > 0
                and bool(abs(x - y) > size * 10 ** -(PRECISION - 15))
                and bool(abs(x - y) > 10 ** -(PRECISION - 5))
            ):
                return False
        except (MemoryError, RecursionError):
            raise
        except Exception:
            return None
        agreed += 1
    return True if agreed >= 2 else None


def _both(expected: str, given: str) -> tuple[Any, Any | None]:
    """Both sides parsed; None for an answer that cannot be, which is the policy's doing. Raises Unreadable for the reference."""
    left = parsed(_chain(expected))
    try:
        return left, parsed(_chain(given))
    except Unreadable:
        return left, None


def same_relation(expected: str, given: str) -> bool:
    """Equations and inequalities: one is the other times a constant, or both have the same solutions.

    Raises:
        Unreadable: `expected` cannot be parsed.
    """
    left, right = _both(expected, given)
    if right is None:
        return False
    first, second = _sides(left), _sides(right)
    if first is not None and second is not None:
        if first[0] != second[0]:
            return False
        proportional = _proportional(first[1], second[1], positive=first[0] in _INVERSE)
        if proportional:
            return True
        if first[0] == "Equality" and (
            first[1].free_symbols != second[1].free_symbols or len(first[1].free_symbols) > 3
        ):
            return False
    return _verified(left, right)


def _chain(text: str) -> str:
    return text.replace("\\ne ", "\\neq ").replace("\\ne\\", "\\neq\\")


def _sides(relation: Any) -> tuple[str, Any] | None:
    """(kind, left - right) of one relation, with the smaller side on the left; None for anything else."""
    from sympy.core.relational import Relational

    if not isinstance(relation, Relational):
        return None
    kind = type(relation).__name__
    for smaller, larger in _INVERSE.items():
        if kind == larger:
            return smaller, _named(relation.rhs - relation.lhs)
    try:
        return kind, _named(relation.lhs - relation.rhs)
    except TypeError:
        return None


def _proportional(first: Any, second: Any, *, positive: bool) -> bool:
    """Whether one expression is a constant times the other."""
    from sympy import Rational

    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    if first.free_symbols != second.free_symbols:
        return False
    ratios = []
    for point in _POINTS:
        values = {s: Rational(point[i % 4]) + Rational(i // 4, 7) for i, s in enumerate(symbols)}
        try:
            x, y = _doit(first).xreplace(values).evalf(PRECISION), _doit(second).xreplace(values).evalf(PRECISION)
            if x.is_real and y.is_real and abs(y) > 10**-20 and x.is_finite and y.is_finite:
                ratios.append(x / y)
            elif x.is_real and y.is_real and (abs(x) > 10**-20):
                return False
        except (MemoryError, RecursionError):
            raise
        except Exception:
            return False
    if len(ratios) < 2 or ratios[0] == 0 or (positive and ratios[0] < 0):
        return False
    return all(abs(ratio - ratios[0]) <= abs(ratios[0]) * 10 ** -(PRECISION - 15) for ratio in ratios)


def same_sets(expected: str, given: str) -> bool:
    """Sets, intervals and the conditions for them.

    Raises:
        Unreadable: `expected` cannot be parsed.
    """
    left, right = _both(expected, given)
    if right is None:
        return False
    return _verified(left, right)


def same_union(conditions: Sequence[str], other: str) -> bool:
    """Whether conditions joined by "or" describe a set, which may be written as one condition.

    Raises:
        Unreadable: one of them cannot be parsed.
    """
    from math_verify.grader import unwrap_fcs
    from sympy import Set, Union

    pieces = []
    for text in (*conditions, other):
        value = parsed(_chain(text))
        try:
            pieces.append(value if isinstance(value, Set) else unwrap_fcs(value).as_set())
        except (NotImplementedError, AttributeError, TypeError, ValueError) as error:
            raise Unreadable(text[:60]) from error
    return _verified(Union(*pieces[:-1]), pieces[-1])


def _verified(left: Any, right: Any) -> bool:
    """math-verify's own comparison, exact and with conditions allowed for sets."""
    from math_verify.grader import verify

    return bool(
        verify(
            left,
            right,
            numeric_precision=PRECISION,
            allow_set_relation_comp=True,
            timeout_seconds=None,
            raise_on_error=True,
        )
    )


__all__ = [
    "TooLarge",
    "Unreadable",
    "as_float",
    "parsed",
    "readable",
    "same_relation",
    "same_sets",
    "same_union",
    "same_value",
    "vector_items",
]
