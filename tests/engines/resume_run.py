"""A training run as a program, so that a test can kill it: python resume_run.py POLICY FOLDER STEPS SECONDS_A_STEP"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from engine_kit import Letters, dataset, grpo_config, plain_system

from guerdon.engines.trl import CreditTrainer, Evaluator, RolloutLog


class Drifting(Letters):
    """A signal with a state and a random part, updated once a generation: what a resumed run must have kept."""

    update_at = "after_policy_step"

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0.0

    def __call__(self, rollouts: Any, scores: Any) -> Any:
        rewards = super().__call__(rollouts, scores)
        noise = torch.rand(len(rollouts)) * (1 + self.moved)
        return rewards.with_values(rewards.values + noise[:, None])

    def update(self, rollouts: Any, scores: Any) -> dict[str, float]:
        self.moved = 0.5 * self.moved + float(scores.reward.mean())
        return {"moved": self.moved}

    def state_dict(self) -> dict[str, float]:
        return {"moved": self.moved}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.moved = state["moved"]


def make(policy: str, folder: str | Path, steps: int, seconds: float = 0.0, **changes: Any) -> Any:
    """Six prompts, two a step: an epoch is three steps, so a resumed run starts in a later epoch."""
    torch.set_num_threads(1)
    system = plain_system(Drifting())

    def wait(rollouts: Any, scores: Any) -> None:
        time.sleep(seconds)

    evaluator = Evaluator(dataset(), lambda c, rows: [float(len(x) > 4) for x in c], system, every=2, samples=8)
    settings = {"max_steps": steps, "save_strategy": "steps", "save_steps": 2, "num_iterations": 2, **changes}
    args = grpo_config(Path(folder) / "checkpoints", **settings)
    return CreditTrainer(
        policy, system, args, dataset(6), monitors=[evaluator, wait], rollout_log=RolloutLog(2, 1), log_dir=folder
    )


if __name__ == "__main__":
    trainer = make(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    trainer.train(resume_from_checkpoint=True)
