"""What CSR has to show: a wrong mode shrinks, and the look-ups are what they are called."""

from __future__ import annotations

import random

import pytest

from guerdon.systems.reproductions.csr_tabular import mode_mass
from guerdon.systems.reproductions.csr_task import HABIT, answer_of, demonstration, look_ups, make_row, said


@pytest.mark.parametrize("norm_by_std", [True, False])
def test_a_wrong_mode_shrinks_faster(norm_by_std: bool) -> None:
    for seed in range(2):
        plain, paid = (mode_mass(lam, seed, norm_by_std=norm_by_std, updates=150) for lam in (0.0, 0.5))
        assert paid < plain - 0.05
    assert mode_mass(0.5, 0, norm_by_std=True, updates=0) == pytest.approx(0.7)


def test_look_ups() -> None:
    task = look_ups()
    for rows in (task.train, task.held_out):
        assert len(rows) == 200 and sum(row["evidence"] for row in rows) == 120
        for row in rows:
            shown = row["prompt"][2]
            assert shown.isdigit() == row["evidence"] and (shown == row["answer"] or not row["evidence"])
    assert [answer_of(text) for text in ("2|7.", "2|7", "12|7.", "2", "", "x|7.")] == [
        "2",
        None,
        None,
        None,
        None,
        None,
    ]
    assert said("2|9.") == 1.0 and said("2|0.") == 0.0 and said("nonsense") == 0.0


def test_demonstrations_do_not_know_labels_without_evidence() -> None:
    rng = random.Random(0)
    rows = [make_row(rng, evidence=False) for _ in range(2000)]
    answers = [answer_of(demonstration(row, rng)) for row in rows]
    assert sum(a == str(HABIT) for a in answers) / 2000 == pytest.approx(0.7, abs=0.04)
    assert sum(a == row["answer"] for a, row in zip(answers, rows, strict=True)) / 2000 == pytest.approx(
        1 / 8, abs=0.03
    )


def test_the_spoken_arm_is_paid_as_the_published_one() -> None:
    """Half of form, correctness and 1 - (correctness - confidence)^2; nothing without the form."""
    from guerdon.systems.reproductions.csr_training import spoken_reward

    assert spoken_reward("2|9.", "2") == pytest.approx(1.5) and spoken_reward("2|0.", "3") == pytest.approx(1.0)
    assert spoken_reward("2|9.", "3") == pytest.approx(0.5) and spoken_reward("2", "2") == 0.0


def test_all_arms_but_a_pair_have_one_advantage_rule() -> None:
    from guerdon.systems.reproductions.csr_training import ARMS, DIVIDED_CORRECT, DIVIDED_CSR

    task = look_ups(train_size=4, held_out_size=4)
    divided = {
        arm for arm, make in ARMS.items() if any(getattr(link, "std", None) is not None for link in make(task).chain)
    }
    assert divided == {DIVIDED_CORRECT, DIVIDED_CSR}
