"""One forward pass done right: modes restored, micro-batches under a token budget, logits only where they are needed.

Everything that reads a local model goes through here: `instrument` puts a model into the state an instrument needs and puts
everything back; `Forward` runs ragged sequences in padded micro-batches and hands out states at the wanted positions;
`Head` turns states into float32 log-probabilities, a chunk of positions at a time.

Where the architecture allows, only the backbone runs over all positions and the output embedding only over the wanted ones
(vocabulary-sized tensors are what fills memory). Whether it is allowed is tried on the model itself, once, on four tokens:
models that scale or cap their logits after the head fail the trial and take the way of full logits.

Left out: sequence parallelism. Sharded models (FSDP, ZeRO-3) run whole, inside `in_step.in_step`. Sharing what sequences have in
common is `shared.SharedForward`, another `Forward.states`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from guerdon.lm.checkpointing import checkpointed_layers
from guerdon.lm.in_step import is_sharded

POSITIONS = 1024  # whose logits exist at once
CPU_LOGITS = 32 << 20  # bytes of logits at once on a CPU
_AUTOCAST: ContextVar[torch.dtype | None] = ContextVar("autocast", default=None)


@contextmanager
def instrument(model: nn.Module, *, use_cache: bool = False, grad: bool = False) -> Iterator[None]:
    """The state in which a model may be read: eval mode, use_cache as asked, RNG forked; checkpointing only with gradients.

    Inside `mixed_precision` the model computes under autocast.

    On leaving, every module's own train flag, checkpointing flag and the config's use_cache are what they were, and the
    global random state is too: a likelihood signal inside a training run must not change its later losses.

    Args:
        model: any module. LoRA and other dropout is off inside (routing by `model.training`, too).
        use_cache: True for generation. Trainers leave it False, and generation with checkpointing on is garbage.
        grad: keep gradients, and the layers' gradient checkpointing (`checkpointing.checkpointed_layers`); otherwise inference runs
            under `no_grad`.
    """
    training = [(module, module.training) for module in model.modules()]
    checkpointing = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False) is True]
    config = getattr(model, "config", None)
    cached = getattr(config, "use_cache", None)
    devices = sorted(
        {p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index is not None}
    )
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.set_grad_enabled(grad))
        stack.enter_context(casting(model))
        if grad and checkpointing:
            stack.enter_context(checkpointed_layers(model))
        try:
            model.eval()
            for module in checkpointing:
                module.gradient_checkpointing = False  # type: ignore[assignment]
            if cached is not None:
                config.use_cache = use_cache  # type: ignore[union-attr]
            yield
        finally:
            for module, was in training:
                module.training = was
            for module in checkpointing:
                module.gradient_checkpointing = True  # type: ignore[assignment]
            if cached is not None:
                config.use_cache = cached  # type: ignore[union-attr]


@contextmanager
def mixed_precision(dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, every model that is read as an instrument computes under autocast to `dtype`, as the trainer's own forward does.

    Only forwards do: a chain's arithmetic, or a signal's own, must not lose digits because a trainer saves memory. None = no autocast.
    """
    token = _AUTOCAST.set(dtype)
    try:
        yield
    finally:
        _AUTOCAST.reset(token)


def casting(model: nn.Module) -> AbstractContextManager[Any]:
    """The autocast of `mixed_precision`, on the model's device.

    Casts are not cached: a copy of a weight that was made without gradients would be found by a forward that needs them.
    """
    dtype = _AUTOCAST.get()
    if dtype is None:
        return nullcontext()
    device = next((p.device.type for p in model.parameters()), "cpu")
    return torch.autocast(device, dtype=dtype, cache_enabled=False)


