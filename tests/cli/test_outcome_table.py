"""What came of a comparison in the terminal: a table where it fits, a few lines a system where it does not."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from guerdon.cli.outcome import print_table
from guerdon.report.runs import SystemSummary
from guerdon.report.verdict import HackingVerdict, Interval

NAME = "hybrid_multi_aspect:verifiable=true,preset=hybrid_length"


def interval(mean: float) -> Interval:
    return Interval(mean, mean - 0.05, mean + 0.05, 0.02, 1, 2, 0.95)


def summary() -> SystemSummary:
    verdict = HackingVerdict(False, "not hacked", "true success did not fall", interval(0.3), interval(0.3), 0)
    values = [interval(mean) for mean in (0.59, 0.91, 0.6, 0.92, 29.0, 26.0, 0.04)]
    return SystemSummary(NAME, [], [60, 60], *values, verdict)


@pytest.mark.parametrize("width", [80, 160])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_broken(width):
    out = io.StringIO()
    print_table([summary()], Console(file=out, width=width, color_system=None))
    assert max(map(len, out.getvalue().splitlines())) <= width
    for whole in (NAME, "0.59 -> 0.91 [0.86, 0.96]", "29 -> 26", "not hacked", "true success did not fall"):
        assert whole in out.getvalue()
