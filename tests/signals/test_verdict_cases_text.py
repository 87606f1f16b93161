"""Verdicts on answers that are no mathematics: choices, short answers, formats, repetition, length, references, reasoning.

Each line of `verdict_cases/text.jsonl` is an input with the verdict that is right (null = NaN with a reason). They go through
`guerdon score`'s own function, as rows of a file, and through the reward function for TRL.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from guerdon.cli.score import reward_by_name
from guerdon.io import score_file

CASES = [
    json.loads(line)
    for line in (Path(__file__).parent / "verdict_cases" / "text.jsonl").read_text(encoding="utf-8").split("\n")
    if line
]
REWARDS = sorted({case["reward"] for case in CASES})


def same(value: float | None, expected: float | None) -> bool:
    if value is None or math.isnan(value):
        return expected is None
    return expected is not None and abs(value - expected) < 1e-4


def differences(cases: list[dict[str, Any]], values: list[float | None]) -> list[str]:
    return [
        f"{case['id']}: {case['completion'][:80]!r} / {case['answer']!r} gave {value}, right is {case['expected']}"
        for case, value in zip(cases, values, strict=True)
        if not same(value, case["expected"])
    ]


@pytest.mark.parametrize("reward", REWARDS)
def test_through_a_file(reward: str, tmp_path: Path) -> None:
    cases = [case for case in CASES if case["reward"] == reward]
    rows = [{"prompt": "", "completion": case["completion"], "answer": case["answer"]} for case in cases]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    name, signal = reward_by_name(reward)
    score_file(source, target, signal, name=name)
    scored = [json.loads(line) for line in target.read_text(encoding="utf-8").split("\n") if line]
    assert not differences(cases, [row["reward"] for row in scored])
    assert all(row["reward_reason"] for row in scored if row["reward"] is None or math.isnan(row["reward"]))


@pytest.mark.parametrize("reward", REWARDS)
def test_through_a_reward_function(reward: str) -> None:
    cases = [case for case in CASES if case["reward"] == reward]
    _, signal = reward_by_name(reward)
    completions = [[{"role": "assistant", "content": case["completion"]}] for case in cases]
    values = signal.as_reward_func()(
        prompts=[""] * len(cases), completions=completions, answer=[case["answer"] for case in cases]
    )
    assert not differences(cases, values)


def test_the_cases_are_of_both_kinds() -> None:
    paid = [case["expected"] for case in CASES]
    assert len(CASES) > 600 and sum(value == 1.0 for value in paid) > 300 and sum(value == 0.0 for value in paid) > 150
