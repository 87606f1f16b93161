"""What the engine tests share, importable from subprocesses too: the tiny policy, configurations, systems, comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from guerdon.credit import GroupNorm, ToTokens
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.system import System

ALPHABET = "abcdefghijklmnop 0123456789+=\n"


def tokenizer(alphabet: str = ALPHABET) -> Any:
    """One token a character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *alphabet])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def tiny_model(seed: int = 0, dropout: float = 0.0) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=3 + len(ALPHABET),
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=128,
                attention_dropout=dropout,
                initializer_range=0.2,
                pad_token_id=0,
                eos_token_id=1,
                bos_token_id=None,
            )
        )


def save_tiny(folder: Path, seed: int = 0) -> str:
    model = tiny_model(seed)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def dataset(rows: int = 16) -> Dataset:
    return Dataset.from_list([{"prompt": f"{i % 10}+{i % 7}=", "answer": str(i % 10 + i % 7)} for i in range(rows)])


def grpo_config(folder: Path | str, **changes: Any) -> Any:
    from trl import GRPOConfig

    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "temperature": 1.0,
        "beta": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": 3,
    }
    return GRPOConfig(**{**settings, **changes})


def count_letters(text: str) -> float:
    """The rule reward of these tests: how many early letters of the alphabet, and a little for length."""
    return sum(c in "abcdef" for c in text) + 0.01 * len(text)


class Letters:
    """`count_letters` as a signal."""

    scope = "row"
    level = "sequence"

    def __init__(self, fail: tuple[int, ...] = ()) -> None:
        self.fail = fail
        self.calls = 0

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        self.calls += 1
        values = [count_letters(text) for text in rollouts.completions]
        reasons: dict[int, str] = {}
        for row in self.fail:
            values[row] = float("nan")
            reasons[row] = "the instrument was told to fail"
        return Rewards.sequence(torch.tensor(values), rollouts, reasons)

    def __repr__(self) -> str:
        return "Letters()"


class TokenLetters:
    """One point a token that is an early letter: credit that differs within a rollout."""

    scope = "row"
    level = "token"

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        assert rollouts.completion_ids is not None
        hit = (rollouts.completion_ids >= 3) & (rollouts.completion_ids < 9)
        return Rewards.tokens((hit & rollouts.mask).float() - 0.2, rollouts)


def plain_system(signal: Any | None = None) -> System:
    """Sequence reward, GRPO credit: what plain TRL does."""
    return System({"letters": signal or Letters()}, [GroupNorm("letters"), ToTokens("letters", "whole")], name="plain")


def token_system(signal: Any | None = None, **options: Any) -> System:
    return System({"hits": signal or TokenLetters()}, [], name="hits", **options)


def letters_reward(completions: list[str], **_: Any) -> list[float]:
    """The same reward as a TRL reward function."""
    return [count_letters(text) for text in completions]


def history(trainer: Any, *names: str) -> list[tuple[float, ...]]:
    names = names or ("loss", "grad_norm", "reward", "reward_std", "entropy")
    return [tuple(line.get(name) for name in names) for line in trainer.state.log_history if "loss" in line]


def parameters(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines(path: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
