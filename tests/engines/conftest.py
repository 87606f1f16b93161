"""A random Llama with 20k parameters, a character tokenizer and a handful of prompts: TRL runs on them in tenths of a second."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # engine_kit, which subprocesses import by the same name
sys.path.insert(0, str(Path(__file__).parent.parent / "cuda"))  # cuda_kit
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture(scope="session")
def policy_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of the tiny random policy and its tokenizer."""
    from engine_kit import save_tiny

    torch.set_num_threads(1)
    return save_tiny(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Any]:
    """A GRPOConfig of a few small steps; keywords override."""
    from engine_kit import grpo_config

    return lambda **changes: grpo_config(tmp_path / "out", **changes)
