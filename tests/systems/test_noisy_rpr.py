"""Noisy rewards and RPR on rollouts: the published modes, what is never flipped, calibration, and the carriers."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch

from guerdon import Clock, ConfigError, Rewards, Rollouts, Scores, systems
from guerdon.credit import Calibrate
from guerdon.signals import Exact
from guerdon.systems.noisy_rpr import VECTORS, flip_group_rewards, math_score, rpr_calibrated


class Boxed:
    """A verifier of boxed answers that counts its calls."""

    scope, level = "row", "sequence"
    calls = 0

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        self.calls += 1
        return Exact(extract="boxed")(rollouts, scores)


TEXTS = ["thus \\boxed{4}", "wait, thus \\boxed{5}", "no box, hence nothing", "\\boxed{}"]


def batch(step: int = 0, training: bool = True, texts=TEXTS) -> Rollouts:
    return Rollouts(
        ["2+2="] * len(texts), list(texts), group_ids=torch.zeros(len(texts)).long(),
        columns={"answer": ["4"] * len(texts)}, clock=Clock(step, 100, training),
    )  # fmt: skip


def reward(rollouts: Rollouts, **options) -> list[float]:
    return systems.noisy_rpr(verifier=Boxed(), **options)(rollouts).reward.tolist()


def test_the_three_modes_with_and_without_a_flip() -> None:
    assert reward(batch()) == [1, 0, 0, 0]
    assert reward(batch(), flip_prob=1.0) == [0, 1, 0, 0], "no answer is never flipped"
    assert reward(batch(), flip_prob=1.0, answer=None) == [0, 1, 1, 1]
    assert reward(batch(), reward="rpr") == pytest.approx([0.05, 0.1, 0, 0])
    assert reward(batch(), reward="rpr_when_wrong") == pytest.approx([1, 0.1, 0, 0])
    assert reward(batch(), reward="rpr_when_wrong", flip_prob=1.0) == pytest.approx([0.05, 1, 0, 0])


def test_the_modes_agree_with_the_published_function() -> None:
    found = [math_score("Assistant: <think> " + text, "4") for text in TEXTS[:2]]
    scores, rpr = [f["score"] for f in found] + [0, 0], [f["rpr"] for f in found] + [None, None]
    for flip in (0.0, 1.0):
        for when_wrong in (False, True):
            expected = flip_group_rewards(scores, rpr, 4, flip, [0.5] if flip else [], when_wrong)["rewards"]
            mode = "rpr_when_wrong" if when_wrong else "verifier"
            assert reward(batch(), flip_prob=flip, reward=mode) == pytest.approx(expected.tolist())


def test_evaluation_is_not_flipped_and_curves_are_there() -> None:
    assert reward(batch(training=False), flip_prob=1.0) == [1, 0, 0, 0]
    scores = systems.noisy_rpr(verifier=Boxed(), flip_prob=1.0)(batch())
    assert set(scores.raw) == {"answer.score", "answer.clean", "rpr"}
    assert scores.raw["answer.clean"].values[:, 0].tolist() == [1, 0, 0, 0]


def test_warm_up_on_rpr_and_no_verifier_for_rpr_alone() -> None:
    assert reward(batch(4), correctness_warmup=5) == pytest.approx([0.05, 0.1, 0, 0])
    assert reward(batch(5), correctness_warmup=5) == [1, 0, 0, 0]
    for step, expected in ((4, [0.05, 0.1, 0, 0]), (5, [1, 0.1, 0, 0])):
        assert reward(batch(step), correctness_warmup=5, reward="rpr_when_wrong") == pytest.approx(expected)
    verifier = Boxed()
    systems.noisy_rpr(verifier=verifier, reward="rpr")(batch())
    assert verifier.calls == 0


def test_a_flipped_group_has_the_opposite_advantages() -> None:
    answered = batch(texts=TEXTS[:2] * 2)
    clean = systems.noisy_rpr(verifier=Boxed())(answered).advantages
    assert torch.equal(systems.noisy_rpr(verifier=Boxed(), flip_prob=1.0)(answered).advantages, -clean)
    assert clean[:, 0].tolist() == [0.5, -0.5, 0.5, -0.5]


def test_carriers() -> None:
    scaled = systems.noisy_rpr(verifier=Boxed(), carrier="grpo")(batch(texts=TEXTS[:2] * 2)).advantages
    assert scaled[0, 0].item() == pytest.approx(0.5 / (1 / 3) ** 0.5, rel=1e-3)
    ppo = systems.noisy_rpr(verifier=Boxed(), carrier="ppo")
    rollouts = replace(batch(texts=TEXTS[:2]), values=torch.tensor([[0.5], [0.5]]))
    advantages = ppo(rollouts).advantages[:, 0]
    assert advantages.tolist() == pytest.approx(
        [2**-0.5, -(2**-0.5)], rel=1e-4
    )  # +-0.5 over a sample std of 0.5 sqrt 2
    with pytest.raises(ConfigError, match="carrier"):
        systems.noisy_rpr(verifier=Boxed(), carrier="trpo")
    with pytest.raises(ConfigError, match="reward="):
        systems.noisy_rpr(verifier=Boxed(), reward="both")


class Judge:
    """Scores the ANSWER it is shown and remembers it."""

    scope, level = "row", "sequence"

    def __init__(self) -> None:
        self.shown: list[str] = []

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        self.shown += rollouts.completions
        return Rewards.sequence([float(text) for text in rollouts.completions], rollouts)


OPEN = [
    "<think>wait, thus 1. go</think><answer>0.3</answer>",
    "<think>wait</think><answer>0.5</answer>",
    "<think>wait, thus</think> 0.9",
    "<think>plain</think><answer>-0.2</answer>",
]


def test_calibration_lifts_low_scores_of_readable_answers() -> None:
    judge = Judge()
    system = rpr_calibrated(rm=judge)
    scores = system(batch(texts=OPEN))
    assert judge.shown == ["0.3", "0.5", "-0.2"], "the answer alone, and nothing that cannot be read"
    assert scores.reward.tolist() == pytest.approx([0.3 + 0.1 * 0.15, 0.5, 0.0, -0.2])
    assert "missing" in scores.raw["rm"].reasons[2, 0]
    raw = rpr_calibrated(rm=Judge(), calibrate=False)(batch(texts=OPEN))
    assert raw.reward.tolist() == pytest.approx([0.3, 0.5, 0.0, -0.2])
    evaluated = rpr_calibrated(rm=Judge())(batch(texts=OPEN, training=False))
    assert evaluated.reward.tolist() == pytest.approx([0.3, 0.5, 0.0, -0.2])


def test_the_code_reads_thinking_and_answer() -> None:
    texts = ["<think>wait</think><answer>0.1</answer>", "<think>a</think><answer>0.1</answer>"]
    tagged = rpr_calibrated(rm=Judge(), read="all", phrase_set=["wait", "answer"])(batch(texts=texts))
    assert tagged.raw["rpr"].values[:, 0].tolist() == pytest.approx([0.1, 0.05])
    assert any(isinstance(link, Calibrate) for link in rpr_calibrated(rm=Judge()).chain)


@pytest.mark.parametrize(
    ("sequence", "truth", "score", "rpr"),
    [
        ("thus \\boxed{4}", "4", 1.0, 0.05),  # no prefix: the text as it is, nothing cut off
        ("wait: User: \\boxed{} Assistant: <think> thus \\boxed{4}", "\\boxed{4}", 1.0, 0.05),
        ("Assistant: <think> four", "4", 0.0, 0.0),  # no box anywhere: the text is the answer
        ("Assistant: <think> \\boxed{4} \\boxed{}", "4", 0.0, None),
        ("Assistant: <think> \\boxed{\\text{A}}", "\\text{A}", 1.0, 0.0),
    ],
)
def test_math_score_corners(sequence: str, truth: str, score: float, rpr: float | None) -> None:
    found = math_score(sequence, truth)
    assert found["score"] == score and found["rpr"] == (None if rpr is None else pytest.approx(rpr))


def test_flips_of_groups_that_do_not_fill_up() -> None:
    found = flip_group_rewards([1.0, 0.0, 1.0], [0.0, 0.0, 0.0], 2, 0.5, [0.5, 0.49])
    assert found["rewards"].tolist() == [1, 0, 0], "strictly above the draw; the last group has one row"
    assert flip_group_rewards([], [], 4, 0.5, [])["rewards"].tolist() == []
    assert all(inspect.signature(function).parameters for function in VECTORS.values())
