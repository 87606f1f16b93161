"""What noisy rewards and RPR have to show: whole questions are flipped (2), noise is stood up to one half (3), calibration mends a reward model
that misses good answers (4), a pointwise head is what its loss says (5), and the reproduction runs to its record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from guerdon import Clock
from guerdon.systems.noisy_rpr import rpr_calibrated
from guerdon.systems.reproduction import Budget, save
from guerdon.systems.reproductions.helpful_pairs import (
    THINGS,
    Checkpoint,
    first_reaching,
    helpful_pairs,
    spread_grows,
    train_head,
)
from guerdon.systems.reproductions.noisy_rpr import CAP, MISSES, flip_share, open_world, run_noise, run_open, sums_world


def test_the_share_of_flips_over_5000_groups() -> None:
    for seed in range(2):
        share, whole = flip_share(seed, 5000)
        assert abs(share - 0.3) <= 0.02 and whole
    assert flip_share(0, 200, p=1.0) == (1.0, True) and flip_share(0, 200, p=0.0) == (0.0, True)


# --- 3: noise ----------------------------------------------------------------------------------------------------------


def test_every_seed_has_its_sums_and_one_right_answer_each() -> None:
    world = sums_world(1, 8)
    for prompt, texts, answer in zip(world.prompts, world.texts, world.columns["answer"], strict=True):
        a, b = (int(word) for word in prompt.removesuffix(" =").partition(": ")[2].split(" + "))
        assert a + b == answer and texts[0] == f"that is {answer}" and len(set(texts)) == 5
    assert world.quality.sum(1).tolist() == [1] * 8 and world.prompts != sums_world(2, 8).prompts


def test_noise_slows_and_half_of_it_stops() -> None:
    clean, noisy, half = (run_noise(p, "question", 7, 100, 16) for p in (0.0, 0.2, 0.5))
    each = run_noise(0.4, "rollout", 7, 100, 16)
    assert clean.curve[0].tolist() == pytest.approx([0.2] * 16)
    assert clean.quality() > 0.9 and noisy.quality() > 0.7
    assert noisy.curve[len(noisy.curve) // 4].mean() < clean.curve[len(clean.curve) // 4].mean()
    assert abs(half.gain()) < 0.15 and each.quality() > half.quality() + 0.1
    even = run_noise(0.5, "question", 7, 100, 64, even=True)
    assert even.curve[0].tolist() == pytest.approx([0.5] * 64) and abs(even.gain()) < 0.1
    assert torch.equal(run_noise(0.2, "question", 7, 5, 6).policy, run_noise(0.2, "question", 7, 5, 6).policy)


# --- 4: calibration ----------------------------------------------------------------------------------------------------


def test_the_open_world_is_as_stated() -> None:
    found = open_world(3, 300)
    assert found.missed == pytest.approx(MISSES, abs=0.05) and found.correlation == pytest.approx(0.5, abs=0.05)
    assert found.world.finished is not None and found.world.lengths is not None
    assert (~found.world.finished).sum(1).tolist() == [2] * 300
    assert (found.world.lengths[~found.world.finished] == CAP).all()
    assert (found.world.lengths[found.world.finished] < CAP).all()
    assert float(found.world.quality[:, :8].mean()) == pytest.approx(0.25, abs=0.03)
    assert found.world.quality[:, 8:].sum() == 0 and bool((found.world.quality.sum(1) >= 1).all())


def test_the_calibrated_bonus_is_small_and_only_below_the_threshold() -> None:
    """What `reproduce` compares the ends of; here the reward of each completion itself."""
    found = open_world(3, 12)
    every = torch.arange(10).repeat(12, 1)
    rollouts = found.world.rollouts(torch.arange(12), every, Clock(0, 1, True, 0))
    raw, calibrated = (rpr_calibrated(rm=found.rm, calibrate=on)(rollouts).reward.view(12, 10) for on in (False, True))
    low, answered = raw < 0.5, torch.arange(10) < 8
    assert torch.equal(calibrated[~low], raw[~low]) and bool((calibrated[:, 8:] == 0).all())
    gained = (calibrated - raw)[low & answered]
    assert bool((gained >= 0).all()) and float(gained.mean()) > 0.02 and float(gained.max()) <= 0.1


def test_rpr_alone_thinks_to_the_cap() -> None:
    found = open_world(3, 24)
    (calibrated, short), (rpr, long) = (run_open(arm, found, 3, 80) for arm in ("calibrated", "rpr"))
    assert calibrated.quality() > rpr.quality() + 0.2 and long > 0.8 * CAP > short


# --- 5: the pointwise head ---------------------------------------------------------------------------------------------


def test_the_head_regresses_on_one_and_zero_and_things_are_not_shared() -> None:
    pairs = helpful_pairs(THINGS[:20])
    assert len(pairs.helpful) == len(pairs.unhelpful) == 20 * 9
    useful = torch.zeros(len(pairs.texts))
    useful[pairs.helpful] = 1.0
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(len(pairs.texts), 16, generator=generator) + 2 * useful[:, None]
    found = train_head(states, pairs, 0, steps=300, lr=3e-2)
    assert found[-1].accuracy > 0.95 and found[0].variance < found[-1].variance < 0.4  # 1 and 0, half and half: 0.25
    blind = train_head(torch.randn(len(pairs.texts), 16, generator=generator), pairs, 0, steps=50)
    assert abs(blind[-1].accuracy - 0.5) < 0.2 and blind[-1].variance < found[-1].variance
    assert first_reaching(found, (0.65, 2.0))[1] is None


def test_the_claim_about_checkpoints_can_fail() -> None:
    """One checkpoint three times, a level that is never reached, a variance that falls: none of them is growth."""
    low, middle, high = Checkpoint(3, 0.66, 0.02), Checkpoint(9, 0.76, 0.05), Checkpoint(40, 0.86, 0.1)
    assert spread_grows([low, middle, high])
    assert not spread_grows([high, high, high]) and not spread_grows([low, middle, None])
    assert not spread_grows([low, middle, high._replace(variance=0.04)])
    assert not spread_grows([low, middle._replace(accuracy=0.66), high])


def test_the_head_starts_at_chance_and_learns_slowly_enough_to_have_different_checkpoints() -> None:
    pairs = helpful_pairs(THINGS)
    useful = torch.zeros(len(pairs.texts))
    useful[pairs.helpful] = 1.0
    states = torch.randn(len(pairs.texts), 256, generator=torch.Generator().manual_seed(0)) + 0.5 * useful[:, None]
    starts = [train_head(states, pairs, seed, steps=1)[0].accuracy for seed in range(6)]
    assert min(starts) < 0.5 < max(starts), "on either side of chance"
    reached = first_reaching(train_head(states, pairs, 0, steps=200), (0.65, 0.75, 0.85))
    assert all(c is not None for c in reached) and len({c.step for c in reached if c is not None}) == 3


def test_the_reproduction_runs_to_its_record(tmp_path: Path) -> None:
    from guerdon.systems.reproductions.noisy_rpr import reproduce

    said: list[str] = []
    result = reproduce(Budget(smoke=True, say=said.append))
    assert list(result.seeds) == [0, 1] and said and len({tuple(row) for row in result.table}) == 1
    assert len(result.claims) == 9
    for curve in result.curves.values():
        assert [len(line) for line in curve["y"]] == [len(curve["x"])] * 2
    path = save(result, tmp_path, command="guerdon reproduce noisy_rpr --smoke", seconds=1.0, versions={})
    assert json.loads(path.read_text())["seeds"] == [0, 1] and (tmp_path / "noisy_rpr.svg").exists()
