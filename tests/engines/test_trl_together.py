"""Rows that must meet in one generation batch, and models that move with the policy: on one process and on two."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import together_run
import torch
from datasets import Dataset, IterableDataset
from engine_kit import dataset, lines, parameters, plain_system, same
from together_run import GROUP, PROMPTS, make, pairs, system

from guerdon.engines.trl import CreditTrainer, Evaluator, newest_complete_checkpoint
from guerdon.engines.trl.moving import Moving
from guerdon.engines.trl.together import TogetherSampler, units_of
from guerdon.errors import CapabilityError, ChainError, ConfigError, DataError
from guerdon.lm.ema import CosineRate, cosine_rate, ema_update_
from guerdon.system import Model, System

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
SCRIPT = str(Path(__file__).with_name("together_run.py"))


# -- the sampler ------------------------------------------------------------------------------------------------------


def test_units_are_rows_of_equal_value_in_order() -> None:
    assert units_of(["a", "b", "b", "a"], "q") == [[0, 3], [1, 2]]
    for values in (["a", "b", "b"], ["a", "b"], []):
        with pytest.raises(DataError, match="'q'"):
            units_of(values, "q")


def test_the_sampler_keeps_units_whole_and_repeats_as_trl_does() -> None:
    sampler = TogetherSampler([[0, 5], [1, 4], [2, 3]], 2, 4, repeat_count=2, seed=0)
    first = list(sampler)
    assert len(first) == len(sampler) == 16, "two units fit a batch, the third is left out"
    assert first[:8] == first[8:], "the batch is repeated as a whole"
    assert first[:8] == [row for row in first[:8:2] for _ in range(2)], "each row's rollouts side by side"
    assert {tuple(first[0:4:2]), tuple(first[4:8:2])} < {(0, 5), (1, 4), (2, 3)}
    seen = Counter(row for _ in range(60) for row in set(sampler))
    assert set(seen) == set(range(6)) and seen[0] == seen[5] and max(seen.values()) < 60, "shuffled anew each pass"
    assert list(TogetherSampler([[0, 5], [1, 4]], 1, 4, shuffle=False)) == [0, 5, 1, 4]
    assert list(TogetherSampler([[0, 5], [1, 4], [2, 3]], 1, 2, seed=3)) == list(
        TogetherSampler([[0, 5], [1, 4], [2, 3]], 1, 2, seed=3)
    )


def test_what_cannot_meet_is_refused_at_construction(policy_path: str, config: Any) -> None:
    def build(data: Any, **changes: Any) -> CreditTrainer:
        return CreditTrainer(policy_path, system(), config(**changes), data)

    with pytest.raises(ConfigError, match="multiple of 2"):
        build(pairs(), per_device_train_batch_size=12)
    with pytest.raises(DataError, match="no such column"):
        build(dataset())
    with pytest.raises(DataError, match=r"occurs 1 time\(s\)"):
        build(pairs().select(range(17)))
    with pytest.raises(ConfigError, match=r"2 prompt\(s\) and a generation batch holds 4"):
        build(pairs(1), per_device_train_batch_size=16)
    with pytest.raises(ConfigError, match=r"1 unit\(s\) of rows that must meet and a generation batch holds 2"):
        TogetherSampler([[0, 1]], 2, 4)
    with pytest.raises(CapabilityError, match="iterable"):
        build(IterableDataset.from_generator(lambda: iter(list(pairs()))))
    with pytest.raises(CapabilityError, match="Evaluator"):
        CreditTrainer(policy_path, system(), config(), pairs(), pairs())
    other = system()
    other.signals["taught"].needs = frozenset({"together.answer"})
    with pytest.raises(CapabilityError, match="one column"):
        CreditTrainer(policy_path, System(other.signals, other.chain, models=other.models), config(), pairs())


def test_held_out_rows_meet_too(policy_path: str, tmp_path: Path) -> None:
    trainer, _ = make(policy_path, tmp_path)
    evaluator = trainer.monitors[1]
    assert [row["question_id"] for row in evaluator.rows[:4]] == ["q0", "q0", "q1", "q1"]
    trainer.state.max_steps = 10
    line = evaluator.evaluate()
    assert line["reward"]["failed"] == 0 and line["reward"]["n"] == 6 * GROUP, (
        "5 prompts asked for, whole pairs measured"
    )
    lonely = Evaluator(list(pairs())[:3], None, trainer.system, kl=False)
    with pytest.raises(DataError, match="occurs 1 time"):
        lonely.attach(trainer)


# -- runs -------------------------------------------------------------------------------------------------------------


def run(policy: str, out: Path, per_device: int, processes: int) -> list[dict[str, Any]]:
    """What each rank saw."""
    if processes == 1:
        together_run.main(policy, str(out), per_device)
    else:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [*start, SCRIPT, policy, str(out), str(per_device)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(processes)]


def check_views_met(seen: list[dict[str, Any]]) -> None:
    assert len(seen) == 3
    for batch in seen:
        assert Counter(zip(batch["question_id"], batch["view"], strict=True)) == {
            (question, view): GROUP for question in set(batch["question_id"]) for view in (0, 1)
        }
        assert len(set(batch["question_id"])) == PROMPTS // 2
        assert batch["groups"].tolist() == [row // GROUP for row in range(GROUP * PROMPTS)], (
            "views are groups of their own"
        )
        for row, text in enumerate(
            batch["texts"]
        ):  # the label by hand: the first of the most frequent of the other view
            votes = [
                other[:1]
                for other, question, view in zip(batch["texts"], batch["question_id"], batch["view"], strict=True)
                if question == batch["question_id"][row] and view != batch["view"][row] and other[:1].strip()
            ]
            label = Counter(votes).most_common(1)[0][0] if votes else None
            assert batch["cross.agrees"][row] == float(text[:1] == label)


def test_both_views_meet_on_one_process(policy_path: str, tmp_path: Path) -> None:
    (one,) = run(policy_path, tmp_path / "one", GROUP * PROMPTS, 1)
    check_views_met(one["seen"])
    assert {row["rate/teacher"] for row in lines(tmp_path / "one.run" / "metrics.jsonl")} == {0.3}


@pytest.mark.slow
def test_both_views_meet_on_two_processes(policy_path: str, tmp_path: Path) -> None:
    """A rank holds three prompts, so the pair in the middle straddles the ranks."""
    (one,) = run(policy_path, tmp_path / "one", GROUP * PROMPTS, 1)
    ranks = run(policy_path, tmp_path / "two", GROUP * PROMPTS // 2, 2)
    assert [rank["processes"] for rank in ranks] == [2, 2]
    for rank in ranks:
        check_views_met(rank["seen"])
    for mine, theirs, alone in zip(ranks[0]["seen"], ranks[1]["seen"], one["seen"], strict=True):
        assert mine["question_id"] == theirs["question_id"] == alone["question_id"], "the same order of questions"
        assert mine["texts"] == theirs["texts"]
        for name in ("cross.agrees", "taught.agrees", "taught.share"):
            assert torch.equal(mine[name], theirs[name]), "every rank has the same labels, the teacher's too"
    for name in ("policy", "teacher"):
        assert same(ranks[0][name], ranks[1][name]), name


# -- moving models ----------------------------------------------------------------------------------------------------


def test_ema_rates() -> None:
    rates = [cosine_rate(step, 50, 0.01, 1e-5) for step in range(1, 60)]
    assert rates[0] == 0.01 and rates[50] == pytest.approx(1e-5) and rates[-1] == rates[50]
    assert all(a > b for a, b in itertools.pairwise(rates[:51]))
    assert cosine_rate(3, 0, 0.5, 0.25) == 0.25
    with pytest.raises(ConfigError, match="known length"):
        CosineRate()(1, None)
    for make_it in (lambda: CosineRate(start=1.5), lambda: CosineRate(end=-0.1)):
        with pytest.raises(ConfigError, match="in \\[0, 1\\]"):
            make_it()
    with pytest.raises(ChainError, match="rate=2"):
        Model("policy", "ema", 2)
    with pytest.raises(ChainError, match="at least 1"):
        Model("policy", "every:0")
    assert [Model("policy", "every:2").rate_at(step, None) for step in (1, 2, 3)] == [1.0, 0.0, 1.0]
    every = Model("policy", "every:3")  # generations two steps apart: steps 1, 4 and 7 fall on 1, 5 and 7
    assert [every.rate_at(step, None, step - 2 if step > 1 else 0) for step in (1, 3, 5, 7)] == [1.0, 0.0, 1.0, 1.0]


def test_a_rate_of_0_keeps_the_teacher_and_1_makes_it_the_policy() -> None:
    slow, fast = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    before = slow.weight.detach().clone()
    Moving("teacher", Model("policy", "ema", 0.0), slow, fast).move(1, None)
    assert torch.equal(slow.weight, before)
    moving = Moving("teacher", Model("policy", "ema", 0.25), slow, fast)
    assert moving.move(1, None) == 0.25 and moving.move(1, None) is None, "once a step"
    assert torch.allclose(slow.weight, 0.75 * before + 0.25 * fast.weight)
    Moving("teacher", Model("policy", "ema", 1.0), slow, fast).move(1, None)
    assert torch.equal(slow.weight, fast.weight) and torch.equal(slow.bias, fast.bias)
    with pytest.raises(ConfigError, match="other parameters"):
        Moving("teacher", Model("policy", "ema"), torch.nn.Linear(4, 2), fast)
    with pytest.raises(ConfigError, match=r"rate=1\.5"):
        ema_update_([before], [before], 1.5)


def test_small_rates_survive_half_precision() -> None:
    slow, fast = torch.nn.Linear(1, 1).bfloat16(), torch.nn.Linear(1, 1).bfloat16()
    slow.weight.data.fill_(1.0), fast.weight.data.fill_(2.0)
    moving = Moving("teacher", Model("policy", "ema", 1e-3), slow, fast)
    for step in range(1, 501):
        moving.move(step, None)
    assert float(slow.weight) == pytest.approx(2 - 0.999**500, abs=0.01), "in bfloat16 alone it would still be 1"
    state = moving.state_dict()
    other = Moving("teacher", Model("policy", "ema", 1e-3), torch.nn.Linear(1, 1).bfloat16(), fast)
    other.load_state_dict(state)
    assert torch.equal(other.average["weight"], moving.average["weight"]) and other.step == 500


def test_the_teacher_is_an_average_of_the_policies_that_sampled(policy_path: str, tmp_path: Path) -> None:
    trainer, _ = make(policy_path, tmp_path)
    policies = []
    trainer.monitors.append(lambda r, s: policies.append(parameters(trainer)))
    start = parameters(trainer)
    trainer.train()
    expected = start
    for policy in policies:
        expected = {name: 0.7 * weight + 0.3 * policy[name] for name, weight in expected.items()}
    teacher = trainer.instruments.state_dict()["teacher"]["weights"]
    assert not same(start, parameters(trainer))
    assert all(torch.allclose(teacher[name], weight, atol=1e-6) for name, weight in expected.items())


def test_a_moving_reference_is_the_one_of_the_kl_term(policy_path: str, config: Any) -> None:
    moving = plain_system()
    moving.models["reference"] = Model("policy", "ema", 1.0)
    trainer = CreditTrainer(policy_path, moving, config(beta=0.1, max_steps=4, learning_rate=0.05), dataset())
    trainer.train()
    kl = [line["kl"] for line in trainer.state.log_history if "kl" in line]
    assert len(kl) == 4 and max(kl) < 1e-6, "a reference that is copied before each generation is the policy"
    frozen = CreditTrainer(policy_path, plain_system(), config(beta=0.1, max_steps=4, learning_rate=0.05), dataset())
    frozen.train()
    assert frozen.state.log_history[3]["kl"] > 1e-4


def test_a_run_with_pairs_and_a_teacher_resumes_exactly(policy_path: str, tmp_path: Path) -> None:
    """Six steps make two passes over the nine questions, so the sampler's second order has to be found again, too."""
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6}
    whole, seen = make(policy_path, tmp_path / "whole", **settings)
    whole.train()
    part, _ = make(policy_path, tmp_path / "part", **settings)
    part.monitors.append(lambda r, s: part.interrupt.__setattr__("requested", r.clock.step == 3))
    part.train()
    assert part.status == "interrupted"
    assert newest_complete_checkpoint(tmp_path / "part").name == "checkpoint-4"
    again, after = make(policy_path, tmp_path / "part", **settings)
    again.train(resume_from_checkpoint=True)
    assert [batch["question_id"] for batch in after] == [batch["question_id"] for batch in seen[4:]]
    assert same(parameters(again), parameters(whole))
    weights = [t.instruments.state_dict()["teacher"]["weights"] for t in (again, whole)]
    assert same(*weights)


def test_a_data_set_out_of_order_is_put_together() -> None:
    shuffled = pairs().shuffle(seed=1)
    assert isinstance(shuffled, Dataset)
    units = units_of(shuffled["question_id"], "question_id")
    assert all(len({shuffled[row]["view"] for row in unit}) == 2 for unit in units)
