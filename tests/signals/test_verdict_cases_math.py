"""Answers in mathematics and numbers with the verdict that is right, kind by kind, and the facts of math-verify's own tests.

`verdict_cases/math.jsonl` are our own inputs. `verdict_cases/math_verify_facts.jsonl` says which (reference, answer) pairs
math-verify 0.9.0 tests and what it expects of them; a line with `differs` is one where another verdict is wanted, and why.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from guerdon.cli.score import reward_by_name
from guerdon.rollouts import Rollouts
from guerdon.signals import Math

FOLDER = Path(__file__).parent / "verdict_cases"


def records(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").split("\n") if line]


CASES = [*records("math.jsonl"), *records("raised.jsonl")]


@pytest.mark.parametrize("kind", sorted({case["kind"] for case in CASES}))
def test_every_kind_of_answer(kind: str) -> None:
    by_reward: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for case in CASES:
        if case["kind"] == kind:
            by_reward[case["reward"]].append(case)
    failing = []
    for reward, cases in by_reward.items():
        _, part = reward_by_name(reward, ())
        rollouts = Rollouts.from_texts(
            [""] * len(cases), [case["completion"] for case in cases], {"answer": [case["answer"] for case in cases]}
        )
        rewards = part(rollouts)
        for i, case in enumerate(cases):
            value = float(rewards.values[i, 0])
            if value != case["expected"]:
                failing.append(
                    (case["id"], case["completion"][-80:], case["answer"], value, rewards.reasons.get((i, 0)))
                )
    assert failing == []


def test_every_kind_has_right_and_wrong_answers() -> None:
    assert len(CASES) > 350
    for kind in {case["kind"] for case in CASES} - {"hostile"}:
        assert {case["expected"] for case in CASES if case["kind"] == kind} == {0.0, 1.0}, kind


def test_facts_of_math_verify_hold_but_for_those_argued() -> None:
    facts = records("math_verify_facts.jsonl")
    assert len(facts) > 250
    rollouts = Rollouts.from_texts(
        [""] * len(facts), [fact["answer"] for fact in facts], {"answer": [fact["reference"] for fact in facts]}
    )
    values = [float(value) for value in Math(timeout_s=20.0)(rollouts).values[:, 0]]
    wrong = [
        (fact["reference"][:80], fact["answer"][-80:], value)
        for fact, value in zip(facts, values, strict=True)
        if (value > 0) != bool(fact["expected"]) and not fact.get("differs")
    ]
    assert wrong == []
    stale = [
        fact["answer"]
        for fact, value in zip(facts, values, strict=True)
        if fact.get("differs") and (value > 0) == bool(fact["expected"])
    ]
    assert stale == [], "these are judged as math-verify wants them: take `differs` away"
    assert not any(math.isnan(value) for value in values)
