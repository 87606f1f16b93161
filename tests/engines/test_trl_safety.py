"""Checkpoints are data, know their run, and count only whole; a folder has one writer and nobody's files are lost."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections import Counter, OrderedDict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_kit import Letters, dataset, grpo_config, lines, parameters, plain_system, same
from resume_run import make

from guerdon.engines.trl import CreditTrainer, newest_complete_checkpoint
from guerdon.engines.trl import checkpoint as C
from guerdon.engines.trl.state_file import STATE, decode, encode
from guerdon.errors import BusyError, ConfigError, DataError
from guerdon.signals import TextSignal
from guerdon.signals.verdict import Verdict
from guerdon.system import System

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def rewarding(weight: float) -> System:
    return plain_system(
        TextSignal(lambda texts, columns: [Verdict(weight * len(set(t))) for t in texts], name="letters")
    )


def trainer_in(
    policy: str, folder: Path, system: System | None = None, steps: int = 2, **changes: Any
) -> CreditTrainer:
    data = changes.pop("data", None) or dataset(6)
    options = {name: changes.pop(name) for name in ("truth", "monitors") if name in changes}
    settings = {
        "max_steps": steps,
        "save_strategy": "steps",
        "save_steps": 1,
        "lr_scheduler_type": "constant",
        **changes,
    }
    args = grpo_config(folder / "checkpoints", **settings)
    return CreditTrainer(policy, system or rewarding(1.0), args, data, log_dir=folder, **options)


@pytest.fixture(scope="module")
def done(policy_path: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of four steps: its folder, and its parameters."""
    folder = tmp_path_factory.mktemp("done")
    trainer = trainer_in(policy_path, folder, steps=4)
    trainer.train(resume_from_checkpoint=True)
    return folder, parameters(trainer)


@pytest.fixture
def copy(done: Any, tmp_path: Path) -> Path:
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


# -- a checkpoint knows its run ------------------------------------------------------------------------------------------------


def longer(texts: list[str], rows: list[Any]) -> list[float]:
    return [float(len(text) > 3) for text in texts]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"system": rewarding(2.0)}, r"system.signals.letters.check"),
        ({"learning_rate": 1e-5}, r"args.learning_rate: [\d.e-]+ -> 1e-05"),
        ({"num_generations": 2}, "args.num_generations: 4 -> 2"),
        ({"data": dataset(8)}, "data.content"),
        ({"truth": longer}, "truth: null -> "),
        ({"system": plain_system(Letters())}, "system.signals.letters"),
        ({"steps": 6, "lr_scheduler_type": "linear"}, "args.lr_scheduler_type"),
    ],
)
def test_a_run_of_other_settings_is_refused_and_says_what_differs(
    changes: dict[str, Any], said: str, policy_path: str, copy: Path
) -> None:
    logs = (copy / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=rf"made of something else \(.*{said}.*\).*set it back"):
        trainer_in(policy_path, copy, **{"steps": 4, **changes}).train(resume_from_checkpoint=True)
    assert (copy / "metrics.jsonl").read_bytes() == logs
    with pytest.raises(ConfigError, match="made of something else"):
        path = str(newest_complete_checkpoint(copy / "checkpoints"))
        trainer_in(policy_path, copy, **{"steps": 4, **changes}).train(resume_from_checkpoint=path)


