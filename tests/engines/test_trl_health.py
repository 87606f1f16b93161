"""A trainer does not say "finished" when nothing was trained: too little data, rewards that never vary, instruments that are down."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from engine_kit import Letters, dataset, parameters, plain_system, same, save_tiny, tokenizer

from guerdon.cli.main import main
from guerdon.engines.trl import CreditTrainer, newest_complete_checkpoint
from guerdon.errors import ConfigError, DataError
from guerdon.report.runs import RunDir
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


class Given:
    """The same number for every rollout, chosen by the optimiser step; NaN = the judge is down."""

    scope, level = "row", "sequence"

    def __init__(self, at: Callable[[int], float], spread: Callable[[int], bool] = lambda step: False) -> None:
        self.at, self.spread = at, spread

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        step = rollouts.clock.step
        values = torch.full((len(rollouts),), self.at(step))
        if self.spread(step):
            values[::2] += 1
        broken = values.isnan()
        return Rewards.sequence(
            values, rollouts, {row: "connection refused" for row in broken.nonzero()[:, 0].tolist()}
        )

    def __repr__(self) -> str:
        return "Given()"


class Judge(Given):
    """A judge outside the run, known by where it is asked: mending it is no change of the run's settings."""

    def __init__(self) -> None:
        pass

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        value, down_from, spread_from, spread_until = json.loads(os.environ["JUDGE"])
        step = rollouts.clock.step
        at = math.nan if step >= down_from else value
        return Given(lambda _: at, lambda _: spread_from <= step < spread_until)(rollouts, scores)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Judge]:
    def judge(value: float, *, down_from: int = 99, spread: tuple[int, int] = (99, 99)) -> Judge:
        monkeypatch.setenv("JUDGE", json.dumps([value, down_from, *spread]))
        return Judge()

    return judge


def trained(policy_path: str, args: Any, signal: Any, resume: bool = False, **options: Any) -> CreditTrainer:
    trainer = CreditTrainer(policy_path, plain_system(signal), args, dataset(), processing_class=tokenizer(), **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_rewards_that_never_vary_stop_the_run_resumably(policy_path: str, config: Any, world: Any) -> None:
    args = config(max_steps=12, save_strategy="steps", save_steps=6)
    trainer = trained(policy_path, args, world(-2.0), stop_when_flat=4)
    assert trainer.status == "failed" and trainer.state.global_step == 4
    assert "reward -2 in every rollout" in str(trainer.failure) and "stop_when_flat=4" in str(trainer.failure)
    newest = newest_complete_checkpoint(args.output_dir)
    assert newest is not None and newest.name == "checkpoint-4"
    again = trained(policy_path, args, world(-2.0, spread=(6, 99)), resume=True, stop_when_flat=4)
    assert again.status == "finished" and again.state.global_step == 12 and again.failure is None


def test_a_short_run_that_trained_nothing_is_not_finished(policy_path: str, config: Any) -> None:
    trainer = trained(policy_path, config(max_steps=3), Given(lambda step: 100.1))
    assert trainer.status == "failed" and trainer.state.global_step == 3
    assert "nothing was trained" in str(trainer.failure)
    resting = trained(policy_path, config(max_steps=3), Given(lambda step: 100.1), stop_when_flat=None)
    assert resting.status == "failed", "going on whatever happens is not having trained"


def test_a_run_that_has_learnt_all_there_is_goes_on_to_its_end(policy_path: str, config: Any) -> None:
    signal = Given(lambda step: 1.0, lambda step: step == 1)
    trainer = trained(policy_path, config(max_steps=8), signal, stop_when_flat=3)
    assert trainer.status == "finished" and trainer.state.global_step == 8


def test_an_instrument_that_is_down_stops_the_run_and_a_mended_one_goes_on(
    policy_path: str, config: Any, world: Any
) -> None:
    args = config(max_steps=9, save_strategy="steps", save_steps=3)
    down = {"down_from": 2, "spread": (0, 2)}
    trainer = trained(policy_path, args, world(0.5, **down))
    assert trainer.status == "failed" and trainer.state.global_step == 5, "three generations in a row, the default"
    assert "letters: connection refused" in str(trainer.failure)
    mended = trained(policy_path, args, world(0.5, spread=(0, 99)), resume=True)
    assert mended.status == "finished" and mended.state.global_step == 9
    hiccups = Given(lambda step: float("nan") if step % 3 else 0.5, lambda step: True)
    assert trained(policy_path, config(max_steps=8), hiccups).status == "finished", "two in a row are not three"
    patient = trained(policy_path, config(max_steps=5), world(0.5, **down), stop_when_failed=None)
    assert patient.status == "finished" and patient.state.global_step == 5
    never = trained(policy_path, config(max_steps=4), Given(lambda step: float("nan")), stop_when_failed=None)
    assert never.status == "failed" and "connection refused" in str(never.failure)


def test_an_objective_trains_without_advantages(policy_path: str, config: Any) -> None:
    system = plain_system(Given(lambda step: 1.0))
    system.objectives = [lambda models, batch: (sum(p.sum() for p in models["policy"].parameters()) * 1e-6, {})]
    trainer = CreditTrainer(
        policy_path, system, config(max_steps=4), dataset(), processing_class=tokenizer(), stop_when_flat=2
    )
    trainer.train()
    assert trainer.status == "finished"


def test_stops_wait_for_a_generation_boundary(policy_path: str, config: Any) -> None:
    args = config(max_steps=12, num_iterations=3, save_strategy="steps", save_steps=3)
    trainer = trained(policy_path, args, Given(lambda step: 1.0), stop_when_flat=2)
    assert trainer.status == "failed" and trainer.state.global_step == 6
    newest = newest_complete_checkpoint(args.output_dir)
    assert newest is not None and newest.name == "checkpoint-6"


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "3"])
@pytest.mark.parametrize("name", ["stop_when_failed", "stop_when_flat"])
def test_impossible_settings_are_refused(policy_path: str, config: Any, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name}="):
        CreditTrainer(policy_path, plain_system(), config(), dataset(), **{name: value})


