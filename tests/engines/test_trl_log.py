"""The run's logs, TRL's own evaluation loop, auxiliary objectives, online updates, and reading truth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_kit import Letters, TokenLetters, count_letters, dataset, lines, plain_system

from guerdon.credit import Fuse, GroupNorm, OnFailure, ToTokens
from guerdon.engines.trl import CreditTrainer, RolloutLog
from guerdon.engines.trl.batch import read_truth
from guerdon.engines.trl.runlog import plain
from guerdon.errors import ChainError, ShapeError
from guerdon.rewards import Rewards
from guerdon.system import System

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


class Two:
    """A signal of two sources."""

    scope = "row"
    level = {"all": "sequence", "hits": "token"}  # noqa: RUF012

    def __call__(self, rollouts: Any, scores: Any) -> dict[str, Rewards]:
        return {"all": Letters(fail=(2,))(rollouts, scores), "hits": TokenLetters()(rollouts, scores)}


def two_sources() -> System:
    chain = [
        OnFailure("row"),
        GroupNorm("two.all"),
        ToTokens("two.all", "whole"),
        Fuse("two.all", "two.hits", into="credit"),
    ]
    return System({"two": Two()}, chain, name="two")


def test_metrics_and_rollouts(policy_path: str, config: Any, tmp_path: Path) -> None:
    args = config(max_steps=4, num_iterations=2, beta=0.1)
    trainer = CreditTrainer(
        policy_path,
        two_sources(),
        args,
        dataset(),
        rollout_log=RolloutLog(every=2, groups=1),
        log_dir=tmp_path,
        truth=lambda completions, rows: [
            (float(row["answer"] in text), "said so") for text, row in zip(completions, rows, strict=True)
        ],
    )
    trainer.train()
    metrics = lines(tmp_path / "metrics.jsonl")
    history = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    for mine, theirs in zip(metrics, history, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-7)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"])
        assert (mine["lr"], mine["entropy"], mine["kl"]) == (theirs["learning_rate"], theirs["entropy"], theirs["kl"])
    assert metrics[0]["reward"] == metrics[1]["reward"] != metrics[2]["reward"], "one generation serves two steps"
    assert metrics[0]["components"]["two.all"]["nan"] == pytest.approx(1 / 8)
    assert metrics[0]["kept"] == pytest.approx(7 / 8)
    assert history[0]["rewards/two.hits/mean"] == pytest.approx(metrics[0]["components"]["two.hits"]["mean"], abs=1e-5)
    rollouts = lines(tmp_path / "rollouts.jsonl")
    assert [r["step"] for r in rollouts] == [0] * 4 + [2] * 4
    failed = rollouts[2]
    assert failed["reward"] is None and failed["kept"] is False
    assert failed["scores"]["two.all"]["values"] == [None]
    assert failed["reasons"]["two.all"] == "the instrument was told to fail"
    assert "told to fail" in failed["reasons"]["dropped"] and failed["reasons"]["true"] == "said so"
    assert not any(failed["advantages"])
    good = rollouts[0]
    assert good["scores"]["two.all"]["values"][0] == pytest.approx(count_letters(good["completion"]), abs=1e-5)
    hits = good["scores"]["two.hits"]
    assert hits["level"] == "token" and hits["unit"] == "token" and len(hits["spans"]) == len(good["tokens"])
    assert [v > 0 for v in hits["values"]] == [token in "abcdef" and token != "" for token in good["tokens"]]
    assert set(good) == {
        "step",
        "split",
        "prompt",
        "completion",
        "tokens",
        "advantages",
        "mask",
        "reward",
        "true",
        "scores",
        "reasons",
        "group",
        "kept",
    }


def test_nothing_is_logged_twice_when_a_run_starts_anew(policy_path: str, config: Any, tmp_path: Path) -> None:
    for _ in range(2):
        CreditTrainer(policy_path, plain_system(), config(max_steps=2), dataset(), log_dir=tmp_path).train()
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_signal_that_breaks_its_declaration_is_an_error(policy_path: str, config: Any) -> None:
    class Liar(Two):
        def __call__(self, rollouts: Any, scores: Any) -> dict[str, Rewards]:
            return {"all": Letters()(rollouts, scores), "other": TokenLetters()(rollouts, scores)}

    system = two_sources()
    system.signals["two"] = Liar()
    with pytest.raises(ChainError, match=r"declared the sources \['two.all', 'two.hits'\]"):
        CreditTrainer(policy_path, system, config(max_steps=1), dataset()).train()


def test_trl_evaluation_neither_learns_nor_commits(policy_path: str, config: Any) -> None:
    clocks: list[Any] = []

    class Watching(Letters):
        def __call__(self, rollouts: Any, scores: Any) -> Any:
            clocks.append(rollouts.clock)
            return super().__call__(rollouts, scores)

    class Counting:
        """A link that counts generations: (scores, rollouts, state) -> (scores, state)."""

        def init_state(self) -> int:
            return 0

        def __call__(self, scores: Any, rollouts: Any, state: int) -> tuple[Any, int]:
            return scores.with_metrics(count=float(state)), state + 1

    system = System({"letters": Watching()}, [Counting(), GroupNorm("letters"), ToTokens("letters", "whole")])
    args = config(
        max_steps=2, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4, num_generations_eval=2
    )
    trainer = CreditTrainer(policy_path, system, args, dataset(), eval_dataset=dataset(4))
    trainer.train()
    assert [(c.step, c.training) for c in clocks] == [
        (0, True),
        (1, False),
        (1, False),
        (1, True),
        (2, False),
        (2, False),
    ]
    history = trainer.state.log_history
    assert [line["chain/count"] for line in history if "loss" in line] == [0.0, 1.0]
    evaluated = [line for line in history if "eval_reward" in line]
    assert len(evaluated) == 2 and evaluated[0]["eval_kept"] == 1.0
    assert clocks[0].total == 2 and clocks[0].seed == args.seed


def test_objectives_add_to_the_loss(policy_path: str, config: Any) -> None:
    """An auxiliary loss through the policy, its rows in the order of TRL's shuffled tensors, divided by the accumulation."""
    seen: list[Any] = []

    class Constant:
        def __call__(self, models: Any, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
            seen.append(batch)
            weight = next(models["policy"].parameters())
            return 3.0 + 0.0 * weight.sum(), {"three": 3.0}

    def run(objectives: list[Any]) -> Any:
        system = System(
            {"letters": Letters()}, [GroupNorm("letters"), ToTokens("letters", "whole")], objectives=objectives
        )
        args = config(max_steps=2, gradient_accumulation_steps=2, per_device_train_batch_size=4)
        trainer = CreditTrainer(policy_path, system, args, dataset())
        trainer.train()
        return trainer

    without, with_one = run([]), run([Constant()])
    for a, b in zip(without.state.log_history[:2], with_one.state.log_history[:2], strict=True):
        assert b["loss"] == pytest.approx(a["loss"] + 3.0, abs=1e-5)
        assert b["objective/three"] == 3.0
    assert len(seen) == 4
    for batch in seen:
        ids = batch.inputs["completion_ids"]
        width = min(ids.shape[1], batch.rollouts.mask.shape[1])
        assert torch.equal(ids[:, :width], batch.rollouts.completion_ids[:, :width])
        assert batch.rewards["letters"].row_total().tolist() == pytest.approx(
            [count_letters(t) for t in batch.rollouts.completions], abs=1e-5
        )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, ["b0", "s", "a0", "p0", "b1", "s", "a1", "p1"]), ({"num_iterations": 2}, ["b0", "s", "a0", "p0"])],
)
def test_online_updates_once_a_generation(
    policy_path: str, config: Any, changes: dict[str, Any], expected: list[str]
) -> None:
    order: list[str] = []

    class Learner(Letters):
        def __init__(self, at: str, mark: str) -> None:
            super().__init__()
            self.update_at, self.mark = at, mark

        def __call__(self, rollouts: Any, scores: Any) -> Any:
            if self.mark == "b":
                order.append("s")
            return super().__call__(rollouts, scores)

        def update(self, rollouts: Any, scores: Any) -> dict[str, float]:
            order.append(f"{self.mark}{rollouts.clock.step}")
            assert bool(scores.sources) == (self.mark != "b")
            weight = torch.ones(1, requires_grad=True)
            (weight * 2).backward()  # gradients are allowed here
            return {"updated": 1.0}

    signals = {
        "x": Learner("before_scoring", "b"),
        "y": Learner("after_scoring", "a"),
        "z": Learner("after_policy_step", "p"),
    }
    system = System(signals, [Fuse("x", "y", "z", into="all"), GroupNorm("all"), ToTokens("all", "whole")])
    trainer = CreditTrainer(policy_path, system, config(max_steps=2, **changes), dataset())
    trainer.train()
    assert order == expected
    assert lines(Path(trainer.args.output_dir) / "metrics.jsonl")[0]["y/updated"] == 1.0


def test_truth_may_be_numbers_pairs_or_verdicts() -> None:
    values, reasons = read_truth([1.0, (0.0, "wrong"), None, (math.nan, "timed out")], 4)
    assert values[:2].tolist() == [1.0, 0.0] and values[2:].isnan().all()
    assert reasons == ["", "wrong", "", "timed out"]
    with pytest.raises(ShapeError, match="2 answers for 3"):
        read_truth([1.0, 0.0], 3)


def test_plain_has_no_nan() -> None:
    record = {
        "a": math.nan,
        "b": torch.tensor([1.0, math.inf]),
        "c": torch.tensor([[1, 2]]),
        "d": (True, None, "x"),
        3: {"e": -math.inf},
    }
    assert plain(record) == {"a": None, "b": [1.0, None], "c": [[1, 2]], "d": [True, None, "x"], "3": {"e": None}}
