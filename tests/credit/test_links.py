"""Links on rollouts: where credit lands, what is refused, what failure does, and which scalar is reported as the reward."""

import pytest
import torch
from link_kit import NAN, STEP_VALUES, Given, batch, scored

from guerdon import CapabilityError, ChainError, Clock, LogProbs, Rollouts, Spans, System
from guerdon.credit import (
    GAE,
    Accumulate,
    Ceil,
    CenterOn,
    Clip,
    DropTruncated,
    DropUniformGroups,
    Fuse,
    Gate,
    GroupNorm,
    KLPenalty,
    LeaveOneOut,
    LengthPenalty,
    MaskEnds,
    Minus,
    On,
    OnFailure,
    PerRewardNorm,
    RunningNorm,
    Scale,
    Shape,
    Squash,
    StdEMAFilter,
    ToTokens,
    Watch,
    WatchSteps,
    Whiten,
)


def test_placement_at_ends_and_on_whole_spans():
    rollouts = batch()
    scores = scored(rollouts, steps=STEP_VALUES, answer=[1.0, 2.0, 3.0, 4.0])
    ends = ToTokens("steps")(scores, rollouts)["steps"]
    assert ends.values.tolist() == [[0, 0.5, 0, -1], [0, 2, 0, 0], [0.25, 0, 0.75, 0], [0, 0, 0, 0]]
    assert ends.kind == "reward" and ends.row_total().tolist() == [-0.5, 2, 1, 0]
    whole = ToTokens("steps", "whole")(scores, rollouts)["steps"]
    assert whole.values.tolist() == [[0.5, 0.5, -1, -1], [2, 2, 0, 0], [0.25, 0.75, 0.75, 0], [0, 0, 0, 0]]
    last = ToTokens("answer")(scores, rollouts)["answer"]
    assert last.values.tolist() == [[0, 0, 0, 1], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0]], (
        "an empty completion has no token"
    )
    spread = ToTokens("answer", "whole")(scores, rollouts)["answer"]
    assert spread.kind == "return" and spread.values[2].tolist() == [3, 3, 3, 0]


def test_an_advantage_has_no_end_unless_something_accumulates_it():
    rollouts = batch()
    scores = scored(rollouts, answer=[1.0, 2.0, 3.0, 4.0])
    for centre in (GroupNorm("answer"), LeaveOneOut("answer"), Whiten("answer")):
        advantage = centre(scores, rollouts)
        placed = ToTokens()(advantage, rollouts)["answer"]
        assert placed.kind == "advantage"
        assert torch.equal(placed.values, advantage["answer"].values.expand(4, 4) * rollouts.mask)
    returns = Accumulate("steps")(scored(rollouts, steps=STEP_VALUES), rollouts)
    assert ToTokens()(returns, rollouts)["steps"].values[0].tolist() == [-0.5, -0.5, -1, -1]

    signal = {"a": Given([1.0, 0.0, 3.0, 4.0])}
    spread = System(signal, [GroupNorm(), ToTokens()])(rollouts)
    summed = System(signal, [GroupNorm(), ToTokens(), Accumulate()])
    assert torch.equal(summed(rollouts).advantages, spread.advantages), "put at ends, and carried back by the sums"
    assert "placement='end'" in repr(summed.chain[2])
    explicit = System(signal, [GroupNorm(), ToTokens(placement="end")])(rollouts)
    assert int((explicit.advantages != 0).sum()) <= 3, "whoever asks for ends gets ends"


def test_an_end_is_the_policys_last_token():
    policy = torch.tensor([[True, True, False, False], [True, False, True, False], [False, False, True, True]])
    ids = torch.ones(3, 4, dtype=torch.long)
    rollouts = Rollouts(["q"] * 3, ["abcd"] * 3, completion_ids=ids, completion_mask=ids.bool(), policy_mask=policy)
    placed = ToTokens("a")(scored(rollouts, a=[1.0, 2.0, 3.0]), rollouts)["a"]
    assert placed.values.tolist() == [[0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 3]]


