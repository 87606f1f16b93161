"""Where the model of a learned part lies: an engine places it beside the policy, unless the caller said where."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import nn

from guerdon.signals.held import Held


class OnDevice:
    """A part with a model of its own: `source` names it, `_model` is it once it is loaded, to `_device` and in `_dtype`.

    What the caller chose stays: the device, the dtype, and the dtype of a model that was given loaded.
    """

    source: Any
    head: ClassVar[Literal["causal", "steps", "score"]]
    _device: Any
    _dtype: torch.dtype | None
    _model: Any

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> None:
        """Place the model, now or when it is loaded.

        Args:
            device: where the policy is.
            dtype: of the policy's weights; None = as the model comes.
        """
        chosen = self.__dict__.setdefault("_chosen", (self._device, self._dtype))
        self._device = torch.device(device if chosen[0] is None else chosen[0])
        self._dtype = dtype if chosen[1] is None and not isinstance(self.source, nn.Module) else chosen[1]
        if self._model is not None:
            place(self._model, self._device, self._dtype)

    def held(self) -> list[Held]:
        """What it will load."""
        source = getattr(self.source, "model", self.source)  # a LocalModel's
        return [Held(source, self.head, self.__dict__.get("_chosen", (None, self._dtype))[1])]


def place(model: Any, device: Any, dtype: torch.dtype | None = None) -> None:
    """Move a module, or what a `LocalModel` holds; endpoints, functions and whatever else has no weights stay as they are."""
    from guerdon.lm.local import LocalModel

    module = model.model if isinstance(model, LocalModel) else model
    if isinstance(module, nn.Module):
        module.to(device=device, dtype=dtype) if dtype is not None else module.to(device)
    elif callable(getattr(model, "to", None)) and not isinstance(model, torch.Tensor):
        model.to(device, dtype)  # another part
