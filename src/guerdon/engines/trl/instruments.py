"""The models a system asks for by role, made ready beside a trainer.

"policy" is the live policy, unwrapped, read in eval mode with everything restored afterwards (`guerdon.lm.forward.instrument`).
"reference" is, in this order: the system's own `models["reference"]`, the reference TRL loaded (beta), or the policy without
its LoRA adapter. Other roles are the system's.

Role models are made BEFORE the trainer exists: TRL binds the policy's forward to a closure over the original weights.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from guerdon.engines.trl.moving import Moving
from guerdon.errors import DataError
from guerdon.lm.forward import instrument
from guerdon.lm.local import LocalModel
from guerdon.rollouts import LogProbs, Rollouts
from guerdon.system import TRAINER_STATE, System

if TYPE_CHECKING:
    from guerdon.engines.trl.trainer import CreditTrainer


def frozen_copy(model: Any) -> Any:
    """A copy of a policy (object) or a path as it is: something that stays as the policy is now."""
    return model if isinstance(model, (str, Path)) else copy.deepcopy(model).eval().requires_grad_(False)


def completion_logprobs(model: LocalModel, rollouts: Rollouts, temperature: float) -> Tensor:
    """Log-probabilities of the sampled tokens under a model, without dropout.

    Args:
        model: the instrument.
        rollouts: with prompt_ids and completion_ids.
        temperature: the logits are divided by it.

    Returns:
        [B, T] float32 on the CPU, 0 where completion_mask is False.
    """
    assert rollouts.completion_ids is not None and rollouts.prompt_ids is not None and rollouts.prompt_mask is not None
    prompt = rollouts.prompt_ids.shape[1]
    ids = torch.cat([rollouts.prompt_ids, rollouts.completion_ids], 1)
    mask = torch.cat([rollouts.prompt_mask.bool(), rollouts.mask], 1)
    wanted = torch.cat([torch.zeros_like(rollouts.prompt_mask, dtype=torch.bool), rollouts.mask], 1)
    return model.token_logprobs(ids, mask, temperature, wanted=wanted)[:, prompt:].float().cpu()


class Instruments:
    """The models of a trainer, by role.

    Args:
        system: whose `models` are loaded ("policy" as a source = a copy of the policy as it starts).
        policy: what the trainer will be given, untouched so far.
    """

    def __init__(self, system: System, policy: Any) -> None:
        self.system = system
        sources = {role: frozen_copy(policy) if m.source == "policy" else m.source for role, m in system.models.items()}
        self._models = {role: LocalModel(s) if isinstance(s, (str, Path)) else s for role, s in sources.items()}
        self._bound: list[str] = []
        self.moving: list[Moving] = []

    def attach(self, trainer: CreditTrainer) -> None:
        """Take the trainer's policy and hand every part the roles it asks for."""
        device, tokenizer = trainer.accelerator.device, trainer._tokenizer
        for role, model in self._models.items():
            if isinstance(model, nn.Module):
                model = self._models[role] = LocalModel(model, tokenizer)
            if isinstance(model, LocalModel):
                model.model.to(device).eval().requires_grad_(False)
        self.policy = LocalModel(trainer.accelerator.unwrap_model(trainer.model), tokenizer)
        named = self.system.models.get("reference")
        if trainer.ref_model is not None and named is not None and named.moves:
            # One model in both places: the KL term's reference moves too.
            self._models["reference"] = LocalModel(trainer.accelerator.unwrap_model(trainer.ref_model), tokenizer)
        self._reference = self._models.get("reference")
        if self._reference is None and trainer.ref_model is not None:
            self._reference = LocalModel(trainer.accelerator.unwrap_model(trainer.ref_model), tokenizer)
        self.moving = [
            Moving(role, model, self._models[role].model, self.policy.model)
            for role, model in self.system.models.items()
            if model.moves
        ]
        self.by_role = {"policy": self.policy, **({"reference": self._reference} if self._reference else {})}
        self.by_role |= self._models
        roles = {role for part in self.system.parts() for role in getattr(part, "roles", ())}
        if TRAINER_STATE in roles:
            self.system.bind(TRAINER_STATE, lambda: trainer.state)  # TRL replaces the object when training begins
        self._bound = sorted(roles - {TRAINER_STATE})
        for role in self._bound:
            if role == "reference" and self._reference is None:
                self.system.bind(role, AdapterOff(self.policy))
            else:
                self.system.bind(role, self.by_role[role])

    def move(self, step: int, total: int | None) -> dict[str, float]:
        """Move the models that follow the policy, before the generation of optimiser step `step` (from 1); returns the rates."""
        rates = {moving.role: moving.move(step, total) for moving in self.moving}
        return {f"rate/{role}": rate for role, rate in rates.items() if rate is not None}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the models that move."""
        return {moving.role: moving.state_dict() for moving in self.moving}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for moving in self.moving:
            if moving.role not in state:
                raise DataError(f"the checkpoint has no weights of {moving.role!r}, which moves with the policy")
            moving.load_state_dict(state[moving.role])

    def measuring(self) -> AbstractContextManager[None]:
        """The live policy in eval mode, checkpointing off, cache on; gradients allowed, for parts that train themselves.

        Nothing is changed where no part was handed a model, because then no part can run the policy.
        """
        if not self._bound:
            return nullcontext()
        return instrument(self.policy.model, use_cache=True, grad=True)

    def sampling(self) -> AbstractContextManager[None]:
        """The live policy fit for sampling: eval mode, checkpointing off, cache on; no gradients."""
        return instrument(self.policy.model, use_cache=True)

    def with_logprobs(self, rollouts: Rollouts, temperature: float) -> Rollouts:
        """The rollouts with the log-probabilities the system needs, at the sampling temperature."""
        found = dict(rollouts.logprobs)
        for need in sorted(self.system.needs):
            prefix, _, role = need.partition(".")
            if prefix != "logprobs" or role in found:
                continue
            model, context = self._read(role)
            with context:
                found[role] = LogProbs(completion_logprobs(model, rollouts, temperature), temperature)
        return replace(rollouts, logprobs=found)

    def _read(self, role: str) -> tuple[LocalModel, AbstractContextManager[Any]]:
        if role == "old":  # the policy that sampled: nothing has been trained since
            return self.policy, nullcontext()
        if role == "reference" and self._reference is None:
            return self.policy, without_adapter(self.policy.model)
        return self.by_role[role], nullcontext()


def without_adapter(model: Any) -> AbstractContextManager[Any]:
    """A LoRA policy as its own reference: the copy TRL keeps of an adapter that was there before (beta), else no adapter."""
    from trl.trainer.utils import use_adapter

    return use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None)


class AdapterOff:
    """The policy as its own reference, as an instrument: every method of the policy's, run `without_adapter`."""

    def __init__(self, policy: LocalModel) -> None:
        self._policy = policy

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._policy, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            with without_adapter(self._policy.model):
                return found(*args, **kwargs)

        return call
