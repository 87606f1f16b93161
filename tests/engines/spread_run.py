"""Group-scope likelihood work on as many processes as torchrun starts: [torchrun ...] spread_run.py WHAT OUT

Writes OUT.RANK: the rewards, and how many tokens and rows this rank forwarded.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent / "cuda"))
from cuda_kit import batch, characters, tiny

from guerdon.lm import LocalModel
from guerdon.segment.reasoning import ChainLayout, EqualPieces


def p2s(column: bool) -> tuple[Any, Any]:
    from guerdon.signals.likelihood.gold_chain import ChainColumn, SynthesisedChains
    from guerdon.signals.likelihood.path_faithfulness import PathFaithfulness

    layout = ChainLayout()
    rollouts = batch()
    columns = {**rollouts.columns, "chain": ["two and three are five"] * 4 + ["three and four"] * 4}
    rollouts = batch(columns=columns)
    chains: Any = ChainColumn("chain", layout) if column else SynthesisedChains(layout, candidates=2, max_new_tokens=40)
    signal = PathFaithfulness(chains=chains, layout=layout)
    return signal, rollouts.with_spans(steps=EqualPieces(layout=layout)(rollouts).renamed("steps"))


def main(what: str, out: str) -> None:
    torch.set_num_threads(1)
    if "RANK" in __import__("os").environ:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if dist.is_initialized() else 0
    model = tiny()
    lm = LocalModel(model, characters())
    lm.forward, lm.head  # noqa: B018  the trials are not counted
    seen = {"calls": 0, "tokens": 0}

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen["calls"] += 1
        seen["tokens"] += kwargs["input_ids"].numel()

    signal, rollouts = p2s(what == "column")
    signal.bind("policy", lm)
    signal(rollouts)  # what the model can do is tried on the first batch
    handle = model.model.register_forward_pre_hook(count, with_kwargs=True)
    given = signal(rollouts)
    handle.remove()
    torch.save({"seen": seen, "steps": given["steps"].values, "mask": given["steps"].mask}, f"{out}.{rank}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1], sys.argv[2])
