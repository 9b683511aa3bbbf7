"""Hotwords: phrases that a beam search should rather hear than not. In: phrases. Out: a `Fusion` of one integer.

All phrases are one automaton (Aho & Corasick 1975) over the model's tokens. A prefix of the search is in one of its
states: the longest beginning of a phrase that the prefix ends with. Every occurrence of a phrase earns `hotword_weight`
nats for each of its characters; a phrase begun is credited as far as it goes, so that the beam keeps it, and the credit
is taken back when it breaks off. In the meantime the prefixes with credit crowd out those without, so the credit never
exceeds `CREDIT`, and the rest is paid when the phrase is complete. A phrase begins and ends where a word does, save in
scripts written without spaces.

One lookup per prefix and token, whatever the number of phrases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from speechkit.asr.trie import Trie
from speechkit.text import has_unspaced_script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from speechkit.asr.spelling import Speller

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = ["HotwordGraph", "factor"]

OTHER, SILENT, PART = 0, 1, 2  # columns of the automaton: letters of no phrase, what writes nothing, ends of words
# nats: with more, a phrase that breaks off has filled the beam with its stumps, each of which could only go on by
# swallowing the sentence; with half of it, words drowned in noise are mended less often
CREDIT = 8.0
STEEPEST = 200.0  # nats of one step: e to the 700 is too much for a float


class HotwordGraph:
    """`phrases` are token lists (each of at least one letter), `texts` what they were spelled from."""

    kind = "hotwords"

    def __init__(self, phrases: Sequence[list[int]], texts: Sequence[str], speller: Speller, weight: float) -> None:
        used = sorted({token for phrase in phrases for token in phrase if not speller.boundary[token]})
        self.columns = np.where(speller.silent, SILENT, np.where(speller.boundary, PART, OTHER))  # (V + 2,)
        self.columns[used] = np.arange(3, 3 + len(used))
        self.width = 3 + len(used)
        parts = speller.space is not None
        rows = [
            [PART] * (parts and not has_unspaced_script(text[0]))
            + self.columns[phrase].tolist()
            + [PART] * (parts and not has_unspaced_script(text[-1]))
            for phrase, text in zip(phrases, texts, strict=True)
        ]
        trie, ends = Trie.of(rows, self.width)
        letters = np.zeros(len(trie))  # of each node's sequence
        for number in range(1, len(trie.levels) + 1):
            at = trie.level(number)
            letters[at] = letters[trie.parents[at]] + (trie.symbols[at] != PART)
        gain, credit = _rewards(trie, np.unique(ends), letters)
        credit = np.clip(credit * weight, -CREDIT, CREDIT)
        most = STEEPEST - 2 * CREDIT  # of what one step earns: with the credits it must not be too steep
        self.gain = np.clip(gain * weight, -most, most)
        self.goto, nats = self._close(trie, self.gain, credit)
        self.factor = factor(nats)
        # what the end of the sentence does: it ends a word, and takes back the credit of what has only begun
        last = self.goto[:, PART] if parts else np.arange(len(trie))
        self.last = factor((nats[:, PART] if parts else 0.0) - credit[last])
        self.start: tuple[int, ...] = (int(self.goto[0, PART]) if parts else 0,)

    def _close(self, trie: Trie, gain: Floats, credit: Floats) -> tuple[Ints, Floats]:
        """Automaton → (nodes, columns) next node, and nats for going there."""
        goto = np.zeros((len(trie), self.width), np.int64)
        suffixes, nodes = trie.suffixes(), np.arange(len(trie))
        for number in range(len(trie.levels)):
            here = nodes[trie.level(number)] if number else nodes[:1]
            if number:
                goto[here] = goto[suffixes[here]]
            below = nodes[trie.level(number + 1)]
            goto[trie.parents[below], trie.symbols[below]] = below
        leaves = nodes[trie.level(len(trie.levels))]
        goto[leaves] = goto[suffixes[leaves]]
        worth = gain[goto] + credit[goto] - credit[:, None]
        parted = trie.symbols == PART  # a second end of word in a row ends nothing
        goto[parted, PART], worth[parted, PART] = nodes[parted], 0.0
        goto[:, SILENT], worth[:, SILENT] = nodes, 0.0
        return goto, worth

    def factors(self, state: Ints, tokens: Ints) -> Floats:
        return self.factor.reshape(-1).take((state[0] * self.width)[:, :, None] + self.columns[tokens][:, None, :])

    def advance(self, state: Ints, tokens: Ints) -> None:
        state[0] = self.goto.reshape(-1).take(state[0] * self.width + self.columns[tokens])

    def finish(self, state: Ints) -> Floats:
        return self.last[state[0]]

    def worth(self, tokens: Sequence[int]) -> tuple[float, int]:
        """Nats that the phrases in a whole sentence earn; no words."""
        node, earned = self.start[0], 0.0
        for column in [*self.columns[list(tokens)].tolist(), PART]:
            after = int(self.goto[node, column])
            idle = column == SILENT or (column == PART and after == node)  # a second end of word ends nothing
            earned += 0.0 if idle else float(self.gain[after])
            node = after
        return earned, 0


def factor(nats: Floats) -> Floats:
    """exp, and never 0 or infinite: what it is multiplied with may be divided out again."""
    return np.exp(np.clip(nats, -STEEPEST, STEEPEST))


def _rewards(trie: Trie, ends: Ints, letters: Floats) -> tuple[Floats, Floats]:
    """Per node, in characters: what the phrases ending there earn, and the credit for what has begun and may go on."""
    gain, credit, done = np.zeros((3, len(trie)))
    gain[ends] = letters[ends]
    goes_on = np.zeros(len(trie), bool)
    goes_on[trie.parents[1:]] = True
    is_end = np.zeros(len(trie), bool)
    is_end[ends] = True
    suffixes, parents = trie.suffixes(), trie.parents
    for number in range(1, len(trie.levels) + 1):
        for node in range(trie.level(number).start, trie.level(number).stop):
            done[node] = letters[node] if is_end[node] else done[parents[node]]  # earned already on this branch
            gain[node] += gain[suffixes[node]]
            own = letters[node] - done[node] if goes_on[node] else 0.0
            credit[node] = max(own, credit[suffixes[node]])
    return gain, credit
