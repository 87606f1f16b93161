"""Annealed coefficients, rewards for being short, and advantages per reward, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon import CapabilityError, ChainError, Clock, ConfigError, Rewards, Rollouts, System
from guerdon.credit import GroupNorm, On, ToTokens
from guerdon.credit.length import (
    LengthReward,
    WatchLength,
    cosine_length_reward,
    efficient_reasoner_reward,
    group_extremes,
    kimi_length_reward,
    o1_pruner_reward,
)
from guerdon.credit.schedule import Anneal, Annealing, annealing, peak_schedule
from guerdon.credit.weighting import WeightedAdvantages


class Column:
    """A signal that reads its scores from a data column."""

    scope, level = "row", "sequence"

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, rollouts: Rollouts, scores: object) -> Rewards:
        values = torch.tensor(rollouts.column(self.name), dtype=torch.float64)
        reasons = {row: "unknown" for row in values.isnan().nonzero()[:, 0].tolist()}
        return Rewards.sequence(values, rollouts, reasons)


def batch(lengths: list[int], groups: list[int], clock: Clock | None = None, **columns: list[float]) -> Rollouts:
    mask = torch.arange(max(*lengths, 1))[None] < torch.tensor(lengths)[:, None]
    return Rollouts(
        ["p"] * len(lengths),
        ["x"] * len(lengths),
        completion_ids=torch.ones_like(mask, dtype=torch.long),
        completion_mask=mask,
        group_ids=torch.tensor(groups),
        columns=columns,
        clock=clock or Clock(),
    )


# --- schedules -------------------------------------------------------------------------------------------------------


def test_annealing_by_hand() -> None:
    assert [annealing(u) for u in (-1, 0, 0.25, 1, 2)] == [1, 1, 0.75, 0, 0]
    assert annealing(0.25, "cosine") == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert annealing(0.25, "linear", reverse=True) == 0.25 and annealing(0.9, "constant", reverse=True) == 1
    with pytest.raises(ConfigError, match="exponential"):
        annealing(0.5, "exponential")


def test_tent_by_hand() -> None:
    both = {"peak": 0.4, "bottom": 0.2, "increase": True, "decrease": True}
    assert [peak_schedule(u, **both) for u in (0, 0.2, 0.4, 0.7, 1)] == pytest.approx([0.2, 0.6, 1, 0.6, 0.2])
    assert peak_schedule(0.1, peak=0.4, decrease=True) == 1 and peak_schedule(0.9, peak=0.4, increase=True) == 1
    assert peak_schedule(0, peak=0, increase=True, decrease=True) == 1, "the official code divides by zero here"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.booleans(), st.booleans())
def test_a_tent_stays_between_its_bottom_and_one(u: float, p: float, b: float, up: bool, down: bool) -> None:
    assert b - 1e-12 <= peak_schedule(u, peak=p, bottom=b, increase=up, decrease=down) <= 1 + 1e-12


def test_anneal_follows_the_clock_and_refuses_a_run_without_an_end() -> None:
    system = System(
        {"r": Column("r")}, [On("r", Anneal(Annealing("linear"))), GroupNorm("r", std=None), ToTokens("r", "whole")]
    )
    rows = {"r": [2.0, 1.0]}
    assert system(batch([1, 1], [0, 0], Clock(25, 100, True), **rows)).reward.tolist() == [1.5, 0.75]
    with pytest.raises(CapabilityError, match="how long the run is"):
        system(batch([1, 1], [0, 0], Clock(25, None, True), **rows))
    assert system(batch([1, 1], [0, 0], Clock(), **rows)).reward.tolist() == [2, 1], "scoring a file is the start"
    with pytest.raises(ConfigError, match="peak=2"):
        Annealing("peak", peak=2)


# --- rewards for being short -----------------------------------------------------------------------------------------


def test_o1_pruner_by_hand() -> None:
    mean = torch.tensor([200.0, 200, 200, 200, 0])
    found = o1_pruner_reward(torch.tensor([100, 300, 10, 0, 0]), mean)
    assert found.tolist() == pytest.approx([1, -1 / 3, 1, 1, 0])


def test_efficient_reasoner_by_hand() -> None:
    lengths, right = torch.tensor([4, 8, 8, 3]), torch.tensor([1.0, 1, 0, 1])
    found = efficient_reasoner_reward(
        lengths, right, torch.tensor([6.0] * 4), torch.tensor([2.0] * 4), torch.tensor([2, 2, 2, 1])
    )
    half = 2 / (1 + math.exp(-1)) - 1
    assert found.tolist() == pytest.approx([half, -half, 0, 0], abs=1e-5)


def test_kimi_and_cosine_by_hand() -> None:
    sizes = torch.tensor([10, 20, 30, 30])
    found = kimi_length_reward(torch.tensor([1, 1, 1, 0]), sizes, torch.full((4,), 10), torch.full((4,), 30))
    assert found.tolist() == [0.5, 0.0, -0.5, -0.5]
    found = cosine_length_reward(torch.tensor([1, 0, 1]), torch.tensor([50, 0, 100]), 100)
    assert found.tolist() == pytest.approx([1.5, -10, -10])


def test_extremes_leave_out_what_does_not_count() -> None:
    low, high = group_extremes(
        torch.tensor([5, 1, 9, 7]), torch.tensor([3, 3, 3, 8]), torch.tensor([True, False, True, False])
    )
    assert low.tolist() == [5, 5, 5, 0] and high.tolist() == [9, 9, 9, 0]


def test_length_rewards_in_a_chain() -> None:
    rows = batch([4, 8, 8, 2, 6, 6], [0, 0, 0, 0, 1, 1], answer=[1.0, 1.0, 0.0, float("nan"), 1.0, 0.0])

    def lengths(rule: str) -> list[float]:
        chain = [LengthReward(rule), GroupNorm("answer"), ToTokens("answer", "whole")]
        system = System({"answer": Column("answer")}, [*chain, Spread()])
        return system(rows).notes["length"]

    class Spread:
        """Keeps the source where the test can see it, and takes it out of the chain."""

        def plan(self, levels: dict[str, str]) -> dict[str, str]:
            return {name: level for name, level in levels.items() if name != "length"}

        def __call__(self, scores, rollouts):
            seen = scores.sources["length"].values[:, 0].tolist()
            left = {name: rewards for name, rewards in scores.sources.items() if name != "length"}
            return type(scores)(**{**vars(scores), "sources": left, "notes": {**scores.notes, "length": seen}})

    mean = 20 / 3  # the row without a verdict was dropped
    assert lengths("o1_pruner") == pytest.approx([(mean - 4) / 4, (mean - 8) / 8, (mean - 8) / 8, 0, 0, 0], abs=1e-6)
    half = 2 / (1 + math.exp(-1)) - 1
    assert lengths("efficient_reasoner") == pytest.approx([half, -half, 0, 0, 0, 0], abs=1e-4)
    assert lengths("kimi") == pytest.approx([0.5, -0.5, -0.5, 0, 0, 0])


def test_length_rewards_refuse_what_they_cannot_do() -> None:
    with pytest.raises(CapabilityError, match="counts tokens"):
        texts = Rollouts.from_texts(["p"], ["x"], {"answer": [1.0]})
        System({"answer": Column("answer")}, [LengthReward("kimi", into="l"), GroupNorm("answer"), *_ending()])(texts)
    with pytest.raises(ConfigError, match="shortest"):
        LengthReward("shortest")
    with pytest.raises(ConfigError, match="max_length"):
        LengthReward("cosine")
    with pytest.raises(ChainError, match="already"):
        System({"answer": Column("answer")}, [LengthReward("kimi", into="answer")])


def _ending() -> list[object]:
    from guerdon.credit import Drop

    return [Drop("l"), ToTokens("answer", "whole")]


def test_watch_length_counts_short_right_answers() -> None:
    rows = batch([2, 6, 4, 9], [0, 0, 0, 0], answer=[1.0, 1.0, 0.0, float("nan")])
    system = System(
        {"answer": Column("answer")}, [WatchLength(short=3), GroupNorm("answer"), ToTokens("answer", "whole")]
    )
    metrics = system(rows).metrics
    assert metrics["length/mean"] == 4 and metrics["length/right"] == 4 and metrics["length/right_and_short"] == 0.5


# --- advantages per reward -------------------------------------------------------------------------------------------


def test_weighted_advantages() -> None:
    rows = batch([1] * 4, [0, 0, 1, 1], a=[1.0, 0.0, 1.0, 1.0], b=[0.5, 0.1, 0.0, 0.4])
    signals = {"a": Column("a"), "b": Column("b")}

    def advantages(std: str | None) -> torch.Tensor:
        link = WeightedAdvantages(("a", "b"), (1.0, 0.2), std=std)
        scores = System(signals, [link, ToTokens("credit", "whole")])(rows)
        assert scores.reward.tolist() == pytest.approx([1.1, 0.02, 1.0, 1.08])
        return scores.advantages[:, 0]

    assert advantages(None).tolist() == pytest.approx([0.54, -0.54, -0.04, 0.04], abs=1e-6)
    z = math.sqrt(0.5)
    assert advantages("sample").tolist() == pytest.approx([1.2 * z, -1.2 * z, -0.2 * z, 0.2 * z], abs=1e-4)
    with pytest.raises(ConfigError, match="weights"):
        WeightedAdvantages(("a",), (1.0,))
