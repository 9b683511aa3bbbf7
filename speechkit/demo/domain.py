"""A domain that demo/en has not heard, as a user would bring it: recordings, a CSV of what is said, and some bad rows.

In: a folder, and how many clips. Out: `Domain`, four CSV files (file, text, speaker) with FLAC clips beside them.
Spoken by espeak-ng: air-traffic control after `recipes/domain_atc.toml`, and the everyday sentences that demo/en knows.
Who speaks in a test set speaks in no training set, and no sentence stands in both. The same seed gives the same
sentences, voices, rates and pitches; espeak-ng's breath and flutter differ from run to run. Needs the extra `synth`.
Knows no model.
"""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechkit import audio
from speechkit.errors import DataError, OutputError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from speechkit.demo.recipes.grammar import Grammar

__all__ = ["SPOILED", "TEST_VOICES", "TRAIN_VOICES", "Domain", "DomainOptions", "write_domain"]

GRAMMAR = "domain_atc.toml"
# accent and variant of espeak-ng, pitch; the test voices are the variants that demo/en was never trained on either
TRAIN_VOICES = (
    ("en-us", "f2", 55), ("en", "m3", 45), ("en-us", "Andy", 40), ("en-gb-x-rp", "Annie", 60), ("en-us", "belinda", 50),
    ("en-gb-scotland", "max", 45), ("en", "robert", 50), ("en-us", "f5", 45), ("en-gb-x-rp", "m7", 50),
    ("en-us", "steph3", 55),
)  # fmt: skip
TEST_VOICES = (
    ("en-us", "Alicia", 55), ("en", "Michael", 45), ("en-gb-x-rp", "edward", 40), ("en-us", "linda", 60),
    ("en", "steph", 50),
)  # fmt: skip
SPOILED = ("spoiled-0.flac", "spoiled-1.flac", "spoiled-2.flac")  # no text, no sound file, cut short
CUT_S = 0.4  # what is left of a clip that was cut short
EDGE = 800  # samples of silence that are kept around a sentence: 50 ms
HEAD = ("file", "text", "speaker")
Voice = tuple[str, str, int]
Row = tuple[str, str, str]


@dataclass(frozen=True)
class DomainOptions:
    """How many clips of each kind."""

    train: int = 60  # of the domain, to train on; the bad rows come on top
    test: int = 60  # of the domain, by other voices
    general: int = 60  # everyday sentences by the training voices, to mix into training
    general_test: int = 60  # everyday sentences by the test voices: what must not be forgotten
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train", "test", "general", "general_test"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}; give the number of clips, 1 or more")


@dataclass(frozen=True)
class Domain:
    """Where the tables are, and what is new in them; printing it says what they hold."""

    folder: Path
    train: Path
    test: Path
    general: Path
    general_test: Path
    new_words: tuple[str, ...] = field(repr=False)  # of the domain, in no everyday sentence of demo/en
    options: DomainOptions = field(default_factory=DomainOptions, repr=False)

    def __str__(self) -> str:
        counts = self.options
        rows = [
            (self.train, f"{counts.train} clips of the domain by {len(TRAIN_VOICES)} voices, {len(SPOILED)} bad rows"),
            (self.test, f"{counts.test} clips of the domain by {len(TEST_VOICES)} other voices, other sentences"),
            (self.general, f"{counts.general} everyday sentences by the voices of {self.train.name}"),
            (self.general_test, f"{counts.general_test} everyday sentences by the voices of {self.test.name}"),
        ]
        new = f"{len(self.new_words)} words that the everyday sentences lack, such as {', '.join(self.new_words[::9])}"
        return "\n".join([f"in {self.folder}:", *(f"  {path.name:17} {what}" for path, what in rows), new])


def write_domain(folder: str | os.PathLike[str], options: DomainOptions | None = None) -> Domain:
    """Speak and write everything, over what a call before has written.

    Raises OutputError where `folder` cannot be written, MissingExtra without espeak-ng.
    """
    from speechkit.demo.recipes.grammar import Grammar

    chosen, target = options or DomainOptions(), Path(folder)
    domain, everyday = Grammar("en", GRAMMAR), Grammar("en")
    sets = {
        "train": (domain, chosen.train, TRAIN_VOICES),
        "test": (domain, chosen.test, TEST_VOICES),
        "general": (everyday, chosen.general, TRAIN_VOICES),
        "general_test": (everyday, chosen.general_test, TEST_VOICES),
    }
    try:
        for name, (grammar, count, voices) in sets.items():
            rows = _spoken(grammar, count, voices, f"{name} {chosen.seed}", target / name)
            _write_table(target / f"{name}.csv", _spoiled(rows, target / name) if name == "train" else rows)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error}; give another folder") from error
    new = tuple(sorted(domain.vocabulary() - everyday.vocabulary()))
    train, test, general, general_test = (target / f"{name}.csv" for name in sets)
    return Domain(target, train, test, general, general_test, new, chosen)


def _spoken(grammar: Grammar, count: int, voices: Sequence[Voice], seed: str, clips: Path) -> list[Row]:
    """`count` sentences, the voices in turn; those that `corpus.held_out` keeps for tests where `clips` is a test."""
    from speechkit.demo.recipes.corpus import sentences
    from speechkit.demo.recipes.espeak import EspeakVoice, synthesize

    rng = random.Random(seed)
    texts = sentences(grammar, rng, count, test=clips.name.endswith("test"))
    clips.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, text in enumerate(texts):
        accent, variant, pitch = voices[number % len(voices)]
        voice = EspeakVoice(accent, variant, rng.randint(135, 185), pitch + rng.randint(-5, 5))
        path = audio.write(clips / f"{number:03}.flac", _levelled(synthesize(text, voice)))
        rows.append((f"{clips.name}/{path.name}", f"{text[0].upper()}{text[1:]}.", variant))
    return rows


def _levelled(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without the silence that espeak-ng leaves around a sentence, at a common level."""
    size = np.abs(samples)
    loud = np.flatnonzero(size > 0.01 * size.max())
    around = samples[max(0, loud[0] - EDGE) : loud[-1] + EDGE]
    return np.asarray(around * (0.7 / size.max()), np.float32)


def _spoiled(rows: list[Row], clips: Path) -> list[Row]:
    """The rows, and three as collections have them: without text, with a file that is no sound, cut short."""
    samples = audio.load(clips.parent / rows[0][0])
    audio.write(clips / SPOILED[0], samples)
    (clips / SPOILED[1]).write_bytes(b"<html>404 Not Found</html>\n")
    audio.write(clips / SPOILED[2], samples[: int(CUT_S * audio.SAMPLE_RATE)])
    bad = zip(SPOILED, ("", rows[1][1], rows[0][1]), ("f2", "m3", "f2"), strict=True)
    return [*rows, *((f"{clips.name}/{file}", text, speaker) for file, text, speaker in bad)]


def _write_table(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEAD, *rows])
