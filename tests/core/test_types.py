"""Rollouts, Spans, Rewards, Scores: shapes refused, rows moved without loss, the three kinds of cell kept apart."""

import math

import pytest
import torch

from guerdon import Clock, LogProbs, MissingColumn, Rewards, Rollouts, Scores, ShapeError, Spans, concat_rollouts
from guerdon.errors import CapabilityError, ChainError

NAN = float("nan")


def rollouts(lengths=(3, 0, 2), width=4, groups=(0, 1, 0)) -> Rollouts:
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    ids = torch.arange(len(lengths) * width).reshape(len(lengths), width)
    return Rollouts(
        prompts=["p"] * len(lengths),
        completions=["x" * n for n in lengths],
        completion_ids=ids,
        completion_mask=mask,
        group_ids=torch.tensor(groups),
        finished=torch.tensor([True] * len(lengths)),
        logprobs={"old": LogProbs(-torch.ones(len(lengths), width), 0.7)},
        columns={"answer": [str(i) for i in range(len(lengths))]},
    )


def test_spans_from_ends_tile_the_row_and_ignore_padding():
    ends = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    spans = Spans.from_ends(ends, valid, "steps")
    assert spans.to_lists() == [[(0, 1), (2, 3)], [(0, 0), (1, 1)], []]
    assert spans.counts.tolist() == [2, 2, 0]
    assert spans.lengths.tolist() == [[2, 2], [1, 1], [0, 0]]


def test_spans_round_trip_lists_and_select():
    rows = [[(0, 2), (5, 7)], [], [(1, 1)]]
    spans = Spans.from_lists(rows, unit="char", name="tags")
    assert spans.to_lists() == rows
    assert spans.select([2, 0]).to_lists() == [rows[2], rows[0]]


def test_an_empty_completion_still_has_a_sequence_span():
    spans = Spans.sequence(torch.tensor([3, 0]))
    assert spans.mask.all()
    assert spans.to_lists() == [[(0, 2)], [(0, -1)]]
    assert spans.lengths.tolist() == [[3], [0]]


def test_rollouts_refuse_tensors_that_do_not_fit():
    with pytest.raises(ShapeError, match="2 prompts for 1 completions"):
        Rollouts(["a", "b"], ["c"])
    with pytest.raises(ShapeError, match="without completion_mask"):
        Rollouts(["a"], ["c"], completion_ids=torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ShapeError, match="values is 3 tokens wide"):
        Rollouts(["a"], ["c"], completion_mask=torch.ones(1, 2), values=torch.zeros(1, 3))
    with pytest.raises(ShapeError, match="column 'answer' has 2 values"):
        Rollouts(["a"], ["c"], columns={"answer": ["1", "2"]})
    with pytest.raises(ShapeError, match="logprobs"):
        Rollouts(["a"], ["c"], logprobs={"old": LogProbs(torch.zeros(1, 5), 1.0)})


def test_rollouts_without_tokens_are_legal_and_one_position_wide():
    batch = Rollouts.from_texts(["p", "p"], ["a", "b"], {"answer": ["1", "2"]}, group_ids=[0, 0])
    assert not batch.has_tokens and batch.mask.shape == (2, 1)
    assert Rewards.sequence([1.0, 0.0], batch).values.shape == (2, 1)


def test_policy_mask_never_exceeds_completion_mask():
    batch = Rollouts(["p"], ["x"], completion_mask=torch.tensor([[1, 0]]), policy_mask=torch.ones(1, 2))
    assert batch.policy_mask.tolist() == [[True, False]]


def test_select_moves_every_field_together():
    batch = rollouts().select([2, 0])
    assert batch.completions == ["xx", "xxx"]
    assert batch.columns["answer"] == ["2", "0"]
    assert batch.completion_ids[:, 0].tolist() == [8, 0]
    assert batch.group_ids.tolist() == [0, 0]
    assert batch.logprobs["old"].values.shape == (2, 4) and batch.logprobs["old"].temperature == 0.7


