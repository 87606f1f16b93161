"""GRPOTrainer's signature over a CreditTrainer trains as GRPOTrainer does: what engines.md says under "From GRPOTrainer"."""

from __future__ import annotations

from typing import Any

import grpo_adapter
import pytest
import torch
import trl
from engine_kit import dataset, letters_reward, parameters

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def short(completions: list[str], **_: Any) -> list[float | None]:
    return [None if len(c) % 3 == 0 else -0.1 * len(c) for c in completions]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scale_rewards": "batch"},
        {"scale_rewards": "none", "reward_weights": [0.7, 2.0]},
        {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [0.7, 0.3]},
    ],
)
def test_the_adapter_is_grpo(policy_path: str, config: Any, changes: dict[str, Any]) -> None:
    trained = []
    for trainer_type in (trl.GRPOTrainer, grpo_adapter.GRPOTrainer):
        trainer = trainer_type(
            policy_path, [letters_reward, short], args=config(max_steps=2, **changes), train_dataset=dataset()
        )
        trainer.train()
        trained.append(trainer)
    plain, ours = trained
    assert [line.get("reward") for line in ours.state.log_history] == pytest.approx(
        [line.get("reward") for line in plain.state.log_history]
    )
    mine = parameters(ours)
    assert all(torch.allclose(weight, mine[name], atol=2e-6) for name, weight in parameters(plain).items())


def test_what_grpo_refuses_is_refused(policy_path: str, config: Any) -> None:
    with pytest.raises(ValueError, match="No reward source"):
        grpo_adapter.GRPOTrainer(policy_path, None, args=config(), train_dataset=dataset())
    with pytest.raises(ValueError, match="reward weights"):
        grpo_adapter.GRPOTrainer(policy_path, short, args=config(reward_weights=[1.0, 2.0]), train_dataset=dataset())
