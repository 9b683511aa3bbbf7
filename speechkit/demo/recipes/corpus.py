"""The training material: rendered sentences and real recordings in one store on disk.

A store is `audio.i16` (all samples, int16, 16 kHz, end to end) and `clips.jsonl` (one `Clip` a line).
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import subprocess
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from shutil import which
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr

from speechkit.demo.recipes.clips import SPOKEN
from speechkit.demo.recipes.espeak import EspeakVoice, synthesize
from speechkit.demo.recipes.languages import language
from speechkit.errors import DataError
from speechkit.text import normalize, split_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from speechkit.demo.recipes.grammar import Grammar

__all__ = [
    "HELD_OUT_VARIANTS",
    "Clip",
    "Row",
    "Store",
    "held_out",
    "real_clips",
    "render",
    "sentences",
    "single_words",
    "write_store",
]

VARIANTS = (
    "Alex Andrea Andy Annie Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco Mario Mike Nguyen Reed adam anika "
    "announcer antonio aunty belinda benjamin boris caleb david ed edward2 f1 f2 f3 f4 f5 grandma grandpa gustave ian "
    "iven iven2 iven3 john kaukovalta klatt klatt2 klatt3 klatt4 m1 m2 m3 m4 m5 m6 m7 m8 marcelo max michel miguel "
    "mike2 norbert pablo paul pedro quincy rob robert sandro shelby steph2 steph3 travis victor zac"
).split()
HELD_OUT_VARIANTS = ["Alicia", "Michael", "edward", "linda", "steph"]
FLITE_SHARE = 0.15
DRAWN_SHARE, DRAWN_VARIANTS = 0.5, 800  # made-up speakers (variants.py), of what espeak-ng speaks
FLITE_VOICES = ["rms", "slt", "awb", "kal16"]
CHUNK = 32  # texts handed to a process at once
OTHER_VOICE = 500_009  # added to a seed
Row = tuple[np.ndarray, str, str, str]  # samples (T,), text, speaker, pool
Job = tuple[str, bool, int, str]  # text, test, seed, language
# licences under which weights may be trained and shipped (design §7); anything else in the manifest is left alone
FREE_GROUPS = {"digits_en_fsdd": "digits", "words_en_speechcommands": "words", "sentences_en_librispeech": "sentences"}


@dataclass(frozen=True)
class Clip:
    """One utterance of the store."""

    text: str
    speaker: str
    pool: str  # "synthetic", "digits", "words", "sentences"
    first: int  # sample
    count: int  # samples

    @property
    def seconds(self) -> float:
        return self.count / 16000


class Store:
    """Clips with their samples, memory-mapped: a worker process opens its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with (folder / "clips.jsonl").open(encoding="utf-8") as file:
            self.clips = [Clip(**json.loads(line)) for line in file]
        self._audio = np.memmap(folder / "audio.i16", dtype=np.int16, mode="r")

    def samples(self, clip: Clip) -> np.ndarray:
        """float32 (T,), 16 kHz, in [-1, 1]."""
        return self._audio[clip.first : clip.first + clip.count].astype(np.float32) / 32768


