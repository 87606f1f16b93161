"""The built-in task: exact judging of lines, the verifier, and what the split promises."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import ConfigError, DataError
from guerdon.tasks import arithmetic as sums_task
from guerdon.tasks.arithmetic import (
    NO_NOISE,
    Noise,
    is_held_out,
    label_steps,
    locate_errors,
    make_prompt,
    parse_prompt,
    sample_operands,
    solve,
    split_solution,
    sums,
    verify_sum,
)

PROMPT = "a3+b5+c9+d2=?\n"
ANY_NOISE = Noise(0.2, 0.1, 0.2, 0.5, 0.1, 0.3, 0.1, 0.2)


def test_prompt_round_trip():
    assert make_prompt([3, 5, 9, 2]) == PROMPT
    assert parse_prompt(PROMPT) == [3, 5, 9, 2]


@pytest.mark.parametrize("bad", ["3+5=?\n", "a3+c5=?\n", "a3=?", "a13+b5=?", "", "a3+b5=?\na3+b5=?\n"])
def test_other_texts_are_not_prompts(bad):
    with pytest.raises(DataError):
        parse_prompt(bad)


@pytest.mark.parametrize(
    ("lines", "kinds"),
    [
        ("3+b5=8|8+c9=17|17+d2=19|#19", "c c c c"),
        ("3+b5=8|ok so far|8+c9=17|so 17 is 17|17+d2=19|#19", "c f c f c c"),
        ("3+b5=9|9+c9=18|18+d2=20|#20", "w c c c"),  # one slip is one wrong line: what follows from it is consistent
        ("3+b5=8|8+c9=18|18+d2=19|#19", "c w w c"),  # a lucky answer: two errors that cancel
        ("3+b5=9|9+c9=18|18+d2=20|#19", "w c c w"),  # a lucky answer that does not follow
        ("#19", "w"),  # no operand has been used
        ("3+b5=8|8+c9=17|#17", "c c w"),  # too early
        ("3+c9=12", "w"),  # not the next operand
        ("3+b9=12", "w"),  # the right letter, the wrong digit
        ("4+b5=9", "w"),  # not the value reached
        ("so 4 is 4|so 3 is 4|so 3 is 3", "w w f"),
        ("|ok so fa|ok so far |OK so far", "w w w w"),  # empty, cut, trailing space, capitals
        ("3+b5=8|8+c9=17|17+d2=19|#19|#19|ok so far|19+e1=20", "c c c c w f w"),
        ("ok|ok|3+b5=8|ok|o|ok ok", "f f c f w w"),
        ("3+b5=8|8+c9=17|17+d2=19|19+e1=20|#20", "c c c w w"),  # more operands than there are
        ("٣+b5=8", "w"),  # digits of another script
    ],
)
def test_label_steps_by_hand(lines, kinds):
    names = {"c": "correct", "w": "wrong", "f": "filler"}
    assert label_steps(PROMPT, lines.split("|")) == [names[k] for k in kinds.split()]


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("3+b5=8\n8+c9=17\n17+d2=19\n#19", 1.0),
        ("#19", 1.0),  # the verifier looks at the answer alone
        ("3+b5=9\n#19\n", 1.0),
        ("#019", 1.0),
        ("#18", 0.0),
        ("#19\nok so far", 0.0),  # the answer is not final
        ("19", 0.0),
        ("", 0.0),
        ("#" + "9" * 5000, 0.0),
    ],
)
def test_verifier(completion, value):
    verdict = verify_sum(completion, {"prompt": PROMPT, "answer": "19"})
    assert verdict.value == value
    assert value == 1.0 or verdict.reason


def test_errors_are_located_by_hand():
    lines = ["3+b5=9", "9+c9=18", "so 18 is 18", "17+d2=19", "#19", "#1", "ok", "19+e1=20"]
    #         wrong total, right after it, filler, wrong value, right answer, cut answer, garbage, no operand left
    assert locate_errors("a3+b5+c9+d2=?\n", lines) == [5, None, None, 1, None, 2, None, None]
    assert locate_errors("a3+b5=?\n", ["3+b5=8", "#80"]) == [None, 2] and locate_errors("a3+b5=?\n", []) == []


def test_every_wrong_number_has_its_place_and_no_right_line_has_one():
    rng, noise = random.Random(4), Noise(wrong_sum=0.5, wrong_answer=0.5, wrong_operand=0.2, near=0.5)
    for _ in range(200):
        prompt = make_prompt(operands := sample_operands(rng))
        lines = solve(operands, noise, rng)
        places = locate_errors(prompt, lines)
        assert [place is not None for place in places] == [kind == "wrong" for kind in label_steps(prompt, lines)]


def test_verifier_takes_several_references_and_fails_loudly_without_one():
    assert verify_sum("#19", {"answer": [18, "19"]}).value == 1.0
    for broken in (None, [], "nineteen"):
        verdict = verify_sum("#19", {"answer": broken})
        assert math.isnan(verdict.value) and verdict.reason


def test_a_clean_solution_is_all_correct():
    rng = random.Random(0)
    for _ in range(50):
        operands = sample_operands(rng)
        lines = solve(operands, NO_NOISE, rng)
        assert len(lines) == len(operands)
        assert set(label_steps(make_prompt(operands), lines)) == {"correct"}


@given(st.integers(0, 10**6))
def test_an_answer_without_a_wrong_line_is_right_and_luck_exists(seed):
    rng = random.Random(seed)
    operands = sample_operands(rng, (2, 9))
    lines = solve(operands, ANY_NOISE, rng)
    kinds = label_steps(make_prompt(operands), lines)
    assert len(kinds) == len(lines)
    verdict = verify_sum("\n".join(lines), {"answer": str(sum(operands))})
    if "wrong" not in kinds and lines[-1].startswith("#"):
        assert verdict.value == 1.0


def test_noise_makes_lucky_answers_and_filler():
    rng = random.Random(1)
    lucky = filler = 0
    for _ in range(500):
        operands = sample_operands(rng)
        lines = solve(operands, Noise(wrong_sum=0.2, lucky=0.5, filler=0.2), rng)
        kinds = label_steps(make_prompt(operands), lines)
        right = verify_sum("\n".join(lines), {"answer": sum(operands)}).value == 1.0
        lucky += right and "wrong" in kinds
        filler += "filler" in kinds
    assert lucky > 50 and filler > 150


def test_split_solution_drops_only_the_final_newline():
    assert split_solution("a\n\nb\n") == ["a", "", "b"]
    assert split_solution("a") == ["a"]
    assert split_solution("") == []


def test_same_seed_same_rows_and_held_out_is_disjoint_for_every_seed():
    assert sums(seed=3).train == sums(seed=3).train
    assert sums(seed=3).train != sums(seed=4).train
    one, other = sums(seed=0), sums(seed=1)
    assert {r["prompt"] for r in one.train}.isdisjoint(r["prompt"] for r in other.held_out)
    assert all(is_held_out(r["prompt"]) for r in one.held_out)
    assert len({r["prompt"] for r in one.train}) == len(one.train) == 512
    assert len(one.held_out) == 128


def test_sizes_that_cannot_be_had_are_refused():
    with pytest.raises(ConfigError, match="held-out"):
        sums(terms=(2, 2), held_out_size=100, train_size=10)
    with pytest.raises(ConfigError, match="terms"):
        sums(terms=(1, 4))


def test_to_dataset():
    task = sums(train_size=8, held_out_size=4)
    assert task.to_dataset().column_names == ["prompt", "answer"]
    assert task.to_dataset("held_out", chat=True)[0]["prompt"] == [
        {"role": "user", "content": task.held_out[0]["prompt"]}
    ]
    assert task.delimiter == sums_task.DELIMITER


def test_true_success_needs_a_row_each():
    task = sums(train_size=8, held_out_size=4)
    assert [v.value for v in task.true_success(["#1", "#" + task.train[1]["answer"]], task.train[:2])] == [0.0, 1.0]
    with pytest.raises(DataError):
        task.true_success(["#1"], task.train[:2])
