"""The TRL engine: a GRPOTrainer that samples and steps as TRL does, with advantages [B, T] from a System.

    trainer = guerdon.engines.trl.CreditTrainer(model, system, args=GRPOConfig(...), train_dataset=data)
    trainer.train(resume_from_checkpoint=True)         # from the newest complete checkpoint, or from the start

Nothing here knows a system by name. Files: `trainer` (the hooks), `resumable` (stopping and going on), `checkpoint`, `batch`
(Rollouts and tensors), `callbacks` (what happens once a step), `evaluate` (held-out prompts), `runlog` (JSON lines), `compat`
(what is refused, and why), `environments` (rollouts of several turns with an environment between them).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from guerdon.engines.trl.checkpoint import newest_complete_checkpoint
from guerdon.engines.trl.runlog import RolloutLog

if TYPE_CHECKING:
    from guerdon.engines.trl.environments import multi_turn
    from guerdon.engines.trl.evaluate import Evaluator
    from guerdon.engines.trl.trainer import CreditTrainer

__all__ = ["CreditTrainer", "Evaluator", "RolloutLog", "multi_turn", "newest_complete_checkpoint"]

_HEAVY = {"CreditTrainer": "trainer", "Evaluator": "evaluate", "multi_turn": "environments"}


def __getattr__(name: str) -> Any:
    if name in _HEAVY:
        from guerdon.extras import require

        require("trl", extra="train")
        return getattr(importlib.import_module(f"{__name__}.{_HEAVY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
