"""What people call the columns of their files: the names that commands read without being told.

`guerdon train` and `guerdon score` read the same ones. The first that is there counts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from guerdon.errors import GuerdonError
from guerdon.io.read import read_rows

PROMPT_COLUMNS = ("prompt", "question", "problem")
COMPLETION_COLUMNS = ("completion", "response", "output", "generation")
ANSWER_COLUMNS = ("answer", "answers", "solution", "target", "reference", "references", "reference_answer")


def first_of(usual: Sequence[str], names: Collection[str]) -> str:
    """The first of the usual names that is among `names`; the first of all where none is, for an error that names it."""
    return next((name for name in usual if name in names), usual[0])


def names_of(path: str | Path) -> list[str]:
    """The columns of the first row of a file that can be read; none where nothing can, which whoever reads it in earnest reports."""
    try:
        for rows in read_rows(path, 1, on_broken="skip"):
            return list(rows[0])
    except GuerdonError:
        pass
    return []
