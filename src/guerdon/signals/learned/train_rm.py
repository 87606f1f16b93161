"""Training a scalar reward model from preference pairs, with the Bradley-Terry or the pointwise loss.

A pair is a prompt, the better completion and the worse one. Both are scored at their last token by one model; the loss is
`objectives.reward_model.bradley_terry_loss`, or `pointwise_loss`, whose scores mean the same on every prompt (about 0 to 1).
PAR's settings: lr 5e-6, one epoch; its "Reg" baseline: reg = 0.005. Those of arXiv 2505.22653: pointwise, lr 1e-6.

Simplifications: one process, float32, cosine schedule, no evaluation during training (see `pair_accuracy`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from guerdon.errors import ConfigError, DataError
from guerdon.objectives.reward_model import bradley_terry_loss, pointwise_loss
from guerdon.signals.learned.conventions import TABLE, note_convention
from guerdon.signals.learned.layouts import pad_rows
from guerdon.signals.learned.scalar import encode_pair, last_token_scores, score_rows
from guerdon.signals.learned.train_prm import TrainedClassifier, new_classifier
from guerdon.tasks.tiny import Schedule, adamw, progress


class PreferencePair(NamedTuple):
    """prompt: text or chat messages. chosen, rejected: completions, the first one preferred."""

    prompt: Any
    chosen: str
    rejected: str


def train_rm(
    base: Any,
    pairs: Sequence[PreferencePair],
    *,
    lr: float = 5e-6,
    epochs: int = 1,
    batch_size: int = 32,
    loss: Literal["bradley_terry", "pointwise"] = "bradley_terry",
    reg: float = 0.0,
    weight_decay: float = 0.0,
    tokenizer: Any = None,
    seed: int = 0,
    output: str | Path | None = None,
) -> TrainedClassifier:
    """Turn a language model into a scalar reward model.

    base: hub id or path (a fresh one-label head is put on it), or a loaded sequence classifier with its `tokenizer`.
    loss: "pointwise" regresses the chosen completion's score on 1 and the rejected one's on 0.
    reg: weight of the squared scores in the Bradley-Terry loss. output: where to save model and tokenizer.

    The caller's random state is untouched; the same seed gives the same model on one machine.
    """
    if not pairs:
        raise DataError("no preference pairs; there is nothing to learn from")
    if loss not in ("bradley_terry", "pointwise") or (loss == "pointwise" and reg):
        raise ConfigError(f"loss={loss!r}: use 'bradley_terry', or 'pointwise' without reg")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, tokenizer = new_classifier(base, tokenizer, "AutoModelForSequenceClassification", num_labels=1)
        chosen = [encode_pair(tokenizer, pair.prompt, pair.chosen) for pair in pairs]
        rejected = [encode_pair(tokenizer, pair.prompt, pair.rejected) for pair in pairs]
        batches = [b.tolist() for _ in range(epochs) for b in torch.randperm(len(pairs)).split(batch_size)]
        optimizer, schedule = adamw(model.parameters(), lr, weight_decay), Schedule(lr, len(batches))
        device = next(model.parameters()).device
        model.train()
        losses = []
        for step in progress(len(batches), "reward model"):
            rows = [chosen[i] for i in batches[step]] + [rejected[i] for i in batches[step]]
            ids, mask = pad_rows(rows, tokenizer.pad_token_id)
            better, worse = last_token_scores(model, ids.to(device), mask.to(device)).chunk(2)
            value = _loss(better, worse, loss, reg)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            schedule.apply(optimizer, step)
            optimizer.step()
            losses.append(float(value.detach()))
    model.eval()
    note_convention(model.config, TABLE["sequence"])
    if output is not None:
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    return TrainedClassifier(model, tokenizer, losses)


def _loss(better: Tensor, worse: Tensor, loss: str, reg: float) -> Tensor:
    if loss == "pointwise":
        labels = torch.cat([torch.ones_like(better), torch.zeros_like(worse)])
        return pointwise_loss(torch.cat([better, worse]), labels).mean()
    return bradley_terry_loss(better, worse, reg).mean()


def pair_accuracy(model: Any, tokenizer: Any, pairs: Sequence[PreferencePair]) -> float:
    """Share of pairs whose chosen completion scores higher; a tie counts half."""
    if not pairs:
        raise DataError("no preference pairs to measure accuracy on")
    texts = [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs]
    ids, mask = pad_rows([encode_pair(tokenizer, *text) for text in texts], tokenizer.pad_token_id)
    better, worse = score_rows(model, ids, mask).chunk(2)
    return float(((better > worse).float() + 0.5 * (better == worse).float()).mean())
