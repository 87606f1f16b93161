"""IGPO's parts: format and F1 by hand, gains that telescope, the chain's two normalisations, the early estimators, edge cases."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon import Rollouts
from guerdon.credit import blocked_returns, early_advantages, on_last_span
from guerdon.errors import CapabilityError, ConfigError
from guerdon.rewards import Rewards, Scores
from guerdon.signals import InformationGain, TaggedAnswer
from guerdon.signals.likelihood.information_gain import answer_confidence, information_gains, turn_states
from guerdon.signals.verifiable.tagged_answer import tagged_answer_reward, tags_balanced, word_set_f1
from guerdon.spans import Spans
from guerdon.systems import igpo
from guerdon.systems.igpo import VECTORS

# --- the outcome -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "balanced"),
    [
        ("", True),
        ("<think>a</think><answer>b</answer>", True),
        ("<think>a<think>b</think></think>", True),  # nested in its like: skipped
        ("</think><think>", False),
        ("<think>a</think></think><think>", False),
        ("<search>a", True),  # not one of the tags
        ("<code>a</code><tool_call>", False),
    ],
)
def test_tags_are_balanced_as_the_official_code_reads_them(text: str, balanced: bool) -> None:
    assert tags_balanced(text) is balanced


def test_words_are_sets_and_punctuation_is_a_blank() -> None:
    assert word_set_f1("New-York, new york!", "york") == pytest.approx(2 / 3)  # {new, york} against {york}
    assert word_set_f1("", "") == word_set_f1("...", "a") == 0.0


def test_the_first_answer_counts_in_any_case_and_the_best_reference_wins() -> None:
    text = "<ANSWER>Rome</ANSWER> <answer>Paris</answer>"
    assert tagged_answer_reward(text, ["paris", "ROME"]).value == 1.0
    assert tagged_answer_reward(text, ["paris"]).value == 0.0
    assert tagged_answer_reward(text, ["rome italy"], "em").value == 0.0
    assert tagged_answer_reward("<answer>a b</answer>", ["b a"], "f1").value == 1.0
    assert tagged_answer_reward("<answer>a b</answer>", ["b a"], "em").value == 0.0  # em minds the order


@pytest.mark.parametrize(("kind", "value"), [("f1", -2.0), ("em", -2.0), ("noformatf1", 0.0)])
@pytest.mark.parametrize("text", ["", "Paris", "<answer>Paris", "<think>x<answer>Paris</answer>"])
def test_what_the_format_fails_is_a_number_with_a_reason(kind: Any, value: float, text: str) -> None:
    verdict = tagged_answer_reward(text, ["paris"], kind)
    assert verdict.value == value and verdict.reason


def test_the_outcome_signal_reads_every_form_of_reference_and_misses_none_silently() -> None:
    texts = ["<answer>NYC</answer>"] * 4
    cells = ["New York<|answer_split|>NYC", ["New York", "nyc"], "Rome", None]
    rollouts = Rollouts.from_texts(["q"] * 4, texts, {"answer": cells})
    rewards = TaggedAnswer()(rollouts)
    assert rewards.values[:3, 0].tolist() == [1.0, 1.0, 0.0]
    assert math.isnan(rewards.values[3, 0]) and "no usable reference" in rewards.reasons[3, 0]
    with pytest.raises(ValueError, match="kind='F1'"):
        TaggedAnswer(kind="F1")  # type: ignore[arg-type]


# --- confidences and gains -------------------------------------------------------------------------------------------


def test_confidence_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, 0.0, -9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert answer_confidence(logprobs, mask).tolist() == pytest.approx([math.exp(-1.5), math.exp(-0.5)])
    assert answer_confidence(logprobs, mask, "logprob").tolist() == pytest.approx([-1.5, -0.5])
    assert math.isnan(answer_confidence(logprobs, torch.zeros_like(mask))[0])  # nothing to be sure of
    with pytest.raises(ConfigError, match="'prob' or 'logprob'"):
        answer_confidence(logprobs, mask, "log")  # type: ignore[arg-type]


def test_a_very_unlikely_answer_underflows_as_a_probability_and_not_as_a_log() -> None:
    states = [[-900.0, -900.0], [-800.0, -800.0]]
    assert VECTORS["information_gain_rewards"](states, "prob")["gains"].tolist() == [0.0]
    assert VECTORS["information_gain_rewards"](states, "logprob")["gains"].tolist() == [100.0]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(-30, 0), min_size=1, max_size=4), min_size=1, max_size=7),
    st.sampled_from(["prob", "logprob"]),
)
def test_gains_telescope(states: list[list[float]], mode: str) -> None:
    found = VECTORS["information_gain_rewards"](states, mode)
    confidences, gains = found["confidences"], found["gains"]
    assert len(gains) == len(states) - 1
    assert float(gains.sum()) == pytest.approx(float(confidences[-1] - confidences[0]), abs=1e-9)


def test_no_states_no_gains() -> None:
    found = VECTORS["information_gain_rewards"]([], "prob")
    assert found["confidences"].tolist() == found["gains"].tolist() == []
    assert information_gains(torch.tensor([0.3])).tolist() == []


# --- turns and states ------------------------------------------------------------------------------------------------


def dialogue(*turns: tuple[int, int], prompts: int = 2, width: int | None = None, rows: int = 1) -> Rollouts:
    """Rows alike: turns of (sampled, tool) tokens, ids counting from 100; a prompt of ids 1, 2, ..."""
    sampled = [1] * 0
    for own, tool in turns:
        sampled += [1] * own + [0] * tool
    length = len(sampled)
    policy = torch.zeros(rows, width or length, dtype=torch.bool)
    policy[:, :length] = torch.tensor(sampled, dtype=torch.bool)
    mask = (torch.arange(width or length) < length).expand(rows, -1)
    return Rollouts(
        ["q"] * rows,
        ["x" * length] * rows,
        prompt_ids=torch.tensor([[0, *range(1, prompts + 1)]] * rows),
        prompt_mask=torch.tensor([[False] + [True] * prompts] * rows),
        completion_ids=(100 + torch.arange(width or length)).expand(rows, -1),
        completion_mask=mask,
        policy_mask=policy,
        group_ids=torch.zeros(rows, dtype=torch.long),
        columns={"answer": ["paris"] * rows},
    )


def test_the_state_before_a_turn_is_all_that_stands_before_it() -> None:
    rollouts = dialogue((2, 3), (1, 2), (2, 0), width=12)
    spans = igpo().segmented(rollouts).segment("turns")
    assert spans.to_lists() == [[(0, 1), (5, 5), (8, 9)]]
    states = turn_states(rollouts, spans, 0, None)
    assert [state.tolist() for state in states] == [[1, 2], [1, 2, *range(100, 105)], [1, 2, *range(100, 108)]]


def test_the_signal_without_a_model_says_what_to_bind() -> None:
    rollouts = dialogue((2, 3), (1, 0))
    with pytest.raises(CapabilityError, match="'policy'"):
        igpo()(rollouts)


# --- the chain -------------------------------------------------------------------------------------------------------


class Gains:
    """Signal: given gains, on every turn but the last."""

    scope, level = "row", "turns"

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = rows

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        turns = rollouts.segment("turns")
        mask = turns.mask & torch.nn.functional.pad(turns.mask[:, 1:], (0, 1))
        values = torch.zeros(turns.mask.shape)
        for row, gains in enumerate(self.rows):
            values[row, : len(gains)] = torch.tensor(gains)
        return Rewards(values, Spans(turns.start, turns.end, mask, name="turns"))


class Outcomes:
    scope, level = "row", "sequence"

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        reasons = ["the judge timed out" if math.isnan(v) else None for v in self.values]
        return Rewards.sequence(torch.tensor(self.values), rollouts, reasons)


def ragged(*rows: list[tuple[int, int]]) -> Rollouts:
    """Rows of (sampled, tool) turns, one group."""
    marks = [[m for own, tool in row for m in [1] * own + [0] * tool] for row in rows]
    width = max(map(len, marks))
    policy = torch.tensor([row + [0] * (width - len(row)) for row in marks], dtype=torch.bool)
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in marks])
    return Rollouts(
        ["q"] * len(rows),
        ["x" * len(row) for row in marks],
        completion_ids=torch.zeros(mask.shape, dtype=torch.long),
        completion_mask=mask,
        policy_mask=policy,
        group_ids=torch.zeros(len(rows), dtype=torch.long),
    )


def test_every_token_of_a_turn_gets_the_turns_advantage_and_tool_output_none() -> None:
    rollouts = ragged([(2, 3), (1, 0)], [(1, 2), (2, 1), (1, 0)])
    system = igpo(information_gain=Gains([[0.4], [0.1, 0.4]]), outcome=Outcomes([1.0, 0.0]))
    scores = system(rollouts)
    gains = torch.tensor([0.4, 0.1, 0.4])
    a, b, c = ((gains - gains.mean()) / (gains.std() + 1e-6)).tolist()
    win = 0.5 / (math.sqrt(0.5) + 1e-6)
    expected = [[a + win] * 2 + [0] * 3 + [win] + [0], [b + c - win] + [0] * 2 + [c - win] * 2 + [0] + [-win]]
    assert torch.allclose(scores.advantages, torch.tensor(expected), atol=1e-5)
    assert scores.reward is not None and scores.reward.tolist() == pytest.approx([1.4, 0.5])


def test_joint_normalisation_and_gamma_are_the_vector_function() -> None:
    rollouts = ragged([(2, 3), (1, 0)], [(1, 2), (2, 1), (1, 0)], [(2, 0)])
    rows, outcomes = [[0.4], [0.1, 0.4], []], [1.0, -2.0, 0.5]
    for normalization in ("separate", "joint"):
        system = igpo(information_gain=Gains(rows), outcome=Outcomes(outcomes), normalization=normalization, gamma=0.5)  # type: ignore[arg-type]
        advantages = system(rollouts).advantages
        expected = VECTORS["igpo_turn_advantages"](rows, outcomes, ["g"] * 3, 0.5, normalization)["advantages"]
        starts = [[0, 5], [0, 3, 6], [0]]
        for row, (tokens, values) in enumerate(zip(starts, expected, strict=True)):
            assert advantages[row, tokens].tolist() == pytest.approx(values.tolist(), abs=1e-5)


def test_gains_too_alike_teach_nothing_under_a_floor_and_the_outcome_still_does() -> None:
    rollouts = ragged([(1, 1), (1, 0)], [(1, 1), (1, 0)])
    noise = Gains([[0.00001], [0.00002]])
    plain = igpo(information_gain=noise, outcome=Outcomes([0.0, 0.0]))(rollouts)
    assert plain.advantages[1, 0] > 0.6, "the paper's z-score makes much of little"
    floored = igpo(information_gain=noise, outcome=Outcomes([0.0, 1.0]), flat_below=0.05)(rollouts)
    win = 0.5 / (math.sqrt(0.5) + 1e-6)
    assert floored.advantages[:, 0].tolist() == pytest.approx([-win, win]), "the same for both turns: the outcome alone"
    found = igpo(information_gain=Gains([[0.0], [0.5]]), outcome=Outcomes([0.0, 0.0]), flat_below=0.05)(rollouts)
    assert found.advantages[1, 0] > 0.6
    with pytest.raises(ConfigError, match="z-scored by themselves"):
        igpo(flat_below=0.05, normalization="joint")


def test_a_group_without_gains_and_one_where_all_fail() -> None:
    nobody_searched = igpo(information_gain=Gains([[], []]), outcome=Outcomes([1.0, 0.0]))(ragged([(2, 0)], [(1, 0)]))
    win = 0.5 / (math.sqrt(0.5) + 1e-6)
    assert nobody_searched.advantages[:, 0].tolist() == pytest.approx([win, -win])
    all_failed = igpo(information_gain=Gains([[0.2], [0.6]]), outcome=Outcomes([-2.0, -2.0]))
    advantages = all_failed(ragged([(1, 1), (1, 0)], [(1, 1), (1, 0)])).advantages
    assert advantages[0, 0] < 0 < advantages[1, 0] and advantages[:, 2].tolist() == [0.0, 0.0]
    outcome_alone = igpo(rewards="outcome", outcome=Outcomes([-2.0, -2.0]))
    assert not outcome_alone(ragged([(1, 1), (1, 0)], [(1, 1), (1, 0)])).advantages.any()


def test_a_group_of_one_learns_nothing_and_a_failed_instrument_leaves_the_statistics() -> None:
    one = igpo(information_gain=Gains([[0.3]]), outcome=Outcomes([1.0]))(ragged([(1, 1), (1, 0)]))
    assert not one.advantages.any()
    rows = [[(1, 1), (1, 0)]] * 3
    kept = igpo(information_gain=Gains([[0.3], [0.1], [9.0]]), outcome=Outcomes([1.0, 0.0, float("nan")]))
    pair = igpo(information_gain=Gains([[0.3], [0.1]]), outcome=Outcomes([1.0, 0.0]))
    scores = kept(ragged(*rows))
    assert scores.keep.tolist() == [True, True, False]
    assert torch.equal(scores.advantages[:2], pair(ragged(*rows[:2])).advantages) and not scores.advantages[2].any()


def test_alpha_and_the_ablations() -> None:
    rollouts = ragged([(1, 1), (1, 0)], [(1, 1), (1, 0)])
    gains, outcomes = Gains([[0.3], [0.1]]), Outcomes([1.0, 0.0])
    both = igpo(information_gain=gains, outcome=outcomes)(rollouts).advantages
    assert not both[:, 1].any()  # tool output
    only_gain = igpo(information_gain=gains, rewards="gain")(rollouts).advantages
    only_outcome = igpo(outcome=outcomes, rewards="outcome")(rollouts).advantages
    assert torch.allclose(both, only_gain + only_outcome)
    assert torch.allclose(
        igpo(information_gain=gains, outcome=outcomes, alpha=3.0)(rollouts).advantages, only_gain + 3 * only_outcome
    )
    assert not only_gain[:, 2].any()  # the answer turn has no gain


def test_centred_returns_by_hand() -> None:
    """Each turn's return minus the mean of the others' return from their turn of that number on; alone it stays as it is."""
    rollouts = ragged([(2, 3), (1, 0)], [(1, 2), (2, 1), (1, 0)], [(2, 0)])
    gains, outcomes = Gains([[0.4], [0.1, 0.4], []]), Outcomes([1.0, 0.0, -2.0])
    scores = igpo(information_gain=gains, outcome=outcomes, estimator="returns")(rollouts)
    returns = [[1.4, 1.0], [0.5, 0.4, 0.0], [-2.0]]
    assert scores.reward is not None and scores.reward.tolist() == pytest.approx([1.4, 0.5, -2.0])
    expected = [
        [returns[0][0] - (0.5 - 2.0) / 2, returns[0][1] - 0.4],
        [returns[1][0] - (1.4 - 2.0) / 2, returns[1][1] - 1.0, 0.0],
        [returns[2][0] - (1.4 + 0.5) / 2],
    ]
    for row, (tokens, values) in enumerate(zip([[0, 5], [0, 3, 6], [0]], expected, strict=True)):
        assert scores.advantages[row, tokens].tolist() == pytest.approx(values, abs=1e-6)
    assert not scores.advantages[~rollouts.policy_mask].any()


# Two decisions, of which the first may end the rollout: (s)top, or a search that gains 0.3 or 0.1; then stop or search again.
CHOICES = [("s",), ("a", "s"), ("a", "a"), ("b", "s"), ("b", "a")]
GAIN, OUTCOME = {"a": 0.3, "b": 0.1}, {1: 0.5, 2: 0.5, 3: 0.5}  # by the number of turns: answers are all alike


def expected_gradients(estimator: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The expected policy gradient over all groups of three, and three times that of the expected return. Exact, by enumeration."""
    logits = torch.tensor([0.3, -0.2, 0.1, 0.4, -0.1], dtype=torch.float64, requires_grad=True)
    first = dict(zip("sab", logits[:3].log_softmax(0), strict=True))
    second = dict(zip("sa", logits[3:].log_softmax(0), strict=True))
    steps = [[first[c[0]], *([second[c[1]]] if len(c) > 1 else [])] for c in CHOICES]
    turns = [[c for c in choice if c != "s"] for choice in CHOICES]
    outcomes = [OUTCOME[len(searched) + 1] for searched in turns]
    chance = [torch.stack(logps).sum().exp() for logps in steps]
    returns = [sum(GAIN[c] for c in searched) + paid for searched, paid in zip(turns, outcomes, strict=True)]
    (exact,) = torch.autograd.grad(sum(p * r for p, r in zip(chance, returns, strict=True)), logits, retain_graph=True)
    surrogate = torch.zeros((), dtype=torch.float64)
    for group in product(range(len(CHOICES)), repeat=3):
        system = igpo(
            information_gain=Gains([[GAIN[c] for c in turns[i]] for i in group]),
            outcome=Outcomes([outcomes[i] for i in group]),
            estimator=estimator,  # type: ignore[arg-type]
        )
        rollouts = ragged(*[[(1, 1)] * len(turns[i]) + [(1, 0)] for i in group])
        advantages = system(rollouts).advantages.double()
        weight = torch.stack([chance[i] for i in group]).prod().detach()
        for row, i in enumerate(group):
            for turn, logp in enumerate(steps[i]):
                surrogate = surrogate + weight * advantages[row, 2 * turn] * logp
    (estimate,) = torch.autograd.grad(surrogate, logits)
    return estimate, 3 * exact


