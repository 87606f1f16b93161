"""What the TRL engine refuses before a run begins, and why; numbers are of the traps in test_trl_traps.py."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_kit import (
    Letters,
    dataset,
    plain_system,
    token_system,
)

from guerdon.engines.trl import CreditTrainer, compat
from guerdon.errors import CapabilityError, ConfigError
from guerdon.system import Model

# -- 10, 11, 15: arguments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"scale_rewards": "none"}, "scale_rewards='none' would do nothing"),
        ({"reward_weights": [1.0]}, "reward_weights"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "multi_objective_aggregation"),
        ({"use_liger_kernel": True}, "use_liger_kernel"),
        (
            {"save_strategy": "steps", "save_steps": 0.5, "max_steps": -1, "num_iterations": 2},
            "save_steps=0.5.*multiple of 2",
        ),
        ({"save_strategy": "epoch"}, "save_strategy='epoch'"),
    ],
)
def test_refused_arguments(config: Any, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        compat.check_arguments(config(**changes))


def test_dpo_is_refused(tmp_path: Path) -> None:
    from trl import DPOConfig

    with pytest.raises(ConfigError, match="DPOConfig"):
        CreditTrainer("anything", plain_system(), DPOConfig(str(tmp_path), use_cpu=True, bf16=False), dataset())


@pytest.mark.parametrize(
    ("changes", "cycle"),
    [
        ({}, 1),
        ({"num_iterations": 3}, 3),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 2}, 1),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 3}, 3),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2}, 4),
    ],
)
def test_generation_cycle(config: Any, changes: dict[str, Any], cycle: int) -> None:
    assert compat.generation_cycle(config(**changes)) == cycle
    compat.check_arguments(config(**changes, save_strategy="steps", save_steps=2 * cycle))


def test_environment_rewards_are_refused(policy_path: str, config: Any) -> None:
    """TRL appends a column for an environment that has `get_reward`; ours would no longer be the only ones."""

    from trl import GRPOTrainer

    original = GRPOTrainer.__init__

    def with_environment(self: Any, **kwargs: Any) -> None:
        original(self, **kwargs)
        self.reward_funcs.append(lambda **_: [])  # what TRL does for such an environment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "__init__", with_environment)
        with pytest.raises(CapabilityError, match="get_reward"):
            CreditTrainer(policy_path, plain_system(), config(), dataset())


# -- 12, 14, 16: systems ------------------------------------------------------------------------------------------------------------


class Needy(Letters):
    def __init__(self, *needs: str, roles: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.needs, self.roles = frozenset(needs), roles


@pytest.mark.parametrize(
    ("needs", "text"),
    [
        ("values", "no trainer with a critic"),
        ("resample", "cannot draw again"),
        ("logprobs.reference", "no reference"),
        ("telepathy", "telepathy"),
    ],
)
def test_unmeetable_needs_are_refused(config: Any, needs: str, text: str) -> None:
    with pytest.raises(CapabilityError, match=text):
        compat.check_system(plain_system(Needy(needs)), config(), peft=False, evaluates=False)


def test_systems_that_cannot_train_here_are_refused(config: Any) -> None:
    with pytest.raises(CapabilityError, match="empty chain"):
        compat.check_system(token_system(), config(), peft=False, evaluates=False)
    with pytest.raises(CapabilityError, match="role 'judge'"):
        compat.check_system(plain_system(Needy(roles=("judge",))), config(), peft=False, evaluates=False)
    learned = dataclasses.replace(plain_system(), models={"reference": Model("policy", "trained")})
    with pytest.raises(CapabilityError, match="refresh='trained'"):
        compat.check_system(learned, config(), peft=False, evaluates=False)
    moving = dataclasses.replace(plain_system(), models={"reference": Model("policy", "ema")})
    compat.check_system(moving, config(), peft=False, evaluates=False)
    with pytest.raises(CapabilityError, match="average of adapters"):
        compat.check_system(moving, config(), peft=True, evaluates=False)
    compat.check_system(
        plain_system(), config(num_generations_eval=1), peft=False, evaluates=True
    )  # groups of one are defined
    compat.check_system(
        plain_system(Needy("logprobs.reference", "logprobs.old")), config(beta=0.1), peft=False, evaluates=True
    )


def test_what_a_sharded_policy_cannot_do_is_refused() -> None:
    sharded = SimpleNamespace(is_fsdp_enabled=True, is_deepspeed_enabled=False)
    compat.check_sharding(sharded, plain_system())
    for needs in (
        ("logprobs.old",),
        ("logprobs.reference",),
        ("policy",),
    ):  # pure, clip_delta, rlpr: ranks read it together
        compat.check_sharding(sharded, plain_system(Needy(*needs, roles=("policy",))))
    with pytest.raises(CapabilityError, match=r"samples from it.*ZeRO stage 1 or 2"):
        compat.check_sharding(sharded, plain_system(Needy("policy", "policy.generate")))
    asked = Needy("policy", roles=("policy",))
    asked.asked = "once"  # type: ignore[attr-defined]
    with pytest.raises(CapabilityError, match="asked on one rank"):
        compat.check_sharding(sharded, plain_system(asked))
    objective = dataclasses.replace(plain_system(), objectives=[Needy("policy", roles=("policy",))])
    with pytest.raises(CapabilityError, match="with gradients"):
        compat.check_sharding(sharded, objective)
    moving = dataclasses.replace(plain_system(), models={"slow": Model("policy", "ema")})
    with pytest.raises(CapabilityError, match="averages whole weights"):
        compat.check_sharding(sharded, moving)


@pytest.mark.parametrize("how", ["plugin", "config", "arguments"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_only_stage_three_shards_the_weights(stage: int, how: str, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    plugin = {
        "plugin": SimpleNamespace(zero_stage=stage),
        "config": SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": stage}}),
        "arguments": None,
    }[how]
    trainer = SimpleNamespace(
        is_fsdp_enabled=False,
        is_deepspeed_enabled=True,
        accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)),
        args=SimpleNamespace(deepspeed=str(path) if how == "arguments" else None),
    )
    needy = plain_system(Needy("policy", "policy.generate"))
    if stage == 3:
        with pytest.raises(CapabilityError, match="no rank has the policy whole"):
            compat.check_sharding(trainer, needy)
    else:
        compat.check_sharding(trainer, needy)


def test_published_systems_that_do_more_than_read_the_policy_are_known() -> None:
    from guerdon.systems import clip_delta, laser, likelihood, nover, p2s, pure, rlpr, sar

    sharded = SimpleNamespace(is_fsdp_enabled=True, is_deepspeed_enabled=False)
    reading = (
        pure(prm="nowhere", kl_coef=0.01), clip_delta(prm="nowhere", verifier=Letters(), kl_coef=0.01), rlpr(),
        sar(verifier=Letters()),
    )  # fmt: skip
    for system in reading:
        compat.check_sharding(sharded, system)
    for system in (laser(verifier=Letters()), likelihood(), nover(), p2s()):
        with pytest.raises(CapabilityError, match="no rank has the policy whole"):
            compat.check_sharding(sharded, system)


def test_another_trl_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    compat.check_trl()
    monkeypatch.setattr(trl, "__version__", "1.17.0")
    with pytest.raises(CapabilityError, match=r"1\.17\.0"):
        compat.check_trl()
    monkeypatch.undo()
    monkeypatch.setattr(trl.GRPOTrainer, "_generate", lambda self, prompts, more: None)
    with pytest.raises(CapabilityError, match="_generate"):
        compat.check_trl()


# -- models that would read the policy's ids as other words -------------------------------------------------------------------------


def test_reward_models_of_another_vocabulary_or_without_a_head_are_refused_before_sampling(
    config: Any, policy_path: str, tmp_path: Path
) -> None:
    import torch
    from engine_kit import tokenizer
    from transformers import AutoTokenizer, LlamaConfig, LlamaForTokenClassification

    from guerdon.systems import pure

    own = tokenizer()
    order = sorted(own.get_vocab(), key=own.get_vocab().__getitem__)
    other = AutoTokenizer.from_pretrained(policy_path)
    other.add_tokens(["<tool>"])
    torch.manual_seed(0)
    prm = LlamaForTokenClassification(
        LlamaConfig(vocab_size=len(order), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )  # fmt: skip
    prm.save_pretrained(tmp_path / "prm")
    own.save_pretrained(tmp_path / "prm")

    def trainer(system: Any, policy: Any = policy_path, processing_class: Any = None) -> Any:
        arguments = {} if processing_class is None else {"processing_class": processing_class}
        return CreditTrainer(policy, system, config(), dataset(), **arguments)

    with pytest.raises(ConfigError, match="without the weights of a process reward model's head"):
        trainer(pure(prm=policy_path, tokenizer=own, kl_coef=0, delimiter="a"))
    with pytest.raises(ConfigError, match=r"another vocabulary.*'<tool>'.*retokenize=True"):
        trainer(pure(prm=str(tmp_path / "prm"), tokenizer=own, kl_coef=0, delimiter="a"), processing_class=other)
    trainer(
        pure(prm=str(tmp_path / "prm"), tokenizer=own, kl_coef=0, delimiter="a", retokenize=True),
        processing_class=other,
    )
    trainer(pure(prm=str(tmp_path / "prm"), tokenizer=own, kl_coef=0, delimiter="a"))
