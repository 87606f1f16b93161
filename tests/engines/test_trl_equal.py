"""Nothing else changed: with the same sequence reward and GRPO credit, training is TRL's own, step by step and bit for bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from engine_kit import (
    Letters,
    dataset,
    history,
    letters_reward,
    parameters,
    plain_system,
    same,
)
from trl import GRPOTrainer

from guerdon.credit import GroupNorm, ToTokens
from guerdon.engines.trl import CreditTrainer
from guerdon.system import System

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

LOSSES = ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo", "luspo")
# Two micro-batches a step and every generation used twice: old log-probabilities, clipping and accumulation are all live.
REUSE = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "num_iterations": 2}


def both(
    policy_path: str,
    config: Any,
    system: Any = None,
    credit: dict[str, Any] | None = None,
    peft: Any = None,
    **changes: Any,
) -> tuple[Any, Any]:
    """Plain TRL and ours, trained on the same data with the same seed."""
    plain = GRPOTrainer(policy_path, letters_reward, config(**changes), dataset(), peft_config=peft() if peft else None)
    plain.train()
    ours = CreditTrainer(
        policy_path,
        system or plain_system(),
        config(**changes),
        dataset(),
        peft_config=peft() if peft else None,
        **(credit or {}),
    )
    ours.train()
    return plain, ours


def check(plain: Any, ours: Any) -> None:
    assert history(ours, "loss", "grad_norm", "entropy") == history(plain, "loss", "grad_norm", "entropy")
    assert len(history(plain)) == plain.state.global_step
    assert same(parameters(plain), parameters(ours))
    untrained = plain.state.log_history[0]["grad_norm"]
    assert untrained > 0, "nothing was trained, so nothing was compared"


@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_loss_type(policy_path: str, config: Any, loss_type: str) -> None:
    plain, ours = both(policy_path, config, loss_type=loss_type, max_steps=4, **REUSE)
    check(plain, ours)
    assert ours.state.log_history[0]["reward"] == pytest.approx(plain.state.log_history[0]["reward"], abs=1e-6)
    assert ours.state.log_history[0]["rewards/letters/mean"] == pytest.approx(
        plain.state.log_history[0]["rewards/letters_reward/mean"], abs=1e-6
    )


def test_the_chain_one_writes_first_trains_the_whole_span(policy_path: str, config: Any) -> None:
    system = System({"letters": Letters()}, [GroupNorm(), ToTokens()], name="plain")
    check(*both(policy_path, config, system, max_steps=2, **REUSE))


def test_kl_to_the_reference(policy_path: str, config: Any) -> None:
    plain, ours = both(policy_path, config, beta=0.1, max_steps=4, **REUSE)
    check(plain, ours)
    assert history(ours, "kl") == history(plain, "kl")
    assert ours.state.log_history[2]["kl"] > 0


def test_sequence_importance_agrees_to_rounding(policy_path: str, config: Any) -> None:
    """A [B, T] credit makes TRL sum equal numbers where it would multiply once: the last bits differ, nothing else."""
    plain, ours = both(
        policy_path, config, loss_type="grpo", importance_sampling_level="sequence", max_steps=4, **REUSE
    )
    for mine, theirs in zip(history(ours, "loss", "grad_norm"), history(plain, "loss", "grad_norm"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_entropy_options_and_checkpointing(policy_path: str, config: Any) -> None:
    changes = {
        "top_entropy_quantile": 0.5,
        "entropy_coef": 0.01,
        "off_policy_mask_threshold": 0.01,
        "gradient_checkpointing": True,
        "max_steps": 4,
    }
    check(*both(policy_path, config, **changes, **REUSE))


def test_steps_per_generation(policy_path: str, config: Any) -> None:
    check(*both(policy_path, config, steps_per_generation=3, per_device_train_batch_size=4, max_steps=4))


def test_lora(policy_path: str, config: Any) -> None:
    from peft import LoraConfig

    def lora() -> Any:
        return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.3, task_type="CAUSAL_LM")

    plain, ours = both(policy_path, config, peft=lora, beta=0.05, max_steps=4, **REUSE)
    check(plain, ours)
    assert any("lora" in name for name in parameters(ours))


def test_a_truth_column_changes_nothing_and_neither_do_draws(policy_path: str, config: Any) -> None:
    """Traps 3 and 5: truth is only logged, and a signal may draw as many random numbers as it likes."""

    class Drawing(Letters):
        def __call__(self, rollouts: Any, scores: Any) -> Any:
            torch.rand(7), random.random(), np.random.rand(3)
            return super().__call__(rollouts, scores)

    seen: list[list[dict[str, Any]]] = []

    def truth(completions: list[str], rows: list[dict[str, Any]]) -> list[tuple[float, str]]:
        seen.append(rows)
        torch.rand(3)
        return [(float("nan") if i == 0 else 1.0, "") for i in range(len(rows))]

    plain, ours = both(policy_path, config, plain_system(Drawing()), {"truth": truth})
    check(plain, ours)
    assert ours.state.log_history[0]["true"] == 1.0
    assert seen[0][0].keys() == {"prompt", "answer"}
