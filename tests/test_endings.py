"""Files without a stated length: whole ones pass, cut ones are found. Oracle: libsndfile's own encoders, real files."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkit import audio
from speechkit.endings import ends_inside_a_frame, ends_inside_a_page
from speechkit.errors import AudioError


def encoded(kind: str, rate: int = 16000) -> bytes:
    x = 0.2 * np.sin(np.arange(3 * rate) * 2 * np.pi * 330 / rate)
    file = io.BytesIO()
    format, subtype = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS"), "vorbis": ("OGG", "VORBIS")}[kind]
    soundfile.write(file, x, rate, format=format, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000])
def test_a_whole_mp3_of_any_rate_ends_with_a_frame(rate: int) -> None:
    data = encoded("mp3", rate)
    assert not ends_inside_a_frame(io.BytesIO(data))
    middle = int(len(data) * 0.6)
    inside = [ends_inside_a_frame(io.BytesIO(data[: middle + more])) for more in range(5)]
    assert sum(inside) >= 4  # one of them may fall between two frames, which nothing tells from a whole file


def test_tags_before_and_behind_the_sound_do_not_count() -> None:
    data = encoded("mp3")
    tagged = b"ID3\x04\x00\x00" + bytes([0, 0, 1, 0]) + bytes(128) + data + b"TAG" + bytes(125)
    assert not ends_inside_a_frame(io.BytesIO(tagged))


@pytest.mark.parametrize("kind", ["opus", "vorbis"])
def test_a_whole_ogg_ends_with_a_page_and_a_cut_one_does_not(kind: str) -> None:
    data = encoded(kind)
    assert not ends_inside_a_page(io.BytesIO(data))
    assert all(ends_inside_a_page(io.BytesIO(data[: len(data) - cut])) for cut in (1, 5, 200))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.77])
def test_a_real_mp3_without_a_length_header_that_was_cut_is_an_error(odd_formats: Path, share: float) -> None:
    data = (odd_formats / "cv_ja.mp3").read_bytes()
    assert len(audio.load(data)) > 5 * 16000
    with pytest.raises(AudioError, match=r"the file is cut off or damaged there.*partial=True"):
        audio.load(data[: int(len(data) * share)])


def test_a_cut_ogg_is_an_error_and_gives_what_it_has_when_asked() -> None:
    data = encoded("opus")[:-300]
    with pytest.raises(AudioError, match="cut off"):
        audio.load(data)
    assert len(audio.load(data, partial=True)) > 16000


@pytest.mark.parametrize("name", ["funasr_example.mp3", "ljspeech.mp3", "cv_ja.mp3"])
def test_real_whole_mp3_files_are_read(odd_formats: Path, name: str) -> None:
    assert len(audio.load(odd_formats / name)) > 16000
