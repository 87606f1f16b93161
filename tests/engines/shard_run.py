"""Instruments on a model whose weights are sharded over two processes, with unequal work: torchrun ... shard_run.py KIND OUT

Writes OUT.RANK: what was scored, and how many forwards were run.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent / "cuda"))
from cuda_kit import characters, tiny

from guerdon.lm import LocalModel, SpanScorer
from guerdon.lm.in_step import OtherRankFailed, in_step
from guerdon.lm.ranks import shared_work


def sharded(kind: str, seed: int) -> Any:
    model = tiny(seed=seed)
    if kind == "fsdp1":
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def work(rank: int) -> tuple[list[str], list[str]]:
    """Rank 0 has three micro-batches' worth of rows, rank 1 one."""
    rows = 9 if rank == 0 else 2
    return [f"{'x' * (5 + 3 * n)}=" for n in range(rows)], [f" {n}" for n in range(rows)]


def main(kind: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    first, second = sharded(kind, 0), sharded(kind, 1)
    forwards = {"first": 0, "second": 0}
    for name, model in (("first", first), ("second", second)):
        model.register_forward_pre_hook(lambda *_, name=name: forwards.update({name: forwards[name] + 1}))
    contexts, targets = work(rank)
    found: dict[str, Any] = {}
    with in_step([first, second]) as agreement:
        scorers = [
            SpanScorer(LocalModel(m, characters(), max_tokens=64), share=share)
            for m, share in ((first, "padded"), (second, "auto"))
        ]
        found["first"] = scorers[0].score(contexts, targets).values
        if rank == 0:  # the other has nothing to ask the second model
            found["second"] = scorers[1].score(contexts, targets).values

        def shared(items: Any, _: int) -> list[float]:
            return (
                scorers[0].score(["1+1="] * len(items), [f" {item}" for item in items]).sum().tolist() if items else []
            )

        found["shared"] = shared_work([1, 2, 3], shared)
        found["again"] = scorers[0].score(contexts[:1], targets[:1]).values
        found["idle"] = agreement.idle
    found["forwards"] = dict(forwards)
    try:
        with in_step([first]):
            if rank == 0:
                raise ValueError("this rank's own")
            scorers[0].score(contexts, targets)
        found["failed"] = "nobody"
    except ValueError:
        found["failed"] = "own"
    except OtherRankFailed:
        found["failed"] = "other"
    try:
        with in_step([first]):
            scorers[0].score(contexts[:1], targets[:1], grad=True)
    except Exception as error:
        found["grad"] = type(error).__name__
    torch.save(found, f"{out}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1], sys.argv[2])