def test_centred_returns_have_the_gradient_of_the_expected_return_and_the_papers_do_not() -> None:
    estimate, exact = expected_gradients("returns")
    torch.testing.assert_close(estimate, exact, atol=1e-6, rtol=1e-5)
    assert float(exact.abs().max()) > 0.05
    biased, _ = expected_gradients("turns")
    stop, worse = 0, 2
    assert exact[worse] > exact[stop], "even the smaller gain is better than stopping"
    assert biased[worse] < biased[stop], "and is taught to be worse, because it is below the mean gain of the turns"


@pytest.mark.parametrize(
    "options",
    [
        {"rewards": "f1"},
        {"normalization": "both"},
        {"estimator": "early"},
        {"gamma": 1.5},
        {"confidence": "p"},
        {"estimator": "returns", "normalization": "joint"},
        {"estimator": "returns", "flat_below": 0.05},
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        igpo(**options)


def test_the_last_span_of_ragged_rows() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    values, last = on_last_span(torch.tensor([5.0, 6.0, 7.0]), mask)
    assert values.tolist() == [[0, 5, 0], [6, 0, 0], [0, 0, 0]] and last.sum(1).tolist() == [1, 1, 0]


def test_an_outcome_alone_reaches_every_turn() -> None:
    for normalization in ("separate", "joint"):
        system = igpo(outcome=Outcomes([1.0, 0.0]), rewards="outcome", normalization=normalization)  # type: ignore[arg-type]
        advantages = system(ragged([(2, 1), (1, 0)], [(1, 1), (1, 1), (1, 0)])).advantages
        win = 0.5 / (math.sqrt(0.5) + 1e-6)
        assert advantages.tolist() == [pytest.approx([win, win, 0, win, 0]), pytest.approx([-win, 0, -win, 0, -win])]


# --- the early estimators --------------------------------------------------------------------------------------------


def test_a_masked_token_stops_the_carry_but_stays_in_its_positions_baseline() -> None:
    rewards = torch.tensor([[0.0, 0.2, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False, True], [True, True, True, True]])
    returns = blocked_returns(rewards, mask)
    assert (
        returns[0].tolist() == pytest.approx([0.2, 0.2, 1.0, 1.0]) and not returns[1].any()
    )  # what is earned after the tool call stops at it
    assert early_advantages(returns, torch.tensor([7, 7]))[1].tolist() == pytest.approx([-0.1, -0.1, -0.5, -0.5])


def test_the_early_estimators_train_through_the_system() -> None:
    rollouts = ragged([(2, 2), (1, 0)], [(1, 2), (2, 0)])
    parts: dict[str, Any] = {"information_gain": Gains([[0.4], [0.1]]), "outcome": Outcomes([1.0, 0.0])}
    position = igpo(estimator="early_position", **parts)(rollouts).advantages
    # Row 0: gain on token 1, outcome on token 4; row 1: on tokens 0 and 4. Nothing crosses the tool output.
    assert position[0].tolist() == pytest.approx([0.4 - 0.25, 0.4 - 0.2, 0, 0, 0.5])
    assert position[1].tolist() == pytest.approx([0.1 - 0.25, 0, 0, 0 - 0.5, 0 - 0.5])
    start = igpo(estimator="early_start", gamma=1.0, **parts)(rollouts).advantages
    assert start[0, 0] > 0 > start[1, 0] and not start[0, 2:4].any()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.floats(-1, 1), max_size=4), min_size=1, max_size=5), st.floats(0, 1))