def microbatches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Split rows into micro-batches of at most `max_tokens` tokens, padding counted, similar lengths together.

    Longest first, so that memory is exhausted at once or never. A row longer than the budget is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * max(1, lengths[batches[-1][0]]) <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def pad_ids(sequences: Sequence[Tensor], *, left: bool = False, fill: int = 0) -> tuple[Tensor, Tensor]:
    """Ragged id tensors to ids [B, T] and mask [B, T] bool."""
    width = max((len(s) for s in sequences), default=0)
    ids = torch.full((len(sequences), width), fill, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        where = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[row, where] = sequence.to("cpu")
        mask[row, where] = True
    return ids, mask


def positions_of(mask: Tensor) -> Tensor:
    """[B, T] int64: the position of each real token in its own row, so that the side of the padding does not matter."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


@dataclass
class Parts:
    """A causal language model, taken apart. `head` None: logits come from the whole model."""

    model: nn.Module
    backbone: nn.Module | None
    head: nn.Module | None
    call: Callable[..., Any]
    keeps: bool  # the whole model's forward takes logits_to_keep

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def take_apart(model: nn.Module) -> Parts:
    """Find backbone and head, and try on four tokens whether head(backbone(ids)) is what the model itself says."""
    if is_sharded(model):  # only its outermost module gathers weights, and it does so in one forward
        inside, _ = _unwrapped(getattr(model, "module", model))
        keeps = "logits_to_keep" in inspect.signature(type(inside).forward).parameters
        return Parts(model, None, None, model, keeps)
    inner, prompt_learning = _unwrapped(model)
    # A trainer may have replaced `forward` on the instance by a closure over another model (a deep copy then answers with
    # the ORIGINAL's logits). The class's own forward is the truth, except where accelerate put device hooks.
    patched = "forward" in vars(inner) and not hasattr(inner, "_hf_hook")
    call: Callable[..., Any] = (lambda *a, **k: type(inner).forward(inner, *a, **k)) if patched else inner
    keeps = "logits_to_keep" in inspect.signature(type(inner).forward).parameters
    whole = Parts(inner, None, None, call, keeps)
    if prompt_learning:  # virtual tokens are put in by the wrapper: only its own forward is right
        return Parts(model, None, None, model, False)
    backbone = getattr(inner, "base_model", None)
    head: Any = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if backbone is None or backbone is inner or head is None:
        return whole
    split = Parts(inner, backbone, head, call, keeps)
    ids = torch.arange(4, device=split.device)[None] % int(getattr(head, "out_features", 4) or 4)
    with instrument(inner):
        mask = torch.ones_like(ids, dtype=torch.bool)
        try:
            ours = head(
                backbone(
                    input_ids=ids, attention_mask=mask.long(), position_ids=positions_of(mask), use_cache=False
                ).last_hidden_state
            )
        except (TypeError, AttributeError):  # a backbone of another shape
            return whole
        theirs = call(
            input_ids=ids, attention_mask=mask.long(), position_ids=positions_of(mask), use_cache=False
        ).logits
    same = ours.shape == theirs.shape and bool(torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3))
    return split if same else whole


def _unwrapped(model: Any) -> tuple[Any, bool]:
    """Through DDP and PEFT wrappers to the transformers model; second: PEFT by virtual tokens."""
    while (
        hasattr(model, "module") and isinstance(model.module, nn.Module) and not hasattr(model, "get_output_embeddings")
    ):
        model = model.module
    config = getattr(model, "active_peft_config", None)
    if config is not None and hasattr(model, "get_base_model"):
        return model.get_base_model(), bool(getattr(config, "is_prompt_learning", False))
    return model, False


class Forward:
    """Runs ragged sequences through a model and yields states at wanted positions.

    A state is the last hidden state, or, where the model could not be taken apart, the row of logits itself.
    """

    def __init__(self, model: nn.Module, *, max_tokens: int = 8192, left_pad: bool = False) -> None:
        self.parts = take_apart(model)
        self.max_tokens = max_tokens
        self.left_pad = left_pad

    def states(self, sequences: Sequence[Tensor], wanted: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor]]:
        """The seam for other ways to run (`shared.SharedForward`): same arguments, same meaning.

        Args:
            sequences: N id tensors [T_n].
            wanted: N tensors [M_n] of positions, whose states are asked for.

        Yields:
            row indices, and the states of those rows in that order, concatenated: [sum M_n, D]. Call it inside `instrument`.
        """
        yield from self._padded(sequences, wanted, self.max_tokens)

    def _padded(
        self, sequences: Sequence[Tensor], wanted: Sequence[Tensor], max_tokens: int
    ) -> Iterator[tuple[list[int], Tensor]]:
        """One row a sequence, in padded micro-batches."""
        for rows in microbatches([len(s) for s in sequences], max_tokens):
            ids, mask = pad_ids([sequences[i] for i in rows], left=self.left_pad)
            width = ids.shape[1]
            row_index = torch.cat([torch.full((len(wanted[i]),), n) for n, i in enumerate(rows)])
            columns = torch.cat([wanted[i].cpu() + (width - len(sequences[i]) if self.left_pad else 0) for i in rows])
            yield rows, self._at(ids, mask, row_index.long(), columns.long())

    def _at(self, ids: Tensor, mask: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        device = self.parts.device
        inputs = {
            "input_ids": ids.to(device),
            "attention_mask": mask.long().to(device),
            "position_ids": positions_of(mask).to(device),
            "use_cache": False,
        }
        return self._states_at(inputs, rows, columns)

    def _states_at(self, inputs: dict[str, Any], rows: Tensor, columns: Tensor) -> Tensor:
        """[M, D]: run the model on these inputs, and read the states at (rows [M], columns [M])."""
        parts, device = self.parts, self.parts.device
        if parts.backbone is not None:
            return parts.backbone(**inputs).last_hidden_state[rows.to(device), columns.to(device)]
        if parts.keeps:  # the model itself leaves out the columns in which no row wants anything
            kept, columns = columns.unique(return_inverse=True)
            inputs = inputs | {"logits_to_keep": kept.to(device)}
        logits = parts.call(**inputs).logits
        if not parts.keeps:  # adapters that put virtual tokens in front give logits for these, too
            logits = logits[:, -inputs["input_ids"].shape[1] :]
        return logits[rows.to(device), columns.to(device)]


@dataclass
class Head:
    """States to float32 log-probabilities, `chunk` positions at a time (chunk x vocabulary x 4 bytes at once, about twice).

    chunk None: 1024, and on a CPU without gradients as many as fit `CPU_LOGITS` where that is less. There a product of fewer
    rows is as fast, and all logits of a call would weigh more than all else that it needs.
    """

    parts: Parts
    chunk: int | None = None

    def __call__(
        self, states: Tensor, read: Callable[..., tuple[Tensor, ...]], *aligned: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, ...]:
        """Apply `read(logits [C, V] float32, *aligned [C, ...])` to all states, and concatenate what it returns.

        Args:
            states: [M, D].
            read: a function of logits, already divided by the temperature, that returns tensors of first dimension C.
            aligned: tensors with first dimension M, cut like the states.
            temperature: divides the logits.
        """

        def piece(part: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
            logits = self.parts.head(part.to(_weight(self.parts.head))) if self.parts.head is not None else part
            logits = logits if logits.dtype == torch.float64 else logits.float()
            return read(logits / temperature if temperature != 1.0 else logits, *others)

        outputs = []
        size = self.chunk or self._fitting()
        for begin in range(0, max(1, len(states)), size):
            cut = slice(begin, begin + size)
            arguments = (states[cut], *(a.to(states.device)[cut] for a in aligned))
            if torch.is_grad_enabled() and len(states) > size:  # the head again in backward, instead of all logits kept
                outputs.append(checkpoint(piece, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                outputs.append(piece(*arguments))
        return tuple(torch.cat(column) for column in zip(*outputs, strict=True))

    def _fitting(self) -> int:
        weight = getattr(self.parts.head, "weight", None)
        if weight is None or weight.device.type != "cpu" or torch.is_grad_enabled():
            return POSITIONS
        return min(POSITIONS, max(16, CPU_LOGITS // (4 * len(weight))))


def _weight(head: nn.Module) -> torch.dtype:
    """The dtype the head computes in."""
    return next(head.parameters()).dtype


def read_target(logits: Tensor, target: Tensor) -> tuple[Tensor]:
    """[C, V], [C] -> ([C],): log-probability of each target id."""
    return (logits.gather(-1, target[:, None])[:, 0] - logits.logsumexp(-1),)
