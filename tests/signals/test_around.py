"""Signals around signals: who is asked about which rows, what the others get, and that everything else is handed on."""

from __future__ import annotations

import math

import pytest
import torch

from guerdon import CapabilityError, ConfigError, DataError, Rewards, Rollouts, Scores, Spans, System
from guerdon.credit import Fuse, GroupNorm, ToTokens
from guerdon.signals import FailTruncated, OnText, Route
from guerdon.signals.around import score_rows
from guerdon.signals.verifiable.extraction import last_tag

NAN = math.nan


class Counting:
    """Scores a completion by its length in characters and remembers what it was asked."""

    scope, level = "row", "sequence"

    def __init__(self, scope: str = "row") -> None:
        self.asked: list[list[str]] = []
        self.scope = scope

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        assert len(scores) == len(rollouts)
        self.asked.append(list(rollouts.completions))
        values = [NAN if text == "broken" else float(len(text)) for text in rollouts.completions]
        return Rewards.sequence(values, rollouts, {i: "it is broken" for i, v in enumerate(values) if v != v})


def rollouts(texts=("a", "bb", "ccc", "dddd"), flags=(True, True, False, False), **more) -> Rollouts:
    width = max(map(len, texts))
    mask = torch.arange(width)[None] < torch.tensor([[len(text)] for text in texts])
    return Rollouts(
        ["p"] * len(texts), list(texts), completion_ids=mask.long(), completion_mask=mask,
        group_ids=torch.tensor([0, 0, 1, 1][: len(texts)]), columns={"verifiable": list(flags)}, **more,
    )  # fmt: skip


NAMES = {True: "rule", False: "model"}


def test_each_signal_is_asked_about_its_rows_only() -> None:
    rule, model = Counting(), Counting()
    route = Route({"rule": rule, "model": model}, by="verifiable", names=NAMES)
    found = route(rollouts(), Scores.empty(rollouts()))
    assert rule.asked == [["a", "bb"]] and model.asked == [["ccc", "dddd"]]
    assert found["rule"].mask[:, 0].tolist() == [True, True, False, False]
    assert found["model"].values[:, 0].tolist() == [0, 0, 3, 4] and found["model"].mask[:, 0].tolist() == [0, 0, 1, 1]
    assert found["rule"].spans.end[:, 0].tolist() == [0, 1, 2, 3], "every row keeps the span of its whole completion"
    assert route.level == {"rule": "sequence", "model": "sequence"}


def test_nobody_to_ask_nobody_asked() -> None:
    rule, model = Counting(), Counting()
    batch = rollouts(flags=(True, True, 1, 1))  # integers do as well
    found = Route({"rule": rule, "model": model}, by="verifiable", names=NAMES)(batch, Scores.empty(batch))
    assert model.asked == [] and not bool(found["model"].mask.any()) and rule.asked == [["a", "bb", "ccc", "dddd"]]


def test_routes_fuse_to_one_reward_and_a_failure_keeps_its_reason() -> None:
    batch = rollouts(("a", "bb", "broken", "dddd"))
    route = Route({"rule": Counting(), "model": Counting()}, by="verifiable", names=NAMES)
    system = System(
        {"r": route}, [Fuse("r.rule", "r.model", into="r"), GroupNorm("r", std=None), ToTokens("r", "whole")]
    )
    scores = system(batch)
    assert scores.reward[:2].tolist() == [1, 2] and scores.reward[3] == 4 and not bool(scores.keep[2])
    assert "it is broken" in scores.notes["dropped"][2]
    assert scores.advantages[0, 0] == -0.5 and scores.advantages[1, :3].tolist() == [0.5, 0.5, 0.0]


def test_a_group_on_two_routes_is_refused_and_an_unknown_route_is_the_datas_fault() -> None:
    route = Route({"rule": Counting(), "model": Counting()}, by="verifiable", names=NAMES)
    mixed = rollouts(flags=(True, False, False, False))
    with pytest.raises(DataError, match="a route belongs to the question"):
        route(mixed, Scores.empty(mixed))
    unknown = rollouts(flags=(True, True, None, None))
    found = route(unknown, Scores.empty(unknown))
    assert found["rule"].failed[:, 0].tolist() == [0, 0, 1, 1] and "no route for None" in found["rule"].reasons[2, 0]
    by_function = Route({"x": Counting(), "y": Counting()}, by=lambda r: ["x" if len(t) < 3 else "y" for t in r.completions])  # fmt: skip
    assert by_function(rollouts(), Scores.empty(rollouts()))["y"].values[:, 0].tolist() == [0, 0, 3, 4]
    for wrong in ({"routes": {}, "by": "c"}, {"routes": {"a": Counting()}, "by": "c", "names": {True: "b"}}):
        with pytest.raises(ConfigError):
            Route(**wrong)


