"""docs/conventions.md, heading by heading: what the code does is what the page says."""

from __future__ import annotations

import math

import pytest
import torch

from guerdon import Rollouts, System, systems
from guerdon.credit import (
    DropTruncated,
    DropUniformGroups,
    GroupNorm,
    LeaveOneOut,
    OnFailure,
    StdEMAFilter,
    ToTokens,
    WeightedAdvantages,
    group_stats,
)
from guerdon.credit.likelihood import FloorAtGroupMin, JensenAdvantage
from guerdon.credit.link import LinkBase, countable, row_totals
from guerdon.errors import ChainError, ConfigError, ShapeError
from guerdon.repository import find_root
from guerdon.rewards import Rewards, Scores
from guerdon.signals.likelihood import ReferenceProbability, aggregate, splice_reference
from guerdon.signals.likelihood.proxy import ProxyPerplexity
from guerdon.signals.likelihood.reference_likelihood import MISSING_LOGPROB, ReferenceLikelihood
from guerdon.signals.likelihood.relative_perplexity import mean_nll
from guerdon.signals.verifiable.layout import answer_tag_format, format_reward, nothing_but_tags, think_format
from guerdon.spans import Spans
from guerdon.system import Model

NAN, INF = math.nan, math.inf


class Given:
    """A sequence signal with given values."""

    def __init__(self, values: list[float]) -> None:
        self.values = torch.tensor(values)

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        return Rewards.sequence(self.values, rollouts)


class Steps(Given):
    """The same, for a part that scores steps; never called here."""

    level = "steps"


def texts(groups: list[int], **more: object) -> Rollouts:
    return Rollouts(["q"] * len(groups), ["a"] * len(groups), group_ids=torch.tensor(groups), **more)


def scores_of(rollouts: Rollouts, **sources: list[float]) -> Scores:
    scores = Scores.empty(rollouts)
    for name, values in sources.items():
        scores = scores.with_source(name, Rewards.sequence(torch.tensor(values), rollouts))
    return scores


def after(link, rollouts: Rollouts, **sources: list[float]) -> Scores:
    return link(scores_of(rollouts, **sources), rollouts)


# --- groups and their statistics -------------------------------------------------------------------------------------


def test_groups_are_known_by_id_and_stds_are_sample_ones() -> None:
    stats = group_stats(torch.tensor([1.0, 10.0, 3.0, 30.0, 5.0]), torch.tensor([7, 2, 7, 2, 7]))
    assert stats.mean.tolist() == [3, 20, 3, 20, 3]
    assert stats.std.tolist() == pytest.approx([2, 200**0.5, 2, 200**0.5, 2])  # n - 1
    once = group_stats(torch.tensor([1.0, 1.0, 4.0]), torch.zeros(3), sample_ids=torch.tensor([0, 0, 1]))
    assert once.mean.tolist() == [2.5] * 3 and once.size.tolist() == [2] * 3


def test_what_a_group_of_one_gets() -> None:
    defaults = {GroupNorm: "zero", LeaveOneOut: "zero", JensenAdvantage: "raw", WeightedAdvantages: "raw"}
    assert {link: link.__dataclass_fields__["singleton"].default for link in defaults} == defaults
    rollouts = texts([0, 0, 1])
    rewards = [1.0, NAN, 0.6]  # the first group becomes one of one, because its other row failed
    for link in (GroupNorm("x"), LeaveOneOut("x")):
        found = after(link, rollouts, x=rewards)
        assert found["x"].values[[0, 2], 0].tolist() == [0, 0] and found.keep.all()
    raw = after(GroupNorm("x", singleton="raw", eps=1e-4), rollouts, x=rewards)["x"].values
    assert raw[[0, 2], 0].tolist() == pytest.approx([1 / 1.0001, 0.6 / 1.0001])
    assert after(LeaveOneOut("x", singleton="raw"), rollouts, x=rewards)["x"].values[0, 0] == 1.0
    dropped = after(GroupNorm("x", singleton="drop"), rollouts, x=rewards)
    assert dropped.keep.tolist() == [False, True, False] and set(dropped.notes["dropped"]) == {0, 2}


