"""Which tokens need a forward at all: sequences that share beginnings laid out as trees, without their repetitions.

Sequences are sorted, so that those with a common beginning are neighbours; each then adds only the tokens that follow its
common beginning with the one before. A `Packed` row holds such a tree as one run of tokens: for a rollout scored after K of
its prefixes that is the trunk once and K targets. A token sees its ancestors and itself (`Packed.visible`), and its position
is its depth, so that it gets the state it would have in its own sequence. Rows whose beginnings are equal may form a
`Group`, whose prefix is forwarded once into a key-value cache.

What goes into one row and what is cached minimises the cost of a forward over the tree of all common beginnings: one row
saves what its sequences share, and pays for comparing tokens of different branches, which the mask then hides.

Pure planning on ids, no model here. Sharing is by content: nobody has to say what the groups are. Left out: sharing between
sequences that differ early and agree later (no causal model allows it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

MIN_PREFIX = 8  # tokens; below, a cache costs more than it saves
LEVELS = (
    8  # how deep in the tree a cache is considered: system prompt, prompt, then rollouts that happen to begin alike
)


@dataclass(frozen=True)
class Costs:
    """What a forward costs, in units of one token's passage through the linear layers.

    Attributes:
        pair: one token looking at one other token.
        call: one more forward, however small.
    """

    pair: float = 1 / 3000
    call: float = 10.0

    def row(self, queries: int, keys: int) -> float:
        """Cost of `queries` tokens that look at `keys` tokens each."""
        return queries * (1 + self.pair * keys)

    def batch(self, rows: int, queries: int, keys: int) -> float:
        """Cost of one forward of `rows` x `queries` tokens that look at `keys` tokens each, padding counted."""
        return self.call + rows * self.row(queries, keys)


@dataclass
class Packed:
    """A tree of sequences as one row of n tokens.

    Attributes:
        pieces: ids in the order of the row.
        blocks: (first slot, slots of the ancestors) of each piece.
        paths: {sequence: [T] slots of its tokens}.
        size: n.
    """

    pieces: list[Tensor]
    blocks: list[tuple[int, Tensor]]
    paths: dict[int, Tensor]
    size: int

    @property
    def ids(self) -> Tensor:
        """[n] int64."""
        return torch.cat(self.pieces)

    @property
    def depth(self) -> Tensor:
        """[n] int64: the position of each token in its own sequence."""
        return torch.cat([
            torch.arange(len(above), len(above) + len(piece))
            for piece, (_, above) in zip(self.pieces, self.blocks, strict=True)
        ])  # fmt: skip

    def visible(self) -> Tensor:
        """[n, n] bool: row i may look at column j (itself and its ancestors)."""
        seen = torch.zeros(self.size, self.size, dtype=torch.bool)
        for piece, (first, above) in zip(self.pieces, self.blocks, strict=True):
            inside = slice(first, first + len(piece))
            seen[inside, above] = True
            seen[inside, inside] = torch.ones(len(piece), len(piece), dtype=torch.bool).tril()
        return seen


@dataclass(frozen=True)
class Group:
    """Rows that begin with the same `prefix` [P]; P = 0: nothing worth a cache."""

    prefix: Tensor
    rows: list[Packed]


@dataclass
class _Node:
    """Sorted sequences `begin` <= i < `end`, which share their first `lead` tokens.

    `size`: tokens of their tree. `first`: position of the first state that is asked for. `start`: index of the first node of
    this subtree, in an order in which children come before their parents.
    """

    begin: int
    end: int
    lead: int
    size: int
    first: int
    start: int
    children: list[int]
    level: int = 0


@dataclass(frozen=True)
class _Row:
    """A row to be: its tokens, its cost, and a sorted sequence or the two rows it was made of."""

    size: int
    cost: float
    parts: tuple[int] | tuple[_Row, _Row]

    def leaves(self) -> list[int]:
        """Its sequences, sorted."""
        found: list[int] = []
        stack: list[_Row | int] = [self]
        while stack:
            part = stack.pop()
            if isinstance(part, int):
                found.append(part)
            else:
                stack += part.parts
        return sorted(found)


def plan(
    sequences: Sequence[Tensor],
    wanted: Sequence[Tensor],
    *,
    costs: Costs,
    max_tokens: int,
    max_cells: int,
    cache: bool = True,
) -> list[Group]:
    """What to run.

    Args:
        sequences: N id tensors [T_n].
        wanted: N tensors of positions whose states are asked for; a prefix ends before the first of them.
        costs: of the model.
        max_tokens: of one row; a single sequence may be longer.
        max_cells: attention pairs of one row, the same.
        cache: whether prefixes may be cached. False: one group without a prefix.
    """
    arrays = [np.ascontiguousarray(s.cpu().numpy(), dtype=np.int64) for s in sequences]
    order = sorted(range(len(arrays)), key=lambda n: arrays[n].tobytes())
    leads = [_common(arrays[a], arrays[b]) for a, b in pairwise(order)]
    lengths = [len(arrays[n]) for n in order]
    firsts = [int(wanted[n].min()) if len(wanted[n]) else len(arrays[n]) for n in order]
    nodes, roots = _tree(lengths, leads, firsts)

    def spread(first: int, last: int, cached: int) -> dict[int, list[_Row]]:
        """The cheapest rows found for each node of a subtree, on top of a cached prefix."""
        found: dict[int, list[_Row]] = {}
        for index in range(first, last + 1):
            node = nodes[index]
            if node.children:
                rows = [row for child in node.children for row in found[child]]
                found[index] = _merged(rows, node.lead, cached, costs, max_tokens, max_cells)
            else:
                found[index] = [_Row(node.size, costs.row(node.size - cached, node.size), (node.begin,))]
        return found

    rows = spread(0, len(nodes) - 1, 0)
    best = {index: sum(row.cost for row in found) for index, found in rows.items()}
    cached_at: dict[int, int] = {}
    for index, node in enumerate(nodes):
        below = sum(best[child] for child in node.children) if node.children else best[index]
        best[index] = min(best[index], below)
        prefix = min(node.lead, node.first)
        if cache and node.children and node.level < LEVELS and prefix >= MIN_PREFIX:
            price = costs.call + costs.row(prefix, prefix)
            price += sum(row.cost for row in spread(node.start, index, prefix)[index])
            if price < best[index]:
                best[index], cached_at[index] = price, prefix
    groups: list[Group] = []
    bare: list[Packed] = []
    stack = roots[::-1]
    while stack:
        index = stack.pop()
        node = nodes[index]
        if index in cached_at:
            members = spread(node.start, index, cached_at[index])[index]
            ids = sequences[order[node.begin]].cpu()[: cached_at[index]]
            groups.append(Group(ids, [_packed(sequences, order, leads, row) for row in members]))
        elif node.children and best[index] < sum(row.cost for row in rows[index]):
            stack += node.children[::-1]
        else:
            bare += [_packed(sequences, order, leads, row) for row in rows[index]]
    return ([Group(torch.zeros(0, dtype=torch.long), bare)] if bare else []) + groups


def _merged(rows: list[_Row], lead: int, cached: int, costs: Costs, max_tokens: int, max_cells: int) -> list[_Row]:
    """Rows that share `lead` tokens, the smallest put together as long as that is cheaper."""
    kept: list[_Row] = []
    for row in sorted(rows, key=lambda row: row.size):
        if kept:
            size = kept[-1].size + row.size - lead
            queries = size - cached
            cost = costs.row(queries, size)
            fits = queries <= max_tokens and queries * size <= max_cells
            if size == row.size or (fits and cost <= kept[-1].cost + row.cost):
                kept[-1] = _Row(size, cost, (kept[-1], row))
                continue
        kept.append(row)
    return kept


def _tree(lengths: list[int], leads: list[int], firsts: list[int]) -> tuple[list[_Node], list[int]]:
    """The tree of common beginnings of sorted sequences, children before parents, and its roots."""
    nodes: list[_Node] = []

    def close(begin: int, end: int, lead: int, children: list[int]) -> int:
        size = sum(nodes[c].size for c in children) - lead * (len(children) - 1)
        first = min(nodes[c].first for c in children)
        nodes.append(_Node(begin, end, lead, size, first, nodes[children[0]].start, children))
        return len(nodes) - 1

    open_: list[tuple[int, list[int]]] = []  # (lead, children so far) of the nodes on the way down
    for i, length in enumerate(lengths):
        nodes.append(_Node(i, i + 1, length, length, firsts[i], len(nodes), []))
        done = len(nodes) - 1
        lead = leads[i] if i < len(leads) else 0
        while open_ and open_[-1][0] > lead:
            deep, children = open_.pop()
            children.append(done)
            done = close(nodes[children[0]].begin, i + 1, deep, children)
        if open_ and open_[-1][0] == lead:
            open_[-1][1].append(done)
        else:
            open_.append((lead, [done]))
    roots = open_[0][1] if open_ else []  # the last lead is 0: all others are closed
    for index in range(len(nodes) - 1, -1, -1):
        for child in nodes[index].children:
            nodes[child].level = nodes[index].level + 1
    return nodes, roots


def _packed(sequences: Sequence[Tensor], order: list[int], leads: list[int], row: _Row) -> Packed:
    """The tree of a row's sequences as one run of tokens."""
    packed = Packed([], [], {}, 0)
    path = torch.zeros(0, dtype=torch.long)
    before: int | None = None
    for i in row.leaves():
        lead = 0 if before is None else min(leads[before:i])
        ids, above = sequences[order[i]].cpu(), path[:lead]
        if len(ids) > lead:
            packed.pieces.append(ids[lead:])
            packed.blocks.append((packed.size, above))
        path = torch.cat([above, torch.arange(packed.size, packed.size + len(ids) - lead)])
        packed.paths[order[i]] = path
        packed.size += len(ids) - lead
        before = i
    return packed


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common beginning."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size
