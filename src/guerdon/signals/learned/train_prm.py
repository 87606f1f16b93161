"""Training a process reward model: token classification at the delimiter that ends each step, in PURE's two stages.

An example is a prompt, the steps of one solution and a label for each: 1 = good, 0 = bad, or anything between where
annotators disagree (cross-entropy against the soft label, which is what a mix of hard labels amounts to on average).
The input is built as `StepClassifier` rebuilds it: prompt, then each step followed by one delimiter token.

Simplifications: one process, float32, a cosine over each stage, the last batch of an epoch may be smaller.

Source: PURE (arXiv 2504.15275), PRM/finetune.py and train_stage_*.sh on TRL's PRM trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.errors import ConfigError, DataError
from guerdon.extras import require
from guerdon.signals.learned.prm import encode_prompt, pad_rows, single_token_id
from guerdon.tasks.tiny import Schedule, adamw, progress


@dataclass(frozen=True)
class LabelledSolution:
    """prompt: text or chat messages. steps: texts without the delimiter. labels: P(good) of each step, in [0, 1]."""

    prompt: Any
    steps: Sequence[str]
    labels: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.labels):
            raise DataError(f"{len(self.labels)} labels for {len(self.steps)} steps of {self.prompt!r}")
        if any(not 0.0 <= label <= 1.0 for label in self.labels):
            raise DataError(f"step labels must lie in [0, 1], got {list(self.labels)} for {self.prompt!r}")


@dataclass(frozen=True)
class Stage:
    """One pass of training. trains: "head" freezes the backbone. lr: at the start; epochs: passes over the examples."""

    trains: Literal["head", "all"]
    lr: float
    epochs: int = 1


PURE_STAGES = (Stage("head", 1e-4, 3), Stage("all", 1e-6, 1))


@dataclass(frozen=True)
class TrainedClassifier:
    """model: in eval mode. tokenizer. losses: mean loss per labelled position, for every optimiser step."""

    model: Any
    tokenizer: Any
    losses: list[float] = field(repr=False)


def step_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy at the labelled positions, their mean.

    logits: [B, L, 2], class 1 = good. labels: [B, L] P(good), NaN where no step ends.
    """
    labelled = ~labels.isnan()
    good = labels[labelled].to(logits.dtype)
    return torch.nn.functional.cross_entropy(logits[labelled], torch.stack([1 - good, good], -1))


def encode_solutions(
    tokenizer: Any, examples: Sequence[LabelledSolution], delimiter: str = "\n"
) -> tuple[list[list[int]], list[list[float]]]:
    """Token ids of each example and, aligned with them, its labels: NaN except at the delimiters."""
    delimiter_id = single_token_id(tokenizer, delimiter)
    rows, targets = [], []
    for example in examples:
        ids = encode_prompt(tokenizer, example.prompt)
        labels = [float("nan")] * len(ids)
        for step, label in zip(example.steps, example.labels, strict=True):
            encoded = tokenizer(step, add_special_tokens=False)["input_ids"] if step else []
            ids += [*encoded, delimiter_id]
            labels += [float("nan")] * len(encoded) + [float(label)]
        rows.append(ids)
        targets.append(labels)
    return rows, targets


