"""Train an n-gram model: interpolated modified Kneser-Ney (Chen & Goodman 1999, doi:10.1006/csla.1999.0128, section 3).

In: sentences. Out: an `NGram`. With a(g) the adjusted count of an n-gram g = (context h, unit w), discounts D and the
context without its oldest unit h':

    p(w | h) = (a(hw) - D(a(hw))) / a(h*) + γ(h) p(w | h'),        γ(h) = Σ_w D(a(hw)) / a(h*)

a is the count for the highest order, and below it the number of different units seen before g; an n-gram that begins a
sentence has nothing before it and keeps its count (Heafield et al. 2013, section 3). Under the 1-grams lies the uniform
distribution, which is all that `<unk>` gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from speechkit.asr.lm import BEGIN, END, SPACE, UNKNOWN, NGram
from speechkit.asr.trie import Trie
from speechkit.errors import DataError
from speechkit.text import normalize

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from speechkit.asr.lm import Unit

__all__ = ["train"]

NEVER = -99.0 * np.log(10.0)  # nothing is followed by <s>
# where counts of counts are too thin to estimate discounts from (a handful of sentences): lmplz's fallback
FALLBACK = (0.5, 1.0, 1.5)


def train(texts: Iterable[str], order: int = 3, unit: Unit = "word", language: str | None = None) -> NGram:
    """Sentences, one string each → model of `order`. They are normalised as models' transcripts are (`text.normalize`).

    unit: "word", or "char" for scripts written without spaces (a space between words becomes `|`). Raises DataError for
    an order below 1 or for text without a single letter.
    """
    if order < 1:
        raise DataError(f"order is {order}; an n-gram model needs 1 or more (3 for words, 5 for characters)")
    if unit not in ("word", "char"):
        raise DataError(f"unit is {unit!r}; it can be 'word' or 'char'")
    if isinstance(texts, str):
        raise DataError("texts is one string; give a list of sentences, each of them a string")
    normal = (normalize(text, language) for text in texts)
    sentences = [list(text.replace(" ", SPACE)) if unit == "char" else text.split() for text in normal]
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        raise DataError("there is nothing to train on: no sentence holds a letter or a number")
    words = [UNKNOWN, BEGIN, END, *sorted({word for sentence in sentences for word in sentence})]
    trie, nodes = _count(sentences, words, order)
    adjusted = [_adjusted(trie, nodes, n) for n in range(1, order + 1)]
    return _estimate(trie, adjusted, tuple(words), unit)


def _count(sentences: list[list[str]], words: list[str], order: int) -> tuple[Trie, list[NDArray[np.int64]]]:
    """Trie of all n-grams up to `order`, and per n the node of the n-gram that ends at each position, -1 for none."""
    index = {word: number for number, word in enumerate(words)}
    ends = np.cumsum([len(sentence) + 2 for sentence in sentences])
    stream = np.fromiter((index[w] for sentence in sentences for w in (BEGIN, *sentence, END)), np.int64, int(ends[-1]))
    age = np.arange(len(stream)) - np.repeat(np.append(0, ends[:-1]), np.diff(ends, prepend=0))  # 0 at each <s>
    trie = Trie(len(words))
    trie.grow(np.zeros(len(words), np.int64), np.arange(len(words)))
    nodes = [stream + 1]
    for n in range(2, order + 1):
        here = np.flatnonzero(age >= n - 1)
        row = np.full(len(stream), -1, np.int64)
        row[here] = trie.grow(nodes[-1][here - 1], stream[here])
        nodes.append(row)
    return trie, nodes


def _adjusted(trie: Trie, nodes: list[NDArray[np.int64]], n: int) -> NDArray[np.int64]:
    """(n-grams of length n,) adjusted counts in the order of their nodes."""
    rows = trie.level(n)
    size = rows.stop - rows.start
    here = nodes[n - 1]
    counts = np.bincount(here[here >= 0] - rows.start, minlength=size)
    if n < len(nodes):
        longer = nodes[n]
        _, first = np.unique(longer, return_index=True)  # one position per different longer n-gram
        first = first[longer[first] >= 0]
        different = np.bincount(here[first] - rows.start, minlength=size)
        counts = np.where(different > 0, different, counts)  # nothing ever stands before <s>
    if n == 1:
        counts[[0, 1]] = 0  # <unk> was never seen; <s> is a context and never predicted
    return counts


def _discounts(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(4,) what is taken off a count of 0, 1, 2, 3 and more: Chen & Goodman's equation 26."""
    once, twice, thrice, four = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if min(once, twice, thrice) == 0:
        return np.array([0.0, *FALLBACK])
    y = once / (once + 2 * twice)
    found = [1 - 2 * y * twice / once, 2 - 3 * y * thrice / twice, 3 - 4 * y * four / thrice]
    if not all(0 <= discount <= k for k, discount in enumerate(found, 1)):
        return np.array([0.0, *FALLBACK])
    return np.array([0.0, *found])


def _estimate(trie: Trie, adjusted: list[NDArray[np.int64]], words: tuple[str, ...], unit: Unit) -> NGram:
    """Interpolate from the uniform distribution upwards."""
    p, gamma = np.zeros(len(trie)), np.ones(len(trie))
    shorter, parents = trie.suffixes(), trie.parents
    for n, counts in enumerate(adjusted, 1):
        rows = trie.level(n)
        discount = _discounts(counts)[np.minimum(counts, 3)]
        context = parents[rows]
        total = np.bincount(context, counts, minlength=len(trie))
        off = np.bincount(context, discount, minlength=len(trie))
        gone_on = total > 0
        gamma[gone_on] = off[gone_on] / total[gone_on]
        below = p[shorter[rows]] if n > 1 else 1.0 / (len(words) - 1)  # <s> is not among what can come next
        p[rows] = (counts - discount) / total[context] + gamma[context] * below
    tiny = np.finfo(float).tiny
    logp, backoff = np.log(np.maximum(p, tiny)), np.log(np.maximum(gamma, tiny))
    logp[0] = backoff[0] = 0.0
    logp[1 + words.index(BEGIN)] = NEVER
    return NGram(words, trie, logp, backoff, shorter, unit)
