"""Torch on one thread: matrices as small as the embedded models' are no faster on two, and far slower where cores are contended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's operators use one thread inside (process-wide, as torch counts them), and as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
