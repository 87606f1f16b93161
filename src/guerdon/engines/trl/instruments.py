"""The models a system asks for by role, made ready beside a trainer.

"policy" is the live policy, unwrapped, read in eval mode with everything restored afterwards (`guerdon.lm.forward.instrument`).
"reference" is, in this order: the system's own `models["reference"]`, the reference TRL loaded (beta), or what an adapter policy
began as (`initial`). Other roles are the system's. No model is there twice: roles that stay as the policy began share one
instrument, with each other, with the evaluator and with TRL's KL term, and a path is loaded once.

Copies of an object are made BEFORE the trainer exists: TRL binds the policy's forward to a closure over the original weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from guerdon.engines.trl.compat import is_sharded
from guerdon.engines.trl.initial import InitialPolicy, frozen_copy, load_like_policy, weights_dtype
from guerdon.engines.trl.moving import Moving
from guerdon.errors import ConfigError, DataError
from guerdon.lm.forward import instrument, mixed_precision
from guerdon.lm.in_step import in_step
from guerdon.lm.local import LocalModel
from guerdon.lm.vocabulary import VocabularyCheck, tokenizer_difference
from guerdon.rollouts import LogProbs, Rollouts
from guerdon.system import TRAINER_STATE, System

if TYPE_CHECKING:
    from guerdon.engines.trl.trainer import CreditTrainer


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
        args: the trainer's configuration.
        adapters: whether the policy is trained by adapters.
        initial: whether somebody else, an evaluator, will ask for the policy as it began.
    """

    def __init__(self, system: System, policy: Any, args: Any, *, adapters: bool, initial: bool = False) -> None:
        self.system = system
        written = {role for part in system.parts() for role in getattr(part, "writes", ())}
        # A role whose model stays as the policy began needs no model of its own.
        self._began = {
            role
            for role, model in system.models.items()
            if model.source == "policy" and not model.moves and role not in written
        }
        wanted = initial or bool(self._began) or "logprobs.reference" in system.needs
        self.initial = InitialPolicy(policy, args, wanted=wanted, adapters=adapters)
        # A role whose model is written to has one of its own, whatever else comes from the same place.
        self._own = {
            role: frozen_copy(policy) if model.source == "policy" else model.source
            for role, model in system.models.items()
            if role not in self._began and (model.moves or role in written)
        }
        self._models: dict[str, LocalModel] = {}
        self._loaded: dict[str, LocalModel] = {}
        self._bound: list[str] = []
        self.moving: list[Moving] = []

    def attach(self, trainer: CreditTrainer) -> None:
        """Take the trainer's policy, place the learned parts beside it, and hand every part the roles it asks for."""
        self._trainer = trainer
        self.policy = LocalModel(trainer.accelerator.unwrap_model(trainer.model), trainer._tokenizer)
        self.dtype = weights_dtype(self.policy.model)
        self.autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(trainer.accelerator.mixed_precision)
        self.system.to(trainer.accelerator.device, self.dtype)
        for role, model in self.system.models.items():
            if role in self._own:
                self._models[role] = self._placed(self._own[role])
            else:
                self._models[role] = self.as_it_began() if role in self._began else self.frozen(model.source)
        named = self.system.models.get("reference")
        if trainer.ref_model is not None and named is not None and named.moves:
            # One model in both places: the KL term's reference moves too.
            self._models["reference"] = LocalModel(
                trainer.accelerator.unwrap_model(trainer.ref_model), trainer._tokenizer
            )
        self._reference = self._models.get("reference") or self._default_reference(trainer)
        self.moving = [
            Moving(role, model, self._models[role].model, self.policy.model)
            for role, model in self.system.models.items()
            if model.moves
        ]
        self.by_role = {"policy": self.policy, **({"reference": self._reference} if self._reference else {})}
        self.by_role |= self._models
        self._compare_vocabularies(trainer._tokenizer)
        roles = {role for part in self.system.parts() for role in getattr(part, "roles", ())}
        if TRAINER_STATE in roles:
            self.system.bind(TRAINER_STATE, lambda: trainer.state)  # TRL replaces the object when training begins
        self._bound = sorted(roles - {TRAINER_STATE})
        for role in self._bound:
            self.system.bind(role, self.by_role[role])

    def _default_reference(self, trainer: CreditTrainer) -> LocalModel | None:
        """What "reference" means where the system names none: TRL's, or what an adapter began as."""
        if trainer.ref_model is not None:
            return LocalModel(trainer.accelerator.unwrap_model(trainer.ref_model), trainer._tokenizer)
        if not hasattr(self.policy.model, "peft_config"):
            return None
        asked = {"reference", "logprobs.reference"} & self.system.needs
        asked |= {role for part in self.system.parts() for role in getattr(part, "roles", ()) if role == "reference"}
        return self.as_it_began() if asked or trainer.beta else None

    def as_it_began(self) -> LocalModel:
        """The policy the run began with, one instrument for all who ask (`initial.InitialPolicy`)."""
        return self.initial.instrument(self._trainer, self.policy)

    def frozen(self, source: Any) -> LocalModel:
        """A model that stays as it is, by its source: a path is loaded once whoever asks, in the policy's dtype, on its device."""
        if self.initial.is_policy(source):
            return self.as_it_began()
        if not isinstance(source, str | Path):
            return self._placed(source)
        if str(source) not in self._loaded:
            self._loaded[str(source)] = self._placed(source)
        return self._loaded[str(source)]

    def _placed(self, source: Any) -> Any:
        """An instrument of a path, a module or a LocalModel, on the policy's device; anything else (an endpoint) as it is."""
        trainer = self._trainer
        if self.initial.is_policy(source):
            source = load_like_policy(source, trainer, self.dtype)
        if isinstance(source, str | Path):
            source = LocalModel(source, dtype=self.dtype, device=trainer.accelerator.device)
        model = LocalModel(source, trainer._tokenizer) if isinstance(source, nn.Module) else source
        if isinstance(model, LocalModel):
            model.model.to(trainer.accelerator.device).eval().requires_grad_(False)
        return model

    def _compare_vocabularies(self, tokenizer: Any) -> None:
        """Refuse models by role that would read the policy's ids as other words, and let parts compare their own models'."""
        for role, model in self._models.items():
            difference = tokenizer_difference(tokenizer, getattr(model, "tokenizer", None))
            readers = [part for part in self.system.parts() if role in getattr(part, "roles", ())]
            crossing = [part for part in readers if not getattr(part, "retokenize", False)]
            embeddings = VocabularyCheck(None, getattr(model, "model", None)).embeddings
            if embeddings is not None and embeddings < len(tokenizer):
                difference = difference or f"{embeddings} embeddings for {len(tokenizer)} tokens"
            if difference and (crossing or f"logprobs.{role}" in self.system.needs):
                remedy = "; a part that offers retokenize=True reads the text instead" if crossing else ""
                raise ConfigError(f"the model {role!r} has another vocabulary than the policy: {difference}{remedy}")
        for part in self.system.parts():
            compare = getattr(part, "compare_vocabulary", None)
            if compare is not None:
                compare(tokenizer)

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
        return self._precisely(
            instrument(self.policy.model, use_cache=True, grad=True) if self._bound else nullcontext()
        )

    def sampling(self) -> AbstractContextManager[None]:
        """The live policy fit for sampling: eval mode, checkpointing off, cache on; no gradients."""
        return self._precisely(instrument(self.policy.model, use_cache=True))

    def in_step(self) -> AbstractContextManager[Any]:
        """Where ranks read models: equally many forwards of each sharded one. Nothing where none is sharded."""
        trainer = self._trainer
        if not is_sharded(trainer):
            return nullcontext()
        wrapped = [getattr(trainer, "model_wrapped", None) or trainer.model, trainer.ref_model]
        models = [model for model in wrapped if model is not None]
        live = [self.policy, *([self._reference] if self._reference is not None else []), self.initial.made]
        for instrument_ in live:  # training wraps what the trainer was given
            if instrument_ is not None and instrument_.model is not models[0]:
                kept = trainer.ref_model is not None and _inner(instrument_.model) is _inner(trainer.ref_model)
                if kept or _inner(instrument_.model) is _inner(models[0]):
                    instrument_.replace_model(trainer.ref_model if kept else models[0])
        return in_step(models)

    def learning(self) -> AbstractContextManager[None]:
        """Where objectives run: the policy as the trainer has it, instruments under the trainer's autocast."""
        return mixed_precision(self.autocast)

    @contextmanager
    def _precisely(self, inner: AbstractContextManager[None]) -> Iterator[None]:
        """`inner`, with every instrument in it under the trainer's autocast."""
        with mixed_precision(self.autocast), inner:
            yield

    def with_logprobs(self, rollouts: Rollouts, temperature: float) -> Rollouts:
        """The rollouts with the log-probabilities the system needs, at the sampling temperature."""
        found = dict(rollouts.logprobs)
        for need in sorted(self.system.needs):
            prefix, _, role = need.partition(".")
            if prefix != "logprobs" or role in found:
                continue
            # "old" is the policy that sampled: nothing has been trained since.
            model = self.policy if role == "old" else self.by_role[role]
            found[role] = LogProbs(completion_logprobs(model, rollouts, temperature), temperature)
        return replace(rollouts, logprobs=found)


def _inner(model: Any) -> Any:
    """The module inside wrappers of a trainer: what stays the same object when training wraps it."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model
