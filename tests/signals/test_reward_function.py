"""A TRL reward function as a signal: everything TRL calls it with, everything it may return, and what is refused."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch

from guerdon.credit import Fuse, GroupNorm, ToTokens
from guerdon.errors import ChainError, ConfigError, MissingColumn, ShapeError
from guerdon.rewards import Scored, Scores
from guerdon.rollouts import Clock, Rollouts
from guerdon.signals import EnvironmentReward, FailTruncated, Length, RewardFunction, Route
from guerdon.system import System


def texts(n: int = 4, **columns: list[Any]) -> Rollouts:
    return Rollouts.from_texts(["q"] * n, ["a", "bb", "ccc", "dddd"][:n], columns, group_ids=[0] * n)


def chain(*names: str) -> list[Any]:
    return [GroupNorm(names[0]), ToTokens(names[0], "whole")]


def score(signal: Any, rollouts: Rollouts) -> Any:
    return System({"it": signal}, chain("it"))(rollouts)


def lengths(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


async def slow_lengths(prompts: Any, completions: list[str], **_: Any) -> list[float]:
    return lengths(completions)


class Caller:
    async def __call__(self, completions: list[str], **_: Any) -> list[float]:
        return lengths(completions)


@pytest.mark.parametrize(
    "function",
    [
        lengths,
        slow_lengths,
        Caller(),
        functools.partial(lengths, unused=1),
        functools.partial(slow_lengths, unused=1),
        lambda completions, **_: torch.tensor([float(len(c)) for c in completions]),
        lambda completions, **_: tuple(len(c) for c in completions),
        lambda **given: [len(c) for c in given["completions"]],
    ],
)
def test_what_trl_takes_is_taken(function: Any) -> None:
    scores = score(RewardFunction(function), texts())
    assert scores.raw["it"].values[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert scores.reward.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_none_does_not_apply_and_nan_is_a_failure() -> None:
    scores = score(RewardFunction(lambda completions, **_: [1.0, None, float("nan"), 2.0]), texts())
    raw = scores.raw["it"]
    assert raw.mask[:, 0].tolist() == [True, False, True, True]
    assert raw.failed[:, 0].tolist() == [False, False, True, False] and "returned NaN" in raw.reasons[(2, 0)]
    assert scores.keep.tolist() == [True, True, False, True], "a row it does not apply to stays, a failed one leaves"
    advantages = scores.advantages[:, 0]
    assert advantages[1] == 0 and advantages[2] == 0 and advantages[3] == -advantages[0] > 0
    assert scores.reward.isnan().tolist() == [False, True, True, False]


def test_what_it_is_called_with() -> None:
    seen: dict[str, Any] = {}

    def keep(**given: Any) -> list[float]:
        seen.update(given)
        return [0.0] * len(given["completions"])

    rollouts = Rollouts(
        ["p", "q"],
        ["ab", "c"],
        completion_ids=torch.tensor([[5, 6], [7, 0]]),
        completion_mask=torch.tensor([[1, 1], [1, 0]]),
        columns={"answer": ["x", "y"], "prompts": ["never", "this"]},
        clock=Clock(step=7, total=9),
    )
    RewardFunction(keep)(rollouts)
    assert seen["prompts"] == ["p", "q"] and seen["completions"] == ["ab", "c"] and seen["answer"] == ["x", "y"]
    assert seen["completion_ids"] == [[5, 6], [7]]
    assert seen["trainer_state"].global_step == 7 and seen["trainer_state"].max_steps == 9
    assert callable(seen["log_extra"]) and callable(seen["log_metric"])


def test_chats_are_handed_over_as_messages() -> None:
    chat = [{"role": "user", "content": "q"}]
    rollouts = Rollouts.from_texts([chat, chat], ["yes", "no"])
    seen: list[Any] = []
    RewardFunction(lambda completions, **_: [seen.append(c) or 0.0 for c in completions])(rollouts)
    assert seen == [[{"role": "assistant", "content": "yes"}], [{"role": "assistant", "content": "no"}]]
    turns = [
        [{"role": "assistant", "content": "a"}, {"role": "tool", "content": "7"}],
        [{"role": "assistant", "content": "b"}],
    ]
    shown = Rollouts([chat, chat], ["a", "b"], messages=turns).select([1, 0])
    seen.clear()
    RewardFunction(lambda completions, **_: [seen.append(c) or 0.0 for c in completions])(shown)
    assert seen == turns[::-1]


def test_its_log_travels_with_the_scores_and_through_wrappers() -> None:
    def talkative(completions: list[str], log_extra: Any, log_metric: Any, **_: Any) -> list[float]:
        log_extra("said", [c.upper() for c in completions])
        log_metric("cost", 1.0)
        log_metric("cost", 3.0)
        return [1.0] * len(completions)

    scores = score(RewardFunction(talkative), texts())
    assert scores.logged == {"cost": 2.0} and scores.texts == {"said": ["A", "BB", "CCC", "DDDD"]}
    cut = Rollouts(
        ["q"] * 4,
        ["a", "bb", "ccc", "dddd"],
        finished=torch.tensor([True, False, True, True]),
        group_ids=torch.zeros(4).long(),
    )
    scores = score(FailTruncated(RewardFunction(talkative)), cut)
    assert scores.texts == {"said": ["A", None, "CCC", "DDDD"]} and scores.logged == {"cost": 2.0}
    route = Route({"f": RewardFunction(talkative), "g": RewardFunction(talkative)}, by="way")
    there = Rollouts.from_texts(
        ["q"] * 4, ["a", "bb", "ccc", "dddd"], {"way": ["f", "g", "f", "g"]}, group_ids=[0, 1, 0, 1]
    )
    given = route(there, Scores.empty(there))
    assert isinstance(given, Scored) and given.texts == {"said": ["A", "BB", "CCC", "DDDD"]}
    scores = System({"r": route}, [Fuse("r.f", "r.g", into="r"), *chain("r")])(there)
    assert scores.reward.tolist() == [1.0] * 4, "a route of ones pays one"


@pytest.mark.parametrize(
    "answer, said",
    [
        ([1.0], "1 rewards for 4 completions"),
        (None, "NoneType, not a list"),
        (1.0, "float, not a list"),
        (["x"] * 4, "'x', neither a number nor None"),
        ({"a": 1}, "dict, not a list"),
    ],
)
def test_wrong_answers_name_the_function(answer: Any, said: str) -> None:
    def broken(completions: list[str], **_: Any) -> Any:
        return answer

    with pytest.raises(ShapeError, match=said) as caught:
        RewardFunction(broken)(texts())
    assert "broken" in str(caught.value)


def test_a_missing_column_is_named() -> None:
    def checks(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    with pytest.raises(MissingColumn, match=r"no column 'answer'.*solution"):
        RewardFunction(checks)(texts(solution=[""] * 4))


def test_its_own_bugs_go_through() -> None:
    def bug(completions: list[str], **_: Any) -> list[float]:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        RewardFunction(bug)(texts())


@pytest.mark.parametrize(
    "signal",
    [
        lengths,
        slow_lengths,
        Caller(),
        lambda prompts, completions, **_: [],
        functools.partial(lengths, x=1),
        lambda **_: [],
    ],
)
def test_bare_functions_are_refused_where_they_are_given(signal: Any) -> None:
    with pytest.raises(ChainError, match=r"'len'.*signals\.RewardFunction\("):
        System({"len": signal}, chain("len"))


@pytest.mark.parametrize(
    "signal, said",
    [("my/model", "signals.RewardFunction"), (Length, r"write Length\(...\)"), (3, "a signal is a callable")],
)
def test_what_is_no_signal_is_refused(signal: Any, said: str) -> None:
    with pytest.raises(ChainError, match=said):
        System({"len": signal}, chain("len"))
    with pytest.raises(ConfigError, match="reward function of TRL's kind"):
        RewardFunction(3)  # type: ignore[arg-type]


def test_a_signal_of_two_arguments_is_a_signal() -> None:
    def signal(rollouts: Rollouts, scores: Scores) -> Any:
        return RewardFunction(lengths)(rollouts, scores)

    assert score(signal, texts()).reward.tolist() == [1.0, 2.0, 3.0, 4.0]


class Room:
    def __init__(self, worth: float) -> None:
        self.worth = worth

    def get_reward(self) -> float:
        return self.worth

    async def _judge(self) -> float:
        return 2 * self.worth


class Hall(Room):
    pass


def test_environments_are_asked_by_class_and_method() -> None:
    rooms = texts(environments=[Room(1.0), Hall(2.0), object(), Room(4.0)])
    rewards = EnvironmentReward()(rooms)
    assert rewards.filled()[:, 0].tolist() == [1.0, 2.0, 0.0, 4.0] and rewards.mask[:, 0].tolist() == [
        True,
        True,
        False,
        True,
    ]
    only = EnvironmentReward(Room, method="_judge")
    rewards = only(rooms)
    assert rewards.filled()[:, 0].tolist() == [2.0, 0.0, 0.0, 8.0] and rewards.mask[:, 0].tolist() == [
        True,
        False,
        False,
        True,
    ]
    assert EnvironmentReward().owns_get_reward and not only.owns_get_reward
    with pytest.raises(ConfigError, match="name it _judge"):
        EnvironmentReward(method="judge")
    with pytest.raises(Exception, match="train with environment_factory"):
        EnvironmentReward()(texts())


def test_logs_of_the_wrong_length_are_refused() -> None:
    def half(completions: list[str], log_extra: Any, **_: Any) -> list[float]:
        log_extra("said", ["x"])
        return [math.pi] * len(completions)

    with pytest.raises(ShapeError, match="1 values for 4 completions"):
        RewardFunction(half)(texts())
