"""The device under test: CUDA, or with GUERDON_GPU_DEVICE=cpu the CPU in its place, which shows that these tests run."""

import os
import sys
from pathlib import Path

import pytest
import torch

for folder in ("cuda", "engines"):
    sys.path.insert(0, str(Path(__file__).parent.parent / folder))


@pytest.fixture(scope="session")
def device() -> str:
    """Its name. Tests are skipped where there is none."""
    name = os.environ.get("GUERDON_GPU_DEVICE", "cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device; GUERDON_GPU_DEVICE=cpu runs this with the CPU in its place")
    return name
