"""Documents of many lengths → blocks without padding, and back. In: token rows. Out: blocks, and batches of them.

    blocks = pack(tokenize(rows, tokenizer, 2048).rows, block=2048)
    model(**collate(blocks[:1]))                       # or SFTTrainer(…, train_dataset=as_dataset(blocks),
                                                       #               data_collator=collate)
    unpack(blocks) == list of the token rows

`plan_bins` is best-fit decreasing to the letter: lengths from the longest on, each into the fullest bin that still
takes it. Equal lengths and bins with equal space are moved as a whole, so a million take a fraction of a second.

No document sees another, on any attention. Positions begin anew with each; from them transformers makes masks for sdpa,
eager and flex, and "speechkit" and FlashAttention read the boundaries. That holds as long as there is no attention mask
and no cache, with either of which transformers no longer looks at positions and documents leak into each other: so a
batch says `use_cache=False` and has no mask. The first label of a document is −100: no loss crosses a boundary. Knows
no tokenizer and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit import extras
from speechkit.errors import DataError
from speechkit.llm.data import IGNORED, Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Ids = NDArray[np.int64]

__all__ = ["Block", "PackReport", "as_dataset", "collate", "fill_of", "pack", "plan_bins", "report", "unpack"]


@dataclass(frozen=True, eq=False)
class Block:
    """Documents one behind the other; arrays (tokens,) int64."""

    input_ids: Ids
    labels: Ids  # IGNORED at the first token of each document
    position_ids: Ids  # from 0 on in each document
    cu_seqlens: NDArray[np.int32]  # (documents + 1,): where each begins, and the end
    max_seqlen: int  # the longest document
    documents: tuple[int, ...] = ()  # which of the rows given to `pack`
    where: tuple[str, ...] = ()  # what those rows say of where they came from

    def __len__(self) -> int:
        return len(self.input_ids)

    def __str__(self) -> str:
        learnt = int((self.labels != IGNORED).sum())
        return f"{len(self):,} tokens, {len(self.cu_seqlens) - 1} documents, {learnt:,} with loss"

    __repr__ = __str__


@dataclass(frozen=True)
class PackReport:
    """What packing saves."""

    documents: int
    tokens: int
    blocks: int
    block: int  # tokens that a block holds at most
    padded: float  # of the tokens of batches padded to their longest, the share that is text

    @property
    def fill(self) -> float:
        """Of the room in all blocks, the share that holds tokens."""
        return self.tokens / (self.blocks * self.block)

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents, {self.tokens:,} tokens in {self.blocks:,} blocks of {self.block:,}: "
            f"{self.fill:.1%} full; padded in batches of 8 they would be {self.padded:.0%} text"
        )

    __repr__ = __str__


# ---- bins ----


def plan_bins(lengths: Sequence[int] | NDArray[np.integer[Any]], block: int) -> list[list[int]]:
    """Best-fit decreasing: which lengths (their indices) share a bin of `block`; in the order in which bins are opened.

    Longest first, of equal ones the earlier first; each goes to the bin with the least space that holds it, of equal
    ones to that opened first. Within a bin they stand in the order in which they came. Raises DataError for lengths
    below 1 or above `block`.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if not len(sizes):
        return []
    if sizes.min() < 1 or sizes.max() > block:
        at = int(np.flatnonzero((sizes < 1) | (sizes > block))[0])
        raise DataError(f"length {sizes[at]:,} (number {at:,}) does not go into blocks of {block:,}; 1 to {block:,} do")
    order, count = _sorted(block - sizes), np.bincount(sizes)
    bins, room, first = np.empty(len(sizes), dtype=np.int64), _Room(block), 0
    for size in np.flatnonzero(count)[::-1].tolist():
        end = first + int(count[size])
        room.place(size, bins[first:end])
        first = end
    by_bin = _sorted(bins)
    cuts = np.append(0, np.bincount(bins).cumsum()).tolist()
    found: list[int] = order[by_bin].tolist()
    return [found[a:b] for a, b in pairwise(cuts)]


def _sorted(keys: Ids) -> Ids:
    """A stable argsort of numbers from 0 on, 16 bits at a time: such NumPy sorts in linear time."""
    order = np.argsort((keys & 0xFFFF).astype(np.uint16), kind="stable")
    shift = 16
    while (keys >> shift).any():
        order = order[np.argsort(((keys >> shift) & 0xFFFF).astype(np.uint16)[order], kind="stable")]
        shift += 16
    return order


