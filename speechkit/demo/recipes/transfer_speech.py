"""Labelled speech of one language for measuring what minutes buy: to train on, to choose by, to be scored on.

In: a language, minutes, sizes, a seed. Out: `Labelled`. The same seed gives the same sentences and voices; one minute
is the beginning of three. What was rendered is kept: espeak-ng's breath and flutter differ every time. Knows no
model. Needs the extra `synth`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from speechkit import audio, demo
from speechkit.demo import DemoClip
from speechkit.demo.recipes.corpus import Store, render, sentences, write_store
from speechkit.demo.recipes.grammar import Grammar
from speechkit.demo.recipes.heldout import spoken
from speechkit.errors import DataError
from speechkit.training.data import Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from speechkit.demo.recipes.corpus import Row

__all__ = ["Labelled", "held_out_clips", "speak"]

PIECE = 64  # sentences rendered at a time, until there are minutes enough
SEED_ROOM = 1_000_000  # between the voices of two seeds


@dataclass(frozen=True, repr=False)
class Labelled:
    """The speech of one language for all points: to train on, to choose by, and to be scored on."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]

    def first(self, minutes: float) -> tuple[Example, ...]:
        """The first clips, until `minutes` are full: what three minutes hold, ten hold as well.

        Raises DataError where there are not so many.
        """
        ends = list(accumulate(one.seconds or 0.0 for one in self.train))
        if not ends or ends[-1] < 60 * minutes:
            held = ends[-1] / 60 if ends else 0.0
            raise DataError(f"{minutes:g} min were asked for, {held:.1f} min were spoken: call speak with more minutes")
        return self.train[: next(at for at, end in enumerate(ends, 1) if end >= 60 * minutes)]

    def __repr__(self) -> str:
        parts = ((name, getattr(self, name)) for name in ("train", "dev", "test"))
        told = (f"{name} {len(rows)} clips, {sum(r.seconds or 0 for r in rows) / 60:.1f} min" for name, rows in parts)
        return f"Labelled({'; '.join(told)})"


def speak(language: str, minutes: float, folder: Path, sizes: tuple[int, int] = (24, 100), seed: int = 1) -> Labelled:
    """`minutes` of training speech, and `sizes` clips to choose by and to be scored on, rendered or opened in `folder`.

    Training and choosing: other sentences by voices that may be trained on. Scoring: `heldout.spoken`, held-out
    sentences by held-out voices. A later call with more minutes adds to what is there. Raises DataError for a folder
    that holds other speech, MissingExtra without espeak-ng.
    """
    grammar, made = Grammar(language), f"{language}, seed {seed}, {sizes[0]} and {sizes[1]} clips"
    record = folder / "made_from.txt"
    held = record.read_text(encoding="utf-8").strip() if record.is_file() else made
    if held != made:
        raise DataError(f"{folder} holds the speech of {held}; wanted: {made}; name another folder, or remove that one")
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(f"{made}\n", encoding="utf-8")
    train: list[Example] = []
    dev = _kept(folder / "dev", _others(grammar, 0, sizes[0], seed), language)
    test = _kept(folder / "test", _held_out(language, sizes[1], seed), language)
    while sum(one.seconds or 0.0 for one in train) < 60 * minutes:
        at = sizes[0] + len(train)
        train += _kept(folder / f"train-{at}", _others(grammar, at, PIECE, seed), language)
    return Labelled(tuple(train), dev, test)


def held_out_clips(language: str, count: int, folder: Path, seed: int = 1) -> list[DemoClip]:
    """The embedded clips of a language and `count` more held-out sentences, written to `folder` as FLAC to be heard."""
    folder.mkdir(parents=True, exist_ok=True)
    found = demo.clips(language)
    for number, one in enumerate(spoken(count, seed, language), 1):
        path = audio.write(folder / f"{language}-held-out-{number:02d}.flac", one.samples)
        found.append(DemoClip(path, language, one.text, one.voice, len(one.samples) / audio.SAMPLE_RATE))
    return found


def _others(grammar: Grammar, first: int, count: int, seed: int) -> Iterator[Row]:
    """Sentences first, first + 1, … of one long list, each by a voice of its own."""
    texts = sentences(grammar, random.Random(f"transfer {seed}"), first + count, test=False)[first:]
    yield from render(texts, test=False, seed=seed * SEED_ROOM + first, code=grammar.language)


def _held_out(language: str, count: int, seed: int) -> Iterator[Row]:
    for one in spoken(count, seed, language):
        yield one.samples, one.text, one.voice, "test"


def _kept(folder: Path, speech: Iterator[Row], language: str) -> tuple[Example, ...]:
    """The clips in `folder`, or those of `speech`, which nobody speaks otherwise: its breath differs every time."""
    store = Store(folder) if (folder / "clips.jsonl").is_file() else write_store(folder, speech)
    rows = ((f"{folder.name}/{at:03d}", clip, store.samples(clip)) for at, clip in enumerate(store.clips))
    return tuple(Example(heard, clip.text, name, clip.speaker, language, clip.seconds) for name, clip, heard in rows)
