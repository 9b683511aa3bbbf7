"""What a beam search listens to besides the sound: language models, joined to the alphabet of a model that writes.

In: an `Alphabet`, an `NGram`, hotwords. Out: `Fusion`s: for every prefix and every token that it may grow by, a factor.

Each fusion multiplies a prefix's probability as it grows, and the factors along a whole text, its end included, come to
exp(`worth`). On the way they may pay in advance: a word costs nothing until it ends, but as soon as no known word
begins like it, it is paid for as an unknown one, and set right at its end. (The usual look-ahead, charging a word begun
with its most probable end, was tried with unigrams: worse, for it drops rare words that the context would have wanted.)
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Protocol

import numpy as np

from speechkit.asr.hotwords import HotwordGraph, factor
from speechkit.asr.lm import BEGIN, END, SPACE, UNKNOWN, NGram
from speechkit.asr.spelling import Speller
from speechkit.asr.trie import Trie
from speechkit.errors import DataError

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from speechkit.asr.beam import BeamOptions
    from speechkit.asr.decode import Alphabet

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = ["CharFusion", "Fusion", "WordFusion", "fuse"]

OVERLAP = 0.9  # below it a language model is hardly this model's: another script, another case, another language


class Fusion(Protocol):
    """State is S integers per prefix; n clips, K prefixes, C + 1 columns of tokens, V for "no token"."""

    kind: str
    start: tuple[int, ...]  # (S,) the state of the empty prefix

    def factors(self, state: Ints, tokens: Ints) -> Floats:
        """State (S, n, K), tokens (n, C + 1) → (n, K, C + 1) factors, all finite."""

    def advance(self, state: Ints, tokens: Ints) -> None:
        """State (S, n, K) after each prefix has grown by its one of `tokens` (n, K), in place; V changes nothing."""

    def finish(self, state: Ints) -> Floats:
        """State (S, K) → (K,) factors for the end of the sentence."""

    def worth(self, tokens: Sequence[int]) -> tuple[float, int]:
        """A whole sentence's tokens → its natural-log score before weights, and how many words earn the bonus."""


def fuse(
    alphabet: Alphabet,
    options: BeamOptions,
    lm: NGram | str | os.PathLike[str] | None,
    hotwords: Sequence[str],
) -> tuple[tuple[Fusion, ...], tuple[str, ...]]:
    """What is asked for → fusions, and notes on what the alphabet cannot write; each note is warned about too."""
    speller = Speller(alphabet)
    fusions: list[Fusion] = []
    notes: list[str] = []
    if lm is not None:
        model = lm if isinstance(lm, NGram) else NGram.read(lm)
        made: CharFusion | WordFusion = (CharFusion if model.unit == "char" else WordFusion)(model, speller, options)
        fusions.append(made)
        notes += [note for note in (model.note, made.note) if note]
    phrases, note = _phrases(hotwords, speller)
    notes += [note] if note else []
    if phrases:
        fusions.append(HotwordGraph([p for _, p in phrases], [t for t, _ in phrases], speller, options.hotword_weight))
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return tuple(fusions), tuple(notes)


class WordFusion:
    """A model of words. State: its context, and the node of the word begun in the trie of its vocabulary (-1: no word
    begins like this). A word counts when its end arrives, or the end of the sentence.
    """

    kind = "lm"

    def __init__(self, model: NGram, speller: Speller, options: BeamOptions) -> None:
        if speller.space is None:
            raise DataError(
                "the language model is one of words and the acoustic model writes no spaces: use a model of characters "
                "(NGram.train(texts, unit='char'), or NGram.read(path, unit='char') if the file holds one)"
            )
        self.model, self.speller = model, speller
        self.weight, self.bonus = options.lm_weight, options.word_bonus
        spelled = {w: tuple(t) for w, t in ((w, speller.spell(word)) for w, word in enumerate(model.words)) if t}
        for special in (BEGIN, END, UNKNOWN):
            spelled.pop(model.index.get(special, -1), None)
        alone = model.logp[1 : 1 + len(model.words)]  # natural log of each word by itself
        # words that fold into one spelling: the most probable comes last and stays
        self.words = {tokens: w for w, tokens in sorted(spelled.items(), key=lambda item: alone[item[0]])}
        self.note = _overlap_note(model, list(spelled), "words")
        self.trie, nodes = Trie.of(list(self.words), speller.width)
        self.trie.tabulate()
        ids = np.fromiter(self.words.values(), np.int64, len(self.words))
        self.word = np.full(len(self.trie) + 1, model.unknown)  # of each node, the last row for node -1
        self.word[nodes] = ids
        self.mute = speller.silent.copy()
        self.mute[-2:] = False  # "no token": whatever it multiplies is 0
        # paid by a word begun that no known word begins like; the same for each, whatever the context
        self.unknown = float(factor(self.weight * alone[model.unknown]))
        self.start: tuple[int, ...] = (model.start, 0)

    def factors(self, state: Ints, tokens: Ints) -> Floats:
        context, node = state
        child = self.trie.find(node[:, :, None], tokens[:, None, :])
        found = np.where((child < 0) & (node >= 0)[:, :, None], self.unknown, 1.0)
        clip, column = np.nonzero(self.speller.boundary[tokens])
        if len(clip):
            found[clip, :, column] = self._close(context[clip], node[clip])[0]
        clip, column = np.nonzero(self.mute[tokens])
        if len(clip):
            found[clip, :, column] = 1.0
        return found

    def _close(self, context: Ints, node: Ints) -> tuple[Floats, Ints]:
        """Factors for the end of the word begun, and the contexts after it; without a word nothing happens."""
        logp, after = self.model.step(context, self.word.take(node))
        ended = factor(self.weight * logp + self.bonus) / np.where(node < 0, self.unknown, 1.0)
        return np.where(node == 0, 1.0, ended), np.where(node == 0, context, after)

    def advance(self, state: Ints, tokens: Ints) -> None:
        context, node = state
        ends = self.speller.boundary[tokens]
        if ends.any():
            context[ends] = self._close(context[ends], node[ends])[1]
            node[ends] = 0
        grows = ~(ends | self.speller.silent[tokens])
        node[grows] = self.trie.find(node[grows], tokens[grows])

    def finish(self, state: Ints) -> Floats:
        ended, context = self._close(*state)
        if self.model.end is None:
            return ended
        return ended * factor(self.weight * self.model.step(context, np.full_like(context, self.model.end))[0])

    def worth(self, tokens: Sequence[int]) -> tuple[float, int]:
        words: list[list[int]] = [[]]
        for token in tokens:
            if self.speller.boundary[token]:
                words.append([])
            elif not self.speller.silent[token]:
                words[-1].append(token)
        ids = [self.words.get(tuple(word), self.model.unknown) for word in words if word]
        return self.model.score_ids(ids), len(ids)


