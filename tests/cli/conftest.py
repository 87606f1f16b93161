"""A tiny policy for runs of the command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # cli_kit


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cli_kit import make_policy

    return make_policy(tmp_path_factory.mktemp("policy"))