def test_coinciding_ends_add_and_overlapping_wholes_add():
    rollouts = batch([4], [0], [[(0, 2), (1, 2), (3, 3)]])
    scores = scored(rollouts, steps=[[1.0, 10.0, 100.0]])
    assert ToTokens("steps")(scores, rollouts)["steps"].values.tolist() == [[0, 0, 11, 100]]
    assert ToTokens("steps", "whole")(scores, rollouts)["steps"].values.tolist() == [[1, 11, 11, 100]]


def test_character_spans_become_tokens_through_offsets():
    # "ab€cd": tokens "a", "b€" , "€"'s second half, "c", "d", and an end-of-sequence token without width
    offsets = torch.tensor([[[0, 1], [1, 3], [2, 3], [3, 4], [4, 5], [5, 5]]])
    rollouts = Rollouts(
        ["p"],
        ["ab€cd"],
        completion_ids=torch.ones(1, 6, dtype=torch.long),
        completion_mask=torch.ones(1, 6, dtype=torch.bool),
        offsets=offsets,
        spans={"steps": Spans.from_lists([[(0, 2), (3, 4)]], unit="char", name="steps")},
    )
    scores = scored(rollouts, steps=[[1.0, 2.0]])
    assert ToTokens("steps")(scores, rollouts)["steps"].values.tolist() == [[0, 0, 1, 0, 2, 0]]
    assert ToTokens("steps", "whole")(scores, rollouts)["steps"].values.tolist() == [[1, 1, 1, 2, 2, 0]]
    blind = Rollouts(
        ["p"], ["ab€cd"], completion_ids=rollouts.completion_ids, completion_mask=rollouts.mask, spans=rollouts.spans
    )
    with pytest.raises(CapabilityError, match="offsets"):
        ToTokens("steps")(scores, blind)


def test_fuse_places_a_sequence_source_by_what_the_tokens_mean():
    rollouts = batch()
    scores = scored(rollouts, steps=STEP_VALUES, answer=[1.0, 2.0, 3.0, 4.0])
    rewards = Fuse("steps", "answer", weights=(2, 1), into="credit")(ToTokens("steps")(scores, rollouts), rollouts)
    assert rewards["credit"].values[0].tolist() == [0, 1, 0, -1], "2 * -1 + 1 on the last token"
    assert list(rewards.sources) == ["credit"]
    returns = Accumulate("steps")(ToTokens("steps")(scores, rollouts), rollouts)
    fused = Fuse("steps", "answer")(returns, rollouts)["steps"]
    assert fused.kind == "return" and fused.values[0].tolist() == [0.5, 0.5, 0, 0], (
        "-0.5, -0.5, -1, -1 plus 1 on every token"
    )
    assert fused.values[3].tolist() == [0, 0, 0, 0]
    mixed = ToTokens("answer")(returns, rollouts)
    with pytest.raises(ChainError, match="do not add"):
        Fuse("steps", "answer")(mixed, rollouts)


def test_gates():
    rollouts = batch()
    scores = scored(rollouts, steps=STEP_VALUES, answer=[1.0, 0.0, NAN, 1.0])
    gated = Gate("steps", by="answer", threshold=0.5)(scores, rollouts)
    values = gated["steps"].values
    assert values[0].tolist() == [0.5, -1] and values[1, 0] == 0
    assert values[2].isnan().all(), "an unknown gate gives an unknown reward"
    masked = Gate("steps", by="answer", threshold=0.5, otherwise=None, drop=True)(scores, rollouts)
    assert masked["steps"].mask[1].tolist() == [False, False] and list(masked.sources) == ["steps"]


