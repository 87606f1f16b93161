"""Rollouts: a batch of sampled completions and everything known about them. The first of the two data types.

Every field is documented once, here. T = 1-wide or absent tensors are legal: scoring a file needs only texts. Completion
tensors are right-padded; `completion_mask` says what is real. Nothing here knows a trainer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.errors import CapabilityError, ShapeError
from guerdon.paths import column_values
from guerdon.spans import Spans, stack_spans

Message = dict[str, Any]
Prompt = str | list[Message]


class LogProbs(NamedTuple):
    """Per-token log-probabilities and the temperature the logits were divided by (trainers differ, so it is never assumed).

    Attributes:
        values: [B, T] float32, natural log, of completion_ids; meaningless where completion_mask is False.
        temperature: the divisor.
    """

    values: Tensor
    temperature: float


@dataclass(frozen=True)
class Clock:
    """When a batch was made. Random draws are keyed by it, so the same step of the same run draws the same.

    Attributes:
        step: optimiser steps taken before this batch.
        total: planned steps, or None.
        training: False for evaluation and for scoring files; stateful parts are committed only when True.
        seed: the run's seed.
    """

    step: int = 0
    total: int | None = None
    training: bool = False
    seed: int = 0

    @property
    def progress(self) -> float:
        """Fraction of the run done, in [0, 1]; 0 where the total is unknown."""
        return min(1.0, self.step / self.total) if self.total else 0.0

    def generator(self, *key: object) -> torch.Generator:
        """A CPU generator for one named draw: same seed, step, mode and key give the same numbers, whatever else was drawn."""
        text = repr((self.seed, self.step, self.training, *key)).encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big"))


@dataclass(frozen=True)
class Rollouts:
    """A batch of B rollouts.

    Attributes:
        prompts: B prompts, texts or chat messages.
        completions: B texts. Where `completion_ids` are known this is OUR decoding of them, so that `offsets` hold, without the
            tokens that control a conversation (`lm.offsets.control_ids`: padding, ends of turns). Tags that are special tokens
            stay. It may differ from the text a trainer shows.
        prompt_ids: [B, P] int64, left-padded, or None.
        prompt_mask: [B, P] bool.
        completion_ids: [B, T] int64, right-padded, or None.
        completion_mask: [B, T] bool, a real token.
        policy_mask: [B, T] bool, a token the policy sampled (False for tool output): only these are in the loss.
        offsets: [B, T, 2] int64, characters [start, end) of each token in `completions`; zero width for tokens left out.
        finished: [B] bool, ended by itself (False = cut at the length cap). None = unknown.
        logprobs: by role ("old", "reference", ...), each with its temperature.
        values: [B, T] float, a critic's values, or None.
        group_ids: [B] int64, the rollouts of one prompt share one; rows of a group need not be adjacent.
        sample_ids: [B] int64, rows that are one sample in statistics share one (a multi-turn session cut into rows).
        trainable: [B] bool, False = may be scored but never trained on.
        spans: named segmentations.
        columns: every other data-set or environment column, each a list of B.
        clock: when this batch was made.
        messages: B completions as the trainer shows them to its reward functions, texts or lists of chat messages (tool turns
            included). None = there is no trainer, or it shows none.
    """

    prompts: list[Prompt]
    completions: list[str]
    prompt_ids: Tensor | None = None
    prompt_mask: Tensor | None = None
    completion_ids: Tensor | None = None
    completion_mask: Tensor | None = None
    policy_mask: Tensor | None = None
    offsets: Tensor | None = None
    finished: Tensor | None = None
    logprobs: dict[str, LogProbs] = field(default_factory=dict)
    values: Tensor | None = None
    group_ids: Tensor | None = None
    sample_ids: Tensor | None = None
    trainable: Tensor | None = None
    spans: dict[str, Spans] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    messages: list[Any] | None = None

    def __post_init__(self) -> None:
        size = len(self.completions)

        def default(name: str, value: Tensor) -> None:
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

        if self.completion_mask is None and self.completion_ids is not None:
            raise ShapeError(
                "completion_ids without completion_mask: padding cannot be told from tokens (pad may equal eos)"
            )
        # Texts without tokens have T = 1: the one position stands for the whole text.
        default("completion_mask", torch.ones(size, 1, dtype=torch.bool))
        assert self.completion_mask is not None
        object.__setattr__(self, "completion_mask", self.completion_mask.bool())
        self._gather_on(self.completion_mask.device)
        default("policy_mask", self.completion_mask)
        assert self.policy_mask is not None
        object.__setattr__(self, "policy_mask", self.policy_mask.bool() & self.completion_mask)
        default("group_ids", torch.arange(size, device=self.device))
        default("sample_ids", torch.arange(size, device=self.device))
        default("trainable", torch.ones(size, dtype=torch.bool, device=self.device))
        self._check(size)

    def _gather_on(self, device: torch.device) -> None:
        """Put every tensor where the completion mask is: parts compare them with one another."""
        moved = self._tensors_on(device)
        for name, value in moved.items():
            object.__setattr__(self, name, value)

    def _tensors_on(self, device: torch.device) -> dict[str, Any]:
        """The fields that hold something on another device, moved."""
        moved: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor) and value.device != device:
                moved[item.name] = value.to(device)
        if any(values.device != device for values, _ in self.logprobs.values()):
            moved["logprobs"] = {
                role: LogProbs(values.to(device), temperature) for role, (values, temperature) in self.logprobs.items()
            }
        spans = {name: cut.to(device) for name, cut in self.spans.items()}
        if any(spans[name] is not self.spans[name] for name in spans):
            moved["spans"] = spans
        return moved

    @property
    def device(self) -> torch.device:
        """Where the tensors are: all on one device, the completion mask's. Engines keep rollouts on the CPU."""
        return self.mask.device

    def to(self, device: torch.device | str) -> Rollouts:
        """The rollouts on a device; themselves where they are there already."""
        moved = self._tensors_on(torch.device(device))
        return replace(self, **moved) if moved else self

    def _check(self, size: int) -> None:
        if len(self.prompts) != size:
            raise ShapeError(
                f"{len(self.prompts)} prompts for {size} completions; repeat a group's prompt once for each of its rollouts"
            )
        for name in (
            "prompt_ids",
            "prompt_mask",
            "completion_ids",
            "completion_mask",
            "policy_mask",
            "offsets",
            "finished",
            "values",
            "group_ids",
            "sample_ids",
            "trainable",
        ):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape[0] != size:
                raise ShapeError(f"{name} has {tensor.shape[0]} rows, completions {size}")
        width = self.completion_mask.shape[1]  # type: ignore[union-attr]
        for name in ("completion_ids", "policy_mask", "offsets", "values"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape[1] != width:
                raise ShapeError(f"{name} is {tensor.shape[1]} tokens wide, completion_mask {width}")
        for role, (values, _) in self.logprobs.items():
            if values.shape != (size, width):
                raise ShapeError(f"logprobs[{role!r}] has shape {tuple(values.shape)}, expected {(size, width)}")
        if self.messages is not None and len(self.messages) != size:
            raise ShapeError(f"messages has {len(self.messages)} rows, completions {size}")
        for name, column in self.columns.items():
            if len(column) != size:
                raise ShapeError(f"column {name!r} has {len(column)} values for {size} rollouts")
        for name, spans in self.spans.items():
            if len(spans) != size:
                raise ShapeError(f"spans {name!r} have {len(spans)} rows for {size} rollouts")

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def has_tokens(self) -> bool:
        return self.completion_ids is not None

    @property
    def mask(self) -> Tensor:
        """[B, T] bool: `completion_mask`, never None."""
        assert self.completion_mask is not None
        return self.completion_mask

    @property
    def groups(self) -> Tensor:
        """[B] int64: `group_ids`, never None."""
        assert self.group_ids is not None
        return self.group_ids

    @property
    def lengths(self) -> Tensor:
        """[B] int64: tokens of each completion."""
        return self.mask.sum(1)

    @property
    def last_turns(self) -> list[str]:
        """B texts: what the policy said last, which is what verifiers read. The whole completion where it wrote all of it.

        Raises CapabilityError where tokens are somebody else's and there are no offsets to tell their text by.
        """
        return [text[slice(*ranges[-1])] if ranges else "" for text, ranges in self._written()]

    @property
    def policy_texts(self) -> list[str]:
        """B texts: all that the policy said, without what a tool or a user said between. Raises as `last_turns`."""
        return ["".join(text[start:end] for start, end in ranges) for text, ranges in self._written()]

    @property
    def masked_texts(self) -> list[str]:
        """B texts as long as the completions, blanks in place of what the policy did not write: for finding places in them.

        Raises as `last_turns`.
        """
        masked = []
        for text, ranges in self._written():
            own, at = [], 0
            for start, end in ranges:
                own += [" " * (start - at), text[start:end]]
                at = end
            masked.append("".join((*own, " " * (len(text) - at))))
        return masked

    def _written(self) -> list[tuple[str, list[tuple[int, int]]]]:
        """Each completion with the characters [start, end) of every turn of the policy's in it."""
        assert self.policy_mask is not None
        foreign = (self.mask & ~self.policy_mask).any(1).tolist()
        rows = []
        for row, (text, mixed) in enumerate(zip(self.completions, foreign, strict=True)):
            own = self.policy_mask[row]
            if not mixed or not bool(own.any()):
                rows.append((text, [] if mixed else [(0, len(text))]))
            elif self.offsets is None:
                raise CapabilityError(
                    f"row {row} holds tokens the policy did not write, and without offsets nobody knows which words they are; make "
                    "completions and offsets together with guerdon.lm.offsets.decode_offsets_batch(tokenizer, completion_ids, completion_mask)"
                )
            else:
                rows.append((text, _char_ranges(own.tolist(), self.mask[row].tolist(), self.offsets[row].tolist())))
        return rows

    def column(self, name: str) -> list[Any]:
        """A data column, or what a dotted path leads to in one (`guerdon.paths`). Raises MissingColumn, which names the ones there are."""
        return self.columns[name] if name in self.columns else column_values(self.columns, name)

    def logprob(self, role: str) -> LogProbs:
        """Log-probabilities by role. Raises CapabilityError where the engine did not provide them."""
        if role not in self.logprobs:
            raise CapabilityError(
                f"rollouts carry no log-probabilities of {role!r} (have: {sorted(self.logprobs) or 'none'}); declare needs={{'logprobs.{role}'}} so that the engine computes them"
            )
        return self.logprobs[role]

    def segment(self, name: str) -> Spans:
        """A named segmentation. Raises CapabilityError where none of that name was made."""
        if name not in self.spans:
            raise CapabilityError(
                f"rollouts have no segmentation {name!r} (have: {sorted(self.spans) or 'none'}); give the System segments={{'{name}': ...}}"
            )
        return self.spans[name]

    def with_spans(self, **spans: Spans) -> Rollouts:
        return replace(self, spans={**self.spans, **spans})

    def select(self, rows: Tensor | Sequence[int]) -> Rollouts:
        """Some rows, in the order given."""
        index = torch.as_tensor(rows, dtype=torch.long)
        order = index.tolist()
        changed: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = value[index.to(value.device)]
            elif isinstance(value, list):
                changed[item.name] = [value[i] for i in order]
        changed["logprobs"] = {
            role: LogProbs(lp.values[index.to(lp.values.device)], lp.temperature) for role, lp in self.logprobs.items()
        }
        changed["spans"] = {name: spans.select(index) for name, spans in self.spans.items()}
        changed["columns"] = {name: [column[i] for i in order] for name, column in self.columns.items()}
        return replace(self, **changed)

    @staticmethod
    def from_texts(
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        group_ids: Sequence[int] | Tensor | None = None,
    ) -> Rollouts:
        """Rollouts without tokens: what scoring a file has.

        Args:
            prompts: B prompts, a group's prompt repeated for each of its rollouts.
            completions: B texts.
            columns: B values each.
            group_ids: B integers. None = rollouts of equal prompts are a group, as `guerdon score` has it; an empty prompt says
                nothing, so that its rollout is a group of its own. Say which groups there are where a prompt was asked twice.
        """
        return Rollouts(
            list(prompts),
            list(completions),
            group_ids=groups_of(prompts) if group_ids is None else torch.as_tensor(group_ids, dtype=torch.long),
            columns={name: list(column) for name, column in (columns or {}).items()},
        )


def groups_of(prompts: Sequence[Prompt]) -> Tensor:
    """[B] int64: a number for each different prompt, in order of appearance; each empty one has a number of its own."""
    known: dict[object, int] = {}
    keys = [prompt if isinstance(prompt, str) else repr([dict(m) for m in prompt]) for prompt in prompts]
    return torch.tensor([known.setdefault(key or row, len(known)) for row, key in enumerate(keys)], dtype=torch.long)


def _char_ranges(own: list[bool], real: list[bool], offsets: list[list[int]]) -> list[tuple[int, int]]:
    """Characters [start, end) of each unbroken run of a row's own tokens; padding breaks no run."""
    ranges: list[tuple[int, int]] = []
    running = False
    for mine, there, (start, end) in zip(own, real, offsets, strict=True):
        if not there:
            continue
        if mine and running:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], end))
        elif mine:
            ranges.append((max(start, ranges[-1][1]) if ranges else start, end))
        running = mine
    return ranges


