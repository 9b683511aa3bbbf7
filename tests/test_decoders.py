"""Files in: every format, names that lie, files that end before they should. Oracles: soundfile, PyAV, the manifest."""

from __future__ import annotations

import csv
import io
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest

from speechkit import audio
from speechkit.errors import AudioError
from tests.sounds import LIKE, RATE, close, container, encoded, lag, voice

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("kind", "subtype", "bound"),
    [
        ("WAV", "PCM_U8", 1 / 128),
        ("WAV", "PCM_16", 1 / 32768),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_32", 1e-6),
        ("WAV", "FLOAT", 0),
        ("WAV", "DOUBLE", 0),
        ("WAV", "ALAW", 0.02),
        ("WAV", "ULAW", 0.02),
        ("FLAC", "PCM_16", 1 / 32768),
        ("FLAC", "PCM_24", 1e-6),
        ("AIFF", "PCM_16", 1 / 32768),
    ],
)
def test_every_sample_of_an_uncompressed_or_lossless_file_is_there(kind: str, subtype: str, bound: float) -> None:
    want = voice(1.3)
    got = audio.load(encoded(want, kind=kind, subtype=subtype))
    assert got.dtype == np.float32
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= bound


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "OPUS"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_a_lossy_file_has_the_same_length_and_nearly_the_same_samples(kind: str, subtype: str) -> None:
    want = voice(2.0)
    got = audio.load(encoded(want, kind=kind, subtype=subtype))
    assert len(got) == len(want)
    assert lag(got, want) == 0
    assert close(got, want) > LIKE


@pytest.mark.parametrize(
    ("kind", "codec", "rate", "late"),
    [
        ("ipod", "aac", 16000, 0),  # .m4a
        ("mp4", "aac", 48000, 0),
        ("webm", "libopus", 48000, 0),
        ("matroska", "pcm_s16le", 44100, 0),
        ("adts", "aac", 16000, 1024),  # raw AAC has no field for the encoder's run-in of one frame
    ],
)
def test_a_container_is_decoded_in_place_without_ffmpeg(kind: str, codec: str, rate: int, late: int) -> None:
    want = voice(2.0)
    got = audio.load(container(want, kind, codec, rate))
    assert abs(len(got) - late - len(want)) <= 1024
    assert lag(got, want) == late
    assert close(got[late:], want) > LIKE


def test_a_file_whose_name_lies_is_simply_decoded(tmp_path: Path) -> None:
    want = voice(0.5)
    path = tmp_path / "really_flac.mp3"
    path.write_bytes(encoded(want, kind="FLAC"))
    assert np.abs(audio.load(path) - want).max() < 1e-4
    path = tmp_path / "really_m4a.wav"
    path.write_bytes(container(want, "ipod", "aac"))
    assert close(audio.load(path), want) > 0.95


def test_real_files_have_the_length_that_the_manifest_states(odd_formats: Path) -> None:
    with (odd_formats.parent / "manifest.tsv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t") if row[0].startswith("odd_formats/")]
    assert len(rows) >= 12
    for row in rows:
        path, stated = odd_formats.parent / row[0], float(row[8])
        slack = 0.15 if path.suffix == ".mp3" else 0.002  # the manifest counts MP3 encoder padding
        assert len(audio.load(path)) / RATE == pytest.approx(stated, abs=slack), path.name
        assert audio.duration(path) == pytest.approx(stated, abs=slack), path.name


def test_one_real_utterance_in_six_layouts_is_the_same_sound(odd_formats: Path) -> None:
    paths = sorted(odd_formats.glob("uberi_audio-*"))
    assert len(paths) == 6
    sounds = {path.name: audio.load(path) for path in paths}
    want = sounds["uberi_audio-mono-32-bit-44100Hz.wav"]
    for name, got in sounds.items():
        assert got.shape == want.shape, name
        assert np.abs(got - want).max() < (0.02 if "8-bit" in name else 1e-3), name


# Files that hold no sound, or need the extra


def test_a_video_without_sound_says_so() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        stream: Any = out.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        out.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(AudioError, match="has no audio track"):
        audio.load(buffer.getvalue())