def test_advantages_do_not_depend_on_where_gains_and_outcomes_start(rows: list[list[float]], shift: float) -> None:
    outcomes = [float(i % 3) for i in range(len(rows))]
    base = VECTORS["igpo_turn_advantages"](rows, outcomes, [0] * len(rows))["advantages"]
    moved = VECTORS["igpo_turn_advantages"](
        [[g + shift for g in row] for row in rows], [o + shift for o in outcomes], [0] * len(rows)
    )["advantages"]
    scale = max([float(a.abs().max()) for a in base] + [1.0])
    spread = torch.tensor([g for row in rows for g in row]).double()
    if len(spread) < 2 or float(spread.std()) > 1e-3:  # a std near eps amplifies rounding
        for one, other in zip(base, moved, strict=True):
            assert torch.allclose(one, other, atol=1e-6 * scale)


def test_group_ids_may_be_anything_and_rows_of_a_group_apart() -> None:
    rows, outcomes = [[0.1], [0.5], [0.3], [0.9]], [0.0, 0.0, 1.0, 1.0]
    found = VECTORS["igpo_turn_advantages"](rows, outcomes, ["x", "y", "x", "y"])["advantages"]
    alone = VECTORS["igpo_turn_advantages"](rows[::2], outcomes[::2], [1, 1])["advantages"]
    assert [a.tolist() for a in found[::2]] == [a.tolist() for a in alone]


def test_the_signals_name_and_repr() -> None:
    assert "head='<answer>'" in repr(InformationGain(head="<answer>"))
    assert set(InformationGain().level) == {"gain", "start", "end"}
