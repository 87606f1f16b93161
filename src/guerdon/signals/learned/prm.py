"""A process reward model as a signal: one score per reasoning step, p(good) - p(bad), in [-1, 1].

Published models are read by their own conventions (`conventions`): architecture, head, separator, labels and chat layout. The
plain one is PURE's, a token classifier with two classes whose input is rebuilt from the policy's tokens: the prompt, then every step
without its last token (the delimiter, whatever token it came in, or the end of sequence), followed by ONE delimiter token of the reward
model's own. One token is replaced by one token, so a score is written straight back to where the step ends.

Ids cross only into the same vocabulary, which is looked at (`lm.vocabulary`); `retokenize=True` encodes prompt and steps as text. What
the policy causes is a number: a step of white space alone, and one beyond the model's context, get -1. A prompt that does not fit is NaN.

Source: PURE (arXiv 2504.15275), verl branch fsdp_workers.py, main branch utils.py `turn_process_reward_logits_to_reward`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from guerdon.errors import CapabilityError, ConfigError
from guerdon.lm.vocabulary import VocabularyCheck, tokenizer_difference
from guerdon.rewards import Reasons, Rewards, Scores
from guerdon.rollouts import Rollouts
from guerdon.segment.placement import written_by_policy
from guerdon.signals.learned.conventions import Convention, good_label
from guerdon.signals.learned.heads import label_count, load_reward_model
from guerdon.signals.learned.layouts import PrmInput, pad_rows, place_steps, single_token_id
from guerdon.signals.placing import OnDevice
from guerdon.spans import Spans

LOWEST = -1.0
EMPTY_STEP = "the step is empty"
BLANK_STEP = "the step is white space alone"


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
    lengths = prompt_mask.bool().sum(1)
    new_position = mask.long().cumsum(1) - 1
    positions = new_position.gather(1, prompt_ids.shape[1] + ends)
    ids, mask = ids.gather(1, order), mask.gather(1, order)
    return PrmInput(torch.where(mask, ids, pad_id), mask, torch.where(real, positions, -1), lengths)


def step_scores(logits: Tensor, mask: Tensor) -> Tensor:
    """r = p(good) - p(bad) in [-1, 1]; 0 at masked steps. logits: [..., S, 2], class 1 = good. mask: [..., S] bool."""
    probabilities = logits.float().softmax(-1)
    return torch.where(mask, probabilities[..., 1] - probabilities[..., 0], 0.0)


# --- the signal ------------------------------------------------------------------------------------------------------


class StepClassifier(OnDevice):
    """Signal: a process reward model's score for every step of a segmentation.

    model: hub id or path (also of a LoRA adapter with its head), or a loaded model (then `tokenizer` is needed).
    tokenizer: the reward model's tokenizer; default: the one beside the model.
    segment: the segmentation whose spans are the steps; the system's `segments` must have it.
    convention: a name of `conventions.TABLE`; None = what the checkpoint says, else "pure".
    delimiter: the text the reward model was trained to be read at, one token of its tokenizer; None = the convention's.
    good_label: which of a classifier's two labels means a good step; None = by their names in its config.
    retokenize: the policy's tokenizer is another one: encode the text, step by step. Texts without ids always are, and so is
        every layout but "as_given".
    token_budget: padded tokens per forward pass.

    Loaded on first use; runs in eval mode without gradients and leaves the random state alone. `last_logits` holds the raw
    logits [B, S, 2] of the latest batch, (bad, good) (0 at masked steps).

    Raises:
        ConfigError: at loading, a model without such a head, or whose labels do not say which is good.
        CapabilityError: ids of another vocabulary and no `retokenize`.
    """

    head = "steps"
    scope = "row"
    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        segment: str = "steps",
        convention: str | Convention | None = None,
        delimiter: str | None = None,
        good_label: int | None = None,
        retokenize: bool = False,
        token_budget: int = 16384,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(model, str) and tokenizer is None and not hasattr(model, "__fspath__"):
            raise ConfigError("a loaded process reward model comes without its tokenizer: pass tokenizer=")
        if good_label not in (None, 0, 1):
            raise ConfigError(f"good_label={good_label!r}: one of two labels, 0 or 1")
        self.source, self.level, self.delimiter, self.convention = model, segment, delimiter, convention
        self.good_label, self.retokenize, self.token_budget = good_label, retokenize, token_budget
        self.last_logits: Tensor | None = None
        self._device, self._dtype, self._tokenizer = device, dtype, tokenizer
        self._model: Any = None
        self._read_as: Convention | None = None
        self._vocabulary: VocabularyCheck | None = None

    def __repr__(self) -> str:
        name = self.source if isinstance(self.source, str) else type(self.source).__name__
        return f"StepClassifier({name!r}, segment={self.level!r})"

    def load(self) -> tuple[Any, Any]:
        """(model, tokenizer), loading them on the first call. Raises ConfigError for a model without two labels of its own."""
        if self._model is None:
            loaded = load_reward_model(
                self.source,
                self._tokenizer,
                "process",
                convention=self.convention,
                device=self._device,
                dtype=self._dtype,
            )
            if self.good_label is None:
                names = (
                    loaded.model.config.id2label if loaded.convention.head == "classifier" else {0: "bad", 1: "good"}
                )
                self.good_label = good_label(names, self.source if isinstance(self.source, str) else "this model")
            self._tokenizer, self._read_as, self._model = loaded.tokenizer, loaded.convention, loaded.model
            if self.delimiter is not None:
                self._read_as = replace(self._read_as, separator=self.delimiter)
            self._vocabulary = VocabularyCheck(self._tokenizer, self._model, "the reward model")
        return self._model, self._tokenizer

    def compare_vocabulary(self, tokenizer: Any) -> None:
        """Load the model, and refuse a policy's tokenizer whose ids it would read as other words."""
        _, own = self.load()
        assert self._read_as is not None
        given = self._read_as.layout == "as_given" and not self._read_as.between
        difference = tokenizer_difference(tokenizer, own)
        if given and difference and not self.retokenize:
            raise ConfigError(f"{self!r} has another vocabulary than the policy: {difference}; pass retokenize=True")

    def __call__(self, rollouts: Rollouts, scores: Scores | None = None) -> Rewards:
        model, tokenizer = self.load()
        spans = rollouts.segment(self.level)
        # What a tool wrote is context: its steps are read and never scored.
        spans = replace(spans, mask=written_by_policy(spans, rollouts))
        spans, reasons = self._steps(rollouts, spans)
        lowest = torch.zeros_like(spans.mask)
        for cell in reasons:
            lowest[cell] = True
        scored = spans.mask & ~lowest
        assert self._read_as is not None
        delimiter_id = single_token_id(tokenizer, self._read_as.separator)
        prm = self._input(rollouts, spans, scored, tokenizer, delimiter_id)
        limit = getattr(model.config, "max_position_embeddings", None) or prm.ids.shape[1]
        beyond = prm.positions >= limit
        logits = classify_positions(model, prm, torch.where(beyond, -1, prm.positions), self.token_budget, limit)
        if self.good_label == 0:
            logits = logits.flip(-1)
        self.last_logits = logits = logits.to(spans.start.device)

        values = torch.where(lowest, LOWEST, step_scores(logits, scored))
        beyond = beyond.to(values.device) & scored
        assert prm.prompt_lengths is not None
        no_room = beyond & (prm.prompt_lengths.to(values.device) >= limit)[:, None]
        values = torch.where(beyond, LOWEST, values)
        context = f"the reward model's context of {limit} tokens"
        for cell in _cells(beyond):
            reasons[cell] = f"the step ends beyond {context}: the lowest score"
        for cell in _cells(no_room):
            reasons[cell] = f"the prompt alone fills {context}"
        broken = scored & ~beyond & ~torch.isfinite(logits).all(-1)
        for cell in _cells(broken):
            reasons[cell] = "the process reward model returned non-finite logits"
        return Rewards(torch.where(no_room | broken, float("nan"), values), spans, reasons)

    def _steps(self, rollouts: Rollouts, spans: Spans) -> tuple[Spans, Reasons]:
        """The spans that are steps, and why some get the lowest score: writing nothing is the policy's doing.

        A layout of texts has no place for a step without text (an end-of-sequence token by itself), unless it is all there is.
        """
        reasons: Reasons = {cell: EMPTY_STEP for cell in _cells(spans.mask & (spans.end < spans.start))}
        if spans.unit == "token" and rollouts.offsets is None:
            return spans, reasons
        silent = torch.zeros_like(spans.mask)
        for b, texts in enumerate(step_texts(rollouts, spans)):
            for s, text in texts:
                silent[b, s] = not text and (b, s) not in reasons
                if text and not text.strip():
                    reasons[b, s] = BLANK_STEP
        assert self._read_as is not None
        if self._read_as.layout != "as_given" and bool(silent.any()):
            alone = silent & ~(spans.mask & ~silent).any(1, keepdim=True)
            for cell in _cells(alone):
                reasons[cell] = EMPTY_STEP
            spans = Spans(spans.start, spans.end, spans.mask & ~(silent & ~alone), spans.unit, spans.name)
        return spans, reasons

    def _input(self, rollouts: Rollouts, spans: Spans, scored: Tensor, tokenizer: Any, delimiter_id: int) -> PrmInput:
        assert self._read_as is not None and self._vocabulary is not None
        convention = self._read_as
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else delimiter_id
        ids, prompts, mask = rollouts.completion_ids, rollouts.prompt_ids, rollouts.prompt_mask
        given = convention.layout == "as_given" and not convention.between
        if self.retokenize or not given or ids is None or prompts is None or mask is None:
            return self._encode_text(rollouts, spans, scored, convention, pad_id)
        if spans.unit != "token":
            raise CapabilityError(
                f"{self!r}: the spans {self.level!r} count characters; use a token segmentation or retokenize=True"
            )
        self._vocabulary.require_same(rollouts, f"{self!r} needs retokenize=True to read the text instead")
        ends = torch.where(scored, spans.end, -1)
        return rebuild_prm_input(prompts, mask, ids, rollouts.mask, ends, delimiter_id, pad_id)

    def _encode_text(
        self, rollouts: Rollouts, spans: Spans, scored: Tensor, convention: Convention, pad_id: int
    ) -> PrmInput:
        """The input from texts, in the convention's layout."""
        rows, places, lengths = [], torch.full(scored.shape, -1), []
        for b, texts in enumerate(step_texts(rollouts, spans)):
            steps = [(s, text) for s, text in texts if scored[b, s]]
            placed = place_steps(self._tokenizer, convention, rollouts.prompts[b], [text for _, text in steps])
            for (s, _), position in zip(steps, placed.positions, strict=True):
                places[b, s] = position
            rows.append(placed.ids)
            lengths.append(placed.prompt_length)
        padded, mask = pad_rows(rows, pad_id)
        return PrmInput(padded, mask, places, torch.tensor(lengths, dtype=torch.long))


# --- parts the scalar reward model shares ----------------------------------------------------------------------------


@torch.no_grad()
def classify_positions(model: Any, prm: PrmInput, positions: Tensor, token_budget: int, limit: int) -> Tensor:
    """Logits [B, S, C] float32 at `positions` [B, S] (-1: none, left 0), in length-sorted batches of at most `token_budget`
    padded tokens. Inputs are cut at `limit`, which changes nothing for a causal model."""
    classes = label_count(model)
    device = next(model.parameters()).device
    out = torch.zeros(*positions.shape, classes, device=device)
    prm, positions = prm.cpu(), positions.cpu()  # rows are chosen here
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
            if logits.shape != (len(rows), width, classes):
                raise ConfigError(
                    f"{type(model).__name__} gave logits {tuple(logits.shape)} for {width} tokens of {len(rows)} rows: it does not "
                    f"score every token with {classes} labels"
                )
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
    from guerdon.lm.forward import casting

    training = model.training
    model.eval()
    try:
        with casting(model):
            yield
    finally:
        model.train(training)


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


def _cells(mask: Tensor) -> list[tuple[int, int]]:
    return [(int(b), int(s)) for b, s in mask.nonzero().tolist()]
