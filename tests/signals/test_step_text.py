"""A function of one step as a signal, on texts and on tokens, alone and in a chain."""

from __future__ import annotations

import math

import pytest
import torch

import guerdon as gd
from guerdon.credit import Fuse, GroupNorm, OnFailure, ToSequence, ToTokens
from guerdon.segment import ByDelimiter
from guerdon.signals import Verdict, step_signal


def rollouts(**columns):
    texts = ["one\n\nsorry two\n\nthree", "sorry", "a\n\nb", ""]
    return gd.Rollouts.from_texts(["q"] * 4, texts, columns, group_ids=[0] * 4)


def cut(batch):
    return batch.with_spans(steps=ByDelimiter(None, "\n\n")(batch))


def test_each_step_gets_the_functions_value():
    rewards = step_signal(lambda step: -1.0 * ("sorry" in step))(cut(rollouts()))
    assert rewards.level == "steps"
    rows = [row[mask].tolist() for row, mask in zip(rewards.values, rewards.mask, strict=True)]
    assert rows[:3] == [[0.0, -1.0, 0.0], [-1.0], [0.0, 0.0]]


def test_columns_are_passed_by_name_and_nan_has_a_reason():
    def known(step, word):
        return Verdict(math.nan, "no word to look for") if word is None else float(word in step)

    rewards = step_signal(known, columns=["word"])(cut(rollouts(word=["two", "x", None, "y"])))
    assert rewards.values[0, :3].tolist() == [0.0, 1.0, 0.0]
    assert rewards.failed[2].tolist()[:2] == [True, True]
    assert rewards.reasons[2, 0] == "no word to look for"
    silent = step_signal(lambda step: math.nan, name="mine")(cut(rollouts()))
    assert silent.reasons[0, 0] == "mine returned NaN without a reason"


def test_an_exception_of_the_function_is_a_bug_and_not_a_score():
    with pytest.raises(ZeroDivisionError):
        step_signal(lambda step: 1 / 0)(cut(rollouts()))


def test_steps_and_an_outcome_in_one_chain():
    system = gd.System(
        signals={"answer": gd.signals.text_signal(lambda text: float("three" in text)), "steps": step_signal(lambda step: -0.5 * ("sorry" in step))},
        chain=[OnFailure("row"), ToSequence("steps"), Fuse("answer", "steps", into="credit"), GroupNorm("credit", std=None), ToTokens("credit", "whole")],
        segments={"steps": ByDelimiter(None, "\n\n")},
    )  # fmt: skip
    scores = system(rollouts())
    assert scores.reward.tolist() == [0.5, -0.5, 0.0, 0.0]
    assert torch.allclose(scores.advantages[:, 0], torch.tensor([0.5, -0.5, 0.0, 0.0]))


def test_without_the_segmentation_it_says_what_to_give():
    with pytest.raises(gd.ChainError, match=r"segments=\{'steps'"):
        gd.System({"steps": step_signal(len)}, [])