def test_concat_pads_to_the_widest_and_keeps_what_all_have():
    a, b = rollouts(), rollouts(lengths=(5, 1), width=6, groups=(7, 7))
    both = concat_rollouts([a, b.with_spans(steps=Spans.sequence(torch.tensor([5, 1])))])
    assert both.mask.sum(1).tolist() == [3, 0, 2, 5, 1]
    assert both.mask.shape == (5, 6) and both.logprobs["old"].values.shape == (5, 6)
    assert both.group_ids.tolist() == [0, 1, 0, 7, 7]
    assert both.spans == {}, "a segmentation only one part has cannot be kept"
    assert both.columns["answer"] == ["0", "1", "2", "0", "1"]


def test_missing_things_are_named():
    batch = rollouts()
    with pytest.raises(MissingColumn, match=r"no column 'gold' \(they have: answer\)"):
        batch.column("gold")
    with pytest.raises(CapabilityError, match=r"no log-probabilities of 'reference' \(have: \['old'\]\)"):
        batch.logprob("reference")
    with pytest.raises(CapabilityError, match="no segmentation 'steps'"):
        batch.segment("steps")


def test_the_clock_keys_draws_by_step_mode_and_name():
    def draw(clock: Clock, *key: object) -> float:
        return torch.rand((), generator=clock.generator(*key)).item()

    assert draw(Clock(step=3, seed=1), "noise") == draw(Clock(step=3, seed=1), "noise")
    others = [Clock(step=4, seed=1), Clock(step=3, seed=2), Clock(step=3, seed=1, training=True)]
    values = {
        draw(Clock(step=3, seed=1), "noise"),
        draw(Clock(step=3, seed=1), "other"),
        *(draw(c, "noise") for c in others),
    }
    assert len(values) == 5


def test_rewards_tell_masked_failed_and_scored_cells_apart():
    spans = Spans.from_lists([[(0, 0), (1, 2)], [(0, 0)]], unit="token", name="steps")
    rewards = Rewards(torch.tensor([[1.0, NAN], [0.5, NAN]]), spans, {(0, 1): "timed out"})
    assert rewards.failed.tolist() == [[False, True], [False, False]], "a masked NaN is padding, not a failure"
    assert rewards.usable.tolist() == [[True, False], [True, False]]
    total = rewards.row_total()
    assert math.isnan(total[0]) and total[1] == 0.5


def test_row_total_depends_on_the_kind():
    spans = Spans.from_lists([[(0, 0), (1, 1)], []], unit="token", name="steps")
    values = torch.tensor([[3.0, 2.0], [9.0, 9.0]])
    assert Rewards(values, spans).row_total().tolist() == [5.0, 0.0]
    assert Rewards(values, spans, kind="return").row_total().tolist() == [3.0, 0.0]
    with pytest.raises(ChainError):
        Rewards(values, spans, kind="advantage").row_total()


def test_select_of_rewards_moves_reasons_with_their_rows():
    rewards = Rewards.sequence(torch.tensor([1.0, NAN, 0.0]), rollouts(), [None, "no reference", "no answer"])
    assert rewards.select([2, 1]).reasons == {(0, 0): "no answer", (1, 0): "no reference"}


def test_integer_rewards_are_refused():
    with pytest.raises(ShapeError, match="floating point"):
        Rewards.sequence(torch.tensor([1, 0, 1]), rollouts())


def test_advantages_are_the_only_token_source_with_dropped_rows_at_zero():
    batch = rollouts()
    scores = Scores.empty(batch).with_source("credit", Rewards.tokens(torch.ones(3, 4), batch, "advantage"))
    scores = scores.dropping(torch.tensor([True, False, False]), "uniform group")
    assert scores.advantages.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert scores.notes["dropped"] == {0: "uniform group"}
    with pytest.raises(ChainError, match="one token-level source"):
        _ = scores.with_source("other", Rewards.tokens(torch.ones(3, 4), batch)).advantages
