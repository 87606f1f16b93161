"""What `--device` and `--dtype` mean: where models are loaded, and in which numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guerdon.errors import ConfigError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def dtype_name(word: str) -> str:
    """bf16 -> bfloat16. Raises ConfigError for anything that is no dtype of weights."""
    name = _SHORT.get(word, word)
    if name not in DTYPES:
        raise ConfigError(f"--dtype {word}: use one of {', '.join(DTYPES)}")
    return name


def torch_device(word: str | None) -> torch.device | None:
    """The device a person means; None = not said.

    Raises:
        ConfigError: no such device, or none here.
    """
    import torch

    if word is None:
        return None
    try:
        device = torch.device(word)
    except RuntimeError as error:
        raise ConfigError(f"--device {word}: use cpu, cuda, cuda:1 or mps") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {word}: this machine has no CUDA device that torch {torch.__version__} can use")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {word}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0")
    return device


def torch_dtype(word: str | None) -> torch.dtype | None:
    """The dtype a person means; None = not said."""
    import torch

    return None if word is None else getattr(torch, dtype_name(word))


def training_device(word: str | None) -> str:
    """The device a trainer will use: "cuda" where there is one, unless told.

    Raises:
        ConfigError: not there, or a numbered card, which a trainer does not choose by itself.
    """
    import torch

    if word is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    device = torch_device(word)
    assert device is not None
    if device.type == "cuda" and device.index is not None:
        raise ConfigError(
            f"--device {word}: a trainer takes every card it sees; show it one, CUDA_VISIBLE_DEVICES={device.index}"
        )
    return device.type
