"""Training a process reward model: token classification at the delimiter that ends each step, in PURE's two stages.

An example is a prompt, the steps of one solution and a label for each: 1 = good, 0 = bad, or anything between where
annotators disagree (cross-entropy against the soft label, which is what a mix of hard labels amounts to on average).
The input is built as `StepClassifier` rebuilds it: prompt, then each step followed by one delimiter token.

A small model learns slowly from one label a step. `Auxiliary` adds what every token can teach: whether its line is still right there,
where the examples say at which character it went wrong, and the ordinary next-token loss. Both are off by default, as in PURE.

Simplifications: one process, float32, a cosine over each stage, the last batch of an epoch may be smaller.

Source: PURE (arXiv 2504.15275), PRM/finetune.py and train_stage_*.sh on TRL's PRM trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from guerdon.errors import ConfigError, DataError
from guerdon.extras import require
from guerdon.options import checked
from guerdon.signals.learned.conventions import TABLE, note_convention
from guerdon.signals.learned.layouts import encode_prompt, pad_rows, single_token_id
from guerdon.tasks.tiny import Schedule, adamw, progress


@dataclass(frozen=True)
class LabelledSolution:
    """prompt: text or chat messages. steps: texts without the delimiter. labels: P(good) of each step, in [0, 1].
    error_at: where known, the character at which each step labelled 0 first goes wrong; None for the others."""

    prompt: Any
    steps: Sequence[str]
    labels: Sequence[float]
    error_at: Sequence[int | None] | None = None

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.labels):
            raise DataError(f"{len(self.labels)} labels for {len(self.steps)} steps of {self.prompt!r}")
        if any(not 0.0 <= label <= 1.0 for label in self.labels):
            raise DataError(f"step labels must lie in [0, 1], got {list(self.labels)} for {self.prompt!r}")
        if self.error_at is not None and len(self.error_at) != len(self.steps):
            raise DataError(f"{len(self.error_at)} places of errors for {len(self.steps)} steps of {self.prompt!r}")


@checked
@dataclass(frozen=True)
class Stage:
    """One pass of training. trains: "head" freezes the backbone. lr: at the start; epochs: passes over the examples; warmup: steps
    in which the learning rate rises."""

    trains: Literal["head", "all"]
    lr: float
    epochs: int = 1
    warmup: int = 0


@dataclass(frozen=True)
class Auxiliary:
    """Coefficients of further losses, each a mean over its own positions of a batch.

    tokens: cross-entropy of "nothing wrong up to here" at every token of the steps labelled 1, and of those labelled 0 whose
    `error_at` is known. lm: the next-token loss, for which the input embedding serves as the output's; wrong tokens are no targets.
    """

    tokens: float = 0.0
    lm: float = 0.0


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


def token_labels(tokenizer: Any, example: LabelledSolution, delimiter: str = "\n") -> list[float]:
    """Aligned with the ids of `encode_solutions`: 1 = a step's token with nothing wrong up to and with it, 0 = from the error on,
    NaN = not known, and at prompt and delimiters, whose labels are the steps'."""
    unknown = float("nan")
    labels = [unknown] * len(encode_prompt(tokenizer, example.prompt))
    places = example.error_at or [None] * len(example.steps)
    for step, label, place in zip(example.steps, example.labels, places, strict=True):
        ends = _token_ends(tokenizer, step)
        if label == 1.0:
            labels += [1.0] * len(ends)
        elif label == 0.0 and place is not None:
            labels += [float(end <= place) for end in ends]
        else:
            labels += [unknown] * len(ends)
        labels.append(unknown)
    return labels


def _token_ends(tokenizer: Any, text: str) -> list[int]:
    """The character after each token."""
    if not text:
        return []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [end for _, end in encoded["offset_mapping"]]


def next_token_loss(hidden: Tensor, embedding: Tensor, ids: Tensor, allowed: Tensor) -> Tensor:
    """Mean cross-entropy of each allowed token given the state before it, the input embedding being the output's too.

    hidden: [B, L, D] last states. embedding: [V, D]. ids: [B, L]. allowed: [B, L] bool, the tokens that are targets.
    """
    targets = torch.where(allowed, ids, -100)[:, 1:]
    return torch.nn.functional.cross_entropy((hidden[:, :-1] @ embedding.T).flatten(0, 1), targets.flatten())


