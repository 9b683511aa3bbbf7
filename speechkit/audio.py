"""Any file, bytes or array → mono float32 at 16 kHz; and back to a file. The one door through which sound comes in.

Everything that is read passes :func:`blocks`, in pieces, so an hour of audio costs no more memory than a minute;
:func:`load` is its blocks joined. Channels are averaged, then the rate is converted by soxr (HQ). Knows no model.
"""

from __future__ import annotations

import difflib
import io
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from speechkit.decoders import CHUNK, Damaged, Sound, decode
from speechkit.errors import AudioError, OutputError

__all__ = ["SAMPLE_RATE", "AudioInfo", "Feed", "Samples", "blocks", "duration", "encode", "inspect", "load", "write"]

SAMPLE_RATE = 16000
Samples: TypeAlias = NDArray[np.float32]
# str | PathLike | bytes | file object | array | (array, rate) | {"array", "sampling_rate"} | {"bytes", "path"}
Source: TypeAlias = Any
Shaped: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]  # samples as they were given → (T, C)

RATES = (1000, 768_000)  # Hz; outside, the number is a mistake (16 for 16 kHz, samples for rate)
MAX_CHANNELS = 8
MAX_PEAK = 64.0  # float audio a little over ±1 is ordinary; this far over, it holds unscaled integers
SLACK_S = 0.1  # one MP3 frame at 8 kHz lasts 72 ms; headers may be off by that much
CLIPPED = 0.99  # of full scale: 8-bit audio cannot come nearer to 1 on the upper side
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "opus": ("OGG", "OPUS"),
    "ogg": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


@dataclass(frozen=True)
class AudioInfo:
    """What a recording is, before it is made mono and 16 kHz, and what could make its transcript worse."""

    name: str
    format: str
    duration_s: float
    rate: float  # Hz
    channels: int
    peak: float  # largest magnitude, full scale = 1
    clipped: float  # share of samples within 1 % of full scale, [0, 1]
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        line = f"{self.name}: {self.format}, {self.duration_s:.2f} s, {self.rate:g} Hz, {self.channels} ch"
        return "\n".join([f"{line}, peak {self.peak:.2f}", *(f"warning: {text}" for text in self.warnings)])


def load(source: Source, *, partial: bool = False) -> Samples:
    """Read all of `source` → float32 (T,), mono, 16 kHz, T ≥ 1.

    `source` is a path, encoded bytes, a binary file object, an array (taken to be 16 kHz), `(array, rate)` in either
    order, or a row of a dataset: `{"array", "sampling_rate"}` or `{"bytes", "path"}`. Arrays, torch tensors included,
    are (T,), (T, C) or (C, T) with at most 8 channels; integers are scaled by their type's full scale.

    A file that ends before its header says, or is damaged inside, is an error that states how much could be read;
    with `partial=True` that much is returned instead.

    Raises:
        AudioError: missing, empty, truncated, not audio, no samples, NaN or infinite samples, shape or rate unclear.
        MissingExtra: the format needs the extra `av`.
    """
    return np.concatenate(list(blocks(source, partial=partial)))


def blocks(source: Source, seconds: float = 30.0, *, partial: bool = False) -> Iterator[Samples]:
    """Read `source` in pieces of `seconds` → float32 (T,), the last one shorter; joined, they equal :func:`load`.

    Memory does not grow with the length. A truncated file shows itself only at its end, after its readable blocks.
    """
    size = round(seconds * SAMPLE_RATE) if math.isfinite(seconds) else 0
    if size < 1:
        raise AudioError(f"seconds is {seconds}; a block holds at least one sample (1/{SAMPLE_RATE} s)")
    pending: list[Samples] = []
    held = 0
    with _open(source) as sound:
        for piece in _resampled(sound, partial):
            pending.append(piece)
            held += len(piece)
            if held < size:
                continue
            joined = np.concatenate(pending)
            whole = held - held % size
            yield from (joined[at : at + size].copy() for at in range(0, whole, size))
            pending, held = [joined[whole:]], held - whole
        if held:
            yield np.concatenate(pending)


def duration(source: Source) -> float:
    """Length in seconds: from the header where it states one, else by decoding (OGG, some MP3 and containers)."""
    with _open(source) as sound:
        if sound.promised:
            return sound.promised / sound.rate
        return sum(len(frames) for frames in _checked(sound, partial=False)) / sound.rate


