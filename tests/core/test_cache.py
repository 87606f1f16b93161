"""The cache folder: where it is, and artefacts that are there whole or not at all."""

import json
from pathlib import Path

import pytest

from guerdon import cache
from guerdon.cache import artifact_key, cache_root, cached_artifact


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GUERDON_CACHE", str(tmp_path))
    return tmp_path


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GUERDON_CACHE", raising=False)
    assert cache_root() == tmp_path / ".cache" / "guerdon"
    monkeypatch.setenv("GUERDON_CACHE", "")  # an empty variable is none
    assert cache_root() == tmp_path / ".cache" / "guerdon"
    monkeypatch.setenv("GUERDON_CACHE", "~/elsewhere")
    assert cache_root() == tmp_path / "elsewhere"
    assert not cache_root().exists()


def test_built_once(folder):
    calls = []

    def build(directory: Path) -> None:
        calls.append(directory)
        (directory / "weights").write_text("x")

    first = cached_artifact("thing", {"a": 1}, [cache], build)
    assert cached_artifact("thing", {"a": 1}, [cache], build) == first and len(calls) == 1
    assert first.parent == folder and first.name.startswith("thing-") and (first / "weights").read_text() == "x"
    assert not calls[0].exists()  # built beside its place
    assert cached_artifact("thing", {"a": 2}, [cache], build) != first and len(calls) == 2


def test_a_failed_build_leaves_nothing_behind(folder):
    def build(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_artifact("thing", {"a": 1}, [cache], build)
    assert [p.suffix for p in folder.iterdir()] == [".lock"]


def test_the_key_follows_configuration_and_code():
    assert artifact_key({"a": 1}, [cache]) == artifact_key({"a": 1}, [cache])
    assert artifact_key({"a": 1}, [cache]) != artifact_key({"a": 2}, [cache])
    assert artifact_key({"a": 1}, [cache]) != artifact_key({"a": 1}, [json])
