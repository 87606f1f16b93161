"""Length against the group's correct completions: by hand, options, truncation, and what enters the target."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon import CapabilityError, ChainError, ConfigError, Rewards, Rollouts, Scores, System
from guerdon.credit import Fuse, GroupLengthPenalty, GroupNorm, ToTokens, group_length_penalty

GROUP = torch.zeros(4).long()
LENGTHS, RIGHT = torch.tensor([10, 5, 9, 20]), torch.tensor([1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, -0.5, -0.1, 0]),
        ({"side": "long"}, [0, 0, 0, -0.5]),
        ({"side": "both", "tau": 1.0}, [0, -0.25, -0.05, -0.5]),
        ({"p_max": 2.0, "tau": 1.0}, [0, -1.0, -0.2, 0]),
        ({"min_correct": 2}, [0, 0, 0, 0]),
        ({"correct_threshold": 0.0, "exempt_correct": True}, [0, 0, 0, 0]),
    ],
)
def test_by_hand(options: dict, expected: list[float]) -> None:
    assert group_length_penalty(LENGTHS, RIGHT, GROUP, **options).rewards.tolist() == pytest.approx(expected)


def test_groups_are_apart_and_nan_is_not_correct() -> None:
    found = group_length_penalty(
        torch.tensor([10, 5, 100, 40]), torch.tensor([1.0, 0.0, 1.0, float("nan")]), torch.tensor([3, 3, 8, 8])
    )
    assert found.target.tolist() == [10, 10, 100, 100] and found.rewards.tolist() == pytest.approx([0, -0.5, 0, -0.5])
    nobody = group_length_penalty(LENGTHS, torch.full((4,), float("nan")), GROUP)
    assert nobody.rewards.tolist() == [0] * 4 and bool(nobody.target.isnan().all())
    empty = group_length_penalty(torch.zeros(2), torch.ones(2), torch.zeros(2).long())
    assert empty.rewards.tolist() == [0, 0] and empty.target.tolist() == [0, 0]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=8),
    st.sampled_from(["short", "long", "both"]),
    st.floats(0, 3),
    st.floats(0.01, 3),
)
def test_bounded_and_two_sides_are_the_sum_of_one(
    rows: list[tuple[int, bool]], side: str, p_max: float, tau: float
) -> None:
    lengths, right = (torch.tensor(column) for column in zip(*rows, strict=True))
    groups = torch.zeros(len(rows)).long()

    def penalty(which: str) -> torch.Tensor:
        return group_length_penalty(lengths, right.float(), groups, p_max=p_max, tau=tau, side=which).rewards  # type: ignore[arg-type]

    values = penalty(side)
    assert bool((values <= 0).all()) and bool((values >= -p_max - 1e-9).all())
    assert torch.allclose(penalty("short") + penalty("long"), penalty("both"))


def test_bad_options() -> None:
    for wrong in ({"side": "up"}, {"tau": 0.0}, {"p_max": -1.0}, {"min_correct": 0}, {"truncated": "some"}):
        with pytest.raises(ConfigError):
            GroupLengthPenalty("a", **wrong)


def rollouts(**more) -> Rollouts:
    mask = torch.arange(20)[None] < LENGTHS[:, None]
    return Rollouts(["p"] * 4, ["x"] * 4, completion_ids=mask.long(), completion_mask=mask, group_ids=GROUP, **more)


class Given:
    def __init__(self, values: list[float]) -> None:
        self.values = torch.tensor(values)

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        return Rewards.sequence(self.values, rollouts, {i: "failed" for i, v in enumerate(self.values) if v != v})


def system(values: list[float], **options) -> System:
    link = GroupLengthPenalty("a", **options)
    return System(
        {"a": Given(values)}, [link, Fuse("a", "length", into="r"), GroupNorm("r", std=None), ToTokens("r", "whole")]
    )


def test_the_link_adds_a_source_and_logs_lengths() -> None:
    scores = system([1.0, 0.0, 0.0, 0.0])(rollouts())
    assert scores.reward.tolist() == pytest.approx([1.0, -0.5, -0.1, 0.0])
    assert scores.metrics["length/target"] == 10 and scores.metrics["length/wrong"] == pytest.approx(34 / 3)
    assert scores.metrics["length/penalty"] == pytest.approx(-0.15)


def test_a_cut_completion_has_no_merit_in_its_length() -> None:
    finished = torch.tensor([True, True, True, False])
    assert system([1.0, 0.0, 0.0, 0.0])(rollouts(finished=finished)).reward[3] == -0.5
    assert system([1.0, 0.0, 0.0, 0.0], truncated="as_is")(rollouts(finished=finished)).reward[3] == 0
    alone = system([0.0, 0.0, 0.0, 1.0])(rollouts(finished=finished))  # the only "correct" one was cut: no target
    assert alone.reward.tolist() == [0, 0, 0, 1]


def test_rows_without_a_score_set_no_target() -> None:
    scores = system([float("nan"), 1.0, 0.0, 0.0])(rollouts())
    assert scores.metrics["length/target"] == 5 and scores.reward[1:].tolist() == [1, 0, 0]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(CapabilityError, match="counts tokens"):
        system([1.0])(Rollouts(["p"], ["x"]))
    with pytest.raises(ChainError, match="already"):
        System(
            {"a": Given([1.0]), "length": Given([1.0])}, [GroupLengthPenalty("a"), Fuse("a", "length"), ToTokens("a")]
        )
