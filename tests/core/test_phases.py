"""Recipes: a finished phase is not run again, an interrupted one continues, changed settings are refused."""

import pytest

from guerdon.errors import ConfigError
from guerdon.phases import Phase, run_phases


def recipe(ran: list[str], folder, *, fail: bool = False, lr: float = 0.1):
    def first(place):
        ran.append("sft")
        (place / "weights").write_text("7")
        return {"loss": 0.5}

    def second(place):
        saved = place / "steps"
        done = int(saved.read_text()) if saved.exists() else 0
        saved.write_text(str(done + 1))
        if fail:
            raise KeyboardInterrupt
        ran.append("rl")
        return {"calls": done + 1}

    yield Phase("sft", first, {"lr": lr})
    weights = (folder / "01-sft" / "weights").read_text()  # built from what the phase before left
    yield Phase("rl", second, {"weights": weights})


def test_phases_resume_where_they_stopped(tmp_path):
    ran: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_phases(recipe(ran, tmp_path, fail=True), tmp_path)
    said: list[str] = []
    manifests = run_phases(recipe(ran, tmp_path), tmp_path, announce=said.append)
    assert ran == ["sft", "rl"]
    assert said == ["01-sft was done before", "running 02-rl"]
    assert [m["result"] for m in manifests] == [{"loss": 0.5}, {"calls": 2}]
    run_phases(recipe(ran, tmp_path), tmp_path)
    assert ran == ["sft", "rl"]


def test_a_folder_of_other_settings_is_refused(tmp_path):
    run_phases(recipe([], tmp_path), tmp_path)
    with pytest.raises(ConfigError, match="other settings"):
        run_phases(recipe([], tmp_path, lr=0.2), tmp_path)
    with pytest.raises(ConfigError, match="phase 1 was '01-sft' and is now '01-dpo'"):
        run_phases([Phase("dpo", lambda place: None)], tmp_path)
