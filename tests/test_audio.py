"""Sound in and out: any rate, any source, any shape; and what is not sound. Oracles: soundfile, soxr, numpy."""

from __future__ import annotations

import io
import os
import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
import soxr

from speechkit import audio
from speechkit.errors import AudioError, OutputError, SpeechkitError
from tests.sounds import LIKE, RATE, close, container, encoded, voice

if TYPE_CHECKING:
    from pathlib import Path


# Rates and blocks


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 192000])
def test_any_rate_becomes_16_khz_as_soxr_does_it_at_once(rate: int) -> None:
    samples = voice(1.5, rate)
    want = soxr.resample(samples, rate, RATE, "HQ")
    assert np.abs(audio.load((samples, rate)) - want).max() <= 1e-6
    assert len(want) == pytest.approx(1.5 * RATE, abs=1)


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 192000])
@pytest.mark.parametrize("seconds", [0.1, 0.7, 30.0])
def test_blocks_joined_equal_the_whole(rate: int, seconds: float) -> None:
    data = encoded(voice(2.05, rate), rate)
    pieces = list(audio.blocks(data, seconds))
    assert np.abs(np.concatenate(pieces) - audio.load(data)).max() <= 1e-6
    assert all(len(piece) == round(seconds * RATE) for piece in pieces[:-1])
    assert 0 < len(pieces[-1]) <= round(seconds * RATE)


def test_blocks_of_a_container_equal_the_whole() -> None:
    data = container(voice(3.0), "ipod", "aac")
    assert np.array_equal(np.concatenate(list(audio.blocks(data, 0.5))), audio.load(data))


@pytest.mark.parametrize("kind", ["WAV", "m4a"])
def test_blocks_of_a_long_file_need_no_more_memory_than_of_a_short_one(tmp_path: Path, kind: str) -> None:
    def peak(minutes: float) -> int:
        path, samples = tmp_path / "long", np.tile(voice(6.0), round(minutes * 10))
        path.write_bytes(encoded(samples) if kind == "WAV" else container(samples, "ipod", "aac", RATE))
        del samples
        tracemalloc.start()
        for _ in audio.blocks(path, 1.0):
            pass
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    short, long = peak(0.2), peak(4.0)
    assert long < short + 2**20  # the four minutes alone are 15 MB as float32


def test_a_block_of_no_samples_is_refused() -> None:
    with pytest.raises(AudioError, match="seconds is 0; a block holds at least one sample"):
        next(audio.blocks(np.zeros(10), 0))
    with pytest.raises(AudioError, match="seconds is nan"):
        next(audio.blocks(np.zeros(10), float("nan")))


# Sources


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    path.write_bytes(encoded(voice(0.4)))
    return path


def test_every_kind_of_source_gives_the_same_sound(wav: Path) -> None:
    want = audio.load(wav)
    data = wav.read_bytes()
    samples = soundfile.read(wav, dtype="float32")[0]
    sources: dict[str, Any] = {
        "str": str(wav),
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "BytesIO": io.BytesIO(data),
        "array": samples,
        "list": samples.tolist(),
        "(array, rate)": (samples, RATE),
        "(rate, array)": (RATE, samples),
        "[array, numpy rate]": [samples, np.int64(RATE)],
        "row with array": {"array": samples, "sampling_rate": RATE, "path": None},
        "row with bytes": {"bytes": data, "path": "elsewhere.wav"},
        "row with path": {"bytes": None, "path": str(wav)},
    }
    for name, source in sources.items():
        assert np.array_equal(audio.load(source), want), name
        assert audio.duration(source) == pytest.approx(0.4), name


def test_a_file_object_is_read_from_its_start_and_left_open(wav: Path) -> None:
    with wav.open("rb") as file:
        file.seek(100)
        assert np.array_equal(audio.load(file), audio.load(wav))
        assert not file.closed


def test_a_pipe_that_cannot_be_rewound_is_read(wav: Path) -> None:
    reader, writer = os.pipe()
    feeder = threading.Thread(target=lambda: (os.write(writer, wav.read_bytes()), os.close(writer)))
    feeder.start()
    with os.fdopen(reader, "rb") as file:
        got = audio.load(file)
    feeder.join()
    assert np.array_equal(got, audio.load(wav))


def test_a_torch_tensor_is_an_array_even_with_gradients_or_in_half_precision() -> None:
    import torch

    want = voice(0.2)
    tensor = torch.from_numpy(want.copy())
    assert np.array_equal(audio.load(tensor.requires_grad_()), want)
    assert np.array_equal(audio.load(tensor.detach()[None]), want)
    assert np.abs(audio.load(tensor.detach().bfloat16()) - want).max() < 0.01


