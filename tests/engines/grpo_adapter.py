"""GRPOTrainer's own signature over a CreditTrainer: what engines.md says under "From GRPOTrainer", as code.

As a pytest plugin it puts itself in GRPOTrainer's place in whatever tests are collected, so that TRL's own trainer tests can be run
against this engine (they are not in this repository):

    PYTHONPATH=src:tests/engines python -m pytest -p grpo_adapter PATH/TO/trl/tests/test_grpo_trainer.py
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from trl import GRPOConfig
from trl import GRPOTrainer as TRLTrainer

from guerdon.credit import Fuse, GroupNorm, On, PerRewardNorm, Scale, ToTokens
from guerdon.engines.trl import CreditTrainer
from guerdon.signals import EnvironmentReward, RewardFunction
from guerdon.system import System

STD_OVER = {"group": {}, "batch": {"std_over": "batch"}, "none": {"std": None}}


def grpo_system(
    reward_funcs: Sequence[Any], args: Any, tokenizers: Sequence[Any], environments: Sequence[type]
) -> System:
    """The System that is GRPO on these reward functions, with the configuration's weights, scaling and aggregation."""
    options = {"model_options": args.model_init_kwargs, "chat_template_kwargs": args.chat_template_kwargs}
    signals: list[Any] = []
    for function, tokenizer in zip(reward_funcs, tokenizers, strict=True):
        if callable(function) and not hasattr(function, "config"):
            signals.append(RewardFunction(function))
        else:
            signals.append(RewardFunction(function, tokenizer=tokenizer, **options))
    weights = list(args.reward_weights or [1.0] * len(signals))
    if len(weights) != len(signals):
        raise ValueError(
            f"Number of reward weights ({len(weights)}) must match number of reward functions ({len(signals)})"
        )
    signals += [EnvironmentReward(kind) for kind in environments]
    weights += [1.0] * len(environments)
    named: dict[str, Any] = {}
    for signal in signals:
        count = sum(name.partition("#")[0] == signal.name for name in named)
        named[signal.name + (f"#{count + 1}" if count else "")] = signal
    names = list(named)
    last = ToTokens("reward", "whole")
    if args.multi_objective_aggregation == "normalize_then_sum":
        return System(named, [PerRewardNorm(names, weights, into="reward"), last], name="grpo")
    if len(names) == 1:
        named = {names[0]: signals[0]}
        scaled = [On(names[0], Scale(weights[0]))] if weights[0] != 1 else []
        norm = GroupNorm(names[0], **STD_OVER[args.scale_rewards])
        return System(named, [*scaled, norm, ToTokens(names[0], "whole")], name="grpo")
    norm = GroupNorm("reward", **STD_OVER[args.scale_rewards])
    return System(named, [Fuse(*names, weights=weights, into="reward"), norm, last], name="grpo")


class GRPOTrainer(CreditTrainer):
    """A CreditTrainer with GRPOTrainer's arguments."""

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        reward_processing_classes: Any = None,
        environment_factory: Any = None,
        **options: Any,
    ) -> None:
        args = copy.copy(args) if args is not None else GRPOConfig("grpo-output")
        functions = [] if reward_funcs is None else reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        tokenizers = reward_processing_classes
        if not isinstance(tokenizers, list):
            tokenizers = [tokenizers] * (len(functions) if tokenizers is None else 1)
        if len(tokenizers) != len(functions):
            raise ValueError(
                f"The number of reward processing classes ({len(tokenizers)}) must match the number of reward functions ({len(functions)})."
            )
        factories = environment_factory.values() if isinstance(environment_factory, dict) else [environment_factory]
        kinds = dict.fromkeys(type(factory()) for factory in factories if factory is not None)
        own = [kind for kind in kinds if hasattr(kind, "get_reward")]
        if not functions and not own:
            raise ValueError("No reward source provided.")
        weights = args.reward_weights
        system = grpo_system(functions, args, tokenizers, own)
        defaults = GRPOConfig.__dataclass_fields__
        for name in ("scale_rewards", "reward_weights", "multi_objective_aggregation"):
            setattr(args, name, defaults[name].default)
        options.setdefault("stop_when_flat", None)  # as TRL, which trains on when all rewards are equal
        super().__init__(model, system, args, environment_factory=environment_factory, **options)
        self.reward_weights = torch.tensor([*(weights or [1.0] * len(functions)), *[1.0] * len(own)])
        signals = [signal for signal in system.signals.values() if not isinstance(signal, EnvironmentReward)]
        self.reward_processing_classes = [signal.tokenizer for signal in signals]


def pytest_collection_modifyitems(items: list[Any]) -> None:
    for module in {item.module for item in items}:
        if getattr(module, "GRPOTrainer", None) is TRLTrainer:
            module.GRPOTrainer = GRPOTrainer


__all__ = ["GRPOTrainer", "grpo_system"]
