"""RLCR's rewards for a spoken confidence: the layout against the official pattern, the numbers by hand, the composition."""

from __future__ import annotations

import math
import re
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import guerdon as gd
from guerdon import ConfigError, Rollouts
from guerdon.signals import SpokenConfidence
from guerdon.signals.verifiable.spoken import (
    last_between,
    spoken_confidence,
    spoken_confidence_rewards,
    spoken_layout,
)

# The patterns of the official code, as they stand there.
OFFICIAL = {
    "tbac": r".*?</think>\s*<analysis>.*?</analysis>\s*<answer>.*?</answer>\s*<confidence>.*?</confidence>\s*\Z",
    "ta": r".*?</think>\s*<answer>.*?</answer>\s*\Z",
    "tac": r".*?</think>\s*<answer>.*?</answer>\s*<confidence>.*?</confidence>\s*\Z",
    "tabc": r".*?</think>\s*<answer>.*?</answer>\s*<analysis>.*?</analysis>\s*<confidence>.*?</confidence>\s*\Z",
}
PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", "<analysis>", "</analysis>", "<confidence>", "</confidence>", " ", "\n", "x", "0.5",
]  # fmt: skip
WELL = "so</think> <answer>Paris</answer>\n<analysis>sure</analysis> <confidence>0.9</confidence>"


@pytest.mark.parametrize("pattern", OFFICIAL)
@given(text=st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_the_layout_is_the_official_one(pattern: str, text: str) -> None:
    assert spoken_layout(text, pattern) == bool(re.match(OFFICIAL[pattern], text, re.DOTALL | re.MULTILINE))  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", OFFICIAL)
@given(
    seed=st.permutations(["analysis", "answer", "confidence"]),
    filler=st.lists(st.sampled_from(PIECES), min_size=5, max_size=5),
)
def test_so_it_is_on_texts_near_the_layout(pattern: str, seed: list[str], filler: list[str]) -> None:
    parts = ["analysis", "answer", "confidence"] if pattern == "tbac" else seed
    body = "".join(
        f"<{name}>{inner}</{name}>{gap}" for name, inner, gap in zip(parts, filler, ["", " ", "\n"], strict=False)
    )
    text = f"{filler[3]}</think>{body}"
    assert spoken_layout(text, pattern) == bool(re.match(OFFICIAL[pattern], text, re.DOTALL | re.MULTILINE))  # type: ignore[arg-type]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_the_last_pair_is_that_of_findall(text: str) -> None:
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    assert last_between(text, "<answer>", "</answer>") == (found[-1] if found else None)


@pytest.mark.parametrize("word", ["nan", "NaN", "inf", "-0.1", "1.01", "maybe", "", " ", "0,9", "90%", "0.5.0"])
def test_what_is_no_number_in_the_unit_interval_is_malformed(word: str) -> None:
    text = WELL.replace("0.9", word)
    assert spoken_confidence(text) is None
    assert spoken_confidence_rewards(text, ["Paris"])[:3] == (0.0, 0.0, 0.0)


def test_rewards_by_hand() -> None:
    assert spoken_confidence_rewards(WELL, ["paris"])[:3] == pytest.approx((1, 1, 0.99))
    assert spoken_confidence_rewards(WELL, ["Lyon"])[:3] == pytest.approx((1, 0, 0.19))
    assert spoken_confidence_rewards(WELL, ["Lyon", "the Paris!"])[:3] == pytest.approx((1, 1, 0.99)), "any of them"
    assert spoken_confidence_rewards("x</think><answer>Paris</answer>", ["Paris"], "ta")[:3] == (1, 1, 0)
    earlier = WELL.replace("<analysis>", "<analysis><answer>Lyon</answer><confidence>0.1</confidence>")
    assert spoken_confidence_rewards(earlier, ["Lyon"])[:3] == pytest.approx((1, 1, 0.99)), "the last of each counts"
    assert spoken_confidence_rewards(WELL + " Thanks!", ["Paris"])[:3] == (0, 0, 0)


@pytest.mark.parametrize(
    ("answer", "reference", "accurate"),
    [
        ("-5", "5", 1),
        ("C#", "C++", 1),
        ("48.0", "48", 0),
        ("the", "a", 1),
        ("\\boxed{5}", "\\boxed{5}", 1),
        ('{"a": 1}', '{"a": 1}', 1),
    ],
)
def test_the_published_rule_compares_tidied_texts_and_nothing_else(answer: str, reference: str, accurate: int) -> None:
    """SQuAD's normalisation as it is, its false equalities too: this is somebody's baseline."""
    rollouts = Rollouts.from_texts(["q"], [WELL.replace("Paris", answer)], {"answer": [reference]}, group_ids=[0])
    assert SpokenConfidence()(rollouts)["accuracy"].values.tolist() == [[accurate]]


def test_hostile_texts_take_linear_time() -> None:
    started = time.monotonic()
    for piece in ("</think> <answer>", "<answer>", "</answer> " * 3, "<confidence>", " " * 40, "</think>" + " " * 30):
        spoken_confidence_rewards(piece * 20_000, ["Paris"])
        spoken_confidence_rewards(piece * 20_000 + WELL, ["Paris"])
    assert time.monotonic() - started < 5


def test_the_composition_centres_and_divides_by_nothing() -> None:
    texts = [WELL, WELL.replace("0.9", "0.2"), "no layout", WELL.replace("Paris", "Lyon")]
    rollouts = Rollouts(
        ["q"] * 4,
        texts,
        completion_ids=torch.ones(4, 2, dtype=torch.long),
        completion_mask=torch.ones(4, 2, dtype=torch.bool),
        group_ids=torch.zeros(4, dtype=torch.long),
        columns={"answer": ["Paris"] * 4},
    )
    rewards = torch.tensor([0.5 * (1 + 1 + 0.99), 0.5 * (1 + 1 + 1 - 0.64), 0.0, 0.5 * (1 + 0 + 0.19)])
    scores = gd.systems.spoken_confidence()(rollouts)
    assert torch.allclose(scores.reward.float(), rewards)
    assert torch.allclose(scores.advantages, (rewards - rewards.mean())[:, None].expand(4, 2), atol=1e-6)
    divided = gd.systems.spoken_confidence(norm_by_std=True)(rollouts)
    assert torch.allclose(divided.advantages[:, 0], (rewards - rewards.mean()) / (rewards.std() + 1e-4), atol=1e-5)
    only = gd.systems.spoken_confidence(pattern="tac", weights=(1, 0, 0))(rollouts)
    assert only.reward.tolist() == [0.0] * 4, "an analysis is no part of this layout"


def test_a_missing_reference_is_nobody_s_answer() -> None:
    rollouts = Rollouts.from_texts(["q", "q"], [WELL, WELL], {"answer": [None, "Paris"]}, group_ids=[0, 0])
    rewards = SpokenConfidence()(rollouts)
    assert rewards["format"].values[:, 0].tolist() == [1.0, 1.0]
    assert math.isnan(rewards["accuracy"].values[0, 0]) and "reference" in rewards["accuracy"].reasons[0, 0]
    assert gd.systems.spoken_confidence()(rollouts).keep.tolist() == [False, True]
    with pytest.raises(ConfigError, match="pattern"):
        SpokenConfidence(pattern="abc")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="weights"):
        gd.systems.spoken_confidence(weights=(1.0, 1.0))
