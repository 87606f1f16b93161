"""Does it matter that right and wrong solutions weigh the same? Regression alone, on batches of nine right solutions to one wrong one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guerdon.credit import verification_metrics
from guerdon.engines.trl.batch import ObjectiveBatch
from guerdon.objectives.self_reward import SelfRewardRegression
from guerdon.rewards import Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.signals.likelihood.last_token import LastTokenScore


@dataclass(frozen=True)
class Balance:
    """steps updates on batches of `right` + `wrong` rollouts of training prompts; f1 on held-out ones after every `every` of them."""

    steps: int = 40
    every: int = 5
    right: int = 54
    wrong: int = 6
    lr: float = 3e-4


SMOKE = Balance(steps=2, every=1, right=3, wrong=1)


def f1_during_regression(
    path: str,
    rollouts: Rollouts,
    correct: Tensor,
    held_out: tuple[Rollouts, list[float]],
    plan: Balance,
    seed: int,
    *,
    balance: bool,
    beta: float,
) -> list[float]:
    """Train the score of the policy at `path` by the regression alone; returns its verification f1 on the held-out rollouts along the way.

    Args:
        rollouts, correct: what batches are drawn from, [B] 1 right and 0 wrong.
        held_out: rollouts and their verdicts.
    """
    from guerdon.lm import LocalModel

    model = LocalModel(path)
    signal = LastTokenScore(constant="calibrate", beta=beta)
    objective = SelfRewardRegression(signal, coefficient=1.0, balance=balance)
    for part in (signal, objective):
        part.bind("policy", model)
    signal.calibrate(rollouts.select(range(min(256, len(rollouts)))))
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=plan.lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    pools = [correct.nonzero()[:, 0], (1 - correct).nonzero()[:, 0]]
    found = []
    for step in range(1, plan.steps + 1):
        rows = torch.cat(
            [
                pool[torch.randint(len(pool), (count,), generator=generator)]
                for pool, count in zip(pools, (plan.right, plan.wrong), strict=True)
            ]
        )
        loss, _metrics = objective({}, _batch(rollouts.select(rows), correct[rows]))
        if loss.requires_grad:  # some of these rollouts ended
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step % plan.every == 0:
            found.append(verification_metrics(signal(held_out[0]).values[:, 0].tolist(), held_out[1]).f1)
    return found


def _batch(rollouts: Rollouts, correct: Tensor) -> ObjectiveBatch:
    """The batch an engine would hand to the objective."""
    rewards = {"answer": Rewards.sequence(correct.float(), rollouts)}
    keep = torch.ones(len(rollouts), dtype=torch.bool)
    inputs: dict[str, Any] = {"advantages": torch.zeros(len(rollouts))}
    return ObjectiveBatch(rollouts, rewards, keep, inputs, 1.0, None, (rollouts, Scores({}, keep, rewards)))
