"""The span scorer: how likely a target is after each of several contexts. Every likelihood signal is an aggregate of it.

    scorer = SpanScorer(LocalModel("smollm2"))
    scores = scorer.score(["2+2=", "2+3="], " 4")           # one target after two contexts
    scores.values                                          # [2, L] float32, log p(token | context, target so far)
    scores.sum(), scores.mean_prob()                       # aggregates are the caller's choice, these are the plain ones

Joined by ids, never by text: a context given as ids stays as it is, the target is tokenised by itself as a continuation, so
a row's tokens are the same whatever the context. (Methods that tokenise the joined text in one piece use
`encode.encode_with_target` and `score_positions`.) Rows that need the same forward share it; the rest is packed, longest
first, into micro-batches under a token budget; the output embedding runs only over the needed positions, in chunks, and the
log-softmax is float32. Results come back in the order asked.

Two cells have no number. An empty target has no tokens: its row of `mask` is False. A token with nothing before it (empty
context, no begin-of-sequence token) has no probability under a causal model: NaN, and `reasons[row]` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from guerdon.errors import ConfigError
from guerdon.lm.encode import Prompt, Text, continuation_offsets, encode_continuation, encode_prompt
from guerdon.lm.endpoint import Endpoint
from guerdon.lm.forward import Forward, Head
from guerdon.lm.local import LocalModel
from guerdon.lm.scores import SpanScores
from guerdon.lm.shared import Share, SharedForward

__all__ = ["NO_CONTEXT", "Gather", "SpanScorer", "SpanScores"]

Gather = Literal["target", "token_ids", "logsumexp"]
NO_CONTEXT = (
    "the target's first token has nothing before it (empty context, and the tokenizer adds no begin-of-sequence token)"
)


class SpanScorer:
    """Scores targets after contexts under one model.

    Args:
        model: a LocalModel, a transformers model (then with its tokenizer), a source `load_model` takes, or an `Endpoint` that
            scores given text (then only gather="target", at temperature 1, without gradients).
        tokenizer: with a model object.
        max_tokens: tokens in one forward, padding counted; None = the LocalModel's.
        left_pad: pad on the left instead of the right. Results agree to rounding; position ids are explicit.
        share: forward what sequences have in common only once: "auto" (the cheapest path the model can take), "packed" or
            "cached" to force one, "padded" = one row a sequence (`guerdon.lm.shared`).
        forward: another way to run sequences, with `Forward.states`' arguments and meaning; `share` then says nothing.
    """

    def __init__(
        self,
        model: LocalModel | Endpoint | nn.Module | str,
        tokenizer: Any = None,
        *,
        max_tokens: int | None = None,
        left_pad: bool = False,
        share: Share = "auto",
        forward: Forward | None = None,
    ) -> None:
        self.endpoint = model if isinstance(model, Endpoint) else None
        if isinstance(model, Endpoint):
            self.tokenizer = model.tokenizer
            return
        self.lm = model if isinstance(model, LocalModel) else LocalModel(model, tokenizer)
        self.tokenizer = self.lm.tokenizer
        self.forward = forward or SharedForward(
            self.lm.model, max_tokens=max_tokens or self.lm.max_tokens, left_pad=left_pad, share=share
        )
        self.head = Head(self.forward.parts, self.lm.chunk)

    def score(
        self,
        contexts: Prompt | Sequence[Prompt],
        targets: Text | Sequence[Text] | None,
        *,
        gather: Gather = "target",
        token_ids: Sequence[int] | Tensor | None = None,
        raw: bool = False,
        grad: bool = False,
        temperature: float = 1.0,
    ) -> SpanScores:
        """Log-probabilities of each target after its context.

        Args:
            contexts: N texts, chats or id lists. A text gets the begin-of-sequence token its tokenizer would add.
            targets: N texts or id lists; a single text or id tensor stands for all contexts (and a single text context for
                all targets). None asks for the next token after each context: L = 1, with gather "token_ids" or "logsumexp".
            gather: "target" = the target's own tokens; "token_ids" = `token_ids` at each of its places; "logsumexp" = log of
                the sum over the vocabulary of exp(logit).
            token_ids: [K] for every row, or [N, K].
            raw: return logits (divided by the temperature) in place of log-probabilities.
            grad: keep the graph (checkpointing is off inside, dropout too).
            temperature: divides the logits.

        Raises:
            ConfigError: numbers of contexts and targets differ, token_ids missing or out of range, temperature not positive.
        """
        context_ids, target_ids = self._paired(contexts, targets)
        following = target_ids if target_ids is not None else [torch.tensor([-1])] * len(context_ids)
        begins = [len(c) for c in context_ids]
        sequences = [
            torch.cat([c, t]) if target_ids is not None else c for c, t in zip(context_ids, following, strict=True)
        ]
        wanted = [torch.arange(b, b + len(t)) for b, t in zip(begins, following, strict=True)]
        if target_ids is None and gather == "target":
            raise ConfigError('without targets there is no target to gather: use gather="token_ids" or "logsumexp"')
        values, reasons = self.score_positions(
            sequences, wanted, gather=gather, token_ids=token_ids, raw=raw, grad=grad, temperature=temperature
        )
        lengths = torch.tensor([len(t) for t in following], dtype=torch.long)
        texts, offsets = self._texts(target_ids, len(context_ids))
        ids = (
            pad_sequence(following, batch_first=True, padding_value=-1)
            if following
            else torch.zeros(0, 0, dtype=torch.long)
        )
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        return SpanScores(values, mask, ids, offsets, texts, temperature, reasons)

    def score_positions(
        self,
        sequences: Sequence[Tensor],
        wanted: Sequence[Tensor],
        *,
        gather: Gather = "target",
        token_ids: Sequence[int] | Tensor | None = None,
        raw: bool = False,
        grad: bool = False,
        temperature: float = 1.0,
    ) -> tuple[Tensor, dict[int, str]]:
        """The same for any positions of whole sequences (a marked part in the middle of a spliced text).

        Args:
            sequences: N id tensors [T_n].
            wanted: N tensors: positions [L_n] int64 of the tokens to score, or a bool mask [T_n]. Position T_n (one past the
                end) asks for the next token, for gathers that need no target.
            gather, token_ids, raw, grad, temperature: as in `score`.

        Returns:
            values [N, L] or [N, L, K], 0 where a row has fewer than L; reasons {row: why it holds NaN}.
        """
        if not temperature > 0:
            raise ConfigError(f"temperature={temperature}: must be positive")
        wanted = [w.nonzero()[:, 0] if w.dtype == torch.bool else w.long() for w in wanted]
        extra = self._token_ids(token_ids, len(sequences)) if gather == "token_ids" else None
        reasons = {row: NO_CONTEXT for row, w in enumerate(wanted) if bool((w == 0).any())}
        known = [w[w > 0] for w in wanted]
        if self.endpoint is None:
            flat = self._flat(sequences, known, _reader(gather, raw), extra, grad, temperature)
        else:
            if gather != "target" or raw or grad or temperature != 1.0:
                raise ConfigError(
                    f"an endpoint gives log-probabilities of the given tokens at temperature 1, and no more: asked for "
                    f"gather={gather!r}, raw={raw}, grad={grad}, temperature={temperature}; use a local model"
                )
            flat, failed = self._flat_of_endpoint(self.endpoint, sequences, known)
            reasons |= failed
        width = max((len(w) for w in wanted), default=0)
        values = flat.new_zeros((len(sequences), width, *flat.shape[1:]))
        lengths = torch.tensor([len(w) for w in wanted], dtype=torch.long)
        filled = torch.arange(width)[None] < lengths[:, None]
        undefined = torch.zeros_like(filled)
        for row, positions in enumerate(wanted):
            undefined[row, : len(positions)] = positions == 0
        where = (filled & ~undefined).to(flat.device)
        if len(flat):
            values = values.index_put(where.nonzero(as_tuple=True), flat)
        undefined = undefined.to(flat.device)
        return values.masked_fill(undefined[..., None] if values.dim() == 3 else undefined, float("nan")), reasons

    # -- details -----------------------------------------------------------------------------------------------------------------

    def _flat(
        self,
        sequences: Sequence[Tensor],
        wanted: list[Tensor],
        read: Callable[..., tuple[Tensor]],
        extra: Tensor | None,
        grad: bool,
        temperature: float,
    ) -> Tensor:
        """[sum of L_n, ...]: the values of all wanted tokens, rows in order."""
        live = [row for row, positions in enumerate(wanted) if len(positions)]
        # What a row needs to see ends before its last wanted token, so answers of one token after one context are one forward.
        seen = {row: sequences[row][: int(wanted[row].max())] for row in live}
        unique, owners = _shared(seen)
        pieces: dict[int, Tensor] = {}
        with self.lm.reading(grad=grad):
            before = [torch.cat([wanted[row] for row in rows]) - 1 for rows in owners]
            for batch, states in self.forward.states(unique, before):
                rows = [row for index in batch for row in owners[index]]
                targets = torch.cat([_target(sequences[row], wanted[row]) for row in rows])
                aligned = (
                    [targets]
                    if extra is None
                    else [targets, torch.cat([extra[row].expand(len(wanted[row]), -1) for row in rows])]
                )
                (values,) = self.head(states, read, *aligned, temperature=temperature)
                pieces |= dict(zip(rows, values.split([len(wanted[row]) for row in rows]), strict=True))
        if not pieces:
            return torch.zeros(0, *(() if extra is None else (extra.shape[1],)))
        return torch.cat([pieces[row] for row in sorted(pieces)])

    def _flat_of_endpoint(
        self, endpoint: Endpoint, sequences: Sequence[Tensor], wanted: list[Tensor]
    ) -> tuple[Tensor, dict[int, str]]:
        """[sum of L_n] values as `_flat`, NaN for rows whose request failed, and why."""
        live = [row for row, positions in enumerate(wanted) if len(positions)]
        unique, owners = _shared({row: sequences[row][: int(wanted[row].max()) + 1].cpu() for row in live})
        found, failed = endpoint.token_logprobs(unique)
        values = {row: found[n][wanted[row]] for n, rows in enumerate(owners) for row in rows}
        reasons = {row: failed[n] for n, rows in enumerate(owners) for row in rows if n in failed}
        return torch.cat([values[row] for row in live]) if live else torch.zeros(0), reasons

    def _paired(
        self, contexts: Prompt | Sequence[Prompt], targets: Text | Sequence[Text] | None
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        many_contexts = not isinstance(contexts, str | Tensor)
        context_list: list[Any] = list(contexts) if many_contexts else [contexts]
        if targets is None:
            return [encode_prompt(self.tokenizer, c) for c in context_list], None
        many_targets = not isinstance(targets, str | Tensor)
        target_list: list[Any] = list(targets) if many_targets else [targets]
        if many_targets and target_list and isinstance(target_list[0], int):
            raise ConfigError(
                "targets is one list of ids: give a list of targets, or a tensor for one target after all contexts"
            )
        size = max(len(context_list), len(target_list)) if context_list and target_list else 0
        if (many_contexts and len(context_list) != size) or (many_targets and len(target_list) != size):
            raise ConfigError(
                f"{len(context_list)} contexts and {len(target_list)} targets: give as many, or a single text or tensor for all"
            )
        encoded = [encode_prompt(self.tokenizer, c) for c in context_list]
        continued = [encode_continuation(self.tokenizer, t) for t in target_list]
        return encoded * (size if not many_contexts else 1), continued * (size if not many_targets else 1)

    def _texts(self, targets: list[Tensor] | None, size: int) -> tuple[list[str], Tensor]:
        if targets is None:
            return [""] * size, torch.zeros(size, 1, 2, dtype=torch.long)
        decoded = [continuation_offsets(self.tokenizer, ids) for ids in targets]
        if not decoded:
            return [], torch.zeros(0, 0, 2, dtype=torch.long)
        return [text for text, _ in decoded], pad_sequence([offsets for _, offsets in decoded], batch_first=True)

    def _token_ids(self, token_ids: Sequence[int] | Tensor | None, size: int) -> Tensor:
        if token_ids is None:
            raise ConfigError('gather="token_ids" needs token_ids=[...]')
        ids = torch.as_tensor(token_ids, dtype=torch.long).cpu()
        ids = ids[None].expand(size, -1) if ids.dim() == 1 else ids
        if ids.dim() != 2 or len(ids) != size or (ids.numel() and int(ids.min()) < 0):
            raise ConfigError(f"token_ids must be [K] or [{size}, K] ids, got shape {tuple(ids.shape)}")
        return ids


def _shared(seen: dict[int, Tensor]) -> tuple[list[Tensor], list[list[int]]]:
    """The sequences to run, and which rows read from each: one that begins another needs no forward of its own (causality)."""
    keys = {row: sequence.numpy().tobytes() for row, sequence in seen.items()}
    unique: list[Tensor] = []
    owners: list[list[int]] = []
    longest = b""
    for row in sorted(keys, key=lambda row: keys[row], reverse=True):  # a beginning sorts directly after what it begins
        if not unique or not longest.startswith(keys[row]):
            unique.append(seen[row])
            owners.append([])
            longest = keys[row]
        owners[-1].append(row)
    return unique, owners


def _target(sequence: Tensor, positions: Tensor) -> Tensor:
    """The tokens at the positions; one past the end is a question without a target (any id will do)."""
    return torch.cat([sequence, sequence.new_zeros(1)])[positions]


def _reader(gather: Gather, raw: bool) -> Callable[..., tuple[Tensor]]:
    """What to take from logits [C, V] (target [C], extra [C, K])."""

    def target(logits: Tensor, ids: Tensor) -> tuple[Tensor]:
        taken = logits.gather(-1, ids[:, None])[:, 0]
        return (taken if raw else taken - logits.logsumexp(-1),)

    def tokens(logits: Tensor, _: Tensor, ids: Tensor) -> tuple[Tensor]:
        taken = logits.gather(-1, ids)
        return (taken if raw else taken - logits.logsumexp(-1, keepdim=True),)

    def total(logits: Tensor, _: Tensor) -> tuple[Tensor]:
        return (logits.logsumexp(-1),)

    readers: dict[str, Callable[..., tuple[Tensor]]] = {"target": target, "token_ids": tokens, "logsumexp": total}
    if gather not in readers:
        raise ConfigError(f"gather={gather!r}: use target, token_ids or logsumexp")
    return readers[gather]
