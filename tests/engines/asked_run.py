"""A training run on two processes whose signals ask a server: [torchrun ...] asked_run.py POLICY URL OUT

Each process writes OUT.<rank>: the advantages and rewards of every generation, and what was raised.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from engine_kit import dataset, grpo_config

from guerdon.credit import Fuse, GroupNorm, OnFailure, ToTokens
from guerdon.engines.trl import CreditTrainer, Evaluator
from guerdon.lm import RemoteModel
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals import RewardFunction
from guerdon.system import System


class GroupJudge:
    """Asks about every row of the batch; what the server answers differs from call to call."""

    scope, level = "group", "sequence"

    def __init__(self, model: Any, tag: str, asked: str | None = None, broken: bool = False) -> None:
        self.model, self.tag, self.broken = model, tag, broken
        if asked:
            self.asked = asked

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards:
        if self.broken and rollouts.clock.training and rollouts.clock.step == 1:
            raise ValueError("the judge's template is broken")
        numbers = zip(rollouts.sample_ids.tolist(), rollouts.completions, strict=True)
        prompts = [f"{self.tag} {rollouts.clock.step} {rollouts.clock.training} {n} {text}" for n, text in numbers]
        replies = self.model.chat(prompts)
        values = [float(reply.text) if reply.ok else float("nan") for reply in replies]
        return Rewards.sequence(values, rollouts, [reply.error for reply in replies])


class AskingLink:
    """A link that asks, too."""

    scope = "batch"

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores:
        (reply,) = self.model.chat([f"link {rollouts.clock}"])
        return scores.with_metrics(asked=float(reply.text) if reply.ok else -1.0)


def main(policy: str, url: str, out: str, broken: bool) -> None:
    torch.set_num_threads(1)
    model = RemoteModel("m", base_url=url, cache=False, retries=0)

    def own_rows(completions: list[str], prompts: list[str], trainer_state: Any, **_: Any) -> list[float | None]:
        asked = [f"rows {trainer_state.global_step} {p} {c}" for p, c in zip(prompts, completions, strict=True)]
        return [float(reply.text) if reply.ok else None for reply in model.chat(asked)]

    signals = {
        "declared": GroupJudge(model, "declared", "once"),
        "found": GroupJudge(model, "found", broken=broken),
        "function": RewardFunction(own_rows),  # after a group signal: every rank would call it with all rows
    }
    chain = [
        OnFailure("source", ("declared", "found")),
        Fuse("declared", "found", "function", into="all"),
        AskingLink(model),
        GroupNorm("all"),
        ToTokens("all", "whole"),
    ]
    system = System(signals, chain)
    seen: list[Any] = []

    def truth(completions: list[str], rows: list[Any]) -> list[Any]:
        return [float(reply.text) if reply.ok else None for reply in model.chat([f"truth {c}" for c in completions])]

    args = grpo_config(Path(out).with_suffix(".run"), per_device_train_batch_size=6, max_steps=2, num_generations=4)
    trainer = CreditTrainer(
        policy,
        system,
        args,
        dataset(),
        monitors=[
            lambda rollouts, scores: seen.append((scores.advantages, scores.reward, scores.metrics)),
            Evaluator(dataset(), truth, system, every=2, samples=8, kl=False),
        ],
        log_dir=Path(out).with_suffix(".log"),
    )
    raised = ""
    try:
        trainer.train()
    except ValueError as error:
        raised = str(error)
    rank = trainer.accelerator.process_index
    torch.save({"seen": seen, "raised": raised, "processes": trainer.accelerator.num_processes}, f"{out}.{rank}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:4], broken=len(sys.argv) > 4)
