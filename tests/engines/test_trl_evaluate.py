"""Held-out measurement: the numbers, their errors, and that nothing of it reaches the training run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_kit import Letters, count_letters, dataset, lines, parameters, plain_system, same
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit import ToTokens
from guerdon.engines.trl import CreditTrainer, Evaluator
from guerdon.engines.trl.evaluate import estimate, same_in_every_group
from guerdon.errors import ConfigError, ShapeError
from guerdon.rewards import Rewards
from guerdon.system import System

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def long_enough(completions: list[str], rows: list[Any]) -> list[tuple[float, str]]:
    return [(float(len(text) > 6), "" if len(text) > 6 else "short") for text in completions]


class GroupLetters(Letters):
    """A signal that asks for whole groups, so held-out prompts get G rollouts each."""

    scope = "group"

    def __call__(self, rollouts: Any, scores: Any) -> Any:
        assert set(rollouts.groups.bincount().tolist()) == {4}
        return super().__call__(rollouts, scores)


def row_system() -> System:
    return System({"letters": Letters()}, [ToTokens("letters", "whole")], name="rows")


def test_estimate_by_hand() -> None:
    plain = estimate(torch.tensor([1.0, 0.0, 1.0, 1.0]), [0, 1, 2, 3])
    assert plain["mean"] == 0.75 and plain["n"] == 4
    assert plain["se"] == pytest.approx(0.5 / 2)  # sample std of 1 0 1 1 is 0.5
    # Two prompts with two rollouts each; residual sums +0.5 and -0.5 -> sqrt(0.5 * 2/1) / 4
    clustered = estimate(torch.tensor([1.0, 1.0, 1.0, 0.0]), ["a", "a", "b", "b"])
    assert clustered["mean"] == 0.75 and clustered["se"] == pytest.approx(math.sqrt(0.5 * 2) / 4)
    # A ratio: 3 nats over 10 tokens; residuals 1 - 0.3*2 = 0.4 and 2 - 0.3*8 = -0.4
    ratio = estimate(torch.tensor([1.0, 2.0]), [0, 1], torch.tensor([2.0, 8.0]))
    assert ratio["mean"] == pytest.approx(0.3) and ratio["se"] == pytest.approx(math.sqrt(2 * 0.16 * 2) / 10)
    failed = estimate(torch.tensor([1.0, math.nan]), [0, 1])
    assert (failed["mean"], failed["n"], failed["failed"]) == (1.0, 1, 1) and math.isnan(failed["se"])
    assert math.isnan(estimate(torch.tensor([math.nan]), [0])["mean"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=20))
def test_clusters_of_one_give_the_usual_error(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    found = estimate(tensor, range(len(values)))
    assert found["se"] == pytest.approx(float(tensor.std()) / math.sqrt(len(values)), abs=1e-9)
    doubled = estimate(tensor.repeat_interleave(2), [i for i in range(len(values)) for _ in range(2)])
    assert doubled["se"] == pytest.approx(found["se"], abs=1e-9), "a copied rollout is no new information"


def test_measured_every_few_steps_and_training_does_not_notice(policy_path: str, config: Any, tmp_path: Path) -> None:
    alone = CreditTrainer(policy_path, plain_system(), config(max_steps=3), dataset())
    alone.train()
    system = plain_system(GroupLetters())
    evaluator = Evaluator(dataset(6), long_enough, system, every=2, samples=12)
    trainer = CreditTrainer(policy_path, system, config(max_steps=3), dataset(), monitors=[evaluator], log_dir=tmp_path)
    trainer.train()
    assert same(parameters(alone), parameters(trainer))
    assert [line["loss"] for line in alone.state.log_history if "loss" in line] == [
        line["loss"] for line in trainer.state.log_history if "loss" in line
    ]
    found = lines(tmp_path / "eval.jsonl")
    assert [line["step"] for line in found] == [0, 2, 3], "before training, every second step, and at the end"
    for line in found:
        assert all(line[key]["n"] == 12 for key in ("true_success", "reward", "length", "truncated", "kl"))
    assert found[0]["kl"] == {"mean": 0.0, "se": 0.0, "n": 12, "failed": 0}
    assert found[1]["kl"]["mean"] > 0.05, "the initial policy did not move with the trained one"
    held_out = [r for r in lines(tmp_path / "rollouts.jsonl") if r["split"] == "held_out"]
    assert {r["group"] for r in held_out} == {0, 1} and len(held_out) == 3 * 2 * 4, "whole groups of G = 4"
    for record in held_out:
        assert record["reward"] == pytest.approx(count_letters(record["completion"]), abs=1e-5)
        assert record["true"] == float(len(record["completion"]) > 6)
        assert ("true" in record["reasons"]) == (record["true"] == 0.0)
        assert "".join(record["tokens"]) == record["completion"]
        assert len(record["tokens"]) == len(record["advantages"]) == len(record["mask"])
    step0 = [r["reward"] for r in lines(tmp_path / "rollouts.jsonl") if r["split"] == "held_out" and r["step"] == 0]
    assert len(set(step0)) > 1


def test_row_systems_get_one_rollout_a_prompt_and_draws_repeat(policy_path: str, config: Any, tmp_path: Path) -> None:
    """10 samples of 8 rows: two rows twice, 8 clusters. Batches and what else was drawn do not matter; the step does."""
    found = []
    for batch_size, noise in ((64, 0), (64, 5)):
        system = row_system()
        evaluator = Evaluator(
            dataset(8), long_enough, system, every=5, samples=10, batch_size=batch_size, log_rollouts=20, kl=False
        )
        trainer = CreditTrainer(
            policy_path, system, config(), dataset(), monitors=[evaluator], log_dir=tmp_path / str(noise)
        )
        torch.rand(noise)
        found.append(evaluator.evaluate())
    first, second = ({k: v for k, v in line.items() if k != "seconds"} for line in found)
    assert first == second and first["reward"]["n"] == 10
    records = lines(tmp_path / "0" / "rollouts.jsonl")
    assert [r["prompt"] for r in records] == [dataset(8)[i % 8]["prompt"] for i in range(10)]
    trainer.state.global_step = 1
    assert {k: v for k, v in evaluator.evaluate().items() if k != "seconds"} != {**second, "step": 1}


def test_truth_is_measured_on_the_same_rollouts_whatever_the_reward_needs(
    policy_path: str, config: Any, tmp_path: Path
) -> None:
    seen: dict[str, list[list[str]]] = {}
    for name, system in {"row": row_system(), "group": plain_system(GroupLetters())}.items():
        calls = seen.setdefault(name, [])

        def truth(completions: list[str], rows: list[Any], calls: list[list[str]] = calls) -> list[tuple[float, str]]:
            calls.append([row["prompt"] + text for row, text in zip(rows, completions, strict=True)])
            return long_enough(completions, rows)

        CreditTrainer(
            policy_path,
            system,
            config(max_steps=1),
            dataset(),
            monitors=[Evaluator(dataset(6), truth, system, every=1, samples=12)],
            log_dir=tmp_path / name,
        ).train()
    assert seen["row"][0] == seen["group"][0] and len(seen["row"][0]) == 12, "before training: the same draws"
    assert len(seen["row"]) == 2 and len(seen["group"]) == 4, "and once more for the groups that are logged"
    line = lines(tmp_path / "group" / "eval.jsonl")[0]
    assert line["true_success"]["n"] == line["reward"]["n"] == 12
    logged = [row for row in lines(tmp_path / "group" / "rollouts.jsonl") if row.get("split") == "held_out"]
    assert logged and all(row["true"] in (0.0, 1.0) for row in logged)


def test_temperature_and_length_of_its_own(policy_path: str, config: Any, tmp_path: Path) -> None:
    system = row_system()
    evaluator = Evaluator(
        dataset(8),
        None,
        system,
        samples=8,
        temperature=1e-4,
        max_new_tokens=5,
        initial_policy=policy_path,
        batch_size=3,
    )
    trainer = CreditTrainer(policy_path, system, config(), dataset(), monitors=[evaluator], log_dir=tmp_path)
    line = evaluator.evaluate()
    assert "true_success" not in line and line["length"]["mean"] <= 5
    assert line["kl"]["mean"] == 0.0
    assert trainer.generation_config.temperature == 1.0 and trainer.max_completion_length == 8
    assert trainer.num_generations_eval == 4 and trainer._sampled is None and not trainer._metrics["eval"]


def test_wrong_uses_are_refused(policy_path: str, config: Any) -> None:
    with pytest.raises(ConfigError, match="no held-out rows"):
        Evaluator([], None, row_system())
    with pytest.raises(ConfigError, match="at least 1"):
        Evaluator(dataset(), None, row_system(), every=0)
    with pytest.raises(ConfigError, match="same System"):
        CreditTrainer(
            policy_path, row_system(), config(), dataset(), monitors=[Evaluator(dataset(), None, row_system())]
        )
    system = row_system()
    evaluator = Evaluator(dataset(), lambda c, rows: [1.0], system, samples=8, kl=False)
    CreditTrainer(policy_path, system, config(), dataset(), monitors=[evaluator])
    with pytest.raises(ShapeError, match="1 answers for 8"):
        evaluator.evaluate()


class WinRate:
    """The share of its group that a completion is longer than: sums to the same in every group."""

    scope, level = "group", "sequence"

    def __call__(self, rollouts: Any, scores: Any) -> Any:
        size = [len(text) + row / 100 for row, text in enumerate(rollouts.completions)]
        groups = rollouts.groups.tolist()
        wins = [
            sum(a > b for b, h in zip(size, groups, strict=True) if h == g) for a, g in zip(size, groups, strict=True)
        ]
        return Rewards.sequence(torch.tensor(wins, dtype=torch.float32), rollouts)


class Ranked(Letters):
    relative = True


def test_a_reward_that_only_compares_is_written_down_as_one(policy_path: str, config: Any, tmp_path: Path) -> None:
    for signal, relative in ((WinRate(), True), (Ranked(), True), (Letters(), None)):
        system = plain_system(signal)
        folder = tmp_path / type(signal).__name__
        evaluator = Evaluator(dataset(), None, system, every=1, samples=16, group_size=4, kl=False)
        CreditTrainer(policy_path, system, config(max_steps=1), dataset(), monitors=[evaluator], log_dir=folder).train()
        assert [line.get("relative") for line in lines(folder / "eval.jsonl")] == [relative] * 2, signal


def test_equal_group_means_by_hand() -> None:
    groups = torch.arange(8) // 2
    shared = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.3, 0.7])
    assert same_in_every_group(shared, groups)
    assert not same_in_every_group(torch.where(groups == 2, 1.0, shared), groups)
    assert not same_in_every_group(torch.ones(8), groups), "all right is no comparison"
    assert not same_in_every_group(shared[:6], groups[:6]), "few groups may be equal by chance"
    assert not same_in_every_group(torch.full((8,), float("nan")), groups)