class CharFusion:
    """A model of characters. State: its context. Every token that writes something counts at once; the end of a word
    counts as `|` if the model has that, else not at all.
    """

    kind = "lm"

    def __init__(self, model: NGram, speller: Speller, options: BeamOptions) -> None:
        self.model, self.weight, self.bonus = model, options.lm_weight, options.word_bonus
        self.unit = np.full(speller.width, -1)  # of each token; -1 for what the model is not asked about
        self.unit[speller.boundary] = model.index.get(SPACE, -1)
        folded = {speller.fold(word): unit for unit, word in enumerate(model.words)}
        for symbol, token in speller.letters.items():
            self.unit[token] = folded.get(symbol, model.unknown)
        self.note = _overlap_note(model, np.unique(self.unit[self.unit >= 0]).tolist(), "characters")
        self.start: tuple[int, ...] = (model.start,)

    def factors(self, state: Ints, tokens: Ints) -> Floats:
        unit = self.unit[tokens]
        logp, _ = self.model.step(state[0][:, :, None], np.maximum(unit, 0)[:, None, :])
        return np.where((unit < 0)[:, None, :], 1.0, factor(self.weight * logp + self.bonus))

    def advance(self, state: Ints, tokens: Ints) -> None:
        unit = self.unit[tokens]
        grows = unit >= 0
        state[0][grows] = self.model.step(state[0][grows], unit[grows])[1]

    def finish(self, state: Ints) -> Floats:
        if self.model.end is None:
            return np.ones(state[0].shape)
        return factor(self.weight * self.model.step(state[0], np.full_like(state[0], self.model.end))[0])

    def worth(self, tokens: Sequence[int]) -> tuple[float, int]:
        units = self.unit[list(tokens)]
        units = units[units >= 0].tolist()
        return self.model.score_ids(units), len(units)


def _overlap_note(model: NGram, written: list[int], what: str) -> str:
    """A sentence when the acoustic model can write less than nine tenths of what the language model expects."""
    p = np.exp(model.logp[1 : 1 + len(model.words)])
    p[[i for i in (model.index.get(name) for name in (BEGIN, END, UNKNOWN)) if i is not None]] = 0.0
    known = np.zeros(len(p), bool)
    known[written] = True
    share = p[known].sum() / p.sum() if p.sum() else 0.0
    if share >= OVERLAP:
        return ""
    rare = sorted(np.flatnonzero(~known & (p > 0)), key=lambda w: -p[w])[:5]
    names = ", ".join(repr(model.words[w]) for w in rare)
    return (
        f"the acoustic model can write {share:.0%} of the language model's {what} (weighted by probability); it cannot "
        f"write {names}: are they for the same language and script?"
    )


def _phrases(hotwords: Sequence[str], speller: Speller) -> tuple[list[tuple[str, list[int]]], str]:
    """Hotwords → (text, tokens) of those that can be written, and a note on the others."""
    if isinstance(hotwords, str):
        raise DataError(f"hotwords is one string, {hotwords[:40]!r}; give a list of phrases")
    phrases, lost = [], []
    for number, hotword in enumerate(hotwords, 1):
        if not hotword.strip():
            raise DataError(f"hotword {number} is empty: give a word or a phrase")
        tokens = speller.spell_freely(hotword)
        if tokens is None:
            lost.append(hotword)
        else:
            phrases.append((hotword.strip(), tokens))
    if not lost:
        return phrases, ""
    names = ", ".join(map(repr, lost[:5])) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
    return phrases, f"left out, because the model's alphabet cannot write them: the hotwords {names}"