def test_settings_that_change_no_number_may_change_and_a_run_may_be_made_longer(policy_path: str, copy: Path) -> None:
    trainer = trainer_in(policy_path, copy, rewarding(1.0), steps=5, logging_steps=7, save_steps=5, save_total_limit=3)
    assert trainer.train(resume_from_checkpoint=True).global_step == 5
    assert [line["step"] for line in lines(copy / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_the_length_of_a_run_counts_where_the_learning_rate_falls(policy_path: str, tmp_path: Path) -> None:
    trainer_in(policy_path, tmp_path, lr_scheduler_type="linear").train()
    with pytest.raises(ConfigError, match=r"length.max_steps: 2 -> 4"):
        trainer_in(policy_path, tmp_path, lr_scheduler_type="linear", steps=4).train(resume_from_checkpoint=True)


def test_starting_anew_is_what_was_asked_for(policy_path: str, copy: Path) -> None:
    trainer_in(policy_path, copy, rewarding(2.0)).train()
    assert [line["step"] for line in lines(copy / "metrics.jsonl")] == [1, 2]


# -- only whole ones count -----------------------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", STATE, "trainer_state.json", "rng_state.pth"])
def test_damage_of_the_same_size_is_seen_and_the_one_before_is_taken(
    name: str, policy_path: str, done: Any, copy: Path
) -> None:
    damage(copy / "checkpoints" / "checkpoint-4" / name)
    trainer = trainer_in(policy_path, copy, steps=4)
    with pytest.warns(UserWarning, match=rf"going on from checkpoint-3.*checkpoint-4: the content of {name} is not"):
        trainer.train(resume_from_checkpoint=True)
    assert same(parameters(trainer), done[1])


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"files": []}', '{"files": {"optimizer.pt": "x"}}', "\0\0"])
def test_a_marker_that_says_nothing_vouches_for_nothing(text: str, copy: Path) -> None:
    (copy / "checkpoints" / "checkpoint-4" / C.MARKER).write_text(text)
    assert newest_complete_checkpoint(copy / "checkpoints") == copy / "checkpoints" / "checkpoint-3"


def test_rotation_leaves_other_peoples_files(policy_path: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for name in ("checkpoint-best/model.safetensors", "checkpoint-1/mine.txt", "checkpoint-7/model.safetensors"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("mine")
    trainer_in(policy_path, tmp_path, steps=4, save_total_limit=1).train()
    left = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name == "mine.txt"
    )
    assert left == ["checkpoint-1/mine.txt"] and (folder / "checkpoint-best/model.safetensors").exists()
    assert (folder / "checkpoint-7/model.safetensors").read_text() == "mine"
    assert newest_complete_checkpoint(folder) == folder / "checkpoint-4" and not (folder / "checkpoint-3").exists()


# -- checkpoints are data --------------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_checkpoint_is_run(policy_path: str, copy: Path, tmp_path_factory: Any) -> None:
    """Whoever can write a checkpoint can write its marker, too."""
    hit = tmp_path_factory.mktemp("bomb") / "hit"
    folder = copy / "checkpoints" / "checkpoint-4"
    for path in folder.iterdir():
        if path.suffix in (".pt", ".pth", ".bin"):
            path.write_bytes(pickle.dumps(Bomb(hit)))
    (folder / "guerdon_state.pt").write_bytes(pickle.dumps(Bomb(hit)))
    torch.save({"x": Bomb(hit)}, folder / "optimizer.pt")
    names = [path.name for path in folder.iterdir() if path.name != C.MARKER]
    marker = {name: {"size": (folder / name).stat().st_size, "sha256": C._digest(folder / name)} for name in names}
    (folder / C.MARKER).write_text(json.dumps({"step": 4, "files": marker}))
    assert C.is_complete(folder)
    with pytest.raises(Exception):  # noqa: B017 - whichever reader meets it first
        trainer_in(policy_path, copy, steps=5).train(resume_from_checkpoint=True)
    assert not hit.exists()


def test_states_come_back_as_they_were() -> None:
    state = {
        "plain": [None, True, 1, 2.5, float("inf"), "text", b"\0bytes"],
        "pairs": {0: "int", (1, "b"): "tuple", None: 1},
        "kinds": [(1, (2,)), {1, 2}, frozenset({"a"}), deque([1, 2], maxlen=3), OrderedDict(b=1, a=2), Counter("aab")],
        "tensors": [
            torch.arange(4).reshape(2, 2).T,
            torch.ones(2, dtype=torch.bfloat16),
            torch.zeros(0),
            torch.tensor(True),
        ],
        "numpy": [np.float32(0.5), np.arange(3)],
        "__kind__": {"__kind__": "tensor"},
    }
    tensors: dict[str, torch.Tensor] = {}
    back = decode(json.loads(json.dumps(encode(state, tensors))), tensors)
    for name in ("plain", "pairs", "kinds", "__kind__"):
        assert back[name] == state[name]
    assert [type(item) for item in back["kinds"]] == [type(item) for item in state["kinds"]]
    assert back["kinds"][3].maxlen == 3 and list(back["kinds"][4]) == ["b", "a"]
    for one, other in zip(back["tensors"], state["tensors"], strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype
    assert type(back["numpy"][0]) is np.float32 and back["numpy"][1].tolist() == [0, 1, 2]


def test_a_state_that_is_no_data_is_refused_before_training(policy_path: str, tmp_path: Path) -> None:
    class Holding(Letters):
        def state_dict(self) -> dict[str, Any]:
            return {"rows": [{"at": Path("x")}]}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise AssertionError(state)

    trainer = trainer_in(policy_path, tmp_path, plain_system(Holding()))
    with pytest.raises(ConfigError, match=r"state.signals.letters.rows\[0\].at is a pathlib.*holds data only"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoints/checkpoint-*"))


def test_a_damaged_state_is_no_traceback(copy: Path) -> None:
    folder = copy / "checkpoints" / "checkpoint-4"
    (folder / STATE).write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        C.load_state(folder)


# -- one writer, who stops when asked --------------------------------------------------------------------------------------------


def test_a_second_trainer_in_the_folder_is_refused(policy_path: str, tmp_path: Path) -> None:
    hold = "import sys, time\nfrom guerdon.folders.lock import hold_folder\nwith hold_folder(sys.argv[1]):\n print(1, flush=True)\n time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "1\n"
    try:
        with pytest.raises(BusyError, match=f"is being written by process {other.pid} on"):
            trainer_in(policy_path, tmp_path).train()
        assert not (tmp_path / "metrics.jsonl").exists()
    finally:
        other.kill()
        other.wait()
    trainer_in(policy_path, tmp_path).train()


def test_logs_that_no_run_wrote_are_not_emptied(policy_path: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    for resume in (True, None):
        with pytest.raises(ConfigError, match=r"metrics.jsonl is there and no run of Guerdon wrote it"):
            trainer_in(policy_path, tmp_path).train(resume_from_checkpoint=resume)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_term_and_hup_save_and_stop_as_ctrl_c_does(number: int, policy_path: str, tmp_path: Path) -> None:
    trainer = make(policy_path, tmp_path, 6)

    def ask(rollouts: Any, scores: Any) -> None:
        if rollouts.clock.step == 2:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # a closed terminal sends HUP twice: one request

    trainer.monitors.append(ask)
    before = signal.getsignal(number)
    assert trainer.train().global_step == 4 and trainer.status == "interrupted"
    assert signal.getsignal(number) == before
    again = make(policy_path, tmp_path, 6)
    again.train(resume_from_checkpoint=True)
    assert again.status == "finished" and [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


def test_an_ignored_hup_stays_ignored(policy_path: str, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        trainer = trainer_in(policy_path, tmp_path, monitors=[lambda *_: os.kill(os.getpid(), signal.SIGHUP)])
        trainer.train()
        assert trainer.status == "finished" and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
