"""A process reward model as a signal: one score per reasoning step, read at one delimiter position per step.

The model is a token classifier with two classes, 0 = bad step and 1 = good step. Following PURE, its input is rebuilt from
the policy's tokens: the prompt, then every step without its last token (the delimiter, whatever token it came in, or the
end of sequence), followed by ONE delimiter token of the reward model's own. One token is replaced by one token, so a score
is written straight back to the position where the step ends. The score is p(good) - p(bad), in [-1, 1].

What it assumes: rows fit into the model's context (cells beyond it are NaN, with the reason), and the policy's tokenizer is
the reward model's; if not, `retokenize=True` re-encodes prompt and steps as text, step by step.

Source: PURE (arXiv 2504.15275), verl branch fsdp_workers.py, main branch utils.py `turn_process_reward_logits_to_reward`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.errors import CapabilityError, ConfigError
from guerdon.extras import require
from guerdon.rewards import Reasons, Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.spans import Spans

EMPTY_STEP = "the step is empty"


class PrmInput(NamedTuple):
    """ids: [B, L] right-padded reward-model input. mask: [B, L] bool. positions: [B, S] where each step's delimiter stands
    in ids, -1 where there is no step."""

    ids: Tensor
    mask: Tensor
    positions: Tensor


# --- pure functions --------------------------------------------------------------------------------------------------


def rebuild_prm_input(
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    step_ends: Tensor,
    delimiter_id: int,
    pad_id: int,
) -> PrmInput:
    """The reward model's input: the last token of each step becomes the delimiter, and padding moves to the right.

    prompt_ids, prompt_mask: [B, P], padded on any side. completion_ids, completion_mask: [B, T].
    step_ends: [B, S] positions in the completion, -1 where there is no step.
    """
    real = step_ends >= 0
    ends = step_ends.clamp(min=0)
    is_end = torch.zeros_like(completion_mask, dtype=torch.int64).scatter_add(1, ends, real.long()).bool()
    rebuilt = torch.where(is_end, delimiter_id, completion_ids)
    ids = torch.cat([prompt_ids, rebuilt], 1)
    mask = torch.cat([prompt_mask.bool(), completion_mask.bool()], 1)
    order = mask.long().argsort(dim=1, descending=True, stable=True)  # valid tokens first, in their order
    new_position = mask.long().cumsum(1) - 1
    positions = new_position.gather(1, prompt_ids.shape[1] + ends)
    ids, mask = ids.gather(1, order), mask.gather(1, order)
    return PrmInput(torch.where(mask, ids, pad_id), mask, torch.where(real, positions, -1))


def step_scores(logits: Tensor, mask: Tensor) -> Tensor:
    """r = p(good) - p(bad) in [-1, 1]; 0 at masked steps. logits: [..., S, 2], class 1 = good. mask: [..., S] bool."""
    probabilities = logits.float().softmax(-1)
    return torch.where(mask, probabilities[..., 1] - probabilities[..., 0], 0.0)


# --- the signal ------------------------------------------------------------------------------------------------------


class StepClassifier:
    """Signal: a two-class token classifier's score for every step of a segmentation.

    model: hub id or path of a token classifier with two labels, or a loaded model (then `tokenizer` is needed).
    tokenizer: the reward model's tokenizer; default: the one beside the model.
    segment: the segmentation whose spans are the steps; the system's `segments` must have it.
    delimiter: the text the reward model was trained to be read at; must be one token of its tokenizer.
    retokenize: the policy's tokenizer is another one: re-encode the text, step by step.
    token_budget: padded tokens per forward pass.

    Loaded on first use; runs in eval mode without gradients and leaves the random state alone. `last_logits` holds the raw
    logits [B, S, 2] of the latest batch (0 at masked steps).
    """

    scope = "row"
    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        segment: str = "steps",
        delimiter: str = "\n",
        retokenize: bool = False,
        token_budget: int = 16384,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(model, str) and tokenizer is None and not hasattr(model, "__fspath__"):
            raise ConfigError("a loaded process reward model comes without its tokenizer: pass tokenizer=")
        self.source, self.level, self.delimiter = model, segment, delimiter
        self.retokenize, self.token_budget = retokenize, token_budget
        self.last_logits: Tensor | None = None
        self._device, self._dtype, self._tokenizer = device, dtype, tokenizer
        self._model: Any = None

    def __repr__(self) -> str:
        name = self.source if isinstance(self.source, str) else type(self.source).__name__
        return f"StepClassifier({name!r}, segment={self.level!r})"

    def load(self) -> tuple[Any, Any]:
        """(model, tokenizer), loading them on the first call. Raises ConfigError unless there are two labels."""
        if self._model is None:
            model, self._tokenizer = load_classifier(
                self.source, self._tokenizer, "AutoModelForTokenClassification", self._device, self._dtype
            )
            if model.config.num_labels != 2:
                raise ConfigError(
                    f"{self.source}: a process reward model has 2 labels (bad, good), this one {model.config.num_labels}"
                )
            self._model = model
        return self._model, self._tokenizer

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> Rewards:
        model, tokenizer = self.load()
        spans = rollouts.segment(self.level)
        delimiter_id = single_token_id(tokenizer, self.delimiter)
        empty = spans.mask & (spans.end < spans.start)
        scored = spans.mask & ~empty
        prm = self._input(rollouts, spans, scored, tokenizer, delimiter_id)
        limit = getattr(model.config, "max_position_embeddings", None) or prm.ids.shape[1]
        beyond = prm.positions >= limit
        logits = classify_positions(model, prm, torch.where(beyond, -1, prm.positions), self.token_budget, limit)
        logits = logits.to(spans.start.device)
        self.last_logits = logits

        values, reasons = step_scores(logits, scored), Reasons()
        values = torch.where(empty, -1.0, values)  # writing nothing is the policy's doing: the lowest score
        for cell in _cells(empty):
            reasons[cell] = EMPTY_STEP
        beyond = beyond.to(values.device) & scored
        for cell in _cells(beyond):
            reasons[cell] = f"the step ends beyond the reward model's context of {limit} tokens"
        broken = scored & ~beyond & ~torch.isfinite(logits).all(-1)
        for cell in _cells(broken):
            reasons[cell] = "the process reward model returned non-finite logits"
        return Rewards(torch.where(beyond | broken, float("nan"), values), spans, reasons)

    def _input(self, rollouts: Rollouts, spans: Spans, scored: Tensor, tokenizer: Any, delimiter_id: int) -> PrmInput:
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else delimiter_id
        if self.retokenize:
            return self._encode_text(rollouts, spans, scored, tokenizer, delimiter_id, pad_id)
        if rollouts.completion_ids is None or rollouts.prompt_ids is None or rollouts.prompt_mask is None:
            raise CapabilityError(f"{self!r} reads token ids and these rollouts are texts; pass retokenize=True")
        if spans.unit != "token":
            raise CapabilityError(
                f"{self!r}: the spans {self.level!r} count characters; use a token segmentation or retokenize=True"
            )
        return rebuild_prm_input(
            rollouts.prompt_ids,
            rollouts.prompt_mask,
            rollouts.completion_ids,
            rollouts.mask,
            torch.where(scored, spans.end, -1),
            delimiter_id,
            pad_id,
        )

    def _encode_text(
        self, rollouts: Rollouts, spans: Spans, scored: Tensor, tokenizer: Any, delimiter_id: int, pad_id: int
    ) -> PrmInput:
        """The same input from text: prompt, then each step's text without its trailing newlines, then the delimiter."""
        rows, places = [], torch.full(scored.shape, -1)
        for b, texts in enumerate(step_texts(rollouts, spans)):
            ids = encode_prompt(tokenizer, rollouts.prompts[b])
            for s, text in texts:
                if scored[b, s]:
                    ids += tokenizer(text.rstrip("\n"), add_special_tokens=False)["input_ids"] + [delimiter_id]
                    places[b, s] = len(ids) - 1
            rows.append(ids)
        padded, mask = pad_rows(rows, pad_id)
        return PrmInput(padded, mask, places)