def test_the_systems_keep_their_sources_rule() -> None:
    def rules(system: System) -> set[str]:
        return {link.singleton for link in system.chain if hasattr(link, "singleton")}

    assert rules(systems.rlpr()) == {"drop"} and rules(systems.sar(verifier=Given([]))) == {"raw"}
    assert rules(systems.pure(verifier=Given([]), prm=Steps([]), mode="vr", kl_coef=0)) == {"raw"}
    assert rules(systems.clip_delta(prm=Steps([]), verifier=Given([]))) == {"raw"}


def test_filters_by_spread_drop_a_group_of_one_and_flat_groups_get_0() -> None:
    rollouts = texts([0, 0, 1])
    link = StdEMAFilter("x", start=1, filter_from=1)
    filtered, _ = link(scores_of(rollouts, x=[0.0, 1.0, 0.5]), rollouts, link.init_state())
    assert filtered.keep.tolist() == [True, True, False]
    assert after(DropUniformGroups("x"), rollouts, x=[0.0, 1.0, 0.5]).keep.tolist() == [True, True, False]
    assert after(DropUniformGroups("x", singleton="keep"), rollouts, x=[0.0, 1.0, 0.5]).keep.all()
    assert after(GroupNorm("x"), rollouts, x=[0.7, 0.7, 0.5])["x"].values[:2, 0].tolist() == [0, 0]


# --- rows that leave -------------------------------------------------------------------------------------------------


def test_a_row_that_leaves_is_in_no_statistic_and_gets_no_advantage() -> None:
    rollouts = texts([0, 0, 0], trainable=torch.tensor([True, True, False]))
    system = System({"x": Given([0.0, 1.0, 100.0])}, [GroupNorm("x", std=None), ToTokens("x")])
    assert system(rollouts).advantages[:, 0].tolist() == [-0.5, 0.5, 0]


def test_a_truncated_row_is_one_that_reached_the_cap_without_ending() -> None:
    pytest.importorskip("trl")
    from guerdon.engines.trl.batch import finished_rows

    # An end at the cap; cut at the cap; shorter, whatever its last token; nothing at all.
    assert finished_rows([[5, 6, 1], [5, 6, 7], [5, 6], []], stop_ids={1}, cap=3).tolist() == [True, False, True, False]
    rollouts = texts([0, 0], finished=torch.tensor([True, False]))
    assert after(DropTruncated(), rollouts, x=[1.0, 0.0]).keep.tolist() == [True, False]
    assert after(OnFailure("row"), rollouts, x=[1.0, 0.0]).keep.all()  # nothing is done by default
    assert systems.likelihood().signals["likelihood"].scorer.truncated == "fail"
    assert systems.nover().signals["proxy"].scorer.truncated == "fail"
    assert systems.rlpr().signals["prob"].scorer.truncated == "score"


# --- padding ---------------------------------------------------------------------------------------------------------


def test_masks_come_from_lengths_so_pad_may_be_eos() -> None:
    pytest.importorskip("trl")
    from guerdon.engines.trl.batch import pad_rows

    eos = 1
    ids, mask = pad_rows([[5, eos], [eos], [5, 6, 7]], eos)
    assert ids.tolist() == [[5, eos, eos], [eos, eos, eos], [5, 6, 7]]
    assert mask.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    left, mask = pad_rows([[5], [5, 6]], eos, left=True)
    assert left.tolist() == [[eos, 5], [5, 6]] and mask.tolist() == [[False, True], [True, True]]
    with pytest.raises(ShapeError, match="without completion_mask"):
        Rollouts(["q"], ["a"], completion_ids=ids[:1])


def test_advantages_are_0_at_padding_and_in_dropped_rows() -> None:
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    rollouts = texts([0, 0, 0], completion_ids=torch.ones(3, 2, dtype=torch.long), completion_mask=mask)
    system = System({"x": Given([0.0, 1.0, NAN])}, [GroupNorm("x", std=None), ToTokens("x", "whole")])
    assert system(rollouts).advantages.tolist() == [[-0.5, -0.5], [0.5, 0.0], [0.0, 0.0]]


# --- numbers that are not there --------------------------------------------------------------------------------------


