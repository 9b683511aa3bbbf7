"""Waveform augmentation: make few voices sound like many speakers, rooms, microphones and lines.

In and out: float32 (T,), 16 kHz. The same generator state gives the same sound. Speaker changes (rate, pitch, formants)
come before channel changes (room, equaliser, band limit, noise, level, codec), as they do in nature. NumPy, soxr and
libsndfile do all of it: no GPU, no torchaudio. The time per second of audio does not depend on the length of the clip.
Knows no data set and no trainer.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit import audio as audio_in
from speechkit.errors import AudioError, DataError, PlanError
from speechkit.training.effects import (
    CODECS,
    RATE,
    band_limit_hz,
    change_speed,
    colored_noise,
    overload,
    room,
    shift_formants,
    shift_pitch,
    through_codec,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Augmentation", "augment"]

QUIET = 1e-5  # RMS below which a stretch of a recording is no noise to add
KEPT = 64  # decoded noises and responses held in memory
LONGEST_S = 30.0  # of a noise file: what lies behind it is not used


@dataclass(frozen=True)
class Augmentation:
    """How far and how often a clip is changed; probabilities are per clip. What is 0 draws no random number."""

    speed: tuple[float, float] = (0.9, 1.12)  # resampling: rate, pitch and formants together
    speed_p: float = 0.6
    formants: tuple[float, float] = (0.9, 1.14)  # vocal-tract length, pitch untouched
    formants_p: float = 0.3
    room_p: float = 0.3
    equalizer_p: float = 0.5
    band_p: float = 0.35  # telephone and 8 kHz recordings
    noise_p: float = 0.6
    snr_db: tuple[float, float] = (5.0, 35.0)
    gain_db: tuple[float, float] = (-18.0, 6.0)
    pad_s: tuple[float, float] = (0.0, 0.4)  # silence before and after
    pitch: tuple[float, float] = (0.85, 1.18)  # the voice's, its formants and timing untouched
    pitch_p: float = 0.0
    noise_files: tuple[str, ...] = ()  # recordings of noise, or folders of them; the made noise remains beside them
    noise_files_p: float = 0.7  # share of the noise that comes from these
    responses: tuple[str, ...] = ()  # impulse responses of rooms, or folders of them; they replace the made rooms
    overload_p: float = 0.0  # recorded too loud
    codec_p: float = 0.0
    codecs: tuple[str, ...] = ("ulaw", "gsm", "mp3")  # "adpcm", "vorbis" and "opus" too; opus costs four times mp3

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name.endswith("_p") and not 0 <= value <= 1:
                raise PlanError(f"{option.name} is {value}; a probability lies in [0, 1]")
            if option.name in ("speed", "formants", "pitch", "snr_db", "gain_db", "pad_s") and value[0] > value[1]:
                raise PlanError(f"{option.name} is {value}; give the smaller number first")
            if option.name in ("speed", "formants", "pitch") and not 0.4 <= value[0] <= value[1] <= 2.5:
                raise PlanError(f"{option.name} is {value}; factors lie in [0.4, 2.5], beyond that speech is no speech")
        unknown = sorted(set(self.codecs) - set(CODECS))
        if unknown or (self.codec_p and not self.codecs):
            raise PlanError(f"codecs are {self.codecs}; choose from {', '.join(CODECS)}")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Augmentation:
        """Options by name, as JSON holds them (lists for tuples). Raises PlanError for a name that there is not.

        PlanError too for a value of another kind than the option's own.
        """
        known = [option.name for option in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise PlanError(f"augmentation has no option {', '.join(unknown)}; it has {', '.join(known)}")
        options: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
        for name, value in options.items():
            example = ("folder",) if getattr(cls, name) == () else getattr(cls, name)
            if not _alike(value, example):
                raise PlanError(f"augmentation's {name} is {value!r}; it should be like {example!r}")
        return cls(**options)


def _alike(value: Any, example: Any) -> bool:
    """Whether both are numbers, pairs of numbers, or tuples of names."""
    if isinstance(example, tuple):
        pair = not isinstance(example[0], str)
        return isinstance(value, tuple) and (not pair or len(value) == 2) and all(_alike(v, example[0]) for v in value)
    kinds = str if isinstance(example, str) else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool)


def augment(samples: np.ndarray, rng: np.random.Generator, how: Augmentation) -> np.ndarray:
    """Apply a random selection of changes; float32 (T',), peak within 1.

    Raises AudioError for what is no mono signal, DataError for noise files or responses that are not there.
    """
    if samples.ndim != 1 or not len(samples) or not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"samples are {samples.dtype} of shape {samples.shape}; wanted float32 (T,), T of 1 or more")
    x = samples
    if rng.random() < how.speed_p:
        x = change_speed(x, float(rng.uniform(*how.speed)))
    if how.pitch_p and rng.random() < how.pitch_p:
        x = shift_pitch(x, float(rng.uniform(*how.pitch)))
    if rng.random() < how.formants_p:
        x = shift_formants(x, float(rng.uniform(*how.formants)))
    before, after = (int(rng.uniform(*how.pad_s) * RATE) for _ in range(2))
    x = np.pad(x, (before, after))
    x = _channel(x, rng, how)
    if rng.random() < how.noise_p:
        x = _add_noise(x, rng, how)
    x = x * 10 ** (float(rng.uniform(*how.gain_db)) / 20)
    if how.overload_p and rng.random() < how.overload_p:
        x = overload(x, float(rng.uniform(3, 12)))
    if how.codec_p and rng.random() < how.codec_p:
        x = through_codec(x, how.codecs[int(rng.integers(len(how.codecs)))])
    return np.clip(x, -1, 1).astype(np.float32)


def _channel(x: np.ndarray, rng: np.random.Generator, how: Augmentation) -> np.ndarray:
    """Room, equaliser and band limit are all filters: one multiplication in the frequency domain."""
    response = _response(rng, how) if rng.random() < how.room_p else None
    equalize, band = rng.random() < how.equalizer_p, rng.random() < how.band_p
    if response is None and not equalize and not band:
        return x
    size = len(x) + (len(response) if response is not None else 0)
    size += (-size) % 1024  # few distinct, smooth lengths: the FFT stays fast
    spectrum = np.fft.rfft(x, size)
    frequencies = np.fft.rfftfreq(size, 1 / RATE)
    if response is not None:
        spectrum *= np.fft.rfft(response, size)
    if equalize:
        knots = np.array([0, 250, 700, 1500, 3000, 5000, 8000])
        curve = np.interp(frequencies, knots, rng.uniform(-8, 8, len(knots)))
        spectrum *= 10 ** (curve / 20)
    if band:
        spectrum *= band_limit_hz(frequencies, float(rng.uniform(20, 250)), float(rng.uniform(3000, 3900)))
    return np.fft.irfft(spectrum, size)[: len(x)].astype(np.float32)


def _response(rng: np.random.Generator, how: Augmentation) -> np.ndarray:
    if not how.responses:
        return room(rng, float(rng.uniform(0.05, 0.45)))
    files = _files(how.responses)
    return _measured_room(files[int(rng.integers(len(files)))])


def _add_noise(x: np.ndarray, rng: np.random.Generator, how: Augmentation) -> np.ndarray:
    snr_db = float(rng.uniform(*how.snr_db))
    level = float(np.sqrt(np.mean(x**2))) * 10 ** (-snr_db / 20)
    if how.noise_files and rng.random() < how.noise_files_p:
        return x + level * _recorded_noise(len(x), rng, how.noise_files)
    return x + level * colored_noise(rng, len(x), float(rng.uniform(0, 2)))


def _recorded_noise(count: int, rng: np.random.Generator, places: tuple[str, ...]) -> np.ndarray:
    """(count,) of a recording from anywhere within it, repeated where it is shorter; RMS 1, or silence."""
    files = _files(places)
    noise = _decoded(files[int(rng.integers(len(files)))])
    start = int(rng.integers(max(1, len(noise) - count + 1)))
    piece = np.resize(noise[start:], count)
    loudness = float(np.sqrt(np.mean(piece**2)))
    return piece / np.float32(loudness) if loudness > QUIET else np.zeros_like(piece)


@lru_cache(maxsize=8)
def _files(places: tuple[str, ...]) -> tuple[str, ...]:
    """Files, and the files in folders, sorted. Raises DataError when there is none."""
    from speechkit.asr.files import SUFFIXES  # here: it brings torch, which most of this file does without

    found: list[str] = []
    for place in places:
        inside = [str(file) for file in Path(place).rglob("*") if file.suffix.lower() in SUFFIXES]
        found += sorted(inside) if Path(place).is_dir() else [place]
    absent = [file for file in found if not Path(file).is_file()]
    if absent or not found:
        what = f"{absent[0]} does not exist" if absent else f"no audio file in {', '.join(places)}"
        raise DataError(f"{what}: noise_files and responses name audio files, or folders that hold some")
    return tuple(found)


@lru_cache(maxsize=KEPT)
def _decoded(file: str) -> np.ndarray:
    return np.ascontiguousarray(audio_in.load(file)[: int(LONGEST_S * RATE)])


@lru_cache(maxsize=KEPT)
def _measured_room(file: str) -> np.ndarray:
    """A response from its direct sound on, which is given size 1: the speech stays where and as loud as it was."""
    response = _decoded(file)
    first = int(np.abs(response).argmax())
    return response[first:] / response[first]