@pytest.mark.parametrize(
    ("dtype", "values", "want"),
    [
        (np.int16, [-32768, 0, 16384], [-1.0, 0.0, 0.5]),
        (np.int32, [-(2**31), 0, 2**30], [-1.0, 0.0, 0.5]),
        (np.int8, [-128, 0, 64], [-1.0, 0.0, 0.5]),
        (np.uint8, [0, 128, 192], [-1.0, 0.0, 0.5]),
        (np.float64, [-1.0, 0.0, 0.5], [-1.0, 0.0, 0.5]),
        (np.float16, [-1.0, 0.0, 0.5], [-1.0, 0.0, 0.5]),
        (">i2", [-32768, 0, 16384], [-1.0, 0.0, 0.5]),
    ],
)
def test_integers_are_scaled_by_the_full_scale_of_their_type(
    dtype: Any, values: list[float], want: list[float]
) -> None:
    assert audio.load(np.array(values, dtype)).tolist() == want


@pytest.mark.parametrize("channels", [1, 2, 6, 8])
def test_channels_are_averaged_whichever_dimension_they_are_in(channels: int) -> None:
    many = np.stack([voice(0.1, seed=seed) for seed in range(channels)])
    want = many.mean(axis=0)
    assert np.abs(audio.load(many) - want).max() < 1e-6
    assert np.abs(audio.load(many.T) - want).max() < 1e-6
    assert np.abs(audio.load(encoded(many.T, subtype="FLOAT")) - want).max() < 1e-6


def test_the_shortest_array_is_accepted_as_it_is() -> None:
    assert audio.load(np.array([0.25])).tolist() == [0.25]
    assert len(audio.load(np.zeros((1, 3)))) == 3


def test_silence_is_sound() -> None:
    assert not audio.load(encoded(np.zeros(1600, np.float32))).any()


# What is not audio: each says what was given and what to do

NOT_AUDIO: dict[str, tuple[Any, str]] = {
    "no bytes": (b"", r"bytes \(0\) is empty \(0 bytes\)"),
    "text": (b"<!DOCTYPE html>\n<p>" * 9, r"it begins with the text '<!DOCTYPE html>' .*Read are WAV, FLAC, OGG, MP3"),
    "raw bytes": (bytes(range(200, 256)) * 9, "it begins with the bytes c8 c9 ca cb"),
    "blank lines": (b"\n" * 99, "it begins with the bytes 0a 0a"),
    "a header only": (b"RIFF" + bytes(8), r"begins like audio \(RIFF\) but is cut off or damaged"),
    "an MP4 without its index": (
        b"\0\0\0\x20ftypM4A " + bytes(99),
        "begins like MP4/M4A but cannot be decoded: it is cut",
    ),
    "a WAV of no samples": (encoded(np.zeros(0, np.float32)), r"\(WAV PCM_16\) has no samples"),
    "an empty array": (np.zeros(0), "array .* has no samples"),
    "an empty row": (np.zeros((2, 0)), "array .* has no samples"),
    "less than a sample": ((np.zeros(5), 192000), "too short: less than one sample at 16000 Hz"),
    "NaN": (np.array([0.0, np.nan] + [0.0] * 9), r"sample 1 \(at 0.00 s\) is NaN or infinite.*nan_to_num"),
    "infinity": ((np.r_[np.zeros(8000), -np.inf], 8000), r"sample 8000 \(at 1.00 s\) is NaN or infinite"),
    "integers stored as floats": (np.array([0.0, 20000.0]), "reach 20000, full scale is 1.*divide by the full scale"),
    "int64": (np.arange(9), "the array is int64, whose full scale is unclear; pass int16"),
    "a square": (np.zeros((3, 3)), r"shape \(3, 3\); pass \(T,\), or \(T, C\) or \(C, T\) with C ≤ 8 < T"),
    "too many channels": (np.zeros((64, 64)), r"shape \(64, 64\); .*array.mean\(axis=…\)"),
    "a batch": (np.zeros((2, 1, 99)), r"shape \(2, 1, 99\)"),
    "a number": (0.5, r"shape \(\)"),
    "nothing": (None, "NoneType is not audio; pass a path, encoded bytes, a binary file object, an array"),
    "several paths": (["a.wav", "b.wav"], "list is not audio; pass a path"),
    "ragged lists": ([[0.1], [0.1, 0.2]], "list is not audio"),
    "complex": (np.zeros(9, complex), "ndarray is not audio"),
    "kHz for Hz": ((np.zeros(99), 16), r"sample rate is 16; it is given in Hz, from 1000 to 768000: \(array, 44100\)"),
    "no rate": ((np.zeros(99), "16k"), "sample rate is '16k'; it is given in Hz"),
    "NaN rate": ((np.zeros(99), float("nan")), "sample rate is nan"),
    "an empty mapping": ({}, "the mapping holds nothing; audio is"),
    "a mapping without values": ({"bytes": None, "path": None}, "the mapping holds 'bytes', 'path'; audio is"),
    "an address": ("https://example.org/a.wav", "is an address, not a file; download it first"),
}


