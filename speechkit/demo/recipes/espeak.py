"""Text → speech with espeak-ng's library from the wheel `espeakng-loader`. In: text and a voice. Out: 16 kHz float32.

Knows nothing of datasets. The library keeps global state: one synthesiser per process.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from speechkit.demo.recipes.variants import drawn_variant
from speechkit.errors import DataError
from speechkit.extras import require

__all__ = ["EspeakVoice", "synthesize"]

SYNCHRONOUS, POSITION_CHARACTER, UTF8 = 2, 1, 1
RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER
DRAWN = re.compile(r"drawn\d+")
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class EspeakVoice:
    """A language's voice with a speaker variant and a delivery."""

    language: str  # "en-us", "pl", "cmn", …
    variant: str = ""  # "f3", "Alicia", …, "drawn17" for a made-up one; "" is the language's own voice
    words_per_minute: int = 165
    pitch: int = 50  # 0–99
    pitch_range: int = 50  # 0–99; 0 is monotone

    @property
    def name(self) -> str:
        return f"{self.language}+{self.variant}" if self.variant else self.language


@cache
def _library() -> tuple[Any, int, list[bytes], Any]:
    loader = require("espeakng_loader", extra="synth")
    library = ctypes.cdll.LoadLibrary(str(loader.get_library_path()))
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, str(_data()).encode(), 0)
    if rate <= 0:
        raise DataError(f"espeak-ng does not start with the data in {_data()}")
    pieces: list[bytes] = []

    def collect(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, count * 2))
        return 0

    callback = Callback(collect)  # kept in the tuple: ctypes does not hold it
    library.espeak_SetSynthCallback(callback)
    return library, rate, pieces, callback


@cache
def _data() -> Path:
    """A folder that espeak-ng takes for its data, into which variants can be written; gone when the process ends."""
    loader = require("espeakng_loader", extra="synth")
    folder = Path(tempfile.mkdtemp(prefix="espeak-"))
    Finalize(None, shutil.rmtree, (folder, True), exitpriority=1)  # atexit is not run in the processes of a pool
    shutil.copytree(loader.get_data_path(), folder / "data")
    return folder / "data"


def _has_variant(name: str) -> bool:
    path = _data() / "voices" / "!v" / name
    if DRAWN.fullmatch(name) and not path.exists():
        written = path.with_name(f"{name}.{os.getpid()}")  # a forked pool shares the folder: never half a file
        written.write_text(drawn_variant(int(name.removeprefix("drawn"))), encoding="utf-8")
        written.replace(path)
    return path.is_file()


def synthesize(text: str, voice: EspeakVoice) -> np.ndarray:
    """Speak `text`; float32 (T,), 16 kHz, in [-1, 1]. Raises DataError for a voice that espeak-ng does not have."""
    library, rate, pieces, _ = _library()
    if voice.variant and not _has_variant(voice.variant):  # espeak-ng itself would speak with another voice
        known = sorted(path.name for path in (_data() / "voices" / "!v").iterdir())
        raise DataError(f"espeak-ng has no variant {voice.variant!r}; it has: {', '.join(known)}")
    if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
        raise DataError(f"espeak-ng has no language {voice.language!r}; its names look like en-us, pl, cmn, pt-br")
    for parameter, value in ((RATE, voice.words_per_minute), (PITCH, voice.pitch), (RANGE, voice.pitch_range)):
        library.espeak_SetParameter(parameter, value, 0)
    pieces.clear()
    if voice.language == "uk":
        text = text.replace(
            "'", "\u02bc"
        )  # it pauses at the typewriter's apostrophe and reads this one as part of the word
    data = text.encode() + b"\0"
    library.espeak_Synth(data, len(data), 0, POSITION_CHARACTER, 0, UTF8, None, None)
    library.espeak_Synchronize()
    samples = np.frombuffer(b"".join(pieces), dtype=np.int16).astype(np.float32) / 32768
    return soxr.resample(samples, rate, 16000).astype(np.float32)
