"""Rows of tokens → the batches of a run, in an order that depends on the seed alone: any step can be gone on from.

In: `data.Tokens`. Out: a sequence that a data loader reads. Packed, a batch is a block of rows one behind the other,
without padding; otherwise rows of one batch are padded to the longest of them. Knows neither model nor trainer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from speechkit.errors import DataError
from speechkit.llm.packing import collate, pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit.llm.data import Tokens

__all__ = ["UNLABELLED", "Batch", "Batches", "Consumed", "batches_of"]

UNLABELLED = -100  # torch's: a token that nothing is learnt from


@dataclass(frozen=True)
class Batch:
    """One batch; `rows` of padded ones, `block` of packed ones."""

    useful: int  # tokens, padding not counted
    computed: int  # tokens, padding counted
    labelled: int  # tokens that the loss is of
    block: Any = None  # packing.Block
    rows: tuple[Tokens, ...] = ()
    pad: int = 0  # id of the padding token

    def tensors(self) -> dict[str, Any]:
        """What a model is called with; input_ids and labels: (1, M) packed, (B, S) padded."""
        return collate([self.block]) if self.block is not None else _padded(self.rows, self.pad)


def batches_of(tokens: Sequence[Tokens], size: int, packing: bool, pad: int = 0, seed: int = 0) -> tuple[Batch, ...]:
    """Each row in exactly one batch of at most `size` tokens, padding counted.

    Raises DataError where a row is longer than `size`, or nothing in any row is labelled.
    """
    longest = max((len(row.input_ids) for row in tokens), default=0)
    if longest > size:
        raise DataError(
            f"a row of {longest} tokens fits no batch of {size}: raise batch_tokens, or give max_len {size}"
        )
    if packing:
        made = [_of_block(block) for block in pack(tokens, size)]
    else:
        made = [_of_rows(group, pad) for group in _groups(tokens, size, seed)]
    if not sum(batch.labelled for batch in made):
        raise DataError("no token of any row is labelled, so there is nothing to learn from: do rows have answers?")
    return tuple(made)


class Batches(Dataset[Batch]):
    """`count` of the batches, epoch after epoch, each in an order of its own."""

    def __init__(self, items: Sequence[Batch], count: int, seed: int) -> None:
        self.items, self.count, self.seed = items, count, seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self.count:
            raise IndexError(index)
        epoch, place = divmod(index, len(self.items))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.items))
        return self.items[int(self._order[1][place])]


class Consumed:
    """Useful tokens in the first updates; asked in rising order, it adds up only what is new."""

    def __init__(self, batches: Batches, per_update: int) -> None:
        self.batches, self.per_update = batches, per_update
        self.step, self.tokens = 0, 0

    def __call__(self, step: int) -> int:
        if step < self.step:
            self.step, self.tokens = 0, 0
        until = min(step * self.per_update, len(self.batches))
        self.tokens += sum(self.batches[i].useful for i in range(self.step * self.per_update, until))
        self.step = step
        return self.tokens


def _of_block(block: Any) -> Batch:
    size = len(block.input_ids)
    return Batch(size, size, sum(label != UNLABELLED for label in block.labels[1:]), block=block)


def _of_rows(rows: Sequence[Tokens], pad: int) -> Batch:
    labelled = sum(label != UNLABELLED for row in rows for label in row.labels[1:])
    useful = sum(len(row.input_ids) for row in rows)
    return Batch(useful, _area(rows), labelled, rows=tuple(rows), pad=pad)


def _area(rows: Sequence[Tokens]) -> int:
    return len(rows) * max(len(row.input_ids) for row in rows)


def _groups(tokens: Sequence[Tokens], size: int, seed: int) -> list[list[Tokens]]:
    """In the order of chance, as many rows to a batch as fit with their padding."""
    order = np.random.default_rng((seed, 0x5EED)).permutation(len(tokens))
    groups: list[list[Tokens]] = [[]]
    for index in order:
        row = tokens[int(index)]
        if groups[-1] and _area([*groups[-1], row]) > size:
            groups.append([])
        groups[-1].append(row)
    return [group for group in groups if group]


def _padded(rows: Sequence[Tokens], pad: int) -> dict[str, Any]:
    width = max(len(row.input_ids) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    labels = torch.full_like(ids, UNLABELLED)
    mask = torch.zeros_like(ids)
    for line, row in enumerate(rows):
        ids[line, : len(row.input_ids)] = torch.tensor(row.input_ids)
        labels[line, : len(row.labels)] = torch.tensor(row.labels)
        mask[line, : len(row.input_ids)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