@pytest.mark.parametrize(("source", "text"), NOT_AUDIO.values(), ids=NOT_AUDIO.keys())
def test_what_cannot_be_used_is_an_error_that_says_what_to_do(source: Any, text: str) -> None:
    with pytest.raises(AudioError, match=text) as caught:
        audio.load(source)
    assert isinstance(caught.value, SpeechkitError)
    assert "\n" not in str(caught.value)


def test_a_missing_file_suggests_its_neighbour(wav: Path) -> None:
    with pytest.raises(AudioError, match=r"no such file: .*clipp\.wav; did you mean clip\.wav\?"):
        audio.load(wav.with_name("clipp.wav"))
    with pytest.raises(AudioError, match=r"no such file: .*clip\.wav$"):
        audio.load(wav.parent / "absent" / "clip.wav")


def test_a_folder_is_refused_with_how_to_take_its_files(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"is a folder; pass the files in it, for example Path\(.*glob"):
        audio.load(tmp_path)


def test_an_empty_file_and_a_text_renamed_wav_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match=r"empty\.wav is empty \(0 bytes\)"):
        audio.load(tmp_path / "empty.wav")
    (tmp_path / "notes.wav").write_text("Meeting notes, Tuesday\n" * 20)
    with pytest.raises(AudioError, match=r"notes\.wav is not audio .* begins with the text 'Meeting notes, Tuesday'"):
        audio.load(tmp_path / "notes.wav")


def test_a_file_object_opened_as_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with (tmp_path / "a.txt").open() as file, pytest.raises(AudioError, match="open as text; open it with mode 'rb'"):
        audio.load(file)


def test_a_file_object_that_cannot_be_read_is_refused(wav: Path, tmp_path: Path) -> None:
    closed = wav.open("rb")
    closed.close()
    with (tmp_path / "new").open("wb") as written:
        for file in (closed, written):
            with pytest.raises(AudioError, match="closed or open for writing only; open it with mode 'rb'"):
                audio.load(file)


def test_a_name_with_a_null_character_is_an_audio_error() -> None:
    with pytest.raises(AudioError, match="embedded null byte"):
        audio.load("a\0b.wav")


def test_a_file_that_this_user_may_not_read_is_an_error(wav: Path) -> None:
    wav.chmod(0)
    root = os.geteuid() == 0
    if root:  # root reads everything: become nobody for one call
        os.seteuid(65534)
    try:
        with pytest.raises(AudioError, match=r"cannot read .*clip\.wav: Permission denied; check that this user"):
            audio.load(wav)
    finally:
        if root:
            os.seteuid(0)


# Looking and writing


def test_the_duration_comes_from_the_header_or_from_decoding() -> None:
    for kind, subtype in [("WAV", None), ("FLAC", None), ("MP3", None), ("OGG", "OPUS"), ("OGG", "VORBIS")]:
        assert audio.duration(encoded(voice(2.5), kind=kind, subtype=subtype)) == pytest.approx(2.5, abs=1e-3)
    assert audio.duration(container(voice(2.5), "ipod", "aac")) == pytest.approx(2.5, abs=0.07)
    assert audio.duration((np.zeros(22050), 44100)) == 0.5