def inspect(source: Source) -> AudioInfo:
    """Decode once, in constant memory, and report what the recording is like. Damage becomes a warning here."""
    count, clipped, peak, mixed, power = 0, 0, 0.0, 0.0, 0.0
    with _open(source) as sound:
        for frames in _checked(sound, partial=True):
            size = np.abs(frames)
            count += len(frames)
            peak = max(peak, float(size.max()))
            clipped += int((size >= CLIPPED).sum())
            mixed += float(np.square(frames.mean(axis=1), dtype=np.float64).sum())
            power += float(np.square(frames, dtype=np.float64).sum()) / sound.channels
    share = clipped / (count * sound.channels)
    notes = []
    if sound.promised and sound.promised - count > SLACK_S * sound.rate:
        notes.append(f"only {count / sound.rate:.1f} of {sound.promised / sound.rate:.1f} s can be read")
    if sound.channels > 2:
        notes.append(f"{sound.channels} channels are averaged into one")
    if power > 0 and mixed < 0.01 * power:
        notes.append("the channels cancel each other when averaged; pass one of them instead")
    if sound.rate < SAMPLE_RATE:
        notes.append(
            f"recorded at {sound.rate:g} Hz: there is nothing above {sound.rate / 2000:g} kHz for the model to hear"
        )
    if share > 0.01:
        notes.append(f"{share:.1%} of the samples are at full scale: the recording is clipped")
    if peak < 10 ** (-60 / 20):
        notes.append("silent: the peak is below -60 dBFS")
    length = count / sound.rate
    return AudioInfo(sound.name, sound.format, length, sound.rate, sound.channels, peak, share, tuple(notes))


def write(path: str | os.PathLike[str], samples: Source, rate: float = SAMPLE_RATE) -> Path:
    """Write samples to a file whose ending names the format: .wav .flac .opus .ogg .mp3. Returns the path.

    Raises:
        OutputError: the ending is not one of these, or the file cannot be written.
    """
    target = Path(path)
    data = encode(samples, target.suffix.lstrip(".").lower(), rate)
    try:
        target.write_bytes(data)
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror}; choose a folder that exists and is writable"
        ) from error
    return target


def encode(samples: Source, format: str = "opus", rate: float = SAMPLE_RATE) -> bytes:
    """Samples → bytes of an audio file: "opus" (in Ogg), "wav" or "flac" (16 bit), "mp3". The inverse of :func:`load`.

    Values beyond ±1 are clipped. Opus knows five rates only; others are converted to its 48 kHz.

    Raises:
        OutputError: unknown format, or one that cannot hold this rate or so many channels. AudioError: samples that
            :func:`load` would refuse.
    """
    if format not in FORMATS:
        raise OutputError(f"format is {format!r}; it can be {', '.join(repr(name) for name in FORMATS)}")
    container, subtype = FORMATS[format]
    sound = _from_array(samples, rate, "array")
    frames = np.concatenate(list(_checked(sound, partial=False)))
    if subtype == "OPUS" and rate not in OPUS_RATES:
        frames, rate = soxr.resample(frames, rate, OPUS_RATES[-1]), OPUS_RATES[-1]
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(buffer, "w", int(rate), frames.shape[1], subtype, format=container) as file:
            file.write(frames)
    except soundfile.LibsndfileError as error:
        raise OutputError(
            f"{format} cannot hold {frames.shape[1]} channels at {rate:g} Hz: {error.error_string} Choose another "
            f"format, or write {SAMPLE_RATE} Hz mono"
        ) from error
    return buffer.getvalue()


class Feed:
    """Live chunks of one rate → mono float32 at 16 kHz, as they come: joined, they equal :func:`load` of the whole."""

    def __init__(self, rate: float = SAMPLE_RATE) -> None:
        """`rate` in Hz. Raises AudioError for a rate that :func:`load` would refuse."""
        self.rate = _from_array(np.zeros(1, np.float32), rate, "chunk").rate
        same = self.rate == SAMPLE_RATE
        self._convert = None if same else soxr.ResampleStream(self.rate, SAMPLE_RATE, 1, "float32", "HQ")
        self._count = 0

    def push(self, chunk: Any) -> Samples:
        """(N,) or (N, C) of any type that :func:`load` takes, or bytes of int16, little endian → (T,), maybe empty.

        Time comes first always: unlike a recording, a chunk may be shorter than its channels are many.

        Raises AudioError for NaN, infinite or unscaled samples, or another shape; that chunk is then left out whole.
        """
        frames = self._frames(chunk)
        if not len(frames):
            return np.zeros(0, np.float32)
        mono = np.ascontiguousarray(frames[:, 0]) if frames.shape[1] == 1 else frames.mean(axis=1)
        self._count += len(mono)
        return mono if self._convert is None else self._convert.resample_chunk(mono)

    def close(self) -> Samples:
        """What the resampler still holds → (T,), maybe empty."""
        if self._convert is None:
            return np.zeros(0, np.float32)
        return self._convert.resample_chunk(np.zeros(0, np.float32), last=True)

    def _frames(self, chunk: Any) -> NDArray[np.float32]:
        if isinstance(chunk, (bytes, bytearray, memoryview)):
            if len(chunk) % 2:
                raise AudioError(f"{len(chunk)} bytes are no whole number of int16 samples; pass 2 bytes per sample")
            chunk = np.frombuffer(chunk, "<i2")
        if hasattr(chunk, "__len__") and not len(chunk):
            return np.zeros((0, 1), np.float32)
        sound = _from_array(chunk, self.rate, "the chunk", _chunk_frames)
        pieces = []
        for frames in sound.chunks:
            _check_values(frames, self._count, sound)
            pieces.append(frames)
        return np.concatenate(pieces)