def train_prm(
    base: Any,
    examples: Sequence[LabelledSolution],
    *,
    stages: Sequence[Stage] = PURE_STAGES,
    batch_size: int = 128,
    micro_batch_size: int | None = None,
    weight_decay: float = 0.1,
    auxiliary: Auxiliary = Auxiliary(),
    delimiter: str = "\n",
    tokenizer: Any = None,
    seed: int = 0,
    output: str | Path | None = None,
) -> TrainedClassifier:
    """Turn a language model into a process reward model.

    base: hub id or path (a fresh two-label head is put on it), or a loaded token classifier with its `tokenizer`.
    stages: PURE's by default: the head alone, then everything; learning rates suit a 7B model, small ones need more.
    batch_size: examples per optimiser step, in forward passes of `micro_batch_size`.
    auxiliary: losses beside the step labels'; they ask for a fast tokenizer.
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
        tokens = (
            [token_labels(tokenizer, example, delimiter) for example in labelled] if auxiliary != Auxiliary() else []
        )
        data = _Encoded(rows, targets, tokens, tokenizer.pad_token_id)
        losses: list[float] = []
        for number, stage in enumerate(stages, 1):
            set_trainable(model, stage.trains)
            description = f"process reward model, stage {number} ({stage.trains})"
            batches = [b for _ in range(stage.epochs) for b in similar_lengths([len(r) for r in rows], batch_size)]
            losses += _run_stage(model, data, batches, stage, weight_decay, micro_batch_size, auxiliary, description)
    set_trainable(model, "all")
    model.eval()
    note_convention(model.config, replace(TABLE["pure"], separator=delimiter))
    if output is not None:
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    return TrainedClassifier(model, tokenizer, losses)


class _Encoded(NamedTuple):
    """Token ids of every example, the labels of its steps and of its tokens aligned with them."""

    rows: list[list[int]]
    steps: list[list[float]]
    tokens: list[list[float]]
    pad_id: int

    def batch(self, index: Sequence[int]) -> _Batch:
        ids, mask = pad_rows([self.rows[i] for i in index], self.pad_id)
        steps, tokens = torch.full(ids.shape, float("nan")), torch.full(ids.shape, float("nan"))
        for k, i in enumerate(index):
            steps[k, : len(self.steps[i])] = torch.tensor(self.steps[i])
            if self.tokens:
                tokens[k, : len(self.tokens[i])] = torch.tensor(self.tokens[i])
        return _Batch(ids, mask, steps, tokens)


class _Batch(NamedTuple):
    """All [B, L]: ids int64, mask bool, labels of steps and of tokens, NaN where there is none."""

    ids: Tensor
    mask: Tensor
    steps: Tensor
    tokens: Tensor

    def counts(self) -> list[int]:
        """How many positions each loss is a mean over: steps, tokens, next tokens."""
        return [int((~self.steps.isnan()).sum()), int((~self.tokens.isnan()).sum()), int(self.allowed()[:, 1:].sum())]

    def allowed(self) -> Tensor:
        return self.mask & (self.tokens != 0)


def _loss(model: Any, batch: _Batch, whole: Sequence[int], auxiliary: Auxiliary) -> Tensor:
    """This part's share of the loss of a batch with `whole` positions."""
    output = model(
        input_ids=batch.ids, attention_mask=batch.mask.long(), output_hidden_states=auxiliary.lm != 0, use_cache=False
    )
    logits, (steps, tokens, following) = output.logits.float(), batch.counts()
    loss = step_loss(logits, batch.steps) * (steps / whole[0])
    if auxiliary.tokens and tokens:
        loss = loss + auxiliary.tokens * step_loss(logits, batch.tokens) * (tokens / whole[1])
    if auxiliary.lm and following:
        embedding = model.get_input_embeddings().weight
        dense = next_token_loss(output.hidden_states[-1], embedding, batch.ids, batch.allowed())
        loss = loss + auxiliary.lm * dense * (following / whole[2])
    return loss


def _run_stage(
    model: Any,
    data: _Encoded,
    batches: list[Tensor],
    stage: Stage,
    weight_decay: float,
    micro_batch_size: int | None,
    auxiliary: Auxiliary,
    description: str,
) -> list[float]:
    optimizer = adamw(model.parameters(), stage.lr, weight_decay)
    schedule = Schedule(stage.lr, len(batches), stage.warmup)
    device = next(model.parameters()).device
    model.train()
    losses = []
    for step in progress(len(batches), description):
        rows = batches[step]
        parts = [data.batch(part.tolist()) for part in rows.split(micro_batch_size or len(rows))]
        whole = [sum(counts) for counts in zip(*[part.counts() for part in parts], strict=True)]
        optimizer.zero_grad()
        loss_sum = 0.0
        for part in parts:
            loss = _loss(model, _Batch(*[t.to(device) for t in part]), whole, auxiliary)
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
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}} if num_labels == 2 else {}
    model = getattr(transformers, auto_class).from_pretrained(
        base, num_labels=num_labels, pad_token_id=tokenizer.pad_token_id, **names
    )
    return model, tokenizer


def set_trainable(model: Any, what: Literal["head", "all"]) -> None:
    """Which parameters learn: everything, or all but the backbone."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if what == "head":
        for parameter in model.base_model.parameters():
            parameter.requires_grad_(False)
