"""Equally many forwards on every rank, for models whose weights are sharded over the ranks (FSDP, ZeRO-3).

A forward of a sharded model is a collective: every rank gathers the weights. Instruments run as many micro-batches as a rank's rows
need, rows differ, and a rank that has finished would leave the others waiting for ever. So inside `in_step` a rank says before each
forward which model it wants to run, the ranks agree on one, and whoever wants another, or nothing more, runs that one on a single
token, whose output nobody reads. Every other collective (`ranks`, gathering rollouts) waits until all ranks have come to it: `settle`.

    with in_step([policy]):
        scores = scorer.score(...)          # 7 micro-batches here, 5 there
        everything = shared_work(...)       # settles first

One small all-reduce a forward is the price. Without gradients only: a backward pass is a collective, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from guerdon.errors import CapabilityError

FAILED, NOTHING = -1, 1 << 20


class OtherRankFailed(RuntimeError):
    """Another rank raised inside the same block; its own error says why."""


class _InStep:
    """The ranks' agreement on which model runs next."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = list(models)
        self.idle = 0  # forwards run for others
        self._padding = False
        self._device = _collective_device(models)

    def before(self, index: int) -> None:
        """Called before a forward of model `index`: returns when it is this model's turn on every rank."""
        if self._padding:
            return
        if torch.is_grad_enabled():
            raise CapabilityError(
                "a sharded model was read with gradients beside the trainer's own forward, and ranks would run unequal numbers of backward "
                "passes; use DDP for objectives that run the policy"
            )
        while (turn := self._agree(index)) != index:
            self._pad(turn)

    def settle(self) -> None:
        """Run along until no rank wants another forward."""
        while (turn := self._agree(NOTHING)) != NOTHING:
            self._pad(turn)

    def fail(self) -> None:
        """Tell the others that this rank will not go on."""
        self._reduce(FAILED)

    def _agree(self, wish: int) -> int:
        turn = self._reduce(wish)
        if turn == FAILED:
            raise OtherRankFailed("another rank failed while models were read; see its error")
        return turn

    def _reduce(self, wish: int) -> int:
        wanted = torch.tensor(wish, device=self._device)
        dist.all_reduce(wanted, op=dist.ReduceOp.MIN)
        return int(wanted)

    @torch.no_grad()
    def _pad(self, index: int) -> None:
        model = self.models[index]
        device = next(model.parameters()).device
        token = torch.zeros(1, 1, dtype=torch.long, device=device)
        self._padding, self.idle = True, self.idle + 1
        try:
            model(input_ids=token, attention_mask=torch.ones_like(token), position_ids=token, use_cache=False)
        finally:
            self._padding = False


_current: ContextVar[_InStep | None] = ContextVar("in_step", default=None)


@contextmanager
def in_step(models: Sequence[nn.Module]) -> Iterator[_InStep | None]:
    """Inside, every rank runs each of these models equally often. Every rank must enter and leave it alike.

    Args:
        models: sharded ones, as the trainer calls them (the outermost module), in the same order on every rank.

    An exception on one rank is raised there, and `OtherRankFailed` on the others. Nested blocks are one.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if not models or not several or _current.get() is not None:
        yield _current.get()
        return
    agreement = _InStep(models)
    hooks = [
        # First of all hooks: the wrapper's own begins to gather.
        model.register_forward_pre_hook(lambda *_, index=index: agreement.before(index), prepend=True)
        for index, model in enumerate(models)
    ]
    token = _current.set(agreement)
    try:
        yield agreement
        agreement.settle()
    except OtherRankFailed:
        raise
    except BaseException:
        agreement.fail()
        raise
    finally:
        _current.reset(token)
        for hook in hooks:
            hook.remove()


def settle() -> None:
    """Before a collective of another kind: wait, running along, until every rank has come to it. Nothing outside `in_step`."""
    agreement = _current.get()
    if agreement is not None:
        agreement.settle()


def is_sharded(model: Any) -> bool:
    """Whether a model's weights are spread over the ranks, so that only its outermost module can run it."""
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if kinds & {"FullyShardedDataParallel", "FSDPModule"}:
        return True
    parameter = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
    return parameter is not None and hasattr(parameter, "ds_id")  # DeepSpeed's ZeRO-3


def _collective_device(models: Sequence[nn.Module]) -> torch.device:
    """Where a tensor must lie for the process group: the CPU under gloo, the models' device under NCCL alone."""
    backend = str(dist.get_backend_config()) if hasattr(dist, "get_backend_config") else dist.get_backend()
    if "gloo" in backend:
        return torch.device("cpu")
    return next(models[0].parameters()).device


__all__ = ["OtherRankFailed", "in_step", "is_sharded", "settle"]