def test_what_a_failed_instrument_does():
    rollouts = batch()
    scores = scored(rollouts, a=[1.0, NAN, 3.0, float("-inf")], b=[1.0, 1.0, 1.0, NAN])
    by_row = OnFailure("row")(scores, rollouts)
    assert by_row.keep.tolist() == [True, False, True, False]
    assert by_row.metrics == {"failed/a": 2, "failed/b": 1}
    assert by_row.notes["dropped"][3].startswith("a: a number that is not finite")
    assert OnFailure("group")(scores, rollouts).keep.tolist() == [False] * 4
    by_source = OnFailure("source")(scores, rollouts)
    assert by_source.keep.tolist() == [True, True, True, False], "a row that nothing scores any more is dropped"
    assert by_source["a"].mask[:, 0].tolist() == [True, False, True, False]
    only = OnFailure("row", ("b",))(scores, rollouts)
    assert only.keep.tolist() == [True, True, True, False]
    fused = Fuse("a", "b")(by_source, rollouts)["a"]
    assert fused.values[:3, 0].tolist() == [2, 1, 4]


def test_dropped_rows_leave_every_statistic():
    rollouts = batch([2, 2, 2, 2], (0, 0, 0, 0), None)
    for link in (GroupNorm("a"), LeaveOneOut("a"), Whiten("a"), PerRewardNorm(("a",), into="a")):
        clean = batch([2, 2, 2], (0, 0, 0), None)
        expected = link(scored(clean, a=[1.0, 2.0, 6.0]), clean)["a"].values[:, 0]
        scores = scored(rollouts, a=[1.0, 2.0, 6.0, 1e6]).dropping(torch.tensor([False, False, False, True]), "test")
        torch.testing.assert_close(link(scores, rollouts)["a"].values[:3, 0], expected)


def test_leave_one_out_by_hand():
    rollouts = batch([2, 2, 2, 2], (0, 0, 0, 1), None)
    scores = scored(rollouts, a=[1.0, 2.0, 6.0, 5.0])
    assert LeaveOneOut("a")(scores, rollouts)["a"].values[:, 0].tolist() == [-3, -1.5, 4.5, 0]
    assert LeaveOneOut("a", singleton="raw")(scores, rollouts)["a"].values[3, 0] == 5
    dropped = LeaveOneOut("a", singleton="drop")(scores, rollouts)
    assert dropped.keep.tolist() == [True, True, True, False]
    tokens = Accumulate("a")(ToTokens("a")(scores, rollouts), rollouts)
    padded = LeaveOneOut("a", "padded_tokens", singleton="raw")(tokens, rollouts)["a"].values
    # S = 2, 4, 12 (two tokens each); baseline of row 0 = (4 + 12) / (2 * 2)
    assert padded[:3, 0].tolist() == [1 - 4, 2 - 3.5, 6 - 1.5] and padded[3].tolist() == [5, 5]
    wide = LeaveOneOut("a", "padded_tokens", padded_length=4, singleton="raw")(tokens, rollouts)["a"].values
    assert wide[0].tolist() == [-1, -1]


def test_token_and_step_baselines_of_steps():
    rollouts = batch([4, 2], (0, 0), [[(0, 1), (2, 3)], [(0, 1)]])
    scores = scored(rollouts, steps=[[0.5, -1.0], [2.0, 9.0]])
    per_token = LeaveOneOut("steps", "per_token")(scores, rollouts)["steps"].values
    # row 0 pays 2.0 / 2 tokens for 1 token a step (delimiter left out); row 1 pays -0.5 / 4 tokens
    assert per_token[0].tolist() == [-0.5, -2.0] and per_token[1, 0] == 2.0 + 0.125
    per_step = LeaveOneOut("steps", "per_step")(scores, rollouts)["steps"].values
    assert per_step[0].tolist() == [-1.5, -3.0] and per_step[1, 0] == 2.25