def held_out(text: str, share: float = 0.05) -> bool:
    """True for the sentences kept for the test: decided by the text's hash, so that every run agrees."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < share


def sentences(grammar: Grammar, rng: random.Random, count: int, test: bool) -> list[str]:
    """`count` different sentences: held-out ones if `test`, others if not, and none of the embedded clips."""
    embedded = {text for spoken in SPOKEN.values() for text, _ in spoken}
    texts: dict[str, None] = {}  # not a set: the order of its strings differs from run to run
    while len(texts) < count:
        text = normalize(grammar.sentence(rng), grammar.language)
        if held_out(text) == test and text not in embedded and (not test or len(split_words(text)) > 2):
            texts[text] = None
    return list(texts)


def single_words(grammar: Grammar, rng: random.Random, count: int) -> list[str]:
    """`count` words to be spoken alone, half of them digits: in sentences a word never begins with a cold start."""
    # a letter alone ("é", "w", "в") would be spoken as its name
    words = sorted(word for word in grammar.vocabulary() if len(word) > 1 or has_whole_syllables(word))
    return [rng.choice(grammar.slots["digit"] if rng.random() < 0.5 else words) for _ in range(count)]


def has_whole_syllables(character: str) -> bool:
    """Whether one character is a syllable: ideographs and Hangul."""
    return "\u3400" <= character <= "\u9fff" or "\uac00" <= character <= "\ud7a3"


def write_store(folder: Path, clips: Iterable[Row]) -> Store:
    """Write (samples, text, speaker, pool) one after the other; the index is renamed into place last."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    partial = folder / "clips.jsonl.partial"
    with (folder / "audio.i16").open("wb") as audio, partial.open("w", encoding="utf-8") as index:
        for samples, text, speaker, pool in clips:
            audio.write((np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes())
            clip = Clip(text, speaker, pool, first, len(samples))
            index.write(json.dumps(asdict(clip), ensure_ascii=False) + "\n")
            first += len(samples)
    partial.rename(folder / "clips.jsonl")
    return Store(folder)


def render(texts: list[str], test: bool, seed: int, processes: int = 2, code: str = "en") -> Iterator[Row]:
    """Speak every text with a random voice; held-out voices if `test`, all others if not. Rows hold it normalised.

    espeak-ng dies of a few pairs of text and voice (Mandarin 五八 by "rob" with pitch 26 and range 80): those texts are
    spoken by another voice.
    """
    jobs = [(text, test, seed + number, code) for number, text in enumerate(texts)]
    done = 0
    while done < len(jobs):
        try:
            with ProcessPoolExecutor(processes) as pool:
                for samples, speaker in pool.map(_speak, jobs[done:], chunksize=CHUNK):
                    yield samples, normalize(texts[done], code), speaker, "synthetic"
                    done += 1
        except BrokenProcessPool:  # by one of those that were being spoken: nobody says by which
            for job in jobs[done : done + CHUNK * processes]:
                samples, speaker = _speak_alone(job)
                yield samples, normalize(texts[done], code), speaker, "synthetic"
                done += 1


def _speak_alone(job: Job) -> tuple[np.ndarray, str]:
    """`_speak` in a process of its own; where that dies, with the next voice. Raises BrokenProcessPool after five."""
    text, test, seed, code = job
    for other in range(5):
        try:
            with ProcessPoolExecutor(1) as pool:
                return pool.submit(_speak, (text, test, seed + other * OTHER_VOICE, code)).result()
        except BrokenProcessPool:
            if other == 4:
                raise
    raise AssertionError


def _speak(job: Job) -> tuple[np.ndarray, str]:
    text, test, seed, code = job
    spoken = language(code)
    rng = random.Random(seed)
    if spoken.flite and not test and which("flite") and rng.random() < FLITE_SHARE:
        samples, name = _flite(text, rng), "flite"
    else:
        made_up = not test and rng.random() < DRAWN_SHARE
        variants = HELD_OUT_VARIANTS if test else [*VARIANTS, "", ""]
        variant = f"drawn{rng.randrange(DRAWN_VARIANTS)}" if made_up else rng.choice(variants)
        voice = EspeakVoice(
            rng.choice(spoken.accents),
            variant,
            rng.randint(115, 215),
            rng.randint(15, 85),
            rng.choice([20, 40, 50, 60, 80]),
        )
        samples, name = synthesize(text, voice), voice.name
    peak = float(np.abs(samples).max()) or 1.0
    return _trim(samples) * (0.7 / peak), name


def _flite(text: str, rng: random.Random) -> np.ndarray:
    """Flite's statistical voices (Debian package `flite`): closer to people than formant synthesis."""
    command = ["flite", "-voice", rng.choice(FLITE_VOICES), "--setf", f"duration_stretch={rng.uniform(0.75, 1.25):.2f}"]
    command += ["--setf", f"int_f0_target_mean={rng.randint(80, 230)}", "-t", text, "-o", "/dev/stdout"]
    data = subprocess.run(command, capture_output=True, check=True).stdout  # noqa: S603 — our own words, no shell
    header = data.index(b"data") + 8
    rate = int.from_bytes(data[24:28], "little")
    samples = np.frombuffer(data[header : len(data) - (len(data) - header) % 2], dtype=np.int16).astype(np.float32)
    return soxr.resample(samples / 32768, rate, 16000).astype(np.float32)


def _trim(samples: np.ndarray, keep_s: float = 0.05) -> np.ndarray:
    """Cut the silence that synthesisers put around a sentence."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * (np.abs(samples).max() + 1e-9))
    if not len(loud):
        return samples
    keep = int(keep_s * 16000)
    return samples[max(0, loud[0] - keep) : loud[-1] + keep]


def real_clips(folder: Path) -> Iterator[Row]:
    """(samples, text, speaker, pool) of the real recordings whose licences allow shipped weights."""
    manifest = folder / "manifest.tsv"
    if not manifest.is_file():
        raise DataError(f"no manifest.tsv in {folder}; name the folder of real speech, or leave --speech-data out")
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    for row in rows:
        pool = FREE_GROUPS.get(row["group"])
        if pool is None:
            continue
        samples, rate = soundfile.read(folder / row["path"], dtype="float32")
        samples = soxr.resample(samples, rate, 16000) if rate != 16000 else samples
        yield samples.astype(np.float32), normalize(row["text"]), row["speaker"], pool
