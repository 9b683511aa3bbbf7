"""Encoded audio → frames of samples, a piece at a time. In: a seekable binary file. Out: a :class:`Sound`.

WAV, FLAC, OGG (Vorbis, Opus), MP3, AIFF and a dozen rarer ones through libsndfile; MP4/M4A, AAC, WebM and what else
FFmpeg knows through PyAV (extra `av`). The content decides, not the name. Knows nothing of resampling and channels.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import soundfile

from speechkit.endings import ends_inside_a_frame, ends_inside_a_page
from speechkit.errors import AudioError
from speechkit.extras import available, install_command, require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["Damaged", "Sound", "decode"]

CHUNK = 65536  # frames per piece; large enough that the cost per call vanishes
FLAC_CHUNK = 4096  # a read that meets damage is lost whole, so read no more than one FLAC block at once


class Damaged(Exception):
    """Decoding stopped inside the file."""


@dataclass(frozen=True)
class Sound:
    """Audio that is open for reading once."""

    name: str  # for messages: the path, or "bytes", "array" …
    format: str  # "WAV PCM_16", "mov,mp4,m4a aac", "array int16"
    rate: float  # Hz
    channels: int
    promised: int | None  # frames that the header states; None where it states none or only an estimate
    chunks: Iterator[NDArray[np.float32]]  # (N, C) pieces, full scale ±1; may raise Damaged


def decode(file: BinaryIO, name: str) -> Sound:
    """Open encoded audio.

    Raises:
        AudioError: the content is not audio that can be decoded.
        MissingExtra: it is a format that needs PyAV, and the extra `av` is not installed.
    """
    head = _head(file)
    if not head:
        raise AudioError(f"{name} is empty (0 bytes)")
    mp3 = head.startswith(b"ID3") or (head[0] == 0xFF and head[1:2] >= b"\xe0")
    try:
        with _without_mpg123_chatter(mp3):
            return _from_libsndfile(soundfile.SoundFile(file), name, file)
    except soundfile.LibsndfileError as error:
        reason = error.error_string
    file.seek(0)
    container = _container(head)
    if container:
        require("av", extra="av", purpose=f"reading {name} ({container})")
    if available("av"):
        sound = _from_av(file, name)
        if sound:
            return sound
    raise AudioError(_not_audio(name, head, container, reason))


# libsndfile


def _from_libsndfile(sound: soundfile.SoundFile, name: str, file: BinaryIO) -> Sound:
    return Sound(
        name=name,
        format=f"{sound.format} {sound.subtype}",
        rate=float(sound.samplerate),
        channels=sound.channels,
        promised=_promised(sound, file),
        chunks=_read_libsndfile(sound, _cut_off(sound.format, file)),
    )


def _read_libsndfile(sound: soundfile.SoundFile, cut_off: bool) -> Iterator[NDArray[np.float32]]:
    size = FLAC_CHUNK if sound.format == "FLAC" else CHUNK
    with sound:
        while True:
            try:
                with _without_mpg123_chatter(sound.format == "MP3"):
                    frames = sound.read(size, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise Damaged(error.error_string) from error
            if not len(frames):
                break
            yield frames
    if cut_off:  # libsndfile reads such a file to its end and says nothing
        raise Damaged("the file ends inside a frame")


def _cut_off(format: str, file: BinaryIO) -> bool:
    """Whether an MP3 or OGG file, which may state no length, ends inside its last frame or page."""
    check = {"MP3": ends_inside_a_frame, "OGG": ends_inside_a_page}.get(format)
    if check is None:
        return False
    position = file.tell()
    try:
        return check(file)
    finally:
        file.seek(position)


def _promised(sound: soundfile.SoundFile, file: BinaryIO) -> int | None:
    """Frames that the header states. libsndfile cuts the count of a short WAV down to what is there; undo that."""
    if sound.format == "MP3":
        position = file.tell()
        stated = _mp3_states_length(file)
        file.seek(position)
        return int(sound.frames) if stated else None
    if sound.format == "OGG":  # its length is read off the last page present
        return None
    cut = re.search(r"^ ?(?:data|SSND) : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if not cut:
        return int(sound.frames)
    stated_bytes, present = int(cut[1]), int(cut[2])
    if stated_bytes >= 0x7FFFFF00 or present == 0:  # what programs write that stream to a pipe: length unknown
        return None
    return int(sound.frames) * stated_bytes // present


def _mp3_states_length(file: BinaryIO) -> bool:
    """Whether the first frame is a Xing, Info or VBRI header; without one the length is a guess from the file size."""
    file.seek(0)
    head = file.read(10)
    start = 0
    if head.startswith(b"ID3") and len(head) == 10:
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    file.seek(start)
    first = file.read(512)
    return any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


# PyAV


def _from_av(file: BinaryIO, name: str) -> Sound | None:
    """None where FFmpeg does not know the content either."""
    import av

    try:
        # tags that are no UTF-8 must not cost the sound; from PyAV 19 on they never do, and the option is gone
        lenient: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
        container: Any = av.open(file, **lenient)
    except (av.error.FFmpegError, EOFError, ValueError):
        return None
    if not container.streams.audio:
        container.close()
        raise AudioError(f"{name} has no audio track (it holds {container.format.long_name})")
    stream = container.streams.audio[0]
    decoded = container.decode(stream)
    try:
        first = next(decoded, None)
    except (av.error.FFmpegError, EOFError):
        first = None
    if first is None:
        container.close()
        return None
    return Sound(
        name=name,
        format=f"{container.format.name} {stream.codec_context.name}",
        rate=float(first.sample_rate),  # not the header's: HE-AAC states half of what it decodes to
        channels=len(first.layout.channels),
        promised=_promised_av(container, stream, first.sample_rate),
        chunks=_read_av(container, first, decoded),
    )


def _read_av(container: Any, first: Any, rest: Iterator[Any]) -> Iterator[NDArray[np.float32]]:
    import av

    to_float = av.AudioResampler(format="fltp")
    with container:
        try:
            for frame in chain([first], rest):
                early = 0  # samples before time 0 are the encoder's run-in
                if frame.pts is not None and frame.pts < 0:
                    early = min(frame.samples, round(-frame.pts * frame.time_base * frame.sample_rate))
                for part in to_float.resample(frame):
                    yield np.ascontiguousarray(part.to_ndarray().T[early:], dtype=np.float32)
        except (av.error.FFmpegError, EOFError) as error:
            raise Damaged(getattr(error, "strerror", None) or str(error)) from error


def _promised_av(container: Any, stream: Any, rate: int) -> int | None:
    """Frames that the track's own header states: MP4 does; a raw AAC stream or a live WebM only lets one guess."""
    if "mp4" in container.format.name and stream.duration and stream.time_base:
        return int(stream.duration * stream.time_base * rate)
    if "webm" in container.format.name and container.duration and len(container.streams) == 1:
        return int(container.duration * rate // 1_000_000)
    return None


# What is it, if not audio?


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    head = file.read(64)
    file.seek(0)
    return head


def _container(head: bytes) -> str:
    """Name of a format that libsndfile does not read but PyAV does, or nothing."""
    if head[4:8] == b"ftyp":
        return "MP4/M4A"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "WebM/Matroska"
    if head.startswith(b"\x30\x26\xb2\x75"):
        return "WMA/ASF"
    if head.startswith(b"#!AMR"):
        return "AMR"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "AAC"
    return ""


def _not_audio(name: str, head: bytes, container: str, reason: str) -> str:
    if container:
        return (
            f"{name} begins like {container} but cannot be decoded: it is cut off or damaged; fetch or record it again"
        )
    start = head.decode("utf-8", errors="replace").rstrip("\ufffd")  # the cut may have split a character
    if head.startswith((b"RIFF", b"fLaC", b"OggS", b"FORM", b"ID3")):
        looks = f"begins like audio ({head[:4].decode('ascii', 'replace')}) but is cut off or damaged"
    elif start.strip() and "\ufffd" not in start and all(char.isprintable() or char.isspace() for char in start):
        looks = f"begins with the text {start.split(chr(10))[0].strip()[:40]!r}"
    else:
        looks = f"begins with the bytes {head[:8].hex(' ')}"
    more = "" if available("av") else f"; MP4, AAC, WebM and others with {install_command('av')}"
    return f"{name} is not audio that can be decoded: it {looks} ({reason}). Read are WAV, FLAC, OGG, MP3, AIFF{more}"


# libmpg123 (inside libsndfile) writes remarks on harmless oddities straight to file descriptor 2
_CHATTER = re.compile(rb"libmpg123|Xing stream size|Illegal Audio-MPEG-Header|resync|Skipped \d+ bytes in input")
_DESCRIPTOR = threading.Lock()


@contextlib.contextmanager
def _without_mpg123_chatter(active: bool) -> Iterator[None]:
    """Hold back what is written to descriptor 2, then pass on all but libmpg123's lines."""
    if not active:
        yield
        return
    with _DESCRIPTOR, contextlib.ExitStack() as stack:
        try:
            saved = os.dup(2)
            caught = stack.enter_context(tempfile.TemporaryFile())
        except OSError:  # no descriptor 2 (a windowed Python), or nowhere to write: let it through
            yield
            return
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            kept = b"".join(line for line in caught if line.strip() and not _CHATTER.search(line))
            if kept:
                os.write(2, kept)