def train_prm(
    base: Any,
    examples: Sequence[LabelledSolution],
    *,
    stages: Sequence[Stage] = PURE_STAGES,
    batch_size: int = 128,
    micro_batch_size: int | None = None,
    weight_decay: float = 0.1,
    delimiter: str = "\n",
    tokenizer: Any = None,
    seed: int = 0,
    output: str | Path | None = None,
) -> TrainedClassifier:
    """Turn a language model into a process reward model.

    base: hub id or path (a fresh two-label head is put on it), or a loaded token classifier with its `tokenizer`.
    stages: PURE's by default: the head alone, then everything; learning rates suit a 7B model, small ones need more.
    batch_size: examples per optimiser step, in forward passes of `micro_batch_size`.
    output: where to save model and tokenizer.

    The caller's random state is untouched; the same seed gives the same model on one machine.
    """
    labelled = [example for example in examples if len(example.steps)]
    if not labelled:
        raise DataError("no example has a labelled step; there is nothing to learn from")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, tokenizer = new_classifier(base, tokenizer, "AutoModelForTokenClassification", num_labels=2)
        rows, targets = encode_solutions(tokenizer, labelled, delimiter)
        losses: list[float] = []
        for number, stage in enumerate(stages, 1):
            set_trainable(model, stage.trains)
            description = f"process reward model, stage {number} ({stage.trains})"
            batches = [b for _ in range(stage.epochs) for b in similar_lengths([len(r) for r in rows], batch_size)]
            losses += _run_stage(
                model,
                tokenizer.pad_token_id,
                rows,
                targets,
                batches,
                stage.lr,
                weight_decay,
                micro_batch_size,
                description,
            )
    set_trainable(model, "all")
    model.eval()
    if output is not None:
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    return TrainedClassifier(model, tokenizer, losses)


def _run_stage(
    model: Any,
    pad_id: int,
    rows: list[list[int]],
    targets: list[list[float]],
    batches: list[Tensor],
    lr: float,
    weight_decay: float,
    micro_batch_size: int | None,
    description: str,
) -> list[float]:
    optimizer = adamw(model.parameters(), lr, weight_decay)
    schedule = Schedule(lr, len(batches))
    device = next(model.parameters()).device
    model.train()
    losses = []
    for step in progress(len(batches), description):
        batch = batches[step]
        total = sum(label == label for i in batch.tolist() for label in targets[i])  # NaN is not equal to itself
        optimizer.zero_grad()
        loss_sum = 0.0
        for part in batch.split(micro_batch_size or len(batch)):
            index = part.tolist()
            ids, mask = pad_rows([rows[i] for i in index], pad_id)
            labels = torch.full(ids.shape, float("nan"))
            for k, i in enumerate(index):
                labels[k, : len(targets[i])] = torch.tensor(targets[i])
            logits = model(input_ids=ids.to(device), attention_mask=mask.long().to(device)).logits
            labels = labels.to(device)
            loss = step_loss(logits.float(), labels) * ((~labels.isnan()).sum() / total)
            loss.backward()
            loss_sum += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        schedule.apply(optimizer, step)
        optimizer.step()
        losses.append(loss_sum)
    return losses


def similar_lengths(lengths: Sequence[int], batch_size: int, window: int = 8) -> list[Tensor]:
    """A shuffled epoch of batches (row indices), each of similar lengths so that little is padding: rows are shuffled,
    sorted by length within `window` batches, and the batches shuffled."""
    sizes = torch.tensor(lengths)
    batches = []
    for chunk in torch.randperm(len(sizes)).split(batch_size * window):
        batches += chunk[sizes[chunk].argsort(stable=True)].split(batch_size)
    return [batches[i] for i in torch.randperm(len(batches)).tolist()]


def new_classifier(base: Any, tokenizer: Any, auto_class: str, *, num_labels: int) -> tuple[Any, Any]:
    """A classifier with `num_labels` outputs on a base model, and its tokenizer; draws the new head's weights."""
    transformers = require("transformers", extra="train")
    if isinstance(base, torch.nn.Module):
        if tokenizer is None:
            raise ConfigError("a loaded base model comes without its tokenizer: pass tokenizer=")
        return base, tokenizer
    tokenizer = tokenizer or transformers.AutoTokenizer.from_pretrained(base)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = getattr(transformers, auto_class).from_pretrained(
        base, num_labels=num_labels, pad_token_id=tokenizer.pad_token_id
    )
    return model, tokenizer


def set_trainable(model: Any, what: Literal["head", "all"]) -> None:
    """Which parameters learn: everything, or all but the backbone."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if what == "head":
        for parameter in model.base_model.parameters():
            parameter.requires_grad_(False)
