"""Every snippet of README and the pages runs as it stands, every command up to the point where it would sample."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from guerdon.repository import find_root

sys.path.insert(0, str(Path(__file__).parent))
from page_kit import commands_of, save_files, save_models

ROOT = find_root()
assert ROOT is not None
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]
TEXTS = {page: (ROOT / page).read_text() for page in PAGES}
COMMANDS = sorted({(page, *words) for page, text in TEXTS.items() for words in commands_of(text)})


class ReachedSampling(Exception):
    """Raised in place of the first generation."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    save_models(folder)
    save_files(folder)
    return folder


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with links to the small models and copies of the files, so that what a command writes stays apart."""
    for path in world.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return tmp_path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words that stand for models which would have to be trained or converted first mean small ones."""
    load = importlib.import_module("guerdon.lm.load")
    materialise = load.materialise
    monkeypatch.setattr(load, "materialise", lambda source, *a, **k: "path/to/model" if source == "smollm2" else materialise(source, *a, **k))  # fmt: skip
    for home, name, path in (
        ("guerdon.tasks.tiny", "tiny_policy", "path/to/model"),
        ("guerdon.tasks", "tiny_policy", "path/to/model"),
        ("guerdon.tasks.search_policy", "search_policy", "path/to/model"),
        ("guerdon.signals.learned.tiny_prm", "tiny_prm", "path/to/prm"),
        ("guerdon.signals.learned.tiny_crm", "tiny_crm", "path/to/crm"),
    ):
        # by sys.modules: some packages give the function of the same name where their module is asked for
        stand_in = lambda *_, path=path, **options: "path/to/another-model" if options else path  # noqa: E731
        monkeypatch.setattr(importlib.import_module(home), name, stand_in)


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in TEXTS[page]])
def test_the_python_of_a_page_runs_as_it_stands(page, here, small, monkeypatch):
    import trl
    from transformers import Trainer

    make = trl.GRPOConfig.__init__
    tiny_run = {"max_completion_length": 8, "max_steps": 1, "use_cpu": True, "bf16": False, "report_to": []}
    monkeypatch.setattr(trl.GRPOConfig, "__init__", lambda self, *a, **k: make(self, *a, **{**k, **tiny_run}))
    trained: list[int] = []
    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self, *a, **k: trained.append(train(self, *a, **k).global_step))
    scope: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", TEXTS[page], re.S):
        exec(compile(block, page, "exec"), scope)
    assert trained == [1] * TEXTS[page].count("trainer.train(")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command)[:120])
def test_a_command_of_a_page_reaches_the_point_where_it_samples(command, here, small, monkeypatch, capsys):
    code, printed = run(list(command[1:]), here, monkeypatch, capsys)
    if "--endpoint" in command:  # no server here: the command was understood, and says so
        assert code == 2 and "endpoint" in printed, printed
    else:
        assert code == 0, printed


def run(words: list[str], here: Path, monkeypatch: Any, capsys: Any) -> tuple[int, str]:
    """Exit code and output; 0 where sampling was reached or the command ended by itself."""
    import datasets

    import guerdon.cli.catalogue
    import guerdon.cli.compare
    from guerdon.cli.main import main
    from guerdon.cli.train import train_run
    from guerdon.engines.trl import CreditTrainer
    from guerdon.systems.base import reproduction_of

    def reach(*_: Any, **__: Any) -> Any:
        raise ReachedSampling

    def arms(runs: Any, **options: Any) -> Any:
        for one in runs[: len({arm.system for arm in runs})]:
            with pytest.raises(ReachedSampling):
                train_run(one, restart=False, quiet=True, console=options["console"])
        raise ReachedSampling

    def reproduce(names: Any, **_: Any) -> int:
        assert all(map(reproduction_of, names))
        return 0

    monkeypatch.setattr(CreditTrainer, "train", reach)
    monkeypatch.setattr(guerdon.cli.compare, "run_arms", arms)
    monkeypatch.setattr(guerdon.cli.catalogue, "run_reproductions", reproduce)
    monkeypatch.setattr(datasets, "load_dataset", _hub(datasets.load_dataset))
    if words[0] == "annotate":
        (here / words[2]).unlink(
            missing_ok=True
        )  # a page's pairs of questions have the name of another's pairs of answers
    words = [str(path) for word in words for path in (sorted(ROOT.glob(word)) if word.startswith("tests/") else [word])]
    monkeypatch.setattr(sys, "argv", ["guerdon", *words])
    code = 0
    try:
        main()
    except ReachedSampling:
        pass
    except SystemExit as done:
        code = int(done.code or 0)
    out, err = capsys.readouterr()
    return code, " ".join((out + err).split())


def _hub(load: Any) -> Any:
    """The hub data set the pages name, from the file of questions."""

    def load_dataset(source: str, *positional: Any, **options: Any) -> Any:
        if source != "owner/name":
            return load(source, *positional, **options)
        table = load("json", data_files="questions.jsonl", split="train")
        return table.rename_columns({"prompt": "question", "answer": "solution"})

    return load_dataset


def test_the_pages_have_commands_and_snippets():
    """The parsers above find them: a page whose fences changed would otherwise test nothing."""
    assert len(COMMANDS) > 80
    assert sum(text.count("```python") for text in TEXTS.values()) > 30