# One pass over an open sound


def _resampled(sound: Sound, partial: bool) -> Iterator[Samples]:
    """(N, C) pieces at the sound's rate → (T,) pieces, mono, 16 kHz."""
    convert = None if sound.rate == SAMPLE_RATE else soxr.ResampleStream(sound.rate, SAMPLE_RATE, 1, "float32", "HQ")
    total = 0
    for frames in _checked(sound, partial):
        mono = np.ascontiguousarray(frames[:, 0]) if sound.channels == 1 else frames.mean(axis=1)
        piece = mono if convert is None else convert.resample_chunk(mono)
        total += len(piece)
        yield piece
    if convert is not None:
        piece = convert.resample_chunk(np.zeros(0, np.float32), last=True)
        total += len(piece)
        yield piece
    if not total:
        raise AudioError(f"{sound.name} is too short: less than one sample at {SAMPLE_RATE} Hz")


def _checked(sound: Sound, partial: bool) -> Iterator[NDArray[np.float32]]:
    """The sound's (N, C) pieces; stops at the first sample that is not a number, and at the end if any are missing."""
    count, damaged = 0, False
    try:
        for frames in sound.chunks:
            if not len(frames):
                continue
            _check_values(frames, count, sound)
            count += len(frames)
            yield frames
    except Damaged:
        damaged = True
    missing = (sound.promised or 0) - count
    if not partial and (damaged or missing > SLACK_S * sound.rate):
        of = f" of {sound.promised / sound.rate:.1f} s" if sound.promised else " s"
        raise AudioError(
            f"{sound.name} ({sound.format}): only {count / sound.rate:.1f}{of} can be read, the file is cut off or "
            f"damaged there; fetch it again, or take what there is with audio.load(…, partial=True)"
        )
    if not count:
        raise AudioError(f"{sound.name} ({sound.format}) has no samples")


def _check_values(frames: NDArray[np.float32], before: int, sound: Sound) -> None:
    size = np.abs(frames).max()
    if size <= MAX_PEAK:
        return
    if not np.isfinite(size):
        at = before + int(np.flatnonzero(~np.isfinite(frames).all(axis=1))[0])
        raise AudioError(
            f"{sound.name}: sample {at} (at {at / sound.rate:.2f} s) is NaN or infinite; replace such samples, "
            f"for example by np.nan_to_num(array)"
        )
    raise AudioError(
        f"{sound.name}: float samples reach {size:g}, full scale is 1; these look like integers stored as floats: "
        f"divide by the full scale first (32768 for 16 bit), or pass them as int16"
    )


# What a source can be