# -- data --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"max_steps": -1, "num_train_epochs": 1}, {"gradient_accumulation_steps": 4}])
def test_fewer_prompts_than_a_generation_batch_are_refused(
    policy_path: str, config: Any, changes: dict[str, Any]
) -> None:
    need = 16 * changes.get("gradient_accumulation_steps", 1) // 4
    for rows in (need - 1, 0):
        with pytest.raises(ConfigError, match=f"{rows} prompt.* holds {need} different"):
            data = dataset(rows) if rows else Dataset.from_dict({"prompt": [], "answer": []})
            CreditTrainer(policy_path, plain_system(), config(per_device_train_batch_size=16, **changes), data)
    CreditTrainer(policy_path, plain_system(), config(per_device_train_batch_size=16, **changes), dataset(need))


def test_a_stream_that_gives_too_little_ends_as_failed(policy_path: str, config: Any) -> None:
    def rows() -> Any:
        yield from ({"prompt": f"{i}=", "answer": "1"} for i in range(3))

    data = IterableDataset.from_generator(rows)
    trainer = CreditTrainer(
        policy_path, plain_system(), config(per_device_train_batch_size=16), data, processing_class=tokenizer()
    )
    before = parameters(trainer)
    trainer.train()
    if trainer.state.global_step == 0:
        assert same(before, parameters(trainer))
        assert trainer.status == "failed" and "no step was taken" in str(trainer.failure)
    else:
        assert trainer.status == "finished" and not same(before, parameters(trainer))


def test_data_without_prompts_names_what_there_is(policy_path: str, config: Any) -> None:
    rows = [{"question": "1+1=", "answer": "2"}] * 16
    with pytest.raises(
        DataError, match=r"no column 'prompt' .*question, answer.*rename_column\('question', 'prompt'\)"
    ):
        CreditTrainer(policy_path, plain_system(), config(), Dataset.from_list(rows), processing_class=tokenizer())
    stream = IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(DataError, match="no column 'prompt'"):
        CreditTrainer(policy_path, plain_system(), config(), stream, processing_class=tokenizer()).train()


# -- the command ---------------------------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["guerdon", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_ends_with_a_code_a_status_and_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = save_tiny(tmp_path / "policy")
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps({"question": f"{i}+1=", "answer": f"never {i}"}) + "\n" for i in range(40))
    )
    words = ["train", "--system", "outcome", "--task", tmp_path / "data.jsonl", "--model", policy, "--out", tmp_path / "run", "--group-size", 2,
             "--prompts-per-step", 2, "--steps", 6, "--set", "max_completion_length=3", "--set", "eval_prompts=2", "--set", "eval_every=50",
             "--set", "stop_when_flat=4", "--set", "kl_to_start=false", "-q"]  # fmt: skip
    assert run(monkeypatch, *words) == 2
    assert "nothing was trained" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "failed" and "reward 0 in every rollout" in manifest["error"]
    assert not (tmp_path / "run" / "policy").exists(), "a policy nobody trained is not handed out"
    assert any("nothing was trained" in note for note in RunDir.load(tmp_path / "run").notes)
    assert run(monkeypatch, *words) == 2
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6], "the second call went on from the fourth step, to the end"


def test_a_system_of_turns_is_refused_where_nobody_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = save_tiny(tmp_path / "policy")
    (tmp_path / "data.jsonl").write_text("".join(f'{{"question": "{i}+1=", "answer": "2"}}\n' for i in range(9)))
    words = [
        "train",
        "--system",
        "igpo",
        "--task",
        tmp_path / "data.jsonl",
        "--model",
        policy,
        "--out",
        tmp_path / "run",
        "-q",
    ]
    assert run(monkeypatch, *words) == 2
    assert "--task search" in " ".join(capsys.readouterr().err.split())


def test_a_task_smaller_than_a_step_is_refused_in_the_commands_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = save_tiny(tmp_path / "policy")
    (tmp_path / "data.jsonl").write_text("".join(f'{{"question": "{i}+1=", "answer": "2"}}\n' for i in range(9)))
    words = ["train", "--system", "outcome", "--task", tmp_path / "data.jsonl", "--model", policy, "--out", tmp_path / "run",
             "--prompts-per-step", 16, "-q"]  # fmt: skip
    assert run(monkeypatch, *words) == 2
    assert "lower --prompts-per-step" in " ".join(capsys.readouterr().err.split())


def test_letters_still_finish(policy_path: str, config: Any) -> None:
    assert trained(policy_path, config(max_steps=3), Letters()).status == "finished"
