"""What the endogenous reward has to show: the token world's arithmetic, matched pairs, and that the reproduction runs and is recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from guerdon.systems import reproduction
from guerdon.systems.reproductions.endogenous_mdp import LETTERS, World
from guerdon.systems.reproductions.endogenous_probe import PAIRS, STYLES, matched

pytest.importorskip("transformers")


def test_the_expert_by_hand_and_by_sampling() -> None:
    world = World(0, 0.3)
    policies, expected = world.expert(1)
    good = float((torch.tensor(1 / 0.3).exp()) / (torch.tensor(1 / 0.3).exp() + 5))
    assert expected == pytest.approx(good, rel=1e-6)
    assert policies[0][torch.arange(36), world.reward.argmax(1)].tolist() == pytest.approx([good] * 36)
    texts = world.demonstrations(8, 600)
    returns = world.returns([t[:2] for t in texts], [t[2:] for t in texts], 8)
    assert sum(returns) / 600 == pytest.approx(world.expert(8)[1], abs=0.15)


def test_true_returns() -> None:
    world = World(3, 0.3)
    letters = [0, 1]
    for _ in range(4):
        letters.append(int(world.reward[letters[-2] * 6 + letters[-1]].argmax()))
    text = "".join(LETTERS[i] for i in letters)
    assert world.returns([text[:2]] * 3, [text[2:], text[2:4], ""], 4) == [4.0, 2.0, 0.0]
    assert world.returns([text[:2]], ["z" + text[2:3]], 4) == [0.0], "two letters make a state"
    assert world.returns([text[:2]], [text[2:]], 2) == [2.0], "no more than the horizon"


def test_pairs_have_equal_lengths_and_say_what_they_should() -> None:
    from guerdon.tasks.tiny import char_tokenizer

    tests = matched(char_tokenizer())
    assert len(tests) == 40 and len(STYLES) == 20 == len({pair.question for pair in PAIRS})
    for _, good, bad in tests:
        assert len(good) == len(bad) and not torch.equal(good, bad)


def test_the_reproduction_runs_and_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    from guerdon.systems.reproductions import endogenous as module

    monkeypatch.setattr(module, "_measured", lambda budget: [])  # the 135M model is measured in the reproduction itself
    budget = reproduction.Budget(seeds=1, smoke=True, folder=tmp_path / "runs", say=lambda _: None)
    result = module.reproduce(budget)
    assert list(result.seeds) == [0] and len(result.table) == 8 and len(result.claims) == 3
    for curve in result.curves.values():
        assert curve["x"] == [5, 10] and [len(line) for line in curve["y"]] == [2]
    assert module.reproduce(budget).table == result.table, "finished worlds are read back"
    path = reproduction.save(result, tmp_path, command="guerdon reproduce endogenous", seconds=1.0, versions={})
    assert json.loads(path.read_text())["slug"] == "endogenous" and (tmp_path / "endogenous.svg").exists()
