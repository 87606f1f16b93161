"""Work that every rank of a run would do alike, done once: each does a share, and all get everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed as dist

Item = TypeVar("Item")
Done = TypeVar("Done")


def shared_work(items: Sequence[Item], work: Callable[[Sequence[Item], int], Sequence[Done]]) -> list[Done]:
    """What `work` gives for each item, in order, the same on every rank. Every rank must call it, with the same items.

    Args:
        items: what is to be done.
        work: (a share of the items, this rank) -> one result each; called also with an empty share. Results must pickle.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(work(items, 0))
    ranks, rank = dist.get_world_size(), dist.get_rank()
    parts: list[list[Done]] = [[] for _ in range(ranks)]
    dist.all_gather_object(parts, list(work(items[rank::ranks], rank)))
    return [parts[i % ranks][i // ranks] for i in range(len(items))]