def test_an_empty_completion_is_a_sample_worth_nothing():
    rollouts = batch([2, 0, 2], (0, 0, 0), None)
    scores = scored(rollouts, a=[1.0, 1.0, 4.0])
    tokens = Accumulate("a")(ToTokens("a")(scores, rollouts), rollouts)
    values = LeaveOneOut("a", "padded_tokens", singleton="raw")(tokens, rollouts)["a"].values
    assert values[0, 0] == 1 - (0 + 8) / (2 * 2) and values[1].tolist() == [0, 0]


def test_filters():
    rollouts = batch([2, 2, 2, 2, 2], (0, 0, 1, 1, 2), None, finished=torch.tensor([True, True, False, True, True]))
    scores = scored(rollouts, a=[1.0, 1.0, 0.0, 1.0, 5.0])
    assert DropUniformGroups("a")(scores, rollouts).keep.tolist() == [False, False, True, True, False]
    assert DropUniformGroups("a", singleton="keep")(scores, rollouts).keep.tolist() == [False, False, True, True, True]
    assert DropTruncated()(scores, rollouts).keep.tolist() == [True, True, False, True, True]
    unknown = batch([2, 2, 2, 2, 2], (0, 0, 1, 1, 2), None)
    with pytest.raises(CapabilityError, match="finished"):
        DropTruncated()(scores, unknown)


def test_std_filter_follows_its_average():
    rollouts = batch([1, 1, 1, 1, 1], (0, 0, 1, 1, 2), None)
    link = StdEMAFilter("a", beta=1.0, ratio=0.5, start=1, filter_from=3)
    state = link.init_state()
    scores = scored(rollouts, a=[0.0, 2.0, 0.0, 0.2, 1.0])  # stds 1.414 and 0.141; the lone row has none
    for _ in range(2):
        out, state = link(scores, rollouts, state)
        assert out.keep.all()
    out, state = link(scores, rollouts, state)
    assert out.metrics["std_filter/threshold"] == pytest.approx((1.41421356 + 0.14142136) / 2)
    assert out.keep.tolist() == [True, True, False, False, False]
    assert out.metrics["std_filter/kept"] == pytest.approx(0.4)


def test_watch_logs_what_stands_there_and_changes_nothing():
    rollouts = batch([1, 1, 1, 1], (0, 0, 1, 1), None)
    scores = scored(rollouts, a=[0.0, 0.5, 1.0, float("nan")])
    scores = scores.dropping(torch.tensor([False, False, True, False]), "a test")
    out = Watch("a", "shaped")(scores, rollouts)
    assert out.metrics == {"shaped/mean": 0.25, "shaped/zero": 0.5}  # the dropped row and the failed one are not in it
    assert out.sources is scores.sources and out.keep.equal(scores.keep)
    none = scores.dropping(torch.ones(4, dtype=torch.bool), "a test")
    assert Watch("a", "shaped")(none, rollouts).metrics == {}
    with pytest.raises(ChainError, match="no source 'b'"):
        Watch("b", "shaped").plan({"a": "sequence"})


def test_running_norm_is_committed_once():
    class Always(Given):
        pass

    system = System({"a": Always([1.0, 3.0])}, [RunningNorm("a", "minmax"), GroupNorm("a"), ToTokens("a", "whole")])
    rollouts = batch([1, 1], (0, 0), None, clock=Clock(training=True))
    scores = system(rollouts)
    assert scores.reward.tolist() == [0, 1]
    assert system._state[1]["size"] == 0, "nothing moves before commit"
    system.commit(scores)
    assert system._state[1] == {"size": 2, "mean": 2.0, "m2": 2.0, "least": 1.0, "greatest": 3.0}
    system.load_state_dict(system.state_dict())


