"""Work that every rank of a run would do alike, done once: each does a share, or rank 0 does it all, and all get everything."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch.distributed as dist

from guerdon.lm.in_step import settle

Item = TypeVar("Item")
Done = TypeVar("Done")
_alone: ContextVar[bool] = ContextVar("alone", default=False)  # inside `once`, where the other ranks only wait


def shared_work(items: Sequence[Item], work: Callable[[Sequence[Item], int], Sequence[Done]]) -> list[Done]:
    """What `work` gives for each item, in order, the same on every rank. Every rank must call it, with the same items.

    Args:
        items: what is to be done.
        work: (a share of the items, this rank) -> one result each; called also with an empty share. Results must pickle.
    """
    if not _several() or _alone.get():
        return list(work(items, 0))
    ranks, rank = dist.get_world_size(), dist.get_rank()
    done = list(work(items[rank::ranks], rank))
    settle()
    parts: list[list[Done]] = [[] for _ in range(ranks)]
    dist.all_gather_object(parts, done)
    return [parts[i % ranks][i // ranks] for i in range(len(items))]


def once(work: Callable[[], Done]) -> Done:
    """What `work` gives on rank 0, the same on every rank; its exception is raised on every rank. Every rank must call it.

    For work whose answers cost money or vary. Results must pickle.
    """
    if not _several() or _alone.get():
        return work()
    settle()
    outcome: list[Any] = [None]
    if dist.get_rank() == 0:
        token = _alone.set(True)
        try:
            outcome = [(work(), None)]
        except BaseException as error:  # the others wait: they must hear of Ctrl-C, too
            outcome = [(None, _picklable(error))]
        finally:
            _alone.reset(token)
    dist.broadcast_object_list(outcome, src=0)
    result, raised = outcome[0]
    if raised is not None:
        raise raised
    return result


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _picklable(error: BaseException) -> BaseException:
    """The exception, or one that says the same where it cannot travel to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does not survive
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
