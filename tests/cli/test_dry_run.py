"""`--dry-run`, `--device` and `--dtype`: what would lie where, from configurations alone, and that a real run holds just that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from guerdon.cli.config import RunConfig
from guerdon.cli.dry_run import plan
from guerdon.cli.main import app
from guerdon.errors import ConfigError

QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
BASE = 7_615_616_512


def folder(place: Path, **changes: Any) -> str:
    """A model folder with a configuration and nothing else."""
    place.mkdir()
    (place / "config.json").write_text(json.dumps({**QWEN_7B, **changes}))
    return str(place)


def small_policy(place: Path) -> None:
    """A random policy that can be loaded."""
    from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

    shape = TinyConfig(hidden=32, layers=2, heads=2, intermediate=48)
    new_model(char_tokenizer(), shape, seed=0).save_pretrained(place)
    char_tokenizer().save_pretrained(place)


def config(model: str, **changes: Any) -> RunConfig:
    return RunConfig(**{"model": model, "device": "cuda", "dtype": "bfloat16", **changes})


def test_rlpr_at_7b_with_lora_has_one_copy_of_the_base(tmp_path: Path) -> None:
    model = folder(tmp_path / "qwen")
    found = plan(config(model, system="rlpr", lora_rank=16))
    by_what = {item.what: item for item in found.items}
    assert found.copies_of(model) == 1 and by_what["weights"].bytes == 2 * BASE
    assert by_what["weights"].device == "cuda" and by_what["weights"].dtype == torch.bfloat16
    assert set(by_what["nothing new"].roles) == {"initial", "evaluator"} and by_what["nothing new"].bytes == 0
    assert by_what["adapter"].parameters == 40_370_176 and by_what["adapter"].dtype == torch.float32
    assert by_what["gradients"].bytes == 4 * 40_370_176 and by_what["optimiser"].bytes == 8 * 40_370_176
    assert found.weights == 2 * BASE + 4 * 40_370_176
    assert found.total == sum(item.bytes for item in found.items) < 24e9


def test_all_weights_trained_has_one_frozen_copy_for_all(tmp_path: Path) -> None:
    model, prm = folder(tmp_path / "qwen"), folder(tmp_path / "prm", num_hidden_layers=2)
    found = plan(config(model, system=f"pure:prm={prm}", beta=0.1))
    weights = [item for item in found.items if item.what == "weights"]
    assert [set(item.roles) for item in weights] == [
        {"policy"}, {"reference", "evaluator", "TRL's KL term"}, {"steps"},
    ]  # fmt: skip
    assert found.copies_of(model) == 2 and weights[2].source == prm and weights[2].dtype == torch.bfloat16
    assert plan(config(model, system=f"pure:prm={prm},kl_coef=0", kl_to_start=False)).copies_of(model) == 1
    assert plan(config(model, dtype=None)).items[0].dtype == torch.float32, "TRL's default"


def test_models_of_other_roles_and_moving_copies(tmp_path: Path) -> None:
    model, other = folder(tmp_path / "qwen"), folder(tmp_path / "other", num_hidden_layers=4)
    found = plan(config(model, system="nover", kl_to_start=False))
    assert [item.roles for item in found.items if item.what == "weights"] == [("policy",), ("proxy",)]
    assert plan(config(model, system="nover")).copies_of(model) == 3, "the proxy moves, the evaluator's does not"
    weak = folder(tmp_path / "weak", num_hidden_layers=2)
    found = plan(config(model, system=f"cdr:strong={other},weak={weak}", kl_to_start=False))
    assert [item.roles for item in found.items if item.what == "weights"][1:] == [("sow.strong",), ("sow.weak",)]


def test_the_command_prints_it_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = folder(tmp_path / "qwen")
    arguments = ["train", "--system", "rlpr", "--model", model, "--device", "cuda", "--dtype", "bf16", "--dry-run"]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments, "--lora-rank", "16"])
    assert result.exit_code == 0, result.output
    assert "1 copy of the base" in result.output and "7,615,616,512" in result.output and "15.2 GB" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["qwen"]


def test_a_model_without_a_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"config\.json"):
        plan(config(str(tmp_path / "empty")))


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("system", ["rlpr", "reinforce_pp", "nover"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_real_run_holds_what_was_said(system: str, lora_rank: int, tmp_path: Path) -> None:
    from guerdon.cli import train
    from guerdon.engines.trl import CreditTrainer, Evaluator

    small_policy(tmp_path / "policy")
    settings = RunConfig(
        system=system, model=str(tmp_path / "policy"), lora_rank=lora_rank, dtype="bfloat16", device="cpu", steps=1,
        prompts_per_step=2, group_size=2,
    )  # fmt: skip
    parts = train.resolve_parts(settings)
    evaluator = Evaluator(
        list(parts.task.to_dataset("held_out"))[:4], None, parts.system, initial_policy=parts.policy, samples=4
    )
    trainer = CreditTrainer(
        parts.policy, parts.system, train.grpo_config(settings, parts, tmp_path / "run"), parts.task.to_dataset("train"),
        processing_class=parts.tokenizer, peft_config=train._lora(settings), monitors=[evaluator],
    )  # fmt: skip
    models = [trainer.instruments.policy, *trainer.instruments.by_role.values(), evaluator._initial]
    held = {id(p): p.numel() * p.element_size() for lm in models for p in lm.model.parameters()}
    assert sum(held.values()) == plan(settings).weights


def test_devices_that_are_not_there_are_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    for arguments in (
        ["train", "--system", "outcome"],
        ["score", "a.jsonl", "b.jsonl", "--reward", "last_token:constant=-20"],
    ):
        source = tmp_path / "a.jsonl"
        source.write_text('{"prompt": "a", "completion": "b", "answer": "c"}\n')
        arguments = [str(source) if a == "a.jsonl" else str(tmp_path / a) if a == "b.jsonl" else a for a in arguments]
        more = ["--out", str(tmp_path / "run")] if arguments[0] == "train" else ["--model", "tiny"]
        result = CliRunner().invoke(app, [*arguments, *more, "--device", "cuda"])
        assert isinstance(result.exception, ConfigError) and "no CUDA device" in str(result.exception)
    result = CliRunner().invoke(app, ["train", "--dtype", "int8", "--dry-run"])
    assert isinstance(result.exception, ConfigError) and "bfloat16" in str(result.exception)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_score_loads_models_in_the_dtype_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from guerdon.cli import score
    from guerdon.lm import LocalModel

    small_policy(tmp_path / "policy")
    loaded: list[LocalModel] = []
    inner = score._local
    monkeypatch.setattr(score, "_local", lambda *a: loaded.append(inner(*a)) or loaded[-1])
    source = tmp_path / "a.jsonl"
    source.write_text('{"prompt": "1+2=", "completion": "3", "answer": "3"}\n')
    arguments = ["score", str(source), str(tmp_path / "b.jsonl"), "--reward", "relative_perplexity"]
    options = ["--model", str(tmp_path / "policy"), "--dtype", "bf16", "--device", "cpu", "-q"]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 0, result.exception
    assert {p.dtype for p in loaded[0].model.parameters()} == {torch.bfloat16}
    assert json.loads((tmp_path / "b.jsonl").read_text())["reward"] is not None
