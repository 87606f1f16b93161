"""What the policy loss multiplies a row's token sum by, found by differentiating TRL's own loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_kit import Letters, dataset

from guerdon.credit import GroupNorm, ToTokens
from guerdon.engines.trl import CreditTrainer
from guerdon.system import System


class DropOne:
    """A filter that drops one row, so that denominators change."""

    def __call__(self, scores: Any, rollouts: Any) -> Any:
        return scores.dropping(torch.arange(len(rollouts)) == 1, "for the test")


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "bnpo", "dapo", "luspo"])
def test_row_scale_is_the_derivative_of_the_loss_by_a_rows_tokens(
    policy_path: str, config: Any, loss_type: str, drop: bool
) -> None:
    """With the policy's log-probabilities replaced by a parameter p, d loss / d p at a token is -advantage x row scale."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Look:
        def __call__(self, models: Any, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
            mask = batch.inputs["completion_mask"] * batch.inputs.get("tool_mask", 1)
            expected = -batch.inputs["advantages"] * batch.row_scale[:, None] * mask
            seen.append((expected, batch.row_scale))
            return torch.zeros(()), {}

    class Trainer(CreditTrainer):
        grads: list[torch.Tensor]

        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
            logps, *rest = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if logps.requires_grad:
                logps.register_hook(lambda grad: self.grads.append(grad.detach().clone()) and None)
            return (logps, *rest)

    chain = [*([DropOne()] if drop else []), GroupNorm("letters"), ToTokens("letters", "whole")]
    system = System({"letters": Letters()}, chain, objectives=[Look()])
    level = {"importance_sampling_level": "sequence"} if loss_type == "luspo" else {}
    args = config(
        max_steps=1, loss_type=loss_type, per_device_train_batch_size=4, gradient_accumulation_steps=2, **level
    )
    trainer = Trainer(policy_path, system, args, dataset())
    trainer.grads = []
    trainer.train()
    assert len(seen) == len(trainer.grads) == 2
    for (expected, scale), grad in zip(seen, trainer.grads, strict=True):
        assert (scale > 0).all()
        if loss_type == "luspo":  # the ratio is of the sequence: only sums over rows are comparable
            continue
        torch.testing.assert_close(grad, expected / 2, rtol=1e-4, atol=1e-8)