def test_inspect_reports_the_recording_as_it_is() -> None:
    info = audio.inspect(encoded(np.stack([voice(1.0, 44100)] * 2, axis=1), 44100, "FLAC"))
    assert (info.format, info.duration_s, info.rate, info.channels) == ("FLAC PCM_16", 1.0, 44100, 2)
    assert info.peak == pytest.approx(np.abs(voice(1.0, 44100)).max(), abs=1e-4)
    assert info.warnings == ()
    assert ": FLAC PCM_16, 1.00 s, 44100 Hz, 2 ch, peak 0." in str(info)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (np.stack([voice(0.5)] * 6), "6 channels are averaged into one"),
        (np.stack([voice(0.5), -voice(0.5)]), "the channels cancel each other"),
        ((voice(0.5, 8000), 8000), "recorded at 8000 Hz: there is nothing above 4 kHz"),
        (np.clip(voice(0.5) * 20, -1, 1), "of the samples are at full scale: the recording is clipped"),
        (np.zeros(800), "silent: the peak is below -60 dBFS"),
    ],
    ids=["surround", "antiphase", "telephone", "clipped", "silent"],
)
def test_inspect_warns_of_what_spoils_a_transcript(source: Any, text: str) -> None:
    info = audio.inspect(source)
    assert any(text in line for line in info.warnings)
    assert f"warning: {info.warnings[0]}" in str(info)


def test_inspect_has_nothing_to_say_of_good_real_speech(odd_formats: Path) -> None:
    assert audio.inspect(odd_formats / "f5_24k.wav").warnings == ()


@pytest.mark.parametrize(
    ("ending", "likeness"), [("wav", 0.999), ("flac", 0.999), ("opus", LIKE), ("ogg", LIKE), ("mp3", LIKE)]
)
def test_what_is_written_is_read_back(tmp_path: Path, ending: str, likeness: float) -> None:
    want = voice(1.0)
    path = audio.write(tmp_path / f"out.{ending}", want)
    assert path == tmp_path / f"out.{ending}"
    got = audio.load(path)
    assert len(got) == len(want)
    assert close(got, want) > likeness
    assert soundfile.info(path).samplerate == RATE


def test_opus_at_a_rate_it_does_not_know_keeps_the_sound() -> None:
    samples = voice(1.0, 44100)
    got = audio.load(audio.encode(samples, "opus", 44100))
    assert len(got) == RATE
    assert close(got, audio.load((samples, 44100))) > LIKE


def test_two_channels_are_written_as_two() -> None:
    both = np.stack([voice(0.3), voice(0.3, seed=1)], axis=1)
    back, rate = soundfile.read(io.BytesIO(audio.encode(both, "flac", 8000)))
    assert (back.shape, rate) == (both.shape, 8000)


def test_values_beyond_full_scale_are_clipped_not_wrapped() -> None:
    assert np.abs(audio.load(audio.encode(np.array([1.5, -1.5, 0.0]), "wav")) - [1.0, -1.0, 0.0]).max() < 1e-4


def test_a_rate_that_the_format_does_not_know_is_an_output_error() -> None:
    with pytest.raises(OutputError, match=r"mp3 cannot hold 1 channels at 96000 Hz: .*44100.* Choose another format"):
        audio.encode(voice(0.2), "mp3", 96_000)


def test_writing_says_what_is_wrong_with_the_name_or_the_place(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="format is 'wma'; it can be 'wav', 'flac', 'opus', 'ogg', 'mp3'"):
        audio.write(tmp_path / "a.wma", voice(0.1))
    with pytest.raises(OutputError, match=r"cannot write .*a\.wav: No such file or directory; choose a folder"):
        audio.write(tmp_path / "absent" / "a.wav", voice(0.1))
    with pytest.raises(AudioError, match="is NaN or infinite"):
        audio.write(tmp_path / "a.wav", np.array([np.nan]))


# Live chunks


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("channels", [1, 2, 6, 8])
@pytest.mark.parametrize("size", range(1, 10))
def test_chunks_of_any_size_and_channels_joined_equal_the_whole(size: int, channels: int, rate: int) -> None:
    frames = np.stack([voice(0.02, rate) * (1 + number) / channels for number in range(channels)], axis=1)
    feed = audio.Feed(rate)
    pieces = [feed.push(frames[at : at + size]) for at in range(0, len(frames), size)]
    joined = np.concatenate([*pieces, feed.close()])
    assert np.abs(joined - audio.load((frames, rate))).max() <= 1e-6


@pytest.mark.parametrize("shape", [(2, 1600), (9, 9), (3, 0), (2, 2, 2)], ids=str)
def test_a_chunk_is_frames_by_channels_and_nothing_else(shape: tuple[int, ...]) -> None:
    feed = audio.Feed()
    with pytest.raises(AudioError, match=r"the chunk has shape .*pass \(N,\), or \(N, C\)"):
        feed.push(np.zeros(shape, np.float32))
    assert len(feed.push(np.zeros((0, 2), np.float32))) == 0
    assert len(feed.push(np.zeros((5, 2), np.float32))) == 5