def test_roles_state_and_scope_are_handed_on() -> None:
    class Model(Counting):
        roles, needs = ("policy",), frozenset({"policy"})
        bound = None
        count = 0

        def bind(self, role, instrument):
            self.bound = instrument

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    model = Model(scope="group")
    route = Route({"rule": Counting(), "model": FailTruncated(model)}, by="verifiable", names=NAMES)
    assert route.scope == "group" and route.needs == {"policy"} and route.roles == ("policy",)
    route.bind("policy", "the policy")
    route.load_state_dict({"model": {"count": 3}})
    assert model.bound == "the policy" and route.state_dict() == {"model": {"count": 3}}
    learner = Counting()
    learner.update_at = "after_scoring"
    with pytest.raises(ConfigError, match="learn online"):
        Route({"a": learner}, by="verifiable")


def test_step_rewards_of_some_rows() -> None:
    batch = rollouts()
    steps = Spans.from_lists([[(0, 0)], [(0, 0), (1, 1)], [(0, 2)], [(0, 1), (2, 3)]], unit="token", name="steps")
    batch = batch.with_spans(steps=steps)

    class Steps:
        level = "steps"

        def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
            spans = rollouts.segment("steps")
            return Rewards(torch.ones(spans.start.shape), spans)

    found = score_rows(Steps(), batch, Scores.empty(batch), torch.tensor([False, True, False, True]))
    assert found.mask.tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]] and found.values.sum() == 4
    assert found.spans.start.tolist() == steps.start.tolist()
    nobody = score_rows(Steps(), batch, Scores.empty(batch), torch.zeros(4, dtype=torch.bool))
    assert nobody.level == "steps" and not bool(nobody.mask.any())
    with pytest.raises(CapabilityError):
        score_rows(Steps(), rollouts(), Scores.empty(rollouts()), torch.zeros(4, dtype=torch.bool))


def test_cut_completions_are_not_asked_about_and_get_the_stated_value() -> None:
    inner = Counting()
    batch = rollouts(("a", "broken", "ccc", "dddd"), finished=torch.tensor([True, False, True, False]))
    rewards = FailTruncated(inner, -1.0)(batch, Scores.empty(batch))
    assert inner.asked == [["a", "ccc"]] and rewards.values[:, 0].tolist() == [1, -1, 3, -1]
    assert bool(rewards.mask.all()) and rewards.reasons == {
        (1, 0): "cut at the length cap",
        (3, 0): "cut at the length cap",
    }
    group = Counting(scope="group")
    assert FailTruncated(group)(batch, Scores.empty(batch)).values[:, 0].tolist() == [1, 0, 3, 0]
    assert group.asked == [["a", "broken", "ccc", "dddd"]], "a group signal has to see its whole group"
    unknown = rollouts()
    assert FailTruncated(Counting())(unknown, Scores.empty(unknown)).values[:, 0].tolist() == [1, 2, 3, 4]


def test_cut_completions_of_a_verdict_with_confidence() -> None:
    class Sure:
        level = {"score": "sequence", "confidence": "sequence"}  # noqa: RUF012

        def __call__(self, rollouts: Rollouts, scores: Scores) -> dict[str, Rewards]:
            ones = Rewards.sequence(torch.ones(len(rollouts)), rollouts)
            return {"score": ones, "confidence": ones}

    batch = rollouts(finished=torch.tensor([True, False, True, True]))
    given = FailTruncated(Sure(), {"score": 0.0})(batch, Scores.empty(batch))
    assert given["score"].values[:, 0].tolist() == [1, 0, 1, 1]
    assert given["confidence"].mask[:, 0].tolist() == [True, False, True, True]
    with pytest.raises(ConfigError, match="value names"):
        FailTruncated(Sure(), {"other": 0.0})


def test_a_part_of_the_text_and_its_absence() -> None:
    inner = Counting()
    batch = rollouts(("x<answer>12</answer>", "no tag", "<answer>broken</answer>", "<answer></answer>"))
    rewards = OnText(inner, last_tag)(batch, Scores.empty(batch))
    assert inner.asked == [["12", "broken", ""]]
    assert rewards.values[[0, 1, 3], 0].tolist() == [2, 0, 0] and bool(rewards.failed[2, 0])
    assert "missing" in rewards.reasons[1, 0] and rewards.reasons[2, 0] == "it is broken"
    assert rewards.spans.end[0, 0] == len("x<answer>12</answer>") - 1, "credit goes to the whole completion"
    with pytest.raises(ConfigError, match="row scope"):
        OnText(Counting(scope="group"), last_tag)
