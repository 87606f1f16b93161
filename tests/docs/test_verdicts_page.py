"""docs/verdicts.md states what every verifier says: each row of its tables is run through the verifiers in the table's head."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from guerdon.cli.score import reward_by_name
from guerdon.signals.agreement.answers import boxed_as_written
from guerdon.signals.verifiable.answer_part import answer_part

pytest.importorskip("math_verify")
PAGE = (Path(__file__).parents[2] / "docs" / "verdicts.md").read_text(encoding="utf-8")
_CELL = re.compile(r"(?<!\\)\|")
_CODE = re.compile(r"(`+)(.*)\1", re.S)


class Case(NamedTuple):
    """A cell of a table: what is given and what the page says comes out."""

    line: int
    head: str
    given: dict[str, str]
    stated: str


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in _CELL.split(line)[1:-1]]


def _code(cell: str) -> str:
    r"""The text in a code span: \| is |, ⏎ a line break; a blank at both ends belongs to the fence of a span with backticks."""
    found = _CODE.fullmatch(cell)
    assert found, f"not a code span: {cell}"
    inner = found[2]
    if len(found[1]) > 1 and inner[:1] == inner[-1:] == " ":
        inner = inner[1:-1]
    return inner.replace("\\|", "|").replace("⏎", "\n")


def cases(page: str) -> list[Case]:
    """Every cell under a head that is a verifier in a code span, `math-verify`, "answer part" or "as written"."""
    out: list[Case] = []
    head: list[str] = []
    for number, line in enumerate(page.splitlines(), 1):
        if not line.startswith("|"):
            head = []
            continue
        cells = _cells(line)
        if not head:
            head = cells
            continue
        if set("".join(cells)) <= set("-: "):
            continue
        assert len(cells) == len(head), f"line {number}: {len(cells)} cells under {len(head)} heads"
        row = dict(zip(head, cells, strict=True))
        given = {name: row[name] for name in GIVEN if name in row}
        out += [
            Case(number, name, given, row[name])
            for name in head
            if name.startswith("`") or name in ("math-verify", "answer part", "as written")
        ]
    return out


GIVEN = ("answer", "completion", "reference", "columns")
CASES = cases(PAGE)


def _columns(given: dict[str, str]) -> dict[str, list[Any]]:
    if "columns" in given:
        return {name: [value] for name, value in json.loads(_code(given["columns"])).items()}
    return {"answer": [_code(given["reference"])]} if "reference" in given else {}


def _completion(given: dict[str, str]) -> Any:
    text = _code(given["completion"] if "completion" in given else given["answer"])
    return json.loads(text) if text.startswith("[{") else text


def _verdict(verifier: str, given: dict[str, str]) -> float | None:
    _, signal = reward_by_name(verifier)
    (value,) = signal.as_reward_func()(prompts=[""], completions=[_completion(given)], **_columns(given))
    return value


def _math_verify(given: dict[str, str]) -> float:
    from math_verify import parse, verify

    expected, found = (
        parse(text, parsing_timeout=None) for text in (f"${_code(given['reference'])}$", _completion(given))
    )
    return float(verify(expected, found, timeout_seconds=None))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"line{case.line}-{case.head.strip('`')}")
def test_the_page_states_what_is_so(case: Case) -> None:
    if case.head == "answer part":
        part = answer_part(_completion(case.given)).text
        assert part == (None if case.stated == "none" else _code(case.stated))
        return
    if case.head == "as written":
        assert boxed_as_written(_completion(case.given)) == ("" if case.stated == "none" else _code(case.stated))
        return
    value = _math_verify(case.given) if case.head == "math-verify" else _verdict(_code(case.head), case.given)
    if case.stated == "NaN":
        assert value is None, value
    else:
        assert value is not None and not math.isnan(value)
        assert value == pytest.approx(float(case.stated), abs=5e-3), f"{case.given}: {value}"


def test_the_tables_are_read() -> None:
    heads = {case.head for case in CASES}
    verifiers = {head.strip("`").partition(":")[0] for head in heads}
    assert {
        "math",
        "choice",
        "qa",
        "exact",
        "numeric",
        "think_format",
        "answer_tag",
        "repetition",
        "length",
    } <= verifiers
    assert len(CASES) == sum(
        sum(name.startswith("`") or name in ("math-verify", "answer part", "as written") for name in table[0])
        * (len(table) - 2)
        for table in _tables()
    )
    assert len(CASES) > 150


def _tables() -> list[list[list[str]]]:
    blocks = re.findall(r"(?:^\|.*\|$\n)+", PAGE, re.M)
    return [[_cells(line) for line in block.splitlines()] for block in blocks]