def test_empty_masks() -> None:
    pytest.importorskip("trl")
    from guerdon.engines.trl.runlog import mean_std, plain

    nothing = torch.zeros(1, 0), torch.zeros(1, 0, dtype=torch.bool)
    forms = ("mean_prob", "prob", "geo_mean_prob", "logprob", "mean_logprob")
    assert [float(aggregate(*nothing, form)) for form in forms] == [0.0] * 5
    assert float(aggregate(*nothing, "mean_logprob", empty_log=-INF)) == -INF
    assert mean_nll(torch.zeros(1, 2), torch.zeros(1, 2)).isnan()
    assert plain({"mean": mean_std(torch.tensor([NAN]))[0]}) == {"mean": None}
    rollouts = texts([0, 0])
    spans = Spans.from_lists([[(0, 0)], []], unit="char", name="steps")
    rewards = Rewards(torch.tensor([[2.0], [0.0]]), spans)
    totals, live = row_totals(Scores.empty(rollouts), rewards)
    assert totals.tolist() == [2.0, 0.0] and live.tolist() == [True, False]


@pytest.mark.parametrize("text", ["12", "<answer>12</answer><answer>12</answer>", "<think>12"])
def test_missing_and_repeated_tags_are_the_failing_value(text: str) -> None:
    assert [f(text) for f in (format_reward, answer_tag_format, think_format, nothing_but_tags)] == [0.0] * 4
    assert splice_reference(text, "12", "R1_nothink").why


def test_a_missing_closing_tag_costs_only_the_format() -> None:
    text = "<think>6+6</think><answer> 12"
    assert not splice_reference(text, "12").why and format_reward(text) == 0.0


def test_a_row_without_a_place_gets_its_groups_least_minus_one() -> None:
    rollouts = texts([0, 0, 0, 1, 1])
    link = FloorAtGroupMin("x", by="answered")
    rewards = [-3.0, -5.0, MISSING_LOGPROB, MISSING_LOGPROB, MISSING_LOGPROB]
    found = after(link, rollouts, x=rewards, answered=[1.0, 1.0, 0.0, 0.0, 0.0])
    assert found["x"].values[:, 0].tolist() == [-3, -5, -6, -100, -100]


def test_what_is_not_finite_is_in_no_mean_and_never_an_advantage() -> None:
    assert group_stats(torch.tensor([1.0, -INF, 3.0]), torch.zeros(3)).mean.tolist() == [2.0] * 3
    rollouts = texts([0, 0, 0])
    scores = scores_of(rollouts, x=[1.0, -INF, 3.0])
    assert countable(scores, scores["x"], rollouts)[:, 0].tolist() == [True, False, True]
    system = System({"x": Given([1.0, -INF, 3.0])}, [GroupNorm("x", std=None), ToTokens("x")])
    assert isinstance(system.chain[0], OnFailure)  # put there, because the chain has none
    found = system(rollouts)
    assert found.advantages[:, 0].tolist() == [-1, 0, 1] and "not finite" in found.notes["dropped"][1]
    for missing in (-INF, NAN):
        with pytest.raises(ConfigError, match="finite"):
            ReferenceLikelihood(missing=missing)

    class Late(LinkBase):
        def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
            return scores.with_source("x", scores["x"].with_values(scores["x"].values / 0))

    with pytest.raises(ChainError, match="the advantage of row 0"):
        System({"x": Given([1.0, 2.0, 3.0])}, [Late(), ToTokens("x")])(rollouts)


# --- temperature, models ---------------------------------------------------------------------------------------------


def test_which_temperature_a_part_means() -> None:
    for part in (ReferenceProbability(temperature=0.6), ReferenceLikelihood(temperature=0.6)):
        assert part.sampling_temperature == 0.6
    assert ProxyPerplexity().scorer.temperature == 1.0
    assert systems.rlpr(temperature=0.6).signals["prob"].sampling_temperature == 0.6
    assert systems.likelihood(temperature=0.6).signals["likelihood"].sampling_temperature == 0.6


def test_which_model_a_role_is() -> None:
    start = Model("policy", "phase_start")
    assert systems.rlpr().models == {"initial": start} and systems.rlpr(debias=False).models == {}
    assert systems.nover().models == {"proxy": start} and systems.likelihood().models == {}
    assert systems.sar(verifier=Given([])).models == {}
    assert systems.pure(prm=Steps([]), verifier=Given([])).models == {"reference": start}
    assert systems.pure(prm=Steps([]), verifier=Given([]), kl_coef=0).models == {}


def test_the_page_is_linked() -> None:
    root = find_root()
    assert root is not None and (root / "docs" / "conventions.md").exists()
    assert "docs/conventions.md" in (root / "README.md").read_text()
    assert "conventions.md" in (root / "docs" / "design.md").read_text()
