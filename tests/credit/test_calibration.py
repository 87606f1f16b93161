"""Links that correct one reward by another, by hand and by property."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon import ChainError, Clock, ConfigError, Rewards, Rollouts, Scores, System
from guerdon.credit import Calibrate, Fallback, GroupNorm, Shrink, SwitchAt, ToTokens, calibrate_scores, shrink_scores

NAN = float("nan")
unit = st.floats(0, 1)


def batch(step: int = 0, training: bool = True) -> Rollouts:
    return Rollouts(["p"] * 4, ["a"] * 4, group_ids=torch.zeros(4).long(), clock=Clock(step, 10, training))


def scores(a: list[float], b: list[float], rollouts: Rollouts, masked: list[bool] | None = None) -> Scores:
    first, second = (Rewards.sequence(torch.tensor(v, dtype=torch.float64), rollouts) for v in (a, b))
    if masked is not None:
        second = replace(second, spans=replace(second.spans, mask=~torch.tensor(masked)[:, None]))
    return replace(Scores.empty(rollouts), sources={"a": first, "b": second})


def values(out: Scores) -> list[float]:
    assert set(out.sources) == {"a"}
    return out["a"].values[:, 0].tolist()


def test_calibrate_by_hand() -> None:
    given = scores([0.2, 0.499, 0.5, 0.95], [1.0, 1.0, 1.0, 0.0], batch())
    out = Calibrate("a", "b")(given, batch())
    assert values(out) == pytest.approx([0.3, 0.599, 0.5, 0.95])
    assert out.metrics["a/below_threshold"] == 0.5 and out.metrics["a/bonus"] == pytest.approx(0.05)
    assert values(Calibrate("a", "b", alpha=2.0)(given, batch())) == pytest.approx([1.0, 1.0, 0.5, 0.95])
    assert values(Calibrate("a", "b")(given, batch(training=False))) == pytest.approx([0.2, 0.499, 0.5, 0.95])
    assert values(Calibrate("a", "b", training_only=False)(given, batch(training=False)))[0] == pytest.approx(0.3)


@given(unit, unit, unit, st.floats(0, 1), unit)
def test_calibration_only_lifts_low_scores_and_keeps_order_among_equal_bonuses(
    r: float, other: float, bonus: float, alpha: float, threshold: float
) -> None:
    low, high = sorted((r, other))
    given = torch.tensor([low, high], dtype=torch.float64)
    out = calibrate_scores(given, torch.full_like(given, bonus), threshold, alpha)
    assert bool((out >= given).all()) and bool((out <= 1).all())
    assert bool((out[given >= threshold] == given[given >= threshold]).all())
    if high < threshold:
        assert out[0] <= out[1]


def test_shrink_by_hand_and_failures() -> None:
    given = scores([1.0, 0.0, 1.0, NAN], [0.5, 0.0, NAN, 1.0], batch(), masked=[False, False, False, False])
    out = Shrink("a", "b")(given, batch())
    assert values(out)[:2] == pytest.approx([0.75, 0.5]) and out["a"].failed[:, 0].tolist() == [0, 0, 1, 1]
    masked = Shrink("a", "b")(scores([1.0] * 4, [0.0] * 4, batch(), masked=[True, False, True, False]), batch())
    assert values(masked) == pytest.approx([1.0, 0.5, 1.0, 0.5]), "a confidence that does not apply is full confidence"
    assert float(shrink_scores(torch.tensor(1.0), torch.tensor(7.0))) == 1.0


def test_fallback_and_switch() -> None:
    given = scores([1.0, 0.0, 0.0, 0.5], [0.3, 0.3, 0.7, 0.9], batch(), masked=[False, False, True, False])
    assert values(Fallback("a", "b")(given, batch())) == pytest.approx([1.0, 0.3, 0.0, 0.5])
    assert values(SwitchAt("a", "b", 5)(given, batch(4))) == pytest.approx([0.3, 0.3, 0.7, 0.9])
    assert values(SwitchAt("a", "b", 5)(given, batch(5))) == pytest.approx([1.0, 0.0, 0.0, 0.5])
    assert values(SwitchAt("a", "b", 5)(given, batch(0, training=False))) == pytest.approx([1.0, 0.0, 0.0, 0.5])
    assert values(SwitchAt("a", "b", 5, "clock")(given, batch(0, training=False)))[0] == pytest.approx(0.3)
    with pytest.raises(ConfigError, match="evaluation"):
        SwitchAt("a", "b", 5, "never")  # type: ignore[arg-type]


def test_wrong_chains_fail_when_the_system_is_built() -> None:
    def signal(rollouts: Rollouts, scores: Scores) -> Rewards:
        return Rewards.sequence(torch.ones(len(rollouts)), rollouts)

    for link in (Calibrate("a", "a"), Calibrate("a", "c")):
        with pytest.raises(ChainError):
            System({"a": signal, "b": signal}, [link, GroupNorm("a"), ToTokens("a", "whole")])
    built = System({"a": signal, "b": signal}, [Calibrate("a", "b"), GroupNorm("a"), ToTokens("a", "whole")])
    assert built(batch()).reward.tolist() == [1.0] * 4
