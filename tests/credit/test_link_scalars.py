"""The scalar a chain reports as optimised, and the chains and options that are refused."""

import pytest
import torch
from link_kit import STEP_VALUES, Given, batch, scored

from guerdon import ChainError, ConfigError, System
from guerdon.credit import (
    GAE,
    Accumulate,
    CenterOn,
    Clip,
    Delta,
    Drop,
    Fuse,
    Gate,
    GroupNorm,
    KLPenalty,
    LeaveOneOut,
    MinForm,
    MinReturn,
    On,
    OnFailure,
    PerRewardNorm,
    RunningNorm,
    Scale,
    ToTokens,
    WeightedAdvantages,
    Whiten,
)
from guerdon.signals import Diagnostic

# -- the scalar that is reported ------------------------------------------------------------------------------------------

TAIL = [LeaveOneOut("credit", "padded_tokens", singleton="raw"), Whiten("credit")]
BOTH = [ToTokens("steps"), ToTokens("answer"), Fuse("steps", "answer", into="credit")]


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ([*BOTH, Accumulate("credit"), *TAIL], [-0.5 + 1, 2.0, 1.0 + 1, 0]),  # sum form
        ([On("steps", MinForm(0.01)), *BOTH, Accumulate("credit"), *TAIL], [-1.0 + 1, 2.0, 0.25 + 1, 0]),  # min form
        ([*BOTH, MinReturn("credit"), *TAIL], [0.0, 0.0, 0.0, 0]),  # strict: 0 on ordinary tokens, -1 + 1 on the last
        ([On("steps", Clip(0.5)), On("steps", Delta()), *BOTH, Accumulate("credit"), *TAIL], [0 + 1, 0, -0.25 + 1, 0]),
        ([Drop("steps"), GroupNorm("answer"), ToTokens("answer", "whole")], [1, 0, 1, 0]),  # outcome only
        (
            [GroupNorm("steps"), ToTokens("steps", "whole"), LeaveOneOut("answer"), Fuse("steps", "answer")],
            [0.5, 2, 2, 0],
        ),
        # spread: read off before. Row 3 has no steps, and what is dropped is not optimised.
        ([ToTokens("steps", "whole"), Drop("answer"), Whiten("steps")], [-0.5, 2.0, 1.0, float("nan")]),
        # weights count wherever they stand: before centring, after it, inside a link that centres
        (
            [
                On("steps", Clip(9)),
                ToTokens("steps"),
                Fuse("steps", "answer", weights=(0, 3), into="credit"),
                Whiten("credit"),
            ],
            [3.0, 0, 3.0, 0],
        ),
        (
            [
                GroupNorm("answer"),
                GroupNorm("steps"),
                ToTokens("steps", "whole"),
                Fuse("answer", "steps", weights=(0.5, 2)),
            ],
            [-0.5, 4, 2.5, 0],
        ),
        ([GroupNorm("answer"), On("answer", Scale(0.25)), Drop("steps"), ToTokens("answer")], [0.25, 0, 0.25, 0]),
    ],
)
def test_the_optimised_scalar(chain, expected):
    signals = {"steps": Given(STEP_VALUES, "steps"), "answer": Given([1.0, 0.0, 1.0, 0.0])}
    scores = System(signals, chain, segments={"steps": None})(batch())
    assert scores.reward.tolist() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert torch.isfinite(scores.advantages).all() and scores.advantages[3].abs().sum() == 0


NONE = float("nan")


@pytest.mark.parametrize(
    "norm", [PerRewardNorm(("a", "b"), (0.7, 0.3), "credit"), WeightedAdvantages(("a", "b"), (0.7, 0.3))]
)
def test_weights_inside_a_centring_link_are_in_the_reward(norm):
    signals = {"a": Given([1.0, 0.0, 1.0, 0.0]), "b": Given([0.0, 0.0, 1.0, 1.0])}
    scores = System(signals, [norm, ToTokens("credit", "whole")])(batch())
    assert scores.reward.tolist() == pytest.approx([0.7, 0, 1.0, 0.3])


