"""A CreditTrainer whose policy is sharded over two processes scores and measures: torchrun ... sharded_trainer_run.py POLICY OUT KIND

accelerate shards on accelerators alone, so the trainer's model is sharded here, as accelerate would. Writes OUT.RANK.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from engine_kit import Letters, dataset, grpo_config, tokenizer

from guerdon.credit import GroupNorm, KLPenalty, OnFailure, ToTokens
from guerdon.engines.trl import CreditTrainer, Evaluator
from guerdon.engines.trl import batch as B
from guerdon.lm.scorer import SpanScorer
from guerdon.rewards import Rewards
from guerdon.system import Model, System


class Reads(Letters):
    """A likelihood of the row's own completion; rank 0's rows are long and need more micro-batches."""

    scope, level = "row", "sequence"
    needs = frozenset({"policy", "logprobs.old", "logprobs.reference"})
    roles = ("policy",)

    def bind(self, role: str, instrument: Any) -> None:
        instrument.max_tokens = 24
        self.model = instrument

    def __call__(self, rollouts: Any, scores: Any) -> Rewards:
        values = SpanScorer(self.model).score(list(rollouts.prompts), list(rollouts.completions)).sum()
        return Rewards.sequence(values.cpu(), rollouts)


def main(policy: str, out: str, kind: str) -> None:
    torch.set_num_threads(1)
    chain = [OnFailure("row"), GroupNorm("r"), ToTokens("r", "whole"), KLPenalty("r", 0.01)]
    system = System({"r": Reads()}, chain, models={"reference": Model("policy", "phase_start")})
    args = grpo_config(Path(out).with_suffix(".run"), per_device_train_batch_size=4, num_generations=4)
    evaluator = Evaluator(dataset(), None, system, samples=4)
    trainer = CreditTrainer(policy, system, args, dataset(), processing_class=tokenizer(), monitors=[evaluator])
    rank, ranks = trainer.accelerator.process_index, trainer.accelerator.num_processes
    forwards = [0]
    if kind != "whole":
        trainer.is_fsdp_enabled = True
        if kind == "fsdp2":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh("cpu", (ranks,))
            for layer in trainer.model.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(trainer.model, mesh=mesh)
        else:
            from torch.distributed.fsdp import FullyShardedDataParallel

            wrapped = FullyShardedDataParallel(trainer.model, device_id=torch.device("cpu"), use_orig_params=True)
            trainer.model = trainer.model_wrapped = wrapped
        root = trainer.model
        root.register_forward_pre_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))
    tok = tokenizer()
    prompts = [f"{n}+1=" for n in (0, 1) for _ in range(4)]
    texts = ["abcdefgh" * 2, "bcdefghi" * 2, "ponmlkji" * 2, "a+b=c+dd" * 2, "a", "b", "c", "d"]
    mine = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    sampled = B.Sampled([tok(p)["input_ids"] for p in prompts[mine]], [tok(t)["input_ids"] + [1] for t in texts[mine]])
    local = trainer.rollouts_of(sampled, prompts[mine], {}, 4, trainer.clock(training=True))
    with trainer.instruments.measuring():
        rollouts, scores = trainer.score(local)
        kl = evaluator._kl(rollouts)
        own = evaluator._kl(local)  # as many rows on each rank, and not as many tokens
    found = {
        "rewards": scores.raw["r"].values, "old": rollouts.logprob("old").values, "kl": kl["mean"], "own": own["mean"],
        "reference": rollouts.logprob("reference").values, "mask": rollouts.mask, "forwards": forwards[0],
    }  # fmt: skip
    torch.save(found, f"{out}.{rank}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:4])