def _pad_to(tensor: Tensor, width: int, *, left: bool = False) -> Tensor:
    """Zero-pad dimension 1 to `width`."""
    missing = width - tensor.shape[1]
    if not missing:
        return tensor
    filler = tensor.new_zeros(tensor.shape[0], missing, *tensor.shape[2:])
    return torch.cat([filler, tensor] if left else [tensor, filler], 1)


def concat_rollouts(parts: Sequence[Rollouts]) -> Rollouts:
    """One batch out of several (ranks, micro-batches), padded to the widest. Group ids must already be globally unique.

    Optional tensors are kept only where every part has them; the clock is the first part's.
    """
    if not parts:
        raise ShapeError("nothing to concatenate")
    if len(parts) == 1:
        return parts[0]
    width = max(part.mask.shape[1] for part in parts)
    prompt_width = max((part.prompt_ids.shape[1] for part in parts if part.prompt_ids is not None), default=0)
    joined: dict[str, Any] = {}
    for item in fields(Rollouts):
        values = [getattr(part, item.name) for part in parts]
        if item.name in ("prompts", "completions"):
            joined[item.name] = [row for value in values for row in value]
        elif all(isinstance(value, Tensor) for value in values):
            if item.name.startswith("prompt_"):
                values = [_pad_to(value, prompt_width, left=True) for value in values]
            elif values[0].dim() > 1:
                values = [_pad_to(value, width) for value in values]
            joined[item.name] = torch.cat(values)
    shared = set.intersection(*(set(part.logprobs) for part in parts))
    joined["logprobs"] = {
        role: LogProbs(
            torch.cat([_pad_to(p.logprobs[role].values, width) for p in parts]), parts[0].logprobs[role].temperature
        )
        for role in sorted(shared)
    }
    joined["spans"] = {
        name: stack_spans([part.spans[name] for part in parts])
        for name in parts[0].spans
        if all(name in part.spans for part in parts)
    }
    joined["columns"] = {
        name: [row for part in parts for row in part.columns[name]]
        for name in parts[0].columns
        if all(name in part.columns for part in parts)
    }
    joined["clock"] = parts[0].clock
    if all(part.messages is not None for part in parts):
        joined["messages"] = [row for part in parts for row in part.messages or []]
    return Rollouts(**joined)