# --- parts the scalar reward model shares ----------------------------------------------------------------------------


def load_classifier(
    source: Any, tokenizer: Any, auto_class: str, device: Any, dtype: torch.dtype | None
) -> tuple[Any, Any]:
    """A classifier and its tokenizer from a hub id or path, or `source` itself where it is a loaded model."""
    transformers = require("transformers", extra="train")
    if isinstance(source, torch.nn.Module):
        model = source
    else:
        kwargs = {} if dtype is None else {"dtype": dtype}
        model = getattr(transformers, auto_class).from_pretrained(source, **kwargs).eval()
        tokenizer = tokenizer or transformers.AutoTokenizer.from_pretrained(source)
    return (model if device is None else model.to(device)), tokenizer


@torch.no_grad()
def classify_positions(model: Any, prm: PrmInput, positions: Tensor, token_budget: int, limit: int) -> Tensor:
    """Logits [B, S, C] float32 at `positions` [B, S] (-1: none, left 0), in length-sorted batches of at most `token_budget`
    padded tokens. Inputs are cut at `limit`, which changes nothing for a causal model."""
    classes = model.config.num_labels
    device = next(model.parameters()).device
    out = torch.zeros(*positions.shape, classes, device=device)
    prm, positions = PrmInput(*(tensor.cpu() for tensor in prm)), positions.cpu()  # rows are chosen here
    lengths = prm.mask.sum(1).clamp(max=limit)
    wanted = (positions >= 0).any(1)
    with evaluating(model):
        for rows in length_batches(lengths, token_budget):
            rows = rows[wanted[rows]]
            if not len(rows):
                continue
            width = int(lengths[rows].max())
            ids, mask = prm.ids[rows, :width].to(device), prm.mask[rows, :width].to(device)
            logits = model(input_ids=ids, attention_mask=mask.long()).logits.float()
            at = positions[rows].to(device)
            picked = logits.gather(1, at.clamp(min=0)[..., None].expand(-1, -1, classes))
            out[rows.to(device)] = torch.where((at >= 0)[..., None], picked, 0.0)
    return out


