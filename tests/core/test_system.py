"""System: what is refused at construction, what a run gives, and that state moves only when committed."""

import math
import subprocess
import sys

import pytest
import torch

from guerdon import CapabilityError, ChainError, Clock, Rewards, Rollouts, Spans, System
from guerdon.credit import GroupNorm, OnFailure, ToTokens


class Lengths:
    """A signal: characters of the completion."""

    def __call__(self, rollouts, scores):
        return Rewards.sequence(torch.tensor([float(len(text)) for text in rollouts.completions]), rollouts)

    def __repr__(self) -> str:
        return "Lengths()"


class Given(Lengths):
    def __init__(self, values, reasons=None):
        self.values, self.reasons = values, reasons

    def __call__(self, rollouts, scores):
        return Rewards.sequence(torch.tensor(self.values), rollouts, self.reasons)


class Counter:
    """A stateful link: adds how many training batches it has seen to every value."""

    def init_state(self):
        return 0

    def plan(self, levels):
        return levels

    def __call__(self, scores, rollouts, state):
        name = scores.sole
        return scores.with_source(name, scores[name].with_values(scores[name].values + state)), state + 1


def batch(n=4, training=True) -> Rollouts:
    mask = torch.ones(n, 3, dtype=torch.bool)
    return Rollouts(
        ["p"] * n,
        ["ab" * (i + 1) for i in range(n)],
        completion_ids=torch.ones(n, 3, dtype=torch.long),
        completion_mask=mask,
        group_ids=torch.arange(n) // 2,
        clock=Clock(training=training),
    )


def grpo(signal) -> System:
    return System(signals={"answer": signal}, chain=[GroupNorm("answer"), ToTokens("answer", placement="whole")])


def test_a_system_scores_and_credits():
    scores = grpo(Lengths())(batch())
    assert scores.reward.tolist() == [2, 4, 6, 8], "the optimised reward is read before the first centring link"
    expected = 1 / math.sqrt(2) / (1 + 1e-4 / math.sqrt(2))
    assert scores.advantages[0, 0].item() == pytest.approx(-expected, rel=1e-5)
    assert scores.advantages.shape == (4, 3)


def test_wrong_chains_are_refused_at_construction():
    with pytest.raises(ChainError, match="at least one signal"):
        System(signals={})
    with pytest.raises(ChainError, match="exactly one token-level source"):
        System(signals={"answer": Lengths()}, chain=[GroupNorm("answer")])
    with pytest.raises(ChainError, match="nothere"):
        System(signals={"answer": Lengths()}, chain=[GroupNorm("nothere"), ToTokens("answer")])
    steps = Lengths()
    steps.level = "steps"
    with pytest.raises(ChainError, match="segments has none"):
        System(signals={"steps": steps}, chain=[ToTokens("steps")])


def test_what_an_engine_lacks_is_an_error_with_both_lists():
    signal = Lengths()
    signal.needs = frozenset({"policy.generate"})
    with pytest.raises(CapabilityError, match=r"needs \['policy.generate'\], which a file does not provide"):
        grpo(signal).require({"values"}, "a file")


def test_failure_handling_is_inserted_and_shown():
    system = grpo(Given([1.0, float("nan"), 0.0, 1.0], [None, "judge timed out", None, None]))
    assert isinstance(system.chain[0], OnFailure)
    assert "OnFailure" in str(system)
    scores = system(batch())
    assert scores.keep.tolist() == [True, False, True, True]
    assert scores.advantages[1].tolist() == [0, 0, 0]
    assert scores.raw["answer"].reasons == {(1, 0): "judge timed out"}
    assert math.isnan(scores.reward[1]), "a failed row has no reward; it is not zero"


def test_a_nan_without_a_reason_gets_one_that_names_the_signal():
    scores = grpo(Given([float("nan"), 1.0, 0.0, 1.0]))(batch())
    assert scores.raw["answer"].reasons[(0, 0)] == "answer returned NaN without a reason"


def test_state_is_current_only_after_commit():
    system = System(signals={"a": Lengths()}, chain=[Counter(), ToTokens("a", placement="end")])
    first, again = system(batch()), system(batch())
    assert torch.equal(first.advantages, again.advantages)
    system.commit(again)
    assert torch.equal(system(batch()).reward, first.reward + 1)
    restored = System(signals={"a": Lengths()}, chain=[Counter(), ToTokens("a", placement="end")])
    restored.load_state_dict(system.state_dict())
    assert torch.equal(restored(batch()).reward, first.reward + 1)
    with pytest.raises(ChainError, match="another chain"):
        grpo(Lengths()).load_state_dict(system.state_dict())


def test_rewards_of_the_wrong_batch_are_refused():
    class Short(Lengths):
        def __call__(self, rollouts, scores):
            return super().__call__(rollouts.select([0]), scores)

    with pytest.raises(ChainError, match="returned 1 rows for 4"):
        grpo(Short())(batch())


def test_segments_are_cut_once_and_rollouts_may_bring_their_own():
    signal = Lengths()
    signal.level = "turns"
    system = System(signals={"t": signal}, segments={"turns": None})
    with pytest.raises(CapabilityError, match="no segmentation 'turns'"):
        system(batch())
    own = batch().with_spans(turns=Spans.sequence(torch.full((4,), 3)))
    assert system.segmented(own).spans["turns"] is own.spans["turns"]


def test_importing_guerdon_imports_no_trainer():
    code = (
        "import sys, torch; before = set(sys.modules); import guerdon\n"
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['guerdon']"  # no transformers, trl, accelerate, peft, pandas, ...