def test_without_the_extra_an_m4a_names_the_command(tmp_path: Path) -> None:
    path = tmp_path / "talk.m4a"
    path.write_bytes(container(voice(0.3), "ipod", "aac"))
    code = f"""
import sys
sys.modules["av"] = None  # what an import finds where the package is absent
from speechkit import audio
from speechkit.errors import AudioError, MissingExtra
try:
    audio.load({str(path)!r})
except MissingExtra as error:
    print(error)
try:
    audio.load(b"just some text, no audio " * 9)
except AudioError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith(f"reading {path} (MP4/M4A) needs the package 'av'")
    assert first.endswith('which is not installed: pip install "speechkit[av]"')
    assert second.endswith('MP4, AAC, WebM and others with pip install "speechkit[av]"')


# Files that end before they should


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3", "AIFF"])
def test_a_truncated_file_states_how_much_can_be_read_and_gives_it_when_asked(kind: str) -> None:
    whole = voice(10.0)
    data = encoded(whole, kind=kind)
    data = data[: len(data) // 2]
    with pytest.raises(AudioError, match=r"only [345]\.\d of 10\.0 s can be read, the file is cut off.*partial=True"):
        audio.load(data)
    got = audio.load(data, partial=True)
    assert 3.5 * RATE < len(got) < 6 * RATE
    assert close(got[: 3 * RATE], whole) > LIKE
    assert "can be read" in audio.inspect(data).warnings[0]


def test_a_truncated_real_mp3_and_flac_are_errors(odd_formats: Path) -> None:
    for name in ("funasr_example.mp3", "uberi_audio-stereo-24-bit-44100Hz.flac"):
        data = (odd_formats / name).read_bytes()
        with pytest.raises(AudioError, match=r"only \d\.\d of \d\.\d s can be read"):
            audio.load(data[: len(data) * 2 // 3])


def test_damage_inside_a_flac_is_an_error_not_noise() -> None:
    data = bytearray(encoded(voice(6.0), kind="FLAC"))
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    with pytest.raises(AudioError, match=r"of 6\.0 s can be read|not audio"):
        audio.load(bytes(data))


@pytest.mark.parametrize(("kind", "codec"), [("webm", "libopus"), ("adts", "aac")])
def test_a_truncated_container_is_an_error(kind: str, codec: str) -> None:
    data = container(voice(5.0), kind, codec)
    data = data[: len(data) // 2 + 7]
    with pytest.raises(AudioError, match=r"only 2\.\d (of 5\.\d )?s can be read"):
        audio.load(data)
    assert len(audio.load(data, partial=True)) > 2 * RATE


def test_the_blocks_before_a_truncation_can_be_used() -> None:
    data = encoded(voice(10.0))
    got = []
    with pytest.raises(AudioError, match=r"only 5\.0 of 10\.0 s"):
        got.extend(audio.blocks(data[: len(data) // 2], 1.0))
    assert len(got) == 0 or all(len(piece) == RATE for piece in got)
    assert sum(map(len, audio.blocks(data[: len(data) // 2], 1.0, partial=True))) == pytest.approx(5 * RATE, abs=30)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_that_was_streamed_to_a_pipe_states_no_length_and_is_read_whole(size: int) -> None:
    data = bytearray(encoded(voice(1.0)))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    assert len(audio.load(bytes(data))) == RATE


def test_decoding_an_mp3_leaves_the_screen_clean_and_other_messages_on_it(tmp_path: Path) -> None:
    data = encoded(voice(3.0), kind="MP3")
    (tmp_path / "cut.mp3").write_bytes(data[: len(data) // 2])
    code = f"""
import os, threading
from speechkit import audio
stop = threading.Event()
def talk():
    count = 0
    while not stop.is_set() or count < 50:
        os.write(2, b"kept\\n"); count += 1
    print(count)
talker = threading.Thread(target=talk)
talker.start()
audio.load({str(tmp_path / "cut.mp3")!r}, partial=True)
stop.set(); talker.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert set(lines) == {"kept"}
    assert len(lines) == int(done.stdout)
