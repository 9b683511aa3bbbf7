"""Sequences of symbols as numbered nodes, looked up in arrays: n-grams by their words, words by their letters.

Node 0 is the root. Nodes are numbered level by level, and within a level by (parent, symbol), so one sorted array of
`parent * width + symbol` is the whole trie: node i + 1 is the child that `keys[i]` names. Knows no text.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Ints = NDArray[np.integer]

__all__ = ["Trie"]

DENSE = 1 << 22  # entries of a lookup table, 8 bytes each: 32 MiB at most


class Trie:
    """A trie over symbols 0..width-1. Grow it level by level, then look up; growing again forgets the table."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.levels: list[NDArray[np.int64]] = []  # sorted keys of each level
        self.table: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], width: int) -> tuple[Trie, NDArray[np.int64]]:
        """All sequences (of at least one symbol each) → their trie, and the node at which each ends."""
        trie, nodes = cls(width), np.zeros(len(sequences), np.int64)
        sizes = np.array([len(sequence) for sequence in sequences], np.int64)
        for depth in range(int(sizes.max(initial=0))):
            longer = np.flatnonzero(sizes > depth)
            nodes[longer] = trie.grow(nodes[longer], np.array([sequences[i][depth] for i in longer.tolist()]))
        return trie, nodes

    def __len__(self) -> int:
        """How many nodes, the root among them."""
        return 1 + sum(map(len, self.levels))

    def grow(self, nodes: Ints, symbols: Ints) -> NDArray[np.int64]:
        """Add a level below the last: children of `nodes` (N,), all of the last level, by `symbols` (N,) → ids (N,).

        The same pair twice is one child.
        """
        keys, at = np.unique(np.asarray(nodes, np.int64) * self.width + symbols, return_inverse=True)
        first = len(self)
        self.levels.append(keys)
        self.__dict__.pop("keys", None)
        self.table = None
        return first + at

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """(nodes - 1,) `parent * width + symbol` of node 1, 2, …; sorted, since parents are numbered by level."""
        return np.concatenate(self.levels) if self.levels else np.zeros(0, np.int64)

    @property
    def parents(self) -> NDArray[np.int64]:
        """(nodes,) parent of each node; the root is its own."""
        return np.concatenate([[0], self.keys // self.width])

    @property
    def symbols(self) -> NDArray[np.int64]:
        """(nodes,) symbol that leads to each node; -1 for the root."""
        return np.concatenate([[-1], self.keys % self.width])

    def level(self, number: int) -> slice:
        """The nodes at depth `number`, counted from 1."""
        first = 1 + sum(map(len, self.levels[: number - 1]))
        return slice(first, first + len(self.levels[number - 1]))

    def find(self, nodes: Ints, symbols: Ints) -> NDArray[np.int64]:
        """Children of `nodes` by `symbols`, both of any broadcastable shape; -1 where there is none.

        A node of -1 has no children, so a lookup may go on from a failed one.
        """
        wanted = np.multiply(nodes, self.width, dtype=np.int64) + symbols
        if self.table is not None:
            return self.table.take(wanted)  # the children of -1 count from the end, where the row of -1 is
        at = np.searchsorted(self.keys, wanted)
        if not len(self.keys):
            return np.full(wanted.shape, -1)
        return np.where(self.keys.take(at, mode="clip") == wanted, at + 1, -1)

    def tabulate(self) -> None:
        """Make a table of every child of every node, for constant-time lookups; skipped where it would be too large."""
        size = (len(self) + 1) * self.width  # one row more, of -1, for the children of no node
        if size <= DENSE:
            self.table = np.full(size, -1)
            self.table[self.keys] = np.arange(1, len(self))

    def suffixes(self) -> NDArray[np.int64]:
        """(nodes,) the longest proper suffix of each node's sequence that is a node too; the root for the rest.

        The failure links of Aho & Corasick 1975; in an n-gram model, the context to back off to.
        """
        suffix = np.zeros(len(self), np.int64)
        for number in range(2, len(self.levels) + 1):
            rows = self.level(number)
            at, symbols = self.parents[rows], self.symbols[rows]
            found = np.full(len(at), -1, np.int64)
            left = np.arange(len(at))
            while len(left):
                at[left] = suffix[at[left]]
                found[left] = self.find(at[left], symbols[left])
                found[left[(at[left] == 0) & (found[left] < 0)]] = 0
                left = left[found[left] < 0]
            suffix[rows] = found
        return suffix