def length_batches(lengths: Tensor, token_budget: int) -> Iterator[Tensor]:
    """Row indices, longest first, cut into batches whose padded size stays within the budget (at least one row each)."""
    order = lengths.argsort(descending=True).cpu()
    start = 0
    while start < len(order):
        rows = max(1, token_budget // max(1, int(lengths[order[start]])))
        yield order[start : start + rows]
        start += rows


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode (no dropout, hence no random draws), and the former mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def single_token_id(tokenizer: Any, delimiter: str) -> int:
    """The id of a delimiter that is one token. Raises ConfigError if it is not."""
    ids = tokenizer(delimiter, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ConfigError(
            f"the step delimiter {delimiter!r} is {ids} to the reward model's tokenizer; it must be one known token"
        )
    return int(ids[0])


def step_texts(rollouts: Rollouts, spans: Spans) -> list[list[tuple[int, str]]]:
    """For each row, (span index, text) of its spans, in order. Token spans need the rollouts' `offsets`."""
    offsets = rollouts.offsets
    if spans.unit == "token" and offsets is None:
        raise CapabilityError(
            f"the spans {spans.name!r} count tokens and these rollouts have no offsets into their texts"
        )
    rows = []
    for b, text in enumerate(rollouts.completions):
        row = []
        for s in spans.mask[b].nonzero()[:, 0].tolist():
            start, end = int(spans.start[b, s]), int(spans.end[b, s])
            if spans.unit == "token" and end >= start:
                assert offsets is not None
                row.append((s, text[int(offsets[b, start, 0]) : int(offsets[b, end, 1])]))
            else:
                row.append((s, text[start : end + 1]))
        rows.append(row)
    return rows


def encode_prompt(tokenizer: Any, prompt: Any) -> list[int]:
    """A prompt's ids: a text as it is, chat messages through the tokenizer's template."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def pad_rows(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids [B, L] and mask [B, L] bool."""
    width = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = True
    return ids, mask


def _cells(mask: Tensor) -> list[tuple[int, int]]:
    return [(int(b), int(s)) for b, s in mask.nonzero().tolist()]
