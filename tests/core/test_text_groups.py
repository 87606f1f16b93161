"""Texts in groups: rollouts of equal prompts are compared, and groups of one do not pass in silence."""

from __future__ import annotations

import warnings

import pytest
import torch

from guerdon.credit import GroupNorm, ToTokens
from guerdon.rollouts import Rollouts
from guerdon.signals import text_signal
from guerdon.system import System

LENGTH = text_signal(lambda text: float(len(text)))


def system() -> System:
    return System({"length": LENGTH}, [GroupNorm(), ToTokens()])


def test_equal_prompts_are_a_group_wherever_they_stand() -> None:
    chat = [{"role": "user", "content": "a"}]
    prompts = ["a", "b", "a", "b", chat, list(map(dict, chat)), "", ""]
    assert Rollouts.from_texts(prompts, ["x"] * 8).groups.tolist() == [0, 1, 0, 1, 2, 2, 3, 4]
    assert Rollouts.from_texts(["a"] * 3, ["x"] * 3, group_ids=[5, 5, 7]).groups.tolist() == [5, 5, 7]
    assert Rollouts.from_texts([], []).groups.tolist() == []


def test_a_group_of_texts_is_normalised_without_another_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = system()(Rollouts.from_texts(["q"] * 4, ["x", "xx", "xxx", "xxxx"]))
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = (values - values.mean()) / (values.std() + 1e-4)
    torch.testing.assert_close(scores.advantages[:, 0], expected)


def test_groups_of_one_are_told() -> None:
    alone = Rollouts.from_texts(["p", "q", "r"], ["x", "xx", "xxx"])
    with pytest.warns(UserWarning, match=r"each of the 3 rollouts is a group of its own.*GroupNorm.*group_ids"):
        scores = system()(alone)
    assert scores.advantages.abs().max() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        System({"length": LENGTH}, [ToTokens()])(alone)
        system()(Rollouts.from_texts(["p"], ["x"]))