def test_a_diagnostic_is_in_no_sum_and_drops_no_row():
    signals = {"a": Given([1.0, 0.0, 1.0, 0.0]), "b": Diagnostic(Given([5.0, NONE, 5.0, 5.0]))}
    system = System(signals, [GroupNorm("a"), ToTokens("a", "whole")])
    scores = system(batch())
    assert scores.reward.tolist() == [1, 0, 1, 0] and scores.keep.all()
    assert scores.raw["b"].failed.any() and "b" not in scores.sources
    with pytest.raises(ChainError, match="no source 'b'"):
        System(signals, [Fuse("a", "b"), GroupNorm("a"), ToTokens("a", "whole")])


def test_a_source_left_over_is_refused_with_three_ways_out():
    signals = {"a": Given([1.0, 0.0, 1.0, 0.0]), "b": Given([5.0, 5.0, 5.0, 5.0])}
    with pytest.raises(ChainError, match=r"leaves 'b' over.*Fuse.*Drop\('b'\).*Diagnostic"):
        System(signals, [GroupNorm("a"), ToTokens("a", "whole")])
    System(signals, [GroupNorm("a"), Drop("b"), ToTokens("a", "whole")])


def test_a_stated_reward_is_what_is_reported():
    signals = {"a": Given([1.0, 0.0, 1.0, NONE]), "b": Given([5.0, 5.0, 5.0, 5.0])}
    chain = [Fuse("a", "b"), GroupNorm("a"), ToTokens("a", "whole")]
    assert System(signals, chain, reward="b")(batch()).reward.tolist() == [5.0] * 4
    mixed = System(signals, chain, reward={"a": 2.0, "b": 0.1})(batch())
    assert mixed.reward.tolist() == pytest.approx([2.5, 0.5, 2.5, NONE], nan_ok=True)
    with pytest.raises(ChainError, match="names \\['c'\\]"):
        System(signals, chain, reward="c")


# -- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ([GroupNorm()], "name the source"),
        ([Fuse("steps", "answer")], "cannot fuse levels"),
        ([KLPenalty("answer")], "ToTokens"),
        ([GAE("answer")], "ToTokens"),
        ([LeaveOneOut("answer", "padded_tokens")], "ToTokens"),
        ([ToTokens("steps"), LeaveOneOut("steps", "per_token")], "before ToTokens"),
        ([PerRewardNorm(("steps",))], "one value a row"),
        ([Gate("answer", by="steps")], "level"),
        ([OnFailure("source", ("nothere",))], "nothere"),
        ([Drop("steps"), On("steps", Clip())], "no source 'steps'"),
        ([RunningNorm("steps")], "one value a row"),
    ],
)
def test_wrong_chains_are_refused_before_a_run(chain, message):
    signals = {"steps": Given(STEP_VALUES, "steps"), "answer": Given([1.0, 0.0, 1.0, 0.0])}
    with pytest.raises(ChainError, match=message):
        System(signals, chain, segments={"steps": None})


def test_wrong_options_are_refused():
    for make in (
        lambda: OnFailure("ignore"),
        lambda: LeaveOneOut("a", "other"),
        lambda: Accumulate("a", 1.5),
        lambda: Fuse("a"),
        lambda: Fuse("a", "b", weights=(1,)),
        lambda: Gate("a", by="b", when="near"),
        lambda: RunningNorm("a", "median"),
        lambda: CenterOn(kind="cubic"),
    ):
        with pytest.raises(ConfigError):
            make()
    with pytest.raises(ConfigError):
        ToTokens("a", "start")


def test_scopes_and_needs():
    assert GroupNorm("a").scope == "group" and GroupNorm("a", std_over="batch").scope == "batch"
    assert OnFailure("group").scope == "group" and OnFailure().scope == "row"
    assert KLPenalty("a").needs == {"logprobs.old", "logprobs.reference"} and GAE("a").needs == {"values"}
    assert repr(On("steps", Clip(0.5))) == "On('steps', Clip(eta=0.5))"


def test_tool_tokens_are_in_no_statistic_and_get_no_advantage():
    policy = torch.tensor([[True, False, True], [True, True, True]])
    rollouts = batch([3, 3], (0, 0), None, policy_mask=policy)
    scores = ToTokens("a", "whole")(scored(rollouts, a=[1.0, 0.0]), rollouts)
    out = Whiten("a")(scores, rollouts)["a"].values
    assert out[0, 1] == 0
    plain = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])
    assert out[0, 0].item() == pytest.approx(((1 - plain.mean()) / plain.std()).item(), rel=1e-5)