@contextmanager
def _open(source: Source) -> Iterator[Sound]:
    if isinstance(source, Mapping):
        source = _from_row(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield decode(io.BytesIO(source), f"bytes ({len(source)})")
    elif isinstance(source, (str, os.PathLike)):
        with _open_path(os.fspath(source)) as opened, _seekable(opened) as file:
            yield decode(file, str(os.fspath(source)))
    elif hasattr(source, "read"):
        with _seekable(source) as file:
            yield decode(file, str(getattr(source, "name", "") or type(source).__name__))
    elif isinstance(source, (tuple, list)) and len(source) == 2 and (np.isscalar(source[0]) != np.isscalar(source[1])):
        array, rate = (source[1], source[0]) if np.isscalar(source[0]) else source
        yield _from_array(array, rate, "array")
    else:
        yield _from_array(source, SAMPLE_RATE, "array")


def _from_row(row: Mapping[str, Any]) -> Source:
    if row.get("array") is not None and row.get("sampling_rate"):
        return row["array"], row["sampling_rate"]
    if row.get("bytes"):
        return row["bytes"]
    if row.get("path"):
        return row["path"]
    keys = ", ".join(repr(str(key)) for key in row) or "nothing"
    raise AudioError(
        f'the mapping holds {keys}; audio is {{"array", "sampling_rate"}} or {{"bytes", "path"}} with a value'
    )


def _open_path(name: str | bytes) -> BinaryIO:
    path = Path(os.path.expanduser(os.fsdecode(name)))  # Path.expanduser raises where ~x.wav is a file, not a user's
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error
    if str(path).startswith(("http:/", "https:/")):
        raise AudioError(f"{path} is an address, not a file; download it first") from reason
    if os.path.isdir(path):  # Path.is_dir raises where the folder may not be entered
        raise AudioError(f"{path} is a folder; pass the files in it, for example Path({str(path)!r}).glob('*.wav')")
    if isinstance(reason, FileNotFoundError):
        near = difflib.get_close_matches(path.name, _siblings(path), n=1)
        raise AudioError(f"no such file: {path}" + (f"; did you mean {near[0]}?" if near else "")) from reason
    why = getattr(reason, "strerror", None) or reason
    raise AudioError(f"cannot read {path}: {why}; check that this user may read it") from reason


def _siblings(path: Path) -> list[str]:
    try:
        return os.listdir(path.parent)[:1000]
    except OSError:
        return []


@contextmanager
def _seekable(file: Any) -> Iterator[BinaryIO]:
    """The file itself, left open, or a copy on disk of what cannot be rewound (a pipe, a download)."""
    if isinstance(file, io.TextIOBase):
        raise AudioError("the file object is open as text; open it with mode 'rb'")
    if getattr(file, "closed", False) or not getattr(file, "readable", lambda: True)():
        raise AudioError("the file object is closed or open for writing only; open it with mode 'rb'")
    if getattr(file, "seekable", lambda: False)():
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        yield copy  # type: ignore[misc]


# Arrays


def _from_array(source: Any, rate: Any, name: str, shaped: Shaped | None = None) -> Sound:
    try:
        hertz = float(rate)
    except (TypeError, ValueError):
        hertz = 0.0
    if not RATES[0] <= hertz <= RATES[1]:
        raise AudioError(f"sample rate is {rate!r}; it is given in Hz, from {RATES[0]} to {RATES[1]}: (array, 44100)")
    if hasattr(source, "detach"):  # a torch tensor that may need gradients or live on a GPU
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    try:
        array = np.asarray(source)
    except (ValueError, TypeError):  # lists of unequal length, objects
        array = np.asarray(None)
    offset, scale = _scale(array, type(source).__name__)
    array = (shaped or _time_first)(array)

    def chunks() -> Iterator[NDArray[np.float32]]:
        for at in range(0, len(array), CHUNK):
            piece = array[at : at + CHUNK].astype(np.float32)
            yield piece if scale == 1 else (piece - np.float32(offset)) / np.float32(scale)

    return Sound(name, f"array {array.dtype}", hertz, array.shape[1], len(array) or None, chunks())


def _scale(array: NDArray[Any], given: str) -> tuple[float, float]:
    """Offset and full scale of the array's type."""
    kind, width = array.dtype.kind, array.dtype.itemsize
    if kind == "f":
        return 0.0, 1.0
    if kind == "i" and width <= 4:
        return 0.0, float(2 ** (8 * width - 1))
    if array.dtype == np.uint8:
        return 128.0, 128.0
    if kind in "iu":
        raise AudioError(
            f"the array is {array.dtype}, whose full scale is unclear; pass int16, int32, uint8 or float in ±1"
        )
    raise AudioError(
        f"{given} is not audio; pass a path, encoded bytes, a binary file object, an array of samples at 16 kHz, "
        f'(array, rate), or a row {{"array", "sampling_rate"}} or {{"bytes", "path"}}'
    )


def _time_first(array: NDArray[Any]) -> NDArray[Any]:
    """(T,), (T, C) or (C, T) → (T, C): channels are the one dimension of at most 8."""
    if array.ndim == 1:
        return array[:, None]
    if array.ndim == 2:
        rows, columns = array.shape
        if rows == 1 or (rows <= MAX_CHANNELS < columns):
            return array.T
        if columns == 1 or (columns <= MAX_CHANNELS < rows):
            return array
        if 0 in (rows, columns):
            return array.reshape(0, 1)
    raise AudioError(
        f"the array has shape {array.shape}; pass (T,), or (T, C) or (C, T) with C ≤ {MAX_CHANNELS} < T. "
        f"Where that is unclear, average the channels yourself: array.mean(axis=…)"
    )


def _chunk_frames(array: NDArray[Any]) -> NDArray[Any]:
    """(N,) or (N, C) → (N, C)."""
    frames = array[:, None] if array.ndim == 1 else array
    if frames.ndim == 2 and 1 <= frames.shape[1] <= MAX_CHANNELS:
        return frames
    raise AudioError(
        f"the chunk has shape {array.shape}; pass (N,), or (N, C) with C from 1 to {MAX_CHANNELS}, time first: chunk.T "
        f"where the channels come first"
    )
