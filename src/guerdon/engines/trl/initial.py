"""The policy the run began with, as an instrument: made once, whoever asks for it.

A reference for KL terms, RLPR's initial policy and the evaluator's yardstick are one model. Where it lies:

| policy | the policy it began as |
| --- | --- |
| all weights trained, TRL keeps a reference (beta) | that reference: its weights were compared with the policy's |
| all weights trained, no reference of TRL's | one copy, in the policy's dtype: of the object before the trainer has it, or loaded from its path |
| a new adapter, which changes nothing yet | the policy with its adapter off |
| an adapter that changes the base already (trained before; PiSSA, OLoRA and other inits that move weights into it) | the policy with a frozen second adapter, "ref", as TRL keeps one under beta |

So adapters never cost a second base, and TRL's own KL term uses the same "ref", which it would not make by itself for an adapter
that its constructor has just put there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from guerdon.engines.support import limit
from guerdon.errors import CapabilityError
from guerdon.lm.local import LocalModel

if TYPE_CHECKING:
    from guerdon.engines.trl.trainer import CreditTrainer

REF = "ref"  # TRL's name for the frozen copy of an adapter


def frozen_copy(policy: Any) -> Any:
    """A copy of a policy that stays as it is now: an object is copied, adapters merged; a path stays a path."""
    if isinstance(policy, str | Path):
        return policy
    copied = copy.deepcopy(policy)
    if hasattr(copied, "peft_config") and hasattr(copied, "merge_and_unload"):
        copied = copied.merge_and_unload()
    return copied.eval().requires_grad_(False)


def weights_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of most of a model's weights: the base's, not its adapters' or its norms'."""
    sizes: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dtype.itemsize > 1:
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else torch.float32


class InitialAdapter(LocalModel):
    """The policy as it began, under its own base: adapters off, or the frozen copy of the adapter it began with.

    Args:
        policy: the live policy; a PEFT model.
        adapter: name of the frozen copy; None = adapters off.
    """

    def __init__(self, policy: LocalModel, adapter: str | None) -> None:
        super().__init__(policy.model, policy.tokenizer, max_tokens=policy.max_tokens, chunk=policy.chunk)
        self.adapter = adapter

    def reading(self, *, use_cache: bool = False, grad: bool = False) -> AbstractContextManager[None]:
        return self._as_it_began(super().reading(use_cache=use_cache, grad=grad))

    @contextmanager
    def _as_it_began(self, reading: AbstractContextManager[None]) -> Iterator[None]:
        from trl.trainer.utils import use_adapter

        with use_adapter(self.model, adapter_name=self.adapter), reading:
            yield


class InitialPolicy:
    """Finds or makes the instrument of the table above, when it is first asked for.

    Args:
        policy: what the trainer will be given, untouched so far.
        args: its configuration.
        wanted: whether anybody will ask. An object whose weights are all trained must be copied before the trainer has it: TRL binds
            its forward to a closure over the weights that are trained.
        adapters: whether the policy is trained by adapters.
    """

    def __init__(self, policy: Any, args: Any, *, wanted: bool, adapters: bool) -> None:
        self.policy = policy
        self._kept_by_trl = args.beta != 0.0 and not args.sync_ref_model
        alone = wanted and not adapters and not self._kept_by_trl
        self._copy: Any = frozen_copy(policy) if alone and not isinstance(policy, str | Path) else None
        self._instrument: LocalModel | None = None

    @property
    def made(self) -> LocalModel | None:
        """The instrument, where somebody has asked for it."""
        return self._instrument

    def is_policy(self, source: Any) -> bool:
        """Whether a source names the policy's own starting point."""
        return (
            isinstance(source, str | Path) and isinstance(self.policy, str | Path) and str(source) == str(self.policy)
        )

    def instrument(self, trainer: CreditTrainer, live: LocalModel) -> LocalModel:
        """The initial policy. `live`: the policy's instrument."""
        if self._instrument is None:
            self._instrument = self._found(trainer, live)
        return self._instrument

    def _found(self, trainer: CreditTrainer, live: LocalModel) -> LocalModel:
        if hasattr(live.model, "peft_config"):
            return InitialAdapter(live, keep_adapter(live.model))
        if trainer.ref_model is not None and self._kept_by_trl:
            return LocalModel(trainer.accelerator.unwrap_model(trainer.ref_model), live.tokenizer)
        model = self._copy
        if model is None:
            model = load_like_policy(self.policy, trainer, weights_dtype(live.model))
        model = model.to(trainer.accelerator.device).eval().requires_grad_(False)
        return LocalModel(model, live.tokenizer)


def load_like_policy(path: Any, trainer: CreditTrainer, dtype: torch.dtype) -> Any:
    """The policy's path loaded once more, with everything the trainer loaded it with (revision, attention) and in its dtype."""
    from trl.trainer.utils import create_model_from_path

    options = {**(trainer.args.model_init_kwargs or {}), "dtype": dtype, "device_map": None}
    options.setdefault("trust_remote_code", trainer.args.trust_remote_code)
    return create_model_from_path(str(path), **options)


def keep_adapter(model: Any) -> str | None:
    """The name of a frozen copy of a PEFT policy's adapter as it is now, made if need be; None where the adapter does nothing yet.

    Raises:
        CapabilityError: this kind of adapter cannot be there twice.
    """
    if REF in model.peft_config:
        return REF
    name = model.active_adapter if isinstance(model.active_adapter, str) else model.active_adapters[0]
    if does_nothing(model, name):
        return None
    trained = {n: p.requires_grad for n, p in model.named_parameters()}
    try:
        with plain_init(model):
            model.add_adapter(REF, copy.copy(model.peft_config[name]))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise CapabilityError(
            limit("adapter_reference", kind=model.peft_config[name].peft_type.value, why=error)
        ) from error
    parameters = dict(model.named_parameters())
    for own, parameter in parameters.items():
        if f".{name}." in f"{own}.":
            copied = parameters.get(f"{own}.".replace(f".{name}.", f".{REF}.").removesuffix("."))
            if copied is not None and copied is not parameter:
                copied.data = parameter.detach().clone()
    model.set_adapter(name)
    for own, parameter in model.named_parameters():  # what was trained is, and nothing else
        parameter.requires_grad_(trained.get(own, False))
    return REF


@contextmanager
def plain_init(model: Any) -> Iterator[None]:
    """A PEFT model to which an adapter can be added without changing its base.

    PiSSA and its like take weights out of the base when an adapter is added, a second time for a second adapter: TRL's "ref" would
    change the policy. The configurations are put back, because loading a saved adapter needs the same init.
    """
    found = [
        c for c in getattr(model, "peft_config", {}).values() if isinstance(getattr(c, "init_lora_weights", None), str)
    ]
    inits = [config.init_lora_weights for config in found]
    for config in found:
        config.init_lora_weights = True
    try:
        yield
    finally:
        for config, init in zip(found, inits, strict=True):
            config.init_lora_weights = init


def does_nothing(model: Any, name: str) -> bool:
    """Whether a LoRA adapter is still the identity: its second factor is zero. Of other kinds nothing is assumed."""
    config = model.peft_config[name]
    if config.peft_type.value != "LORA" or config.modules_to_save or getattr(config, "trainable_token_indices", None):
        return False
    second = [
        parameter
        for own, parameter in model.named_parameters()
        if f".{name}" in own and ("lora_B" in own or "lora_embedding_B" in own)
    ]
    return bool(second) and not any(bool(parameter.detach().any()) for parameter in second)


__all__ = ["InitialAdapter", "InitialPolicy", "does_nothing", "frozen_copy", "keep_adapter", "weights_dtype"]