class _Room:
    """Bins by the space that they have left; bit n of `levels` says that some bin has n."""

    def __init__(self, block: int) -> None:
        self.block, self.opened, self.levels = block, 0, 0
        self.at: dict[int, list[Ids]] = {}

    def place(self, size: int, bins: Ids) -> None:
        """Items of one size, into whole groups of bins at once; their bins are written to `bins` (items,)."""
        done = 0
        while done < len(bins):
            space, group = self._fullest(size, len(bins) - done)
            each = space // size  # what a bin takes before it is too full, and until then it stays the fullest
            whole, rest = divmod(min(len(bins) - done, each * len(group)), each)
            bins[done : done + whole * each] = np.repeat(group[:whole], each)
            done += whole * each
            self._put(space - each * size, group[:whole])
            if rest:
                bins[done : done + rest] = group[whole]
                done += rest
                self._put(space - rest * size, group[whole : whole + 1])
            self._put(space, group[whole + bool(rest) :])

    def _fullest(self, size: int, items: int) -> tuple[int, Ids]:
        """Space and bins of the smallest level that holds `size`, taken out; new bins where there is none."""
        above = self.levels >> size
        if not above:
            count = -(-items // (self.block // size))
            self.opened += count
            return self.block, np.arange(self.opened - count, self.opened)
        space = size + (above & -above).bit_length() - 1
        self.levels ^= 1 << space
        groups = self.at.pop(space)
        return space, groups[0] if len(groups) == 1 else np.sort(np.concatenate(groups))

    def _put(self, space: int, group: Ids) -> None:
        if space and len(group):
            self.at.setdefault(space, []).append(group)
            self.levels |= 1 << space


def fill_of(bins: Sequence[Sequence[int]], lengths: Sequence[int] | NDArray[Any], block: int) -> float:
    """Of the room in all bins, the share that is taken."""
    return float(np.sum(lengths)) / (len(bins) * block) if bins else 0.0


# ---- blocks ----


def pack(tokens: Sequence[Tokens], block: int, *, seed: int | None = 0) -> list[Block]:
    """Token rows in blocks of at most `block` tokens; every row whole, in exactly one.

    seed: the order of blocks, and of documents within a block, is drawn from it, for bins come out sorted by length,
    which is no order to train in; None keeps that order. The same seed gives the same blocks. Raises DataError for a
    row that is longer than a block, and for none.
    """
    if not tokens:
        raise DataError("there are no token rows to pack")
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise DataError(f"block is {block!r}; it is a whole number of tokens from 1")
    lengths = [len(row) for row in tokens]
    if long := [n for n, length in enumerate(lengths) if length > block or not length]:
        row, number = tokens[long[0]], long[0]
        raise DataError(
            f"{row.where or f'row {number}'} has {len(row):,} tokens and a block {block:,} ({len(long):,} such rows): "
            f"make blocks larger, or tokenize with max_len={block}"
        )
    bins = plan_bins(lengths, block)
    if seed is not None:
        draw = np.random.default_rng(seed)
        bins = [[one[n] for n in draw.permutation(len(one))] for one in (bins[n] for n in draw.permutation(len(bins)))]
    return [_block([tokens[n] for n in one], tuple(one)) for one in bins]


def _block(rows: Sequence[Tokens], documents: tuple[int, ...]) -> Block:
    lengths = np.array([len(row) for row in rows])
    ends = np.concatenate([[0], lengths.cumsum()])
    labels = np.concatenate([np.asarray(row.labels, dtype=np.int64) for row in rows])
    labels[ends[:-1]] = IGNORED
    ids = np.concatenate([np.asarray(row.input_ids, dtype=np.int64) for row in rows])
    positions = np.arange(len(ids)) - np.repeat(ends[:-1], lengths)
    where = tuple(row.where for row in rows)
    return Block(ids, labels, positions, ends.astype(np.int32), int(lengths.max()), documents, where)


def unpack(blocks: Sequence[Block]) -> list[Tokens]:
    """The token rows again, in the order in which `pack` got them."""
    found: list[tuple[int, Tokens]] = []
    for block in blocks:
        for number, (first, end) in enumerate(pairwise(block.cu_seqlens)):
            ids, labels = block.input_ids[first:end].tolist(), block.labels[first:end].tolist()
            where = block.where[number] if block.where else ""
            at = block.documents[number] if block.documents else len(found)
            found.append((at, Tokens(tuple(ids), tuple(labels), where)))
    return [row for _, row in sorted(found, key=lambda item: item[0])]


def report(tokens: Sequence[Tokens], blocks: Sequence[Block], block: int) -> PackReport:
    """What the blocks hold, beside batches of 8 in the order given, padded to their longest."""
    lengths = [len(row) for row in tokens]
    batches = [lengths[n : n + 8] for n in range(0, len(lengths), 8)]
    padded = sum(lengths) / sum(max(batch) * len(batch) for batch in batches)
    return PackReport(len(lengths), sum(lengths), len(blocks), block, padded)


# ---- batches ----


def collate(blocks: Sequence[Block | Mapping[str, Any]]) -> dict[str, Any]:
    """Blocks, or rows of `as_dataset`, → one batch (1, tokens): what models and trainers of transformers and trl take.

    input_ids, labels, position_ids: (1, tokens) int64; cu_seq_lens_q, cu_seq_lens_k: (documents + 1,) int32;
    max_length_q, max_length_k: int; use_cache: False. There is no attention mask on purpose (see the head).
    """
    import torch

    if not blocks:
        raise DataError("there are no blocks to make a batch of")

    def joined(name: str) -> Any:
        parts = [block[name] if isinstance(block, Mapping) else getattr(block, name) for block in blocks]
        return torch.from_numpy(np.concatenate([np.asarray(part, dtype=np.int64) for part in parts]))

    ids, labels, positions = (joined(name) for name in ("input_ids", "labels", "position_ids"))
    starts = (positions == 0).nonzero().flatten()
    labels[starts] = IGNORED
    ends = torch.cat([starts, starts.new_tensor([len(positions)])]).to(torch.int32)
    longest = int(ends.diff().max())
    return {
        "input_ids": ids[None], "labels": labels[None], "position_ids": positions[None], "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest, "use_cache": False,
    }  # fmt: skip


def as_dataset(blocks: Sequence[Block]) -> Any:
    """A `datasets.Dataset` of blocks, for trl: `dataset_kwargs={"skip_prepare_dataset": True}`, `packing=False`,
    `remove_unused_columns=False` and `data_collator=collate` (trl refuses a collator beside `padding_free`).
    """
    datasets = extras.require("datasets", extra="llm", purpose="packed rows for trl")
    names = ("input_ids", "labels", "position_ids")
    return datasets.Dataset.from_dict({name: [getattr(block, name) for block in blocks] for name in names})
