"""LaSeR: the position of the score, its constant, loss and class weights, mixed advantages, votes; and the loss through the trainer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laser_kit import PROMPTS, TEXTS, alone, signal, tokens

from guerdon import CapabilityError, Clock, ConfigError, Rewards, Rollouts
from guerdon.credit import MixSelfReward, Onset, auroc, self_reward_advantages, verification_metrics
from guerdon.errors import ChainError, ShapeError
from guerdon.objectives.self_reward import class_weights, self_reward_loss
from guerdon.rewards import Scores
from guerdon.signals.agreement.choice import best_of, vote_in_groups, weighted_vote
from guerdon.signals.likelihood.last_token import CUT, LastTokenScore, log_partition, reserved_token
from guerdon.systems.laser import VECTORS

transformers = pytest.importorskip("transformers")
NAN = float("nan")


# --- the score -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [True, False])
def test_the_score_stands_after_one_end_whatever_the_padding(lm: Any, ended: bool) -> None:
    found = signal(lm)(tokens(lm, ended=ended))
    expected = [0.1 * (alone(lm, row) + 5.0) for row in range(3)]
    assert found.values[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    texts = signal(lm)(Rollouts.from_texts(PROMPTS, TEXTS))
    assert texts.values[:, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_cut_completion_scores_zero_with_the_reason(lm: Any) -> None:
    found = signal(lm)(tokens(lm, cut=(1,)))
    assert found.values[1, 0] == 0.0 and found.reasons == {(1, 0): CUT}
    assert float(found.values[2, 0]) == pytest.approx(0.1 * (alone(lm, 2) + 5.0), abs=1e-5)
    nobody = signal(lm)(tokens(lm, cut=(0, 1, 2)))
    assert nobody.values[:, 0].tolist() == [0.0] * 3 and len(nobody.reasons) == 3
    assert len(signal(lm)(Rollouts.from_texts([], []))) == 0


def test_the_reference_gives_each_row_its_constant(lm: Any) -> None:
    made = signal(lm, constant="reference")
    with pytest.raises(CapabilityError, match="reference"):
        made(tokens(lm))
    made.bind("reference", lm)
    assert made(tokens(lm)).values[:, 0].tolist() == [0.0] * 3
    assert set(made.roles) == {"policy", "reference"}


def test_calibration_is_the_mean_over_finished_rows_and_survives_a_checkpoint(lm: Any) -> None:
    made = signal(lm, constant="calibrate", calibration_rows=3)
    before = made(tokens(lm))
    assert before.failed.all() and "calibrat" in before.reasons[0, 0]
    with pytest.raises(ConfigError, match="nothing to calibrate"):
        made.calibrate(tokens(lm, cut=(0, 1, 2)))
    with pytest.warns(UserWarning, match="beta="):
        metrics = made.update(tokens(lm, cut=(1,)), Scores({}, torch.ones(3)))
    values = [alone(lm, 0), alone(lm, 2)]
    assert metrics["constant"] == pytest.approx(sum(values) / 2, abs=1e-5)
    assert metrics["spread"] == pytest.approx(abs(values[0] - values[1]) / 2, abs=1e-5)
    made.update(tokens(lm), Scores({}, torch.ones(3)))
    assert made.calibration is not None and made.calibration.rows == 5
    made.update(tokens(lm), Scores({}, torch.ones(3)))
    assert made.calibration.rows == 5, "enough"
    trained = signal(lm, constant="calibrate", trained_from=Onset(0))
    with pytest.warns(UserWarning, match="beta="):
        trained.update(tokens(lm, cut=(1,)), Scores({}, torch.ones(3)))
    trained.update(tokens(lm), Scores({}, torch.ones(3)))
    assert trained.calibration is not None and trained.calibration.rows == 2, "one batch, and none after training began"
    again = signal(lm, constant="calibrate")
    again.load_state_dict(made.state_dict())
    assert again.calibration == made.calibration
    assert again(tokens(lm)).values.tolist() == made(tokens(lm)).values.tolist()


def test_partition_by_hand_and_without_overflow() -> None:
    assert log_partition(-23.0, 0.1) == pytest.approx(math.log(1 + math.exp(-23) * (math.exp(10) - 1)), rel=1e-6)
    assert log_partition(-23.0, 0.02) == pytest.approx(27.0), "too small a beta: Z is far from 1"
    assert log_partition(-2.0, 1e-4) == pytest.approx(9998.0)
    assert log_partition(-5.0, 0.1, reward=0.0) == 0.0


def test_the_score_is_read_after_the_end_and_a_row_that_is_full_has_none() -> None:
    grid, mask = [[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0], [-7.0, -8.0, -9.0]], [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    found = VECTORS["self_rewarding_loss"](grid, None, mask, [1, 0, 1], ref_constant=-12.0, kl_coef=0.1)
    assert found["self_rewarding_scores"] == [pytest.approx(1.0), None, pytest.approx(0.5)]
    assert VECTORS["self_rewarding_loss"]([[], []], None, [[], []], [1, 0])["self_rewarding_scores"] == [None, None]


def test_the_reserved_token(lm: Any) -> None:
    tokenizer = lm.tokenizer
    assert reserved_token(tokenizer) == tokenizer.unk_token_id, "a vocabulary without an unused special token"
    assert reserved_token(tokenizer, "|") == tokenizer.convert_tokens_to_ids("|") == reserved_token(tokenizer, 96)
    for wrong in ("||", 99, -1):
        with pytest.raises(ConfigError, match="token="):
            reserved_token(tokenizer, wrong)
    from guerdon.tasks.tiny import char_tokenizer

    more = char_tokenizer()
    more.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|spare|>"]})
    more.chat_template = "<|turn|>{{ messages }}"
    assert reserved_token(more) == more.convert_tokens_to_ids("<|spare|>")


@pytest.mark.parametrize("options", [{"constant": "mean"}, {"constant": 0.0}, {"constant": NAN}, {"beta": 0.0}])
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LastTokenScore(**{"constant": -23.0, **options})


# --- loss and advantages ---------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12))
def test_class_weights_give_both_classes_half_of_the_batch(rows: list[tuple[bool, bool]]) -> None:
    right, counts = torch.tensor([r for r, _ in rows]).bool(), torch.tensor([c for _, c in rows]).bool()
    weights = class_weights(right, counts)
    for label in (True, False):
        of_class = counts & (right == label)
        if of_class.any():
            assert float(weights[of_class].sum()) == pytest.approx(float(counts.sum()) / 2)
        else:
            assert float(weights[right == label].sum()) == 0


def test_loss_by_hand_and_its_gradient() -> None:
    scores = torch.tensor([0.5, 1.0, NAN], requires_grad=True)
    loss = self_reward_loss(scores, torch.tensor([1.0, 0.25, 1.0]), torch.tensor([True, True, False]))
    assert float(loss) == pytest.approx((0.25 + 0.5625) / 3)
    loss.backward()
    assert scores.grad is not None and scores.grad.tolist() == pytest.approx([2 * -0.5 / 3, 2 * 0.75 / 3, 0.0])
    assert float(self_reward_loss(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool))) == 0.0


def test_vector_functions_beyond_the_cases() -> None:
    loss = VECTORS["self_rewarding_loss"]
    none = dict(
        ref_logprobs=None, verifier_rewards=[], class_weights=None, kl_coef=0.1, ref_constant=-23.0, temperature=1.0
    )
    assert loss(logprobs=[], response_mask=[], **none) == {"self_rewarding_scores": [], "loss": torch.tensor(0.0)}
    filled = loss(logprobs=[[-1.0]], response_mask=[[1]], **{**none, "verifier_rewards": [1.0]})
    assert filled["self_rewarding_scores"] == [None] and float(filled["loss"]) == 0.0
    with pytest.raises(ConfigError, match="reference"):
        loss(logprobs=[[-1.0]], response_mask=[[0]], **{**none, "verifier_rewards": [1.0], "ref_constant": None})
    grid = dict(response_mask=[[1, 1], [1, 0]], ref_logprobs=[[0.0, 0.0], [0.0, 0.0]], ref_constant=-23.0)
    found = VECTORS["self_rewarding_advantages"](
        old_logprobs=[[-13.0, -13.0], [-1.0, -13.0]], group_ids=["a", "a"], advantages=[0.0, 0.0], kl_coef=0.1, **grid
    )
    half = math.sqrt(0.5)
    assert found["self_rewarding_advantages"].tolist() == pytest.approx([-half, half]), "a truncated row counts as 0"
    single = VECTORS["self_rewarding_advantages"](
        old_logprobs=[[-1.0, -16.0]], group_ids=["x"], advantages=[9.0],
        **{**grid, "response_mask": [[1, 0]], "ref_logprobs": [[0.0, 0.0]]},
    )  # fmt: skip
    assert float(single["self_rewarding_advantages"]) == pytest.approx(0.7), "a group of one: mean 0, std 1"


def scored(answer: list[float], own: list[float], **more: Any) -> tuple[Scores, Rollouts]:
    rollouts = Rollouts.from_texts(["p"] * len(answer), ["y"] * len(answer), group_ids=[0] * len(answer))
    rollouts = replace(rollouts, **more)
    advantages = replace(Rewards.sequence(answer, rollouts), kind="advantage")
    sources = {"answer": advantages, "self": Rewards.sequence(own, rollouts)}
    return Scores(sources, torch.ones(len(answer), dtype=torch.bool)), rollouts


def test_mixing_by_hand() -> None:
    scores, rollouts = scored([1.0, -1.0, 0.0], [2.0, -3.0, 0.5])
    mixed = MixSelfReward("answer", "self", mix=0.5)(scores, rollouts)
    assert mixed["answer"].values[:, 0].tolist() == pytest.approx([1.0, -1.0, 0.0]), "clipped to 1, 0, 1/2: std 1/2"
    assert set(mixed.sources) == {"answer"}
    free = MixSelfReward("answer", "self", mix=0.5, clip=False)(scores, rollouts)["answer"].values[:, 0]
    own = (torch.tensor([2.0, -3.0, 0.5]) + 1 / 6) / torch.tensor([2.0, -3.0, 0.5]).std()
    torch.testing.assert_close(free, 0.5 * torch.tensor([1.0, -1.0, 0.0]) + 0.5 * own)


def test_what_keeps_the_verifiers_advantage() -> None:
    flat, rollouts = scored([1.0, -1.0], [0.5, 0.6])
    assert MixSelfReward("answer", "self", mix=0.5)(flat, rollouts)["answer"].values[:, 0].tolist() == [1.0, -1.0]
    early, rollouts = scored([1.0, -1.0], [0.0, 1.0], clock=Clock(3, 10, True))
    late = MixSelfReward("answer", "self", mix=0.5, onset=Onset(4))
    assert late(early, rollouts)["answer"].values[:, 0].tolist() == [1.0, -1.0]
    later = late(early, replace(rollouts, clock=Clock(4, 10, True)))["answer"].values[:, 0].tolist()
    assert later == pytest.approx([0.5 - 0.5 * math.sqrt(0.5), -0.5 + 0.5 * math.sqrt(0.5)])
    missing, rollouts = scored([1.0, -1.0, 0.5], [0.0, 1.0, NAN])
    assert MixSelfReward("answer", "self", mix=0.5)(missing, rollouts)["answer"].values[2, 0] == 0.5
    with pytest.raises(ChainError, match="centre it first"):
        scores, rollouts = scored([1.0], [1.0])
        MixSelfReward("self", "answer")(scores, rollouts)


def test_self_advantages_of_separate_groups() -> None:
    values = torch.tensor([0.0, 1.0, 0.2, 0.2])
    given = torch.tensor([5.0, 6.0, 7.0, 8.0])
    found = self_reward_advantages(values, given, torch.tensor([1, 1, 0, 0]))
    assert found.tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5), 7.0, 8.0])


def test_onsets_follow_the_run() -> None:
    first = Onset(None, usual=200, share=1 / 8)
    second = Onset(None, usual=200, share=1 / 8, after=first)
    assert [o.at(Clock(0, 1609, True)) for o in (first, second)] == [200, 400], "the paper's run"
    assert [o.at(Clock(0, 60, True)) for o in (first, second)] == [7, 14]
    assert [o.at(Clock(0, None, True)) for o in (first, second)] == [200, 400]
    assert Onset(50).at(Clock(0, 60, True)) == 50 and Onset().reached(Clock())
    assert not second.reached(Clock(13, 60, True)) and second.reached(Clock(14, 60, True))


# --- votes -----------------------------------------------------------------------------------------------------------


def test_votes() -> None:
    assert weighted_vote(["4", "4", "5"]).winner == "4"
    assert weighted_vote(["4", "4", "5"], [0.1, None, 0.3]) == ("5", {"4": 0.1, "5": 0.3})
    assert weighted_vote(["4", "5"], [-2.0, -1.0]).winner == "5" and weighted_vote([]) == (None, {})
    assert weighted_vote(["4", "5"], [NAN, NAN]).winner is None
    assert best_of([0.1, None, 0.7, 0.7, NAN]) == 2 and best_of([None]) is None
    with pytest.raises(ShapeError):
        weighted_vote(["4"], [])


def test_votes_of_groups_that_are_not_adjacent() -> None:
    rollouts = Rollouts.from_texts(["p"] * 5, ["#1", "#2", "#1", "#2", "no"], group_ids=[7, 3, 3, 7, 7])
    weights = Rewards.sequence([0.1, 0.2, 0.9, 0.5, 5.0], rollouts)

    def answer(text: str) -> str | None:
        return text[1:] if text[0] == "#" else None

    assert {g: v.winner for g, v in vote_in_groups(rollouts, answer, weights).items()} == {7: "2", 3: "1"}
    assert {g: v.winner for g, v in vote_in_groups(rollouts, answer).items()} == {7: "1", 3: "2"}


def test_metrics_of_scores() -> None:
    found = verification_metrics([0.9, None, 0.7, NAN], [1, 1, 0, 0])
    assert found == (0.5, 0.5, 0.5, 0.5)
    assert auroc([0.9, 0.5, 0.5], [1, 1, 0]) == 0.75 and math.isnan(auroc([1.0], [1]))
    with pytest.raises(ShapeError):
        verification_metrics([1.0], [])
