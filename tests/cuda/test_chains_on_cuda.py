"""Every published composition where its signals, or its rollouts, are on a device: no mixing, and the CPU's numbers."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from cuda_kit import Given, batch

from guerdon import System
from guerdon.systems import SYSTEMS, VARIANTS
from guerdon.systems.base import Placeholder, builder_of
from guerdon.testing import fake_cuda, on_cpu


def chain_of(name: str, *, there: bool) -> System:
    """The composition with every signal in it replaced by given numbers."""
    builder = builder_of(name)
    needed = [p.name for p in inspect.signature(builder).parameters.values() if p.default is p.empty]
    system = builder(**{key: Placeholder(key) for key in needed})
    signals: dict[str, Any] = {}
    for n, (key, signal) in enumerate(system.signals.items()):
        signals[key] = Given(getattr(signal, "level", "sequence"), seed=10 * n, there=there)
    system.signals = signals
    return system


@pytest.mark.parametrize("rollouts_there", [False, True], ids=["rollouts on cpu", "rollouts on cuda"])
@pytest.mark.parametrize("signals_there", [True, False], ids=["signals on cuda", "signals on cpu"])
@pytest.mark.parametrize("name", [*SYSTEMS, *VARIANTS])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_composition_takes_a_signal_that_answers_from_the_device(
    name: str, signals_there: bool, rollouts_there: bool
) -> None:
    expected = chain_of(name, there=False)(batch())
    with fake_cuda() as device:
        rollouts = batch().to(device) if rollouts_there else batch()
        scores = chain_of(name, there=signals_there)(rollouts)
        home = rollouts.device
        assert home.type == ("cuda" if rollouts_there else "cpu")
        assert {r.values.device for r in scores.raw.values()} == {home} == {scores.advantages.device}
        assert scores.reward is not None and scores.keep.device == scores.reward.device == home
    assert torch.equal(on_cpu(scores.keep), expected.keep)
    torch.testing.assert_close(on_cpu(scores.advantages), expected.advantages)
    torch.testing.assert_close(on_cpu(scores.reward), expected.reward, equal_nan=True)
    assert bool((expected.advantages != 0).any()) or not bool(expected.keep.any())


def test_functions_take_spans_from_another_device() -> None:
    """What a link may be handed outside of a System: values of a signal on the device, spans and masks of rollouts on the CPU."""
    from guerdon.credit.confidence import expected_calibration_error
    from guerdon.credit.placement import place_at_ends, place_on_whole
    from guerdon.rewards import Rewards, Scores
    from guerdon.spans import Spans
    from guerdon.testing import on_cuda

    spans = Spans.from_lists([[(0, 1), (2, 2)], [(0, 0)]], unit="token", name="steps")
    valid, values = torch.tensor([[True] * 3, [True, False, False]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    rollouts = batch()
    with fake_cuda() as device:
        for place in (place_at_ends, place_on_whole):
            assert torch.equal(on_cpu(place(on_cuda(values), spans, valid)), place(values, spans, valid))
        rewards = Rewards(on_cuda(values), spans)
        assert rewards.mask.device == device and rewards.row_total().tolist() == [3.0, 3.0]
        tokens = Rewards.tokens(on_cuda(torch.ones(rollouts.mask.shape)), rollouts)
        assert tokens.row_total().tolist() == rollouts.lengths.tolist()
        dropped = Scores.empty(rollouts).dropping(on_cuda(torch.arange(8) < 3), "told to")
        assert dropped.keep.tolist() == [False] * 3 + [True] * 5
        right = on_cuda(torch.tensor([1.0, 0.0]))
        assert expected_calibration_error(on_cuda(torch.tensor([0.2, 0.25])), right) == expected_calibration_error(
            torch.tensor([0.2, 0.25]), torch.tensor([1.0, 0.0])
        )
