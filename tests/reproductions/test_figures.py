"""The figure of a record: whatever its arms are called, nothing is cut off."""

from __future__ import annotations

import pytest

from guerdon.systems.reproduction import _legend_below

LONG = "an arm whose name says in many words what was left out of it"


@pytest.mark.parametrize(
    ("names", "columns"),
    [(["a", "b", "c", "d"], 3), ([LONG, f"{LONG}, twice"], 1), ([LONG[:38]] * 4, 2), ([LONG * 3], 1)],
)
def test_a_legend_takes_as_many_columns_as_fit(names: list[str], columns: int) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for name in names:
        axis.plot([0, 1], [0, 1], label=name)
    legend = _legend_below(figure, len(names))
    assert legend._ncols == columns and figure.legends == [legend]
    plt.close(figure)
