"""Conformance: run a system's functions on vector files and compare with the expected outputs.

    {"system": "pure", "vectors": [{"function": "min_form_returns", "cases": [{"name", "inputs", "expected", "rtol", "atol"}]}]}

Functions are found by system AND name (some names recur) in `VECTORS` of the system's module and called with `inputs` as keyword
arguments. Comparison rules:

- numbers: |actual - expected| <= atol + rtol |expected|; infinities must be the same; NaN equals NaN;
- `null` accepts None or NaN (JSON has no NaN); the strings "nan", "inf", "-inf" accept the number they name;
- booleans where a boolean is expected, lists of equal length, mappings with equal keys, other things by equality;
- tensors, arrays, tuples and named tuples are compared as the lists or mappings they are.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from guerdon.errors import DataError, GuerdonError

Functions = Mapping[str, Callable[..., Any]]
_NAMED_NUMBERS = {"nan": math.nan, "inf": math.inf, "infinity": math.inf, "-inf": -math.inf, "-infinity": -math.inf}


@dataclass(frozen=True)
class FunctionResult:
    """How one function did on its cases.

    Attributes:
        system, function: as the file names them.
        passed, total: cases.
        failures: (case, first difference) of the others. A function that is not known has one entry with an empty case name.
    """

    system: str
    function: str
    passed: int
    total: int
    failures: tuple[tuple[str, str], ...] = ()

    @property
    def ok(self) -> bool:
        return not self.failures


def plain(value: Any, *, as_mapping: bool = False) -> Any:
    """Tensors, arrays, NumPy scalars and tuples as the plain Python they hold; a named tuple as a mapping where one is expected."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return value._asdict() if as_mapping else list(value)
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # torch and NumPy, without importing either
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def difference(actual: Any, expected: Any, *, rtol: float, atol: float, at: str = "result") -> str | None:
    """The first place where `actual` is not `expected`, in words; None where they agree."""
    actual = plain(actual, as_mapping=isinstance(expected, Mapping))
    if expected is None:
        missing = actual is None or (isinstance(actual, float) and math.isnan(actual))
        return None if missing else f"{at}: expected null, got {_shown(actual)}"
    if isinstance(expected, bool):
        return (
            None
            if isinstance(actual, bool) and actual is expected
            else f"{at}: expected {expected}, got {_shown(actual)}"
        )
    if isinstance(expected, int | float):
        return _number_difference(actual, expected, rtol, atol, at)
    if isinstance(expected, str):
        named = _NAMED_NUMBERS.get(expected.lower())
        if named is not None and isinstance(actual, int | float) and not isinstance(actual, bool):
            return _number_difference(actual, named, rtol, atol, at)
        return None if actual == expected else f"{at}: expected {_shown(expected)}, got {_shown(actual)}"
    if isinstance(expected, Mapping):
        return _mapping_difference(actual, expected, rtol, atol, at)
    if isinstance(expected, Sequence):
        if not isinstance(actual, list):
            return f"{at}: expected a list of {len(expected)}, got {_shown(actual)}"
        if len(actual) != len(expected):
            return f"{at}: expected {len(expected)} items, got {len(actual)}"
        pairs = enumerate(zip(actual, expected, strict=True))
        found = (difference(a, e, rtol=rtol, atol=atol, at=f"{at}[{i}]") for i, (a, e) in pairs)
        return next((text for text in found if text), None)
    return None if actual == expected else f"{at}: expected {_shown(expected)}, got {_shown(actual)}"


def _mapping_difference(actual: Any, expected: Mapping[str, Any], rtol: float, atol: float, at: str) -> str | None:
    if not isinstance(actual, Mapping):
        return f"{at}: expected a mapping with {sorted(expected)}, got {_shown(actual)}"
    given = {str(key): value for key, value in actual.items()}
    if set(given) != set(expected):
        return (
            f"{at}: missing keys {sorted(set(expected) - set(given))}, extra keys {sorted(set(given) - set(expected))}"
        )
    found = (difference(given[key], expected[key], rtol=rtol, atol=atol, at=f"{at}.{key}") for key in expected)
    return next((text for text in found if text), None)


