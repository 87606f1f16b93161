"""The answer of a completion where nobody said how answers are marked, and defaults that would silently do nothing."""

from __future__ import annotations

import warnings

import pytest

import guerdon
from guerdon.rollouts import Rollouts
from guerdon.signals import Math
from guerdon.signals.verifiable.extraction import extractor
from guerdon.signals.verifiable.final_answer import final_answer

TEXTS = ["so 2 + 3 = 5\nThe answer is 5.", "hm. The answer is 5", "many words, then 6\nAnswer: 6", "**Answer**: 5"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>12? no.</think> So it is 48. The answer is **48**.", "48"),
        ("Add.\n\nFinal answer: $\\frac{1}{2}$", "\\frac{1}{2}"),
        ("The answer is 7, no. #### 7\nwait\n#### 8", "8"),
        ("First \\boxed{4}, then \\boxed{5}. The answer is 6.", "5"),
        ("<answer> 42 </answer>", "42"),
        ("The answer is Dr. Smith. I hope it helps.", "Dr. Smith"),
        ("The answer is 3.14.", "3.14"),
        ("答案是 42。", "42"),
        ("I know the answer. It must be 42", "I know the answer. It must be 42"),
        ("3+b5=8\n#8\n", "#8"),
        ("\\boxed{}", None),
        ("<answer></answer>", None),
        ("<think>The answer is 4", None),
        ("  \n", None),
        ("", None),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer
    assert extractor("final")(text) == answer


def rollouts(texts: list[str] = TEXTS) -> Rollouts:
    columns = {"answer": ["5"] * 4, "question_id": [1] * 4, "view": [0, 0, 1, 1]}
    return Rollouts.from_texts(["q"] * 4, texts, columns, group_ids=[0, 0, 1, 1])


def test_defaults_find_answers_without_boxes() -> None:
    whole = Rollouts.from_texts(["q"] * 4, TEXTS, {"answer": ["5"] * 4}, group_ids=[0] * 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agreement = guerdon.systems.csr(verifier=Math()).score(whole).raw["agreement"].values[:, 0]
        votes = guerdon.systems.majority_vote().score(whole).raw["vote.agrees"].values[:, 0]
        views = guerdon.systems.co_reward().score(rollouts()).raw["vote.unlabelled"].values[:, 0]
    assert agreement.tolist() == pytest.approx([2 / 3, 2 / 3, 0, 2 / 3]), "answers are compared, not reasonings"
    assert votes.tolist() == [1, 1, 0, 1] and views.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "build",
    [
        lambda: guerdon.systems.co_reward(extract="boxed_as_written"),
        lambda: guerdon.systems.majority_vote(extract="boxed"),
        lambda: guerdon.systems.csr(verifier=Math(), extract="tag"),
        lambda: guerdon.systems.noisy_rpr(verifier=Math(), flip_prob=0.5),
        lambda: guerdon.systems.noisy_rpr(verifier=None, reward="rpr"),
    ],
)
def test_a_rule_that_finds_no_answer_at_all_is_said_once(build: object) -> None:
    system = build()  # type: ignore[operator]
    with pytest.warns(UserWarning, match="not one of the 4 completions of the first batch has an answer"):
        system.score(rollouts())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        system.score(rollouts())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build().score(rollouts(["\\boxed{5}", "", "<answer>5</answer>", "x"]))  # type: ignore[operator]
