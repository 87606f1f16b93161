"""A forward that runs what sequences share only once: `Forward.states`, with trees of tokens in place of padded rows.

    scorer = SpanScorer(lm, share="auto")        # or forward=SharedForward(lm.model)
    scorer.score(contexts, targets).values       # the same numbers; scorer.forward.ran == "packed"

Three paths to the same states, behind one call:

packed   each rollout's prefixes and targets in one row (`packing.plan`), under a block mask and explicit positions
cached   the same, and what rows have in common (a group's prompt) is forwarded first, into a key-value cache that they share
padded   one row a sequence: what `Forward` does. For models that take no custom mask, and where nothing is shared

"auto" takes the cheapest by a count of tokens, attention pairs and calls. Whether a model gives the right states on the
first two is tried on the model itself: once on a small tree, and again on real data whenever sequences have become twice as
long. A model that fails (flash attention, recurrent layers, ALiBi), or whose attention window is shorter than the sequences,
takes the padded path, with one warning for its class that says why; `ran` and `why` say it for every call. If padding changes
its states too (left-padded recurrent models), sequences run one by one ("loop").

Left out: window masks of our own (windows are laid over tree positions by no model).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from guerdon.errors import ConfigError
from guerdon.lm.checkpointing import computes_twice
from guerdon.lm.forward import Forward, microbatches, pad_ids, positions_of
from guerdon.lm.in_step import OtherRankFailed
from guerdon.lm.packing import Costs, Group, Packed, plan
from guerdon.lm.support import (
    SMALL,
    Support,
    by_sequence,
    costs_of,
    distance,
    known_refusal,
    mask_dtype,
    real_tree,
    small_tree,
    tolerance,
    window_of,
)

Share = Literal["auto", "packed", "cached", "padded"]
CELLS_PER_TOKEN = 2048  # attention pairs of a micro-batch, for each token of the budget: 64 MB of mask at 8192 tokens


class NaivePathWarning(UserWarning):
    """A model cannot share prefixes, and sequences run one to a row."""


_SUPPORT: WeakKeyDictionary[nn.Module, Support] = WeakKeyDictionary()
_WARNED: set[tuple[str, str]] = set()


class SharedForward(Forward):
    """Runs sequences so that common beginnings are forwarded once.

    Args:
        model: a transformers causal language model.
        max_tokens: tokens in one forward, padding counted.
        left_pad: pad on the left instead of the right.
        share: the path; "auto" chooses, the others force. A forced path the model cannot take falls back, and warns.

    Attributes:
        ran: the path the last call took: "packed", "cached", "padded" or "loop".
        why: why it was not another, "" where it was the cheapest or forced.
        tokens: tokens forwarded by the last call, padding counted.
    """

    def __init__(
        self, model: nn.Module, *, max_tokens: int = 8192, left_pad: bool = False, share: Share = "auto"
    ) -> None:
        super().__init__(model, max_tokens=max_tokens, left_pad=left_pad)
        if share not in get_args(Share):
            raise ConfigError(f"share={share!r}: use {', '.join(get_args(Share))}")
        self.share = share
        self.costs = costs_of(self.parts.model)
        self.ran, self.why, self.tokens = "padded", "", 0

    def states(self, sequences: Sequence[Tensor], wanted: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor]]:
        """As `Forward.states`."""
        self.tokens = 0
        if not sequences:
            return
        path, groups = self._choose(sequences, wanted)
        self.ran = path
        if groups:
            yield from self._trees(groups, wanted)
            return
        budget = self.max_tokens if path == "padded" else 1
        for batch in microbatches([len(s) for s in sequences], budget):
            self.tokens += len(batch) * len(sequences[batch[0]])
        yield from self._padded(sequences, wanted, budget)

    # -- choosing ----------------------------------------------------------------------------------------------------------

    def _choose(self, sequences: Sequence[Tensor], wanted: Sequence[Tensor]) -> tuple[str, list[Group]]:
        """The path to take and, for trees, what to run."""
        self.why = ""
        if self.share == "padded":
            return "padded", []
        longest = max(range(len(sequences)), key=lambda n: len(sequences[n]))
        support = self._support(sequences[longest])
        # Forced, a cache is made wherever it saves a token; chosen, where it is worth a call.
        costs = self.costs if self.share == "auto" else replace(self.costs, call=0.0)
        plans = {
            path: self._trees_of(sequences, wanted, costs, cache=path == "cached") for path in ("packed", "cached")
        }
        estimates = {path: self._estimate(groups) for path, groups in plans.items()}
        estimates["padded"] = sum(
            self.costs.batch(len(batch), len(sequences[batch[0]]), len(sequences[batch[0]]))
            for batch in microbatches([len(s) for s in sequences], self.max_tokens)
        )
        order = ("padded", "packed", "cached")  # of equals, the simplest
        path = min(order, key=lambda name: estimates[name]) if self.share == "auto" else self.share
        refused = dict(support.refused)
        if computes_twice(self.parts.model):
            refused.setdefault("cached", "its layers are checkpointed, and would fill the cache again in backward")
        if support.window and len(sequences[longest]) > support.window:
            reason = (
                f"its attention has a window of {support.window} tokens, and a sequence has {len(sequences[longest])}"
            )
            refused |= dict.fromkeys(("packed", "cached"), reason)
        if path == "padded" or path not in refused:
            return ("loop" if path == "padded" and "padded" in refused else path), plans.get(path, [])
        self.why = refused[path]
        other = {"cached": "packed", "packed": "cached"}[path]
        if other not in refused:
            self._warn(path, f"the {other} path")
            return other, plans[other]
        loop = "padded" in refused
        self._warn(path, "one sequence a forward" if loop else "padded rows, one a sequence")
        return ("loop" if loop else "padded"), []

    def _warn(self, path: str, instead: str) -> None:
        name = type(self.parts.model).__name__
        if (name, instead) not in _WARNED:
            _WARNED.add((name, instead))
            message = (
                f"{name} cannot share prefixes on the {path} path: {self.why}. It takes {instead}: right, but slower"
            )
            warnings.warn(message, NaivePathWarning, stacklevel=2)

    def _trees_of(
        self, sequences: Sequence[Tensor], wanted: Sequence[Tensor], costs: Costs, *, cache: bool
    ) -> list[Group]:
        cells = CELLS_PER_TOKEN * self.max_tokens
        return plan(sequences, wanted, costs=costs, max_tokens=self.max_tokens, max_cells=cells, cache=cache)

    def _estimate(self, groups: list[Group]) -> float:
        total = 0.0
        for part in self._chunks(groups):
            prefix = max(len(g.prefix) for g in part)
            if prefix:
                total += self.costs.batch(len(part), prefix, prefix)
            for batch in self._batches(part):
                queries = max(row.size - len(owner.prefix) for owner, row in batch)
                total += self.costs.batch(len(batch), queries, prefix + queries)
        return total

    # -- trying ------------------------------------------------------------------------------------------------------------

    def _support(self, longest: Tensor) -> Support:
        """What the model can do, tried now where it was not yet."""
        model = self.parts.model
        config = getattr(model, "config", None)
        attention = str(getattr(config, "_attn_implementation", ""))
        found = _SUPPORT.get(model)
        if found is None or found.attention != attention:
            found = Support(attention, window_of(config))
            reason = known_refusal(model, attention, found.window)
            if reason:
                found.refused = dict.fromkeys(("packed", "cached"), reason)
            self._try(found, *small_tree(self.parts))
            found.checked = SMALL
            _SUPPORT[model] = found
        small = not found.window or len(longest) <= found.window
        if small and len(longest) > 2 * found.checked and len(found.refused.keys() & {"packed", "cached"}) < 2:
            self._try(found, *real_tree(longest))
            found.checked = len(longest)
        return found

    @torch.no_grad()
    def _try(self, support: Support, sequences: list[Tensor], wanted: list[Tensor]) -> None:
        """Compare the states of each path with those of one forward a sequence, and note what differs."""
        truth = {n: states for rows, states in self._padded(sequences, wanted, 1) for n in rows}
        free = replace(self.costs, call=0.0)
        paths: dict[str, Callable[[], Iterator[tuple[list[int], Tensor]]]] = {
            "packed": lambda: self._trees(self._trees_of(sequences, wanted, free, cache=False), wanted),
            "cached": lambda: self._trees(self._trees_of(sequences, wanted, free, cache=True), wanted),
            "padded": lambda: self._padded(sequences, wanted, 10**9),
        }
        for path, run in paths.items():
            if path in support.refused:
                continue
            try:
                found = by_sequence(run(), wanted)
            except (torch.OutOfMemoryError, OtherRankFailed):
                raise
            except Exception as error:  # whatever a model does with inputs it does not know: it is a refusal, and told
                support.refused[path] = f"a trial ended in {type(error).__name__}: {str(error)[:200]}"
                continue
            worst = max(distance(found[n], truth[n]) for n in truth)
            if not worst <= tolerance(next(iter(truth.values()))):
                length = max(len(s) for s in sequences)
                support.refused[path] = f"its states differ by {worst:.1g} of their size on a trial of {length} tokens"

    # -- running -----------------------------------------------------------------------------------------------------------

    def _chunks(self, groups: list[Group]) -> Iterator[list[Group]]:
        """Groups whose prefixes are forwarded together; those without one come first, in one chunk."""
        bare = [g for g in groups if not len(g.prefix)]
        if bare:
            yield bare
        cached = [g for g in groups if len(g.prefix)]
        budget = max(1, self.max_tokens // 4)  # their keys and values stay, in every layer
        for batch in microbatches([len(g.prefix) for g in cached], budget):
            yield [cached[n] for n in batch]

    def _batches(self, part: list[Group]) -> Iterator[list[tuple[Group, Packed]]]:
        """Rows of these groups in micro-batches, longest first, under the budget of tokens and of attention pairs.

        A row that would be padded by more tokens than a forward of its own costs begins a new one.
        """
        prefix = max(len(g.prefix) for g in part)
        rows = [(g, row) for g in part for row in g.rows]
        rows.sort(key=lambda pair: len(pair[0].prefix) - pair[1].size)
        batch: list[tuple[Group, Packed]] = []
        width = 1
        for owner, row in rows:
            queries = max(1, row.size - len(owner.prefix))
            size = (len(batch) + 1) * width
            full = size > self.max_tokens or size * (prefix + width) > CELLS_PER_TOKEN * self.max_tokens
            if batch and (full or width - queries > self.costs.call):
                yield batch
                batch = []
            if not batch:
                width = queries
            batch.append((owner, row))
        if batch:
            yield batch

    def _trees(self, groups: list[Group], wanted: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor]]:
        """Prefixes into caches, then rows of trees on top of them."""
        for part in self._chunks(groups):
            prefix, mask = pad_ids([g.prefix for g in part])
            layers = self._prefix_layers(prefix, mask) if prefix.shape[1] else None
            place = {id(g): n for n, g in enumerate(part)}
            for batch in self._batches(part):
                owners = torch.tensor([place[id(g)] for g, _ in batch])
                rows = [row for _, row in batch]
                skip = [len(g.prefix) for g, _ in batch]
                yield self._tree_batch(rows, skip, wanted, layers, mask[owners], owners)

    def _tree_batch(
        self,
        rows: list[Packed],
        skip: list[int],
        wanted: Sequence[Tensor],
        layers: list[tuple[Tensor, Tensor]] | None,
        prefix_mask: Tensor,
        owners: Tensor,
    ) -> tuple[list[int], Tensor]:
        """One forward of B rows without their first `skip` tokens, which are in the cache."""
        width = max(1, *(row.size - cut for row, cut in zip(rows, skip, strict=True)))
        begin = [width - (row.size - cut) if self.left_pad else 0 for row, cut in zip(rows, skip, strict=True)]
        prefix = prefix_mask.shape[1]
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        positions = torch.zeros_like(ids)
        seen = torch.zeros(len(rows), width, prefix + width, dtype=torch.bool)
        seen[:, torch.arange(width), prefix + torch.arange(width)] = True  # padding sees itself, or it would be NaN
        order: list[int] = []
        row_index, columns = [], []
        for n, (row, cut, first) in enumerate(zip(rows, skip, begin, strict=True)):
            last = first + row.size - cut
            ids[n, first:last] = row.ids[cut:]
            positions[n, first:last] = row.depth[cut:]
            visible = row.visible()[cut:]
            seen[n, first:last, :cut] = visible[:, :cut]
            seen[n, first:last, prefix + first : prefix + last] = visible[:, cut:]
            for sequence, path in row.paths.items():
                order.append(sequence)
                slots = path[wanted[sequence].cpu()] - cut + first
                row_index.append(torch.full_like(slots, n))
                columns.append(slots)
        device, dtype = self.parts.device, mask_dtype(self.parts.model)
        seen = seen.to(device)
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
        inputs: dict[str, Any] = {
            "input_ids": ids.to(device),
            "attention_mask": mask,
            "position_ids": positions.to(device),
        }
        inputs |= {"use_cache": False} if layers is None else _reading(layers, owners)
        self.tokens += ids.numel()
        return order, self._states_at(inputs, torch.cat(row_index), torch.cat(columns))

    def _prefix_layers(self, ids: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [G, H, P, D] of each layer for G prefixes, padded on the right."""
        from transformers.cache_utils import Cache, DynamicLayer

        cache = Cache(layer_class_to_replicate=DynamicLayer)
        device = self.parts.device
        inputs: dict[str, Any] = {
            "input_ids": ids.to(device),
            "attention_mask": mask.long().to(device),
            "position_ids": positions_of(mask).to(device),
            "past_key_values": cache,
            "use_cache": True,
        }
        self.tokens += ids.numel()
        if self.parts.backbone is not None:
            self.parts.backbone(**inputs)
        else:
            self.parts.call(**inputs, **({"logits_to_keep": 1} if self.parts.keeps else {}))
        layers: list[Any] = cache.layers
        return [(layer.keys, layer.values) for layer in layers]


def _reading(layers: list[tuple[Tensor, Tensor]], owners: Tensor) -> dict[str, Any]:
    """Inputs that let each row of a batch look at its own prefix. Nothing new is kept: a layer's keys go when it is done."""
    from transformers.cache_utils import Cache, DynamicLayer

    class SharedLayer(DynamicLayer):
        def __init__(self, keys: Tensor, values: Tensor) -> None:
            super().__init__()
            self.shared = keys, values
            self.keys, self.values, self.is_initialized = keys, values, True

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            chosen = owners.to(key_states.device)
            keys, values = (states[chosen] for states in self.shared)
            return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    return {"past_key_values": Cache(layers=[SharedLayer(*layer) for layer in layers]), "use_cache": True}
