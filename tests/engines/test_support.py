"""The published table of engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guerdon.engines import support
from guerdon.rollouts import Rollouts

DOCS = Path(__file__).parents[2] / "docs" / "engines.md"


def test_table_names_every_engine_and_every_refusal() -> None:
    text = support.to_markdown()
    rows = [line for line in text.partition("## From GRPOTrainer")[0].splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(support.COLUMNS)
    assert all(row.count(" | ") == len(support.ENGINES) for row in [rows[0], *rows[2:]])
    for engine in support.ENGINES:
        for name, sentence in engine.limits.items():
            assert f"- **{name}**: {sentence}" in text
    assert support.VERL.built == support.OPENRLHF.built == "not built yet"


def test_what_a_grpo_user_is_shown_runs() -> None:
    assert support.FROM_GRPO_EXAMPLE in support.to_markdown()
    space: dict[str, Any] = {}
    exec(support.FROM_GRPO_EXAMPLE, space)
    rollouts = Rollouts.from_texts(["q"] * 3, ["4 it is", "5", "no"], {"answer": ["4", "4", None]}, group_ids=[0] * 3)
    scores = space["system"](rollouts)
    assert scores.reward.tolist() == pytest.approx([0.7 - 0.021, -0.003, -0.006])


def test_docs_are_the_table() -> None:
    assert DOCS.read_text() == support.to_markdown(), "run: python -m guerdon.engines.support > docs/engines.md"


def test_a_refusal_has_the_value_and_the_remedy() -> None:
    text = support.limit("save_steps", value=3, cycle=2)
    assert "save_steps=3" in text and "multiple of 2" in text
    with pytest.raises(KeyError):
        support.limit("save_steps", value=3)
