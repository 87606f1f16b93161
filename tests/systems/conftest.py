"""What several systems' tests need."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the kits beside the tests


@pytest.fixture(scope="module")
def lm() -> Any:
    """A tiny model without training, one token a character."""
    from guerdon.lm import LocalModel
    from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

    tokenizer = char_tokenizer()
    model = new_model(tokenizer, TinyConfig(hidden=32, layers=2, heads=2, intermediate=64), 0)
    return LocalModel(model.eval(), tokenizer)