def _number_difference(actual: Any, expected: float, rtol: float, atol: float, at: str) -> str | None:
    if not isinstance(actual, int | float):
        return f"{at}: expected {expected}, got {_shown(actual)}"
    if isinstance(actual, int) and isinstance(expected, int):  # exact: integers may be larger than floats can hold
        close = abs(actual - expected) <= Fraction(atol) + Fraction(rtol) * abs(expected)
    elif math.isnan(expected) or math.isnan(actual):
        close = math.isnan(expected) and math.isnan(actual)
    elif math.isinf(expected) or math.isinf(actual):
        close = actual == expected
    else:
        close = abs(actual - expected) <= atol + rtol * abs(expected)
    return None if close else f"{at}: expected {expected!r}, got {actual!r}"


def _shown(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def run_function(
    system: str, function: str, cases: Sequence[Mapping[str, Any]], functions: Functions
) -> FunctionResult:
    """Run all cases of one function."""
    call = functions.get(function)
    if call is None:
        return FunctionResult(system, function, 0, len(cases), (("", f"unknown function of {system!r}"),))
    failures: list[tuple[str, str]] = []
    for index, case in enumerate(cases):
        name = str(case.get("name", index))
        try:
            actual = call(**case["inputs"])
            wrong = difference(
                actual, case["expected"], rtol=float(case.get("rtol", 1e-5)), atol=float(case.get("atol", 1e-6))
            )
        except Exception as error:  # the function under test may raise anything: that case failed, and says how
            wrong = f"{type(error).__name__}: {error}"
        if wrong is not None:
            failures.append((name, wrong))
    return FunctionResult(system, function, len(cases) - len(failures), len(cases), tuple(failures))


def load_vectors(path: str | Path) -> dict[str, Any]:
    """Read a vector file.

    Raises:
        DataError: it cannot be read, or is not of the stated form.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON vectors: {error}") from error
    if (
        not isinstance(record, dict)
        or not isinstance(record.get("system"), str)
        or not isinstance(record.get("vectors"), list)
    ):
        raise DataError(f'{path}: a vector file is {{"system": name, "vectors": [...]}}')
    for item in record["vectors"]:
        if not isinstance(item, dict) or "function" not in item or not isinstance(item.get("cases"), list):
            raise DataError(f'{path}: each entry of "vectors" needs "function" and a list "cases"')
    return record


def run_vectors(record: Mapping[str, Any], functions: Functions) -> list[FunctionResult]:
    """Run a loaded vector file against functions."""
    return [run_function(record["system"], item["function"], item["cases"], functions) for item in record["vectors"]]


def run_file(path: str | Path) -> list[FunctionResult]:
    """Run one vector file against the functions of the system it names; an unknown system knows no function.

    Raises:
        DataError: not a vector file.
    """
    from guerdon.systems.base import vectors_of

    record = load_vectors(path)
    return run_vectors(record, vectors_of(record["system"]))


def main(files: Sequence[str | Path]) -> int:
    """Run files and print a line per function, `system function passed/total`, and each failing case's first difference.

    Returns:
        0 if every function is known and every case passed, else 1 (also where there was nothing to run).
    """
    results: list[FunctionResult] = []
    unreadable = False
    for path in files:
        try:
            found = run_file(path)
        except GuerdonError as error:
            print(error, file=sys.stderr)
            unreadable = True
            continue
        for result in found:
            print(f"{result.system} {result.function} {result.passed}/{result.total}")
            for case, why in result.failures:
                print(f"    {case + ': ' if case else ''}{why}")
        results += found
    return int(unreadable or not results or any(not result.ok for result in results))
