"""A local transformers model as an instrument: generate, log-probabilities of tokens, hidden states.

The model is left as it was found: train flags of every module, gradient checkpointing, use_cache and the global random state
(`forward.instrument`). Sampling needs a seed or a generator; the same one gives the same samples on CPU.

Left out: speculative and constrained decoding (use a server and `RemoteModel`), encoder-decoder models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from guerdon.errors import ConfigError
from guerdon.extras import require
from guerdon.lm.chat import ChatPrompt, Reply, as_messages, numbered
from guerdon.lm.encode import Prompt, encode_prompt
from guerdon.lm.forward import Forward, Head, instrument, microbatches, pad_ids, positions_of, read_target
from guerdon.lm.load import load_model
from guerdon.lm.offsets import decode_offsets_batch, decode_text
from guerdon.rollouts import LogProbs

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Generations:
    """N = prompts x n samples; row p * n + k is sample k of prompt p.

    Attributes:
        texts: N decoded completions, special tokens left out; a stop string is part of the text.
        prompt_ids, prompt_mask: [N, P], left-padded.
        ids, mask: [N, T], right-padded; the mask covers the end-of-sequence token that was sampled.
        offsets: [N, T, 2], characters of each token in `texts`.
        finish_reasons: N of "eos", "stop" (a stop string), "length" (the cap).
        logprobs: of the sampled tokens under the full distribution at the sampling temperature (1.0 for greedy), or None.
    """

    texts: list[str]
    prompt_ids: Tensor
    prompt_mask: Tensor
    ids: Tensor
    mask: Tensor
    offsets: Tensor
    finish_reasons: list[FinishReason]
    logprobs: LogProbs | None = None

    @property
    def finished(self) -> Tensor:
        """[N] bool: ended by itself, not by the length cap."""
        return torch.tensor([reason != "length" for reason in self.finish_reasons], dtype=torch.bool)


class LocalModel:
    """A causal language model on this machine.

    Args:
        model: a transformers model, or anything `load_model` takes (hub id, folder, GGUF, "smollm2").
        tokenizer: needed with a model object; else loaded with the model.
        max_tokens: tokens in one forward, padding counted (activations grow with it).
        chunk: positions whose vocabulary-wide logits exist at once; None = what suits the device, see `Head`.
        dtype, device: for loading.
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        tokenizer: Any = None,
        *,
        max_tokens: int = 8192,
        chunk: int | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
    ) -> None:
        if isinstance(model, str | Path):
            model, own = load_model(model, dtype=dtype, device=device)
            tokenizer = tokenizer or own
        if tokenizer is None:
            raise ConfigError("a model object comes with its tokenizer: LocalModel(model, tokenizer)")
        self.model: Any = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.chunk = chunk

    def replace_model(self, model: Any) -> None:
        """Read from another module that has the same weights: a trainer has wrapped the one that was here."""
        self.model = model
        for name in ("forward", "head"):
            self.__dict__.pop(name, None)

    def reading(self, *, use_cache: bool = False, grad: bool = False) -> AbstractContextManager[None]:
        """The state in which the model may be read, see `forward.instrument`. Every forward of this model runs inside one."""
        return instrument(self.model, use_cache=use_cache, grad=grad)

    @cached_property
    def forward(self) -> Forward:
        return Forward(self.model, max_tokens=self.max_tokens)

    @cached_property
    def head(self) -> Head:
        return Head(self.forward.parts, self.chunk)

    # -- sampling --------------------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        n: int = 1,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        stop: Sequence[str] = (),
        logprobs: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Generations:
        """Sample n completions of each prompt.

        Args:
            prompts: texts, chat messages, or ids.
            n: samples a prompt.
            max_new_tokens: length cap.
            temperature: 0 = greedy. Nothing of the model's own generation config (top-k, penalties) applies.
            top_p: nucleus, in (0, 1].
            seed, generator: one of them is needed unless greedy; the generator moves on by one draw.
            stop: a row ends once its text holds one of these.
            logprobs: also return the log-probabilities of the sampled tokens (one more forward, without dropout).
            progress: called with (rows done, rows in all).

        Raises:
            ConfigError: sampling without a seed, an empty prompt, a cap below 1.
        """
        if max_new_tokens < 1 or n < 1:
            raise ConfigError(f"max_new_tokens={max_new_tokens}, n={n}: both must be at least 1")
        if generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator))
        if seed is None and temperature > 0:
            raise ConfigError("sampling needs seed= or generator= (temperature=0 is greedy and needs none)")
        encoded = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        if empty := [i for i, ids in enumerate(encoded) if len(ids) == 0]:
            raise ConfigError(
                f"prompt {empty[0]} is empty, and this tokenizer has no begin-of-sequence token: there is nothing to continue"
            )
        rows = [ids for ids in encoded for _ in range(n)]
        sampled: list[Tensor] = [torch.empty(0, dtype=torch.long)] * len(rows)
        reasons: list[FinishReason] = ["length"] * len(rows)
        done = 0
        with self.reading(use_cache=True), _own_forward(self.model):
            torch.manual_seed(0 if seed is None else seed)
            for batch in microbatches([len(ids) + max_new_tokens for ids in rows], 4 * self.max_tokens):
                parts = self._generate_batch([rows[i] for i in batch], max_new_tokens, temperature, top_p, stop)
                for i, (ids, reason) in zip(batch, parts, strict=True):
                    sampled[i], reasons[i] = ids, reason
                done += len(batch)
                if progress is not None:
                    progress(done, len(rows))
        return self._generations(rows, sampled, reasons, (temperature or 1.0) if logprobs else None)

    def _generate_batch(
        self, rows: list[Tensor], max_new_tokens: int, temperature: float, top_p: float, stop: Sequence[str]
    ) -> list[tuple[Tensor, FinishReason]]:
        transformers = require("transformers", extra="train")
        model = self.model if hasattr(self.model, "generate") else self.model.module
        ends = end_ids(model, self.tokenizer)
        pad = self.tokenizer.pad_token_id
        pad = pad if pad is not None else (ends[0] if ends else 0)
        ids, mask = pad_ids(rows, left=True, fill=pad)
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
            if temperature > 0
            else {"do_sample": False}
        )
        # Everything explicit: transformers fills what is left open from the model's own generation config.
        config = transformers.GenerationConfig(
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=ends or None,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            use_cache=True,
            **sampling,
        )
        watch = _StopStrings(self.tokenizer, stop, ids.shape[1], len(rows))
        own = model.generation_config
        model.generation_config = transformers.GenerationConfig(pad_token_id=pad, eos_token_id=ends or None)
        try:
            output = model.generate(
                input_ids=ids.to(self.forward.parts.device),
                attention_mask=mask.long().to(self.forward.parts.device),
                generation_config=config,
                stopping_criteria=transformers.StoppingCriteriaList([watch] if stop else []),
            )
        finally:
            model.generation_config = own
        return [
            _cut(row, set(ends), length)
            for row, length in zip(output[:, ids.shape[1] :].cpu(), watch.lengths, strict=True)
        ]

    def _generations(
        self, rows: list[Tensor], sampled: list[Tensor], reasons: list[FinishReason], temperature: float | None
    ) -> Generations:
        prompt_ids, prompt_mask = pad_ids(rows, left=True, fill=self.tokenizer.pad_token_id or 0)
        ids, mask = pad_ids(sampled, fill=self.tokenizer.pad_token_id or 0)
        ends = end_ids(self.model, self.tokenizer)
        texts, offsets = decode_offsets_batch(self.tokenizer, ids, mask, leave_out=ends)
        logprobs = None
        if temperature is not None:
            whole, whole_mask = torch.cat([prompt_ids, ids], 1), torch.cat([prompt_mask, mask], 1)
            wanted = torch.cat([torch.zeros_like(prompt_mask), mask], 1)
            values = self.token_logprobs(whole, whole_mask, temperature=temperature, wanted=wanted)[
                :, prompt_ids.shape[1] :
            ]
            logprobs = LogProbs(values, temperature)
        return Generations(texts, prompt_ids, prompt_mask, ids, mask, offsets, reasons, logprobs)

    def chat(
        self,
        prompts: Sequence[ChatPrompt],
        *,
        draws: Sequence[int] | None = None,
        temperature: float = 0.0,
        max_tokens: int = 512,
        seed: int = 0,
    ) -> list[Reply]:
        """The `ChatModel` protocol, so that a local model can be a judge. A draw's sample depends on the seed, its number and the batch."""
        numbers = numbered(draws, len(prompts))
        replies: list[Reply | None] = [None] * len(prompts)
        for draw in sorted(set(numbers)):
            rows = [i for i, number in enumerate(numbers) if number == draw]
            key = int.from_bytes(hashlib.blake2b(repr((seed, draw)).encode(), digest_size=7).digest(), "big")
            given = self.generate(
                [as_messages(prompts[i]) for i in rows], max_new_tokens=max_tokens, temperature=temperature, seed=key
            )
            for i, text, reason, length in zip(
                rows, given.texts, given.finish_reasons, given.mask.sum(1).tolist(), strict=True
            ):
                replies[i] = Reply(
                    text, finish_reason="length" if reason == "length" else "stop", completion_tokens=length, attempts=1
                )
        return [reply for reply in replies if reply is not None]

    # -- reading ---------------------------------------------------------------------------------------------------------------

    def token_logprobs(
        self, ids: Tensor, mask: Tensor, temperature: float = 1.0, *, wanted: Tensor | None = None, grad: bool = False
    ) -> Tensor:
        """Log-probability of each token given those before it in its row.

        Args:
            ids: [B, T] int64; mask: [B, T] bool, real tokens (padding on either side).
            temperature: divides the logits.
            wanted: [B, T] bool, compute only these (the output embedding runs over these alone); None = all real tokens.
            grad: keep the graph.

        Returns:
            [B, T] float32, natural log. 0 where not wanted; NaN at the first token of a row if wanted: nothing comes before it.
        """
        mask = mask.bool().cpu()
        asked = mask if wanted is None else wanted.bool().cpu() & mask
        position = positions_of(mask)
        scored = asked & (position > 0)
        rows = [ids[b].cpu()[mask[b]] for b in range(len(ids))]
        before = [position[b][scored[b]] - 1 for b in range(len(ids))]
        live = [b for b in range(len(ids)) if len(before[b])]
        order: list[int] = []
        pieces: list[Tensor] = []
        with self.reading(grad=grad):
            for batch, states in self.forward.states([rows[b] for b in live], [before[b] for b in live]):
                batch = [live[i] for i in batch]
                order += batch
                target = torch.cat([rows[b][before[b] + 1] for b in batch])
                pieces += self.head(states, read_target, target, temperature=temperature)
        values = torch.zeros(
            ids.shape, dtype=pieces[0].dtype if pieces else torch.float32, device=pieces[0].device if pieces else None
        )
        if pieces:
            where = torch.cat(
                [torch.stack([torch.full((len(before[b]),), b), scored[b].nonzero()[:, 0]]) for b in order], 1
            ).to(values.device)
            values = values.index_put((where[0], where[1]), torch.cat(pieces))
        return values.masked_fill((asked & (position == 0)).to(values.device), float("nan")).to(ids.device)

    def hidden_states(
        self, ids: Tensor, mask: Tensor, *, layer: int = -1, positions: Tensor | None = None, grad: bool = False
    ) -> Tensor:
        """Hidden states of a layer.

        Args:
            ids: [B, T] int64; mask: [B, T] bool.
            layer: -1 = what the output embedding reads (after the last norm), 0 = the embeddings, k = after layer k.
            positions: [B, S] int64 columns of `ids`, to return only those; None = all.
            grad: keep the graph.

        Returns:
            [B, T, D] (or [B, S, D]) in the model's dtype; 0 at padding.

        Raises:
            ConfigError: the model does not give hidden states.
        """
        mask = mask.bool().cpu()
        parts, ids = self.forward.parts, ids.cpu()
        model = parts.backbone or parts.model
        found: dict[int, Tensor] = {}
        with self.reading(grad=grad):
            for rows in microbatches(mask.sum(1).tolist(), self.max_tokens):
                kept = mask[rows].any(0).nonzero()[:, 0]
                cut = slice(int(kept[0]), int(kept[-1]) + 1) if len(kept) else slice(0, 1)
                inner = mask[rows][:, cut]
                inputs = {
                    "input_ids": ids[rows][:, cut],
                    "attention_mask": inner.long(),
                    "position_ids": positions_of(inner),
                }
                output = model(
                    **{k: v.to(parts.device) for k, v in inputs.items()},
                    use_cache=False,
                    output_hidden_states=layer != -1 or parts.backbone is None,
                )
                every = getattr(output, "hidden_states", None)
                states = (
                    output.last_hidden_state
                    if layer == -1 and parts.backbone is not None
                    else (every[layer] if every is not None else None)
                )
                if states is None:
                    raise ConfigError(f"{type(model).__name__} returns no hidden states")
                states = states * inner[..., None].to(states.device, states.dtype)
                states = torch.nn.functional.pad(states, (0, 0, cut.start, ids.shape[1] - cut.stop))
                for n, row in enumerate(rows):
                    found[row] = states[n] if positions is None else states[n, positions[row].to(states.device)]
        return torch.stack([found[row] for row in range(len(ids))])


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every id that ends a sequence: the model's generation config and the tokenizer may name different ones."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [] if named is None else list(named) if isinstance(named, list | tuple) else [named]
    own = tokenizer.eos_token_id
    return [*dict.fromkeys([*ids, *([own] if own is not None else [])])]


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """Generate with the class's own forward: a deep copy of a trained model carries a closure over the ORIGINAL (TRL)."""
    inner: Any = model.module if not hasattr(model, "generate") and hasattr(model, "module") else model
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    patch = None if hasattr(inner, "_hf_hook") else vars(inner).pop("forward", None)
    try:
        yield
    finally:
        if patch is not None:
            inner.forward = patch


class _StopStrings:
    """A stopping criterion that reads each row's last characters, and notes at which length it first held a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_width: int, rows: int) -> None:
        self.tokenizer, self.stop, self.prompt_width = tokenizer, tuple(stop), prompt_width
        # A token has at least one byte, save special ones; a few more cover characters cut at the window's border.
        self.window = max((len(s.encode()) for s in self.stop), default=0) + 4
        self.lengths: list[int | None] = [None] * rows

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        sampled = input_ids[:, self.prompt_width :]
        # As completions are decoded: a stop string may be a tag that is a special token.
        tails = [decode_text(self.tokenizer, row) for row in sampled[:, -self.window :]]
        for row, tail in enumerate(tails):
            if self.lengths[row] is None and any(s in tail for s in self.stop):
                self.lengths[row] = sampled.shape[1]
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)


def _cut(row: Tensor, ends: set[int], stopped_at: int | None) -> tuple[Tensor, FinishReason]:
    """The tokens really sampled (pad may equal eos), and why they end there."""
    for length, token in enumerate(row.tolist(), 1):
        if token in ends:
            return row[:length], "eos"
        if length == stopped_at:
            return row[:length], "stop"
    return row, "length"
