"""Weight averaging of reward models (WARM): several models trained from one base become one, at the price of one.

Averaging weights is averaging scores only for models that are linear in them; for fine-tuned copies of the same base it is
close to that, and the noise that single models have learned cancels. Models that do not share a base do not average.

Source: WARM (arXiv 2401.12187); PAR (arXiv 2502.18770) uses it as a baseline, utils/model_merge.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from guerdon.errors import ShapeError


def average_weights(
    state_dicts: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """The weighted mean of each parameter, computed in float64 and returned in the parameter's own dtype.

    state_dicts: one for each model, with equal keys and shapes.
    weights: one for each model, made to sum to 1; default: equal.

    Tensors that are not floating point (position ids, step counters) cannot be averaged and must be equal in all models.

    Raises:
        ShapeError: no models, different keys or shapes, a wrong number of weights, or unequal integer tensors.
    """
    if not state_dicts:
        raise ShapeError("nothing to average: no state dicts")
    share = torch.ones(len(state_dicts)) if weights is None else torch.tensor(list(weights))
    if len(share) != len(state_dicts) or float(share.sum()) <= 0:
        raise ShapeError(f"{len(state_dicts)} models need as many weights with a positive sum, got {weights}")
    share = share.double() / share.double().sum()
    first = state_dicts[0]
    for i, other in enumerate(state_dicts[1:], 1):
        if odd := sorted(set(first) ^ set(other)):
            raise ShapeError(f"model {i} and model 0 do not have the same parameters: {odd[:5]}")
    return {name: _average(name, [state[name] for state in state_dicts], share) for name in first}


def _average(name: str, tensors: Sequence[Tensor], share: Tensor) -> Tensor:
    first = tensors[0]
    if any(tensor.shape != first.shape for tensor in tensors):
        raise ShapeError(f"{name}: shapes differ, {[tuple(tensor.shape) for tensor in tensors]}")
    if not first.is_floating_point():
        if any(not torch.equal(tensor, first) for tensor in tensors):
            raise ShapeError(f"{name} is {first.dtype} and differs between the models: it cannot be averaged")
        return first.clone()
    total = torch.zeros_like(first, dtype=torch.float64)
    for weight, tensor in zip(share.tolist(), tensors, strict=True):
        total += weight * tensor.double()
    return total.to(first.dtype)