def test_kl_penalty_and_gae():
    old = torch.tensor([[-1.0, -0.5]])
    reference = torch.tensor([[-1.2, -0.6]])
    rollouts = batch([2], (0,), None, logprobs={"old": LogProbs(old, 1.0), "reference": LogProbs(reference, 1.0)})
    scores = ToTokens("a")(scored(rollouts, a=[0.8]), rollouts)
    penalised = KLPenalty("a", 0.005, "k1", clamp=None)(scores, rollouts)
    assert penalised["a"].values[0].tolist() == pytest.approx([-0.001, 0.7995])
    assert penalised["a"].row_reward().tolist() == pytest.approx([0.8]), (
        "the reward shown is the reward, not the regulariser"
    )
    assert penalised.metrics["kl"] == pytest.approx(0.15)
    hot = batch([2], (0,), None, logprobs={"old": LogProbs(old, 0.7), "reference": LogProbs(reference, 1.0)})
    with pytest.raises(ChainError, match=r"0\.7"):
        KLPenalty("a")(scores, hot)
    critic = batch([2], (0,), None, values=torch.tensor([[0.1, 0.2]]))
    out = GAE("a", 1.0, 1.0)(ToTokens("a")(scored(critic, a=[1.0]), critic), critic)
    assert out["a"].values[0].tolist() == pytest.approx([0.9, 0.8]) and out.notes["returns"].tolist() == [[1, 1]]
    with pytest.raises(CapabilityError, match="critic"):
        GAE("a")(scores, rollouts)


def test_masked_separators_leave_the_whitening():
    rollouts = batch([4], (0,), [[(0, 1), (2, 3)]])
    scores = Accumulate("steps")(ToTokens("steps")(scored(rollouts, steps=[[1.0, 3.0]]), rollouts), rollouts)
    masked = MaskEnds("steps")(scores, rollouts)
    assert masked["steps"].mask.tolist() == [[True, False, True, False]]
    assert Whiten("steps", std="population")(masked, rollouts).advantages[0].tolist() == pytest.approx([1, 0, -1, 0])


def test_references_of_a_row_may_be_missing():
    rollouts = batch([1, 1, 1], (0, 0, 0), None, columns={"ref_rewards": [[0.0], [], None]})
    out = On("a", CenterOn())(scored(rollouts, a=[0.0, 1.0, 2.0]), rollouts)["a"]
    assert out.values[0, 0] == 0.5 and out.values[1:, 0].isnan().all()
    assert out.reasons[1, 0] == "no usable scores in column 'ref_rewards'"


def test_small_transforms():
    rollouts = batch([1, 1], (0, 0), None, columns={"base": [1.0, None]})
    scores = scored(rollouts, a=[2.0, -4.0])
    for transform, expected in (
        (Scale(0.5, 0.25), [1.25, -1.75]),
        (Clip(1.0), [0, -5]),
        (Ceil(1.5), [1.5, -4]),
        (Shape("threshold_0"), [2, 0]),
        (Shape(torch.neg), [-2, 4]),
        (LengthPenalty(0, 0.5), [1.5, -4.5]),
        (Squash("tanh", 1000.0), [1, -1]),
    ):
        assert On("a", transform)(scores, rollouts)["a"].values[:, 0].tolist() == pytest.approx(expected)
    minus = On("a", Minus("base"))(scores, rollouts)["a"]
    assert minus.values[0, 0] == 1 and minus.failed[1, 0] and "base" in minus.reasons[1, 0]
    assert "0x" not in repr(On("a", Shape(lambda x: x))), "an address would make every checkpoint another chain's"


def test_watching_steps_warns_of_a_delimiter_that_never_occurs():
    rollouts = batch([4, 2, 3, 1], (0, 0, 1, 1), [[(0, 3)], [(0, 1)], [(0, 2)], [(0, 0)]])
    scores = scored(rollouts, steps=[[1.0], [2.0], [3.0], [4.0]])
    with pytest.warns(UserWarning, match="delimiter"):
        out = WatchSteps("steps")(scores, rollouts)
    assert out.metrics == {"steps/steps_mean": 1, "steps/steps_median": 1}
