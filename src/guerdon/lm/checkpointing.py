"""Gradient checkpointing that does not depend on train mode.

transformers checkpoints a layer only while `layer.training`, and instruments read in eval mode, without dropout. So a forward with
gradients in eval mode keeps all activations of a policy that is trained with checkpointing: at 7B that is the difference between
fitting and not. Here a layer is checkpointed because its flag says so, and computed in eval mode both times: a backward pass comes
when the policy is in train mode again, and would draw other dropout masks than the forward had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed_layers(model: nn.Module) -> Iterator[bool]:
    """Inside, the layers of `model` whose checkpointing is on keep their inputs and compute the rest again in backward.

    Yields whether there are any. Layers are transformers' `GradientCheckpointingLayer`s; models without them are left alone.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[Any] = [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) and getattr(module, "gradient_checkpointing", False)
    ]
    patched = {id(layer): vars(layer).get("forward") for layer in layers}
    for layer in layers:
        layer.forward = _recomputed(layer, layer.forward)
    try:
        yield bool(layers)
    finally:
        for layer in layers:
            before = patched[id(layer)]
            if before is None:
                del layer.forward
            else:
                layer.forward = before


def _recomputed(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def in_eval_mode(*args: Any, **kwargs: Any) -> Any:
        training = [(module, module.training) for module in layer.modules()]
        layer.eval()
        try:
            return forward(*args, **kwargs)
        finally:
            for module, was in training:
                module.training = was

    @wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Nothing is drawn in eval mode, so no random state need be kept.
        return checkpoint(in_eval_mode, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    recomputed.computes_twice = True  # type: ignore[attr-defined]
    return recomputed


def computes_twice(model: nn.Module) -> bool:
    """Whether a forward with gradients would run layers of `model` again in backward: then no cache may be filled on the way."""
    if not torch.is_grad_enabled():
        return False
    return any(getattr(vars(module).get("forward"), "computes_twice", False) for module in model.modules())
