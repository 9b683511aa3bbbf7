"""Augmentation changes what it says, by as much as it says, and never breaks on a short clip.

Oracles: FFT and autocorrelation of known sounds, known noise and responses in files.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy import signal

sys.path.insert(0, str(Path(__file__).parent))


from speechkit.errors import AudioError, DataError, PlanError
from speechkit.training import effects
from speechkit.training.augment import Augmentation, augment

RATE = 16000
NOTHING = Augmentation(
    speed_p=0, formants_p=0, room_p=0, equalizer_p=0, band_p=0, noise_p=0, gain_db=(0, 0), pad_s=(0, 0)
)
EVERYTHING = Augmentation(
    speed_p=1, formants_p=1, room_p=1, equalizer_p=1, band_p=1, noise_p=1, pitch_p=1, overload_p=1, codec_p=1,
    codecs=tuple(effects.CODECS),
)  # fmt: skip


def tone(hz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def vowel(pitch: float, seconds: float = 1.0) -> np.ndarray:
    """Pulses through two resonators."""
    source = np.zeros(int(seconds * RATE))
    source[:: round(RATE / pitch)] = 1
    for hz in (700, 1800):
        radius = np.exp(-np.pi * 90 / RATE)
        source = signal.lfilter([1], [1, -2 * radius * np.cos(2 * np.pi * hz / RATE), radius**2], source)
    return (0.3 * source / np.abs(source).max()).astype(np.float32)


def pitch_of(x: np.ndarray) -> float:
    inner = x[2000:-2000] - x[2000:-2000].mean()
    correlation = np.correlate(inner, inner, "full")[len(inner) - 1 :]
    return RATE / (correlation[60:300].argmax() + 60)


def peak_hz(x: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(x * np.hanning(len(x)))).argmax() * RATE / len(x))


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_stretching_changes_the_length_and_not_the_pitch(factor: float) -> None:
    out = effects.stretch(tone(700), factor)
    assert len(out) == round(RATE * factor)
    assert peak_hz(out) == pytest.approx(700, rel=0.01)
    middle = out[3000:-3000]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


def test_stretching_by_one_gives_the_sound_back() -> None:
    x = np.random.default_rng(0).standard_normal(8000).astype(np.float32) * 0.1
    np.testing.assert_allclose(effects.stretch(x, 1.0)[600:-600], x[600:-600], atol=1e-4)


@pytest.mark.parametrize("factor", [0.85, 1.2])
def test_shifting_the_pitch_moves_it_and_keeps_length_and_first_formant(factor: float) -> None:
    x = vowel(125)
    out = effects.shift_pitch(x, factor)
    assert len(out) == len(x)
    assert pitch_of(out) == pytest.approx(125 * factor, rel=0.04)
    hz, power = signal.welch(out, RATE, nperseg=512)
    smooth = np.convolve(power, np.hanning(9), "same")  # over the harmonics
    low = (hz > 400) & (hz < 1200)
    assert hz[low][smooth[low].argmax()] == pytest.approx(700, abs=130)


@pytest.mark.parametrize("codec", list(effects.CODECS))
def test_a_codec_keeps_the_speech_and_a_telephone_cuts_it_at_its_band(codec: str) -> None:
    x = vowel(125) + tone(6000) * 0.1
    out = effects.through_codec(x, codec)
    assert len(out) == len(x) and out.dtype == np.float32
    lag = int(signal.correlate(out, x).argmax()) - (len(x) - 1)
    assert np.corrcoef(np.roll(out, -lag)[2000:-2000], x[2000:-2000])[0, 1] > 0.9
    assert not np.array_equal(out, x)
    hz, power = signal.welch(out, RATE, nperseg=1024)
    high, speech = power[(hz > 5500) & (hz < 6500)].max(), power[(hz > 500) & (hz < 900)].max()
    if effects.CODECS[codec][0] == 8000:
        assert high < 1e-5 * speech


def test_overload_cuts_the_peaks_flat_and_makes_nothing_louder_than_they_were() -> None:
    x = tone(200)
    out = effects.overload(x, 6.0)
    assert np.abs(out).max() == pytest.approx(np.abs(x).max())
    assert np.mean(np.abs(out) == np.abs(out).max()) > 0.5  # asin(1/2) of each quarter stays round
    np.testing.assert_allclose(out[:7], x[:7] * 10 ** (6 / 20), rtol=1e-5)


def test_noise_from_a_file_is_added_at_the_level_asked_for(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).standard_normal(3 * RATE).astype(np.float32) * 0.05
    soundfile.write(tmp_path / "street.wav", noise, RATE, subtype="FLOAT")
    (tmp_path / "readme.txt").write_text("no audio")
    how = replace(NOTHING, noise_p=1.0, noise_files=(str(tmp_path),), noise_files_p=1.0, snr_db=(10.0, 10.0))
    x = tone(300)
    added = augment(x, np.random.default_rng(0), how) - x
    assert 10 * np.log10(np.mean(x**2) / np.mean(added**2)) == pytest.approx(10.0, abs=0.05)
    start = int(signal.correlate(noise, added, "valid").argmax())  # which part of the file it is
    assert np.corrcoef(noise[start : start + RATE], added)[0, 1] > 0.999
    longer = tone(300, 5.0)
    added = augment(longer, np.random.default_rng(0), how) - longer
    assert 10 * np.log10(np.mean(longer**2) / np.mean(added**2)) == pytest.approx(10.0, abs=0.05)


def test_a_silent_noise_file_adds_nothing(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "quiet.wav", np.zeros(RATE, np.float32), RATE)
    how = replace(NOTHING, noise_p=1.0, noise_files=(str(tmp_path / "quiet.wav"),), noise_files_p=1.0)
    np.testing.assert_array_equal(augment(tone(300), np.random.default_rng(0), how), tone(300))


def test_a_room_from_a_file_is_a_convolution_that_neither_delays_nor_amplifies(tmp_path: Path) -> None:
    response = np.zeros(4000, np.float32)
    response[[160, 960, 2000]] = (0.5, 0.2, -0.1)  # the direct sound comes after 10 ms, at half the level
    soundfile.write(tmp_path / "hall.wav", response, RATE, subtype="FLOAT")
    how = replace(NOTHING, room_p=1.0, responses=(str(tmp_path / "hall.wav"),))
    x = np.random.default_rng(0).uniform(-0.2, 0.2, RATE).astype(np.float32)
    want = np.convolve(x, response[160:] / 0.5)[: len(x)]
    np.testing.assert_allclose(augment(x, np.random.default_rng(0), how), want, atol=1e-5)


def test_the_same_generator_gives_the_same_sound_with_everything_on() -> None:
    for seed in range(6):
        first, second = (augment(vowel(120), np.random.default_rng(seed), EVERYTHING) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert first.dtype == np.float32 and np.abs(first).max() <= 1 and np.isfinite(first).all()
    assert not np.array_equal(first, augment(vowel(120), np.random.default_rng(9), EVERYTHING))


def test_what_is_off_draws_nothing_so_that_older_runs_keep_their_sounds() -> None:
    rng, other = np.random.default_rng(3), np.random.default_rng(3)
    augment(tone(300), rng, Augmentation())
    augment(tone(300), other, Augmentation(pitch=(0.5, 2.0), codecs=("gsm",), noise_files_p=0.1))
    assert rng.random() == other.random()


@pytest.mark.parametrize("samples", [1, 2, 100, 511, 512, 4800])
@pytest.mark.parametrize("silent", [True, False], ids=["silence", "noise"])
def test_no_clip_is_too_short_or_too_quiet(samples: int, silent: bool) -> None:
    x = (
        np.zeros(samples, np.float32)
        if silent
        else np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    )
    for seed in range(4):
        out = augment(x, np.random.default_rng(seed), replace(EVERYTHING, pad_s=(0, 0)))
        assert out.ndim == 1 and len(out) >= 1 and np.isfinite(out).all()


@pytest.mark.parametrize("samples", [np.zeros((2, 100), np.float32), np.zeros(0, np.float32), np.zeros(9, np.int16)])
def test_what_is_no_mono_signal_is_refused(samples: np.ndarray) -> None:
    with pytest.raises(AudioError, match=r"samples are .* wanted float32 \(T,\), T of 1 or more"):
        augment(samples, np.random.default_rng(0), NOTHING)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"noise_p": 1.5}, r"noise_p is 1.5; a probability lies in \[0, 1\]"),
        ({"speed": [1.1, 0.9]}, "give the smaller number first"),
        ({"pitch": [0.1, 1.0]}, r"factors lie in \[0.4, 2.5\]"),
        ({"codecs": ["ulaw", "g729"]}, r"choose from ulaw, gsm, adpcm, mp3, vorbis, opus"),
        ({"codec_p": 0.1, "codecs": []}, "choose from ulaw"),
        ({"loudness": 1}, "augmentation has no option loudness; it has speed, speed_p"),
        ({"speed": 1.1}, r"augmentation's speed is 1.1; it should be like \(0.9, 1.12\)"),
        ({"speed": [0.9, 1.0, 1.1]}, "augmentation's speed is"),
        ({"noise_p": "often"}, "augmentation's noise_p is 'often'; it should be like 0.6"),
        ({"noise_files": "noises"}, r"noise_files is 'noises'; it should be like \('folder',\)"),
    ],
)
def test_options_out_of_range_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Augmentation.of(given)


def test_options_come_from_json_as_they_are() -> None:
    assert Augmentation.of({"speed": [0.95, 1.05], "noise_p": 0.2}) == Augmentation(speed=(0.95, 1.05), noise_p=0.2)


def test_noise_that_is_not_there_is_named(tmp_path: Path) -> None:
    how = replace(NOTHING, noise_p=1.0, noise_files=(str(tmp_path / "gone.wav"),), noise_files_p=1.0)
    with pytest.raises(DataError, match=r"gone.wav does not exist: noise_files and responses name audio files"):
        augment(tone(300), np.random.default_rng(0), how)
    with pytest.raises(DataError, match="no audio file in"):
        augment(tone(300), np.random.default_rng(0), replace(how, noise_files=(str(tmp_path),)))
