"""n-gram language models with back-off (Katz 1987, the ARPA format): read, write, score, over words or characters.

In: an ARPA file, plain or gz, or text to train on. Out: natural-log probabilities of the next unit, for whole arrays of
contexts at once. A context is a number: the node of the longest sequence of past units that the model knows. Knows no
acoustic model and no alphabet of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from speechkit.errors import DataError
from speechkit.subtitles import join_words

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from speechkit.asr.trie import Trie

    Ints = NDArray[np.integer]

__all__ = ["BEGIN", "END", "SPACE", "UNKNOWN", "NGram", "Unit"]

Unit = Literal["word", "char"]
BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
SPACE = "|"  # what a character model writes for a space: an ARPA file parts its fields by spaces
CLOSED = 1 << 22  # entries of the table of every context and unit, 16 bytes each: 64 MiB at most


@dataclass(frozen=True, eq=False, repr=False)
class NGram:
    """A back-off model. Make one with :meth:`read` or :meth:`train`.

    `words[i]` is unit i, `trie` holds the n-grams with the oldest unit first. Per node: `logp` (nodes,) natural log of
    the last unit after the others, `backoff` (nodes,) natural log, `shorter` (nodes,) the longest known suffix.
    `note` says what the file did not hold and had to be assumed; empty for nothing.
    """

    words: tuple[str, ...]
    trie: Trie
    logp: NDArray[np.float64]
    backoff: NDArray[np.float64]
    shorter: NDArray[np.int64]
    unit: Unit
    note: str = ""

    @classmethod
    def read(cls, path: str | os.PathLike[str], unit: Unit | Literal["auto"] = "auto") -> NGram:
        """An ARPA file, plain or gz. `unit="auto"`: characters when nine units in ten are one character long.

        Raises DataError that names the line for whatever is malformed.
        """
        from speechkit.asr.arpa import read

        return read(path, unit)

    def write(self, path: str | os.PathLike[str]) -> None:
        """An ARPA file, gz if the name ends in .gz; the inverse of :meth:`read` to seven digits."""
        from speechkit.asr.arpa import write

        write(self, path)

    @classmethod
    def train(cls, texts: Iterable[str], order: int = 3, unit: Unit = "word", language: str | None = None) -> NGram:
        """Sentences → interpolated modified Kneser-Ney model; see :func:`speechkit.asr.kneser_ney.train`."""
        from speechkit.asr.kneser_ney import train

        return train(texts, order, unit, language)

    @property
    def order(self) -> int:
        return len(self.trie.levels)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many n-grams of each length."""
        return tuple(map(len, self.trie.levels))

    def __repr__(self) -> str:
        counts = ", ".join(f"{count:,} {n}-grams" for n, count in enumerate(self.counts, 1))
        return f"NGram({self.unit}s, {counts})"

    @cached_property
    def index(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    @property
    def unknown(self) -> int:
        return self.index[UNKNOWN]

    @property
    def end(self) -> int | None:
        return self.index.get(END)

    @property
    def start(self) -> int:
        """The context at the start of a sentence."""
        return int(self.context[1 + self.index[BEGIN]]) if BEGIN in self.index else 0

    @cached_property
    def context(self) -> NDArray[np.int64]:
        """(nodes,) number of the context that remains after each n-gram: its longest suffix that tells anything, for
        a longer n-gram goes on from it or it has a back-off weight. Contexts that answer alike have one number.
        """
        tells = self.backoff != 0
        tells[self.trie.parents[1:]] = True
        tells[0] = True
        nodes = np.arange(len(self.trie))
        kept = nodes.copy()
        for level in range(1, self.order + 1):
            here = nodes[self.trie.level(level)]
            kept[here] = np.where(tells[here], here, kept[self.shorter[here]])
        return np.cumsum(tells)[kept] - 1

    @cached_property
    def contexts(self) -> NDArray[np.int64]:
        """The node of each context: the first that has its number, since the n-grams that lead to it are longer."""
        return np.unique(self.context, return_index=True)[1]

    def ids(self, units: Iterable[str]) -> NDArray[np.int64]:
        """Units → their numbers (N,); what the model does not know is `unknown`."""
        return np.fromiter((self.index.get(unit, self.unknown) for unit in units), np.int64)

    def step(self, contexts: Ints, units: Ints) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Contexts and units, of any broadcastable shape → natural-log P(unit | context), and the contexts after it.

        Katz's recursion: where the n-gram is not known, pay the context's back-off weight and drop its oldest unit.
        """
        if self._closed is not None:
            logp, after = self._closed
            at = np.multiply(contexts, len(self.words)) + units
            return logp.take(at), after.take(at)
        nodes, wanted = self.contexts.take(contexts) + 0 * units, units + np.zeros_like(contexts)
        shape = wanted.shape
        nodes, wanted = nodes.ravel(), wanted.ravel()
        paid = np.zeros(len(nodes))
        found = self.trie.find(nodes, wanted)
        left = np.flatnonzero(found < 0)
        while len(left):
            paid[left] += self.backoff[nodes[left]]
            nodes[left] = self.shorter[nodes[left]]
            found[left] = self.trie.find(nodes[left], wanted[left])
            left = left[found[left] < 0]
        return (paid + self.logp[found]).reshape(shape), self.context[found].reshape(shape)

    @cached_property
    def _closed(self) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
        """Katz's recursion done once for every context and unit, flat; None where that would be too large."""
        nodes, width = self.contexts, len(self.words)
        if len(nodes) * width > CLOSED:
            return None
        logp, after = np.zeros((len(nodes), width)), np.zeros((len(nodes), width), np.int64)
        parents, symbols = self.trie.parents, self.trie.symbols
        for level in range(self.order):
            rows = self.trie.level(level) if level else slice(0, 1)
            here = np.flatnonzero((nodes >= rows.start) & (nodes < rows.stop))
            if level:
                shorter = self.context[self.shorter[nodes[here]]]
                logp[here] = logp[shorter] + self.backoff[nodes[here], None]
                after[here] = after[shorter]
            known = self.trie.level(level + 1)
            at = self.context[parents[known]], symbols[known]
            logp[at], after[at] = self.logp[known], self.context[known]
        return logp.reshape(-1), after.reshape(-1)

    def units(self, text: str) -> list[str]:
        """Normalised text → what the model counts: words, or characters with `|` for a space."""
        words = text.split()
        return words if self.unit == "word" else list(join_words(words).replace(" ", SPACE))

    def score(self, text: str) -> float:
        """Natural-log probability of a whole sentence, its end included if the model knows ends."""
        return self.score_ids(self.ids(self.units(text)).tolist())

    def score_ids(self, units: Sequence[int]) -> float:
        """As :meth:`score`, for the numbers of a sentence's units."""
        context, total = np.array([self.start]), 0.0
        for number in [*units, *([] if self.end is None else [self.end])]:
            logp, context = self.step(context, np.array([number]))
            total += float(logp[0])
        return total

    def perplexity(self, texts: Iterable[str]) -> float:
        """exp of the mean negative log-probability per unit over all texts, each one's end counted as a unit."""
        total, count = 0.0, 0
        for text in texts:
            units = self.ids(self.units(text)).tolist()
            total, count = total + self.score_ids(units), count + len(units) + (self.end is not None)
        if not count:
            raise DataError("no text to measure the perplexity on: give at least one sentence")
        return math.exp(-total / count)
