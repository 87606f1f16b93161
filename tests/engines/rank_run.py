"""One training run on fixed completions, on as many processes as torchrun starts: [torchrun ...] rank_run.py POLICY OUT B

Writes OUT (rank 0): advantages of every global row, log history, parameters, what objective and truth saw.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from engine_kit import Letters, TokenLetters, dataset, grpo_config, parameters, tokenizer

from guerdon.credit import Fuse, GroupNorm, OnFailure, ToTokens, Whiten
from guerdon.engines.trl import CreditTrainer, Evaluator
from guerdon.rewards import Rewards
from guerdon.system import System

ROWS, GROUP = 12, 4


def completion(step: int, row: int) -> list[int]:
    """The same tokens for a global row whatever the number of processes; rows of the second half are longer."""
    digest = hashlib.blake2b(f"{step} {row}".encode(), digest_size=8).digest()
    length = 3 + digest[0] % 3 + (4 if row >= ROWS // 2 else 0)
    return [3 + byte % 30 for byte in (digest * 2)[:length]] + [1]


def roll(prompts: list[str], trainer: Any) -> dict[str, Any]:
    first = trainer.accelerator.process_index * len(prompts)
    tok = tokenizer()
    # The evaluator samples with the model in eval mode: its rows are the same on every number of processes, too.
    step = trainer.state.global_step if trainer.model.training else 100
    ids = [completion(step, first + i) for i in range(len(prompts))]
    return {"prompt_ids": [tok(p)["input_ids"] for p in prompts], "completion_ids": ids, "logprobs": None}


class SometimesBroken(Letters):
    """Fails for one text: in global row 7, which is on the second process when there are two."""

    def __call__(self, rollouts: Any, scores: Any) -> Rewards:
        self.fail = tuple(
            i for i, row in enumerate(rollouts.sample_ids.tolist()) if row == 7 and rollouts.clock.training
        )
        return super().__call__(rollouts, scores)


class Rarity:
    """A group signal with a random part: how rare the first letter is in the group. It must see whole groups."""

    scope, level = "group", "sequence"

    def __call__(self, rollouts: Any, scores: Any) -> Rewards:
        first = [text[:1] for text in rollouts.completions]
        groups = rollouts.groups.tolist()
        same = [
            sum(f == g and a == b for g, b in zip(first, groups, strict=True))
            for f, a in zip(first, groups, strict=True)
        ]
        assert "letters" in scores.raw and len(scores.raw["letters"]) == len(rollouts)
        return Rewards.sequence(1 / torch.tensor(same) + 0.1 * torch.rand(len(rollouts)), rollouts)


class AfterTheGroup:
    """A row signal behind a group signal, as a likelihood behind a verifier that is asked once: each rank scores its own rows."""

    scope, level = "row", "sequence"

    def __call__(self, rollouts: Any, scores: Any) -> Rewards:
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        assert not rollouts.clock.training or len(rollouts) * ranks == ROWS
        rarity = scores["rarity"]
        assert len(rarity) == len(rollouts) and "letters" in scores.raw
        said = {row: "said so" for row, sample in enumerate(rollouts.sample_ids.tolist()) if sample == 9}
        return Rewards.sequence(rarity.values[:, 0] * rollouts.lengths, rollouts, said)


class Entropyish:
    """An auxiliary objective with a second forward through the wrapped policy."""

    def __call__(self, models: Any, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
        ids, mask = batch.inputs["completion_ids"], batch.inputs["completion_mask"]
        logits = models["policy"](input_ids=ids, attention_mask=mask).logits
        weight = torch.tensor([len(text) for text in batch.rollouts.completions]).float()
        assert batch.rewards["letters"].values.shape[0] == len(ids) == len(batch.keep)
        squares = ((logits**2).mean(2) * mask).sum(1) / mask.sum(1)  # padding left out: its width is a rank's own
        loss = (squares * weight).mean()
        return 0.01 * loss, {"squares": float(loss)}


def main(policy: str, out: str, per_device: int) -> None:
    torch.set_num_threads(1)
    system = System(
        {"letters": SometimesBroken(), "hits": TokenLetters(), "rarity": Rarity(), "after": AfterTheGroup()},
        [
            OnFailure("row"),
            Fuse("letters", "rarity", "after", into="outcome"),
            GroupNorm("outcome"),
            ToTokens("outcome", "whole"),
            Fuse("outcome", "hits", into="credit"),
            Whiten("credit"),
        ],
        objectives=[Entropyish()],
    )
    seen: list[dict[str, Any]] = []

    def keep(rollouts: Any, scores: Any) -> None:
        reasons = {key: sorted(r.reasons) for key, r in scores.raw.items()}
        row = {
            "advantages": scores.advantages,
            "keep": scores.keep,
            "groups": rollouts.groups,
            "texts": rollouts.completions,
        }
        seen.append({**row, "samples": rollouts.sample_ids, "reasons": reasons, "answers": rollouts.columns["answer"]})

    evaluator = Evaluator(dataset(), lambda c, rows: [float(len(x)) for x in c], system, every=2, samples=8)
    args = grpo_config(
        Path(out).with_suffix(".run"),
        per_device_train_batch_size=per_device,
        loss_type="grpo",
        max_steps=2,
        learning_rate=1e-2,
        optim="sgd",
    )
    trainer = CreditTrainer(
        policy,
        system,
        args,
        dataset(),
        rollout_func=roll,
        monitors=[keep, evaluator],
        truth=lambda c, rows: [float(len(x)) for x in c],
        log_dir=Path(out).with_suffix(".log"),
    )
    assert trainer.args.generation_batch_size == ROWS
    trainer.train()
    (inputs,) = trainer._buffered_inputs
    assert inputs["advantages"].shape == inputs["completion_mask"].shape
    if trainer.accelerator.is_main_process:
        torch.save(
            {
                "seen": seen,
                "history": trainer.state.log_history,
                "parameters": parameters(trainer),
                "processes": trainer.accelerator.num_processes,
                "width": inputs["advantages"].shape[1],
            },
            out,
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
