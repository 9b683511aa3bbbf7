"""Augmentation changes what it says it changes. Oracles: the FFT of a known tone, SciPy's Butterworth response."""

import numpy as np
import pytest
from scipy import signal

from speechkit.demo.recipes import augment as aug

RATE = 16000


def tone(hz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def peak_hz(x: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(x * np.hanning(len(x))))
    return float(spectrum.argmax() * RATE / len(x))


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_change_speed_moves_pitch_and_length_together(factor: float) -> None:
    out = aug.change_speed(tone(1000), factor)
    assert len(out) == pytest.approx(RATE / factor, abs=2)
    assert peak_hz(out) == pytest.approx(1000 * factor, rel=0.01)


def through_resonators(source: np.ndarray, formants: tuple[float, ...]) -> np.ndarray:
    """The source-filter model of a vowel: pulses make it voiced, noise makes it whispered."""
    for hz in formants:
        radius = np.exp(-np.pi * 90 / RATE)
        source = signal.lfilter([1], [1, -2 * radius * np.cos(2 * np.pi * hz / RATE), radius**2], source)
    return (0.3 * source / np.abs(source).max()).astype(np.float32)


def test_shift_formants_moves_the_envelope() -> None:
    whispered = through_resonators(np.random.default_rng(0).standard_normal(8 * RATE), (700, 1800))
    out = aug.shift_formants(whispered, 1.15)
    assert len(out) == len(whispered)
    hz, before = signal.welch(whispered, RATE, nperseg=512)
    _, after = signal.welch(out, RATE, nperseg=512)
    high = (hz > 1300) & (hz < 2600)
    moved = hz[high][after[high].argmax()] / hz[high][before[high].argmax()]
    assert moved == pytest.approx(1.15, abs=0.05)


def test_shift_formants_keeps_the_pitch() -> None:
    pulses = np.zeros(RATE)
    pulses[:: RATE // 110] = 1
    out = aug.shift_formants(through_resonators(pulses, (700, 1800)), 1.15)
    correlation = np.correlate(out, out, "full")[len(out) - 1 :]
    assert correlation[100:300].argmax() + 100 == pytest.approx(RATE // 110, abs=2)


def test_shift_formants_by_one_gives_the_sound_back() -> None:
    x = np.random.default_rng(0).standard_normal(5001).astype(np.float32) * 0.1
    np.testing.assert_allclose(aug.shift_formants(x, 1.0)[512:-512], x[512:-512], atol=1e-4)


def test_band_limit_has_a_butterworth_shape() -> None:
    hz = np.array([100.0, 500.0, 2000.0, 3400.0, 6000.0])
    _, want = signal.freqs(*signal.butter(8, 3400, analog=True), worN=hz)
    np.testing.assert_allclose(aug.band_limit_hz(hz, low=1e-3, high=3400), np.abs(want), rtol=1e-6)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_colored_noise_falls_by_its_exponent(exponent: float) -> None:
    noise = aug.colored_noise(np.random.default_rng(1), 1 << 17, exponent)
    hz, power = signal.welch(noise, RATE, nperseg=4096)
    band = (hz > 100) & (hz < 6000)
    slope = np.polyfit(np.log(hz[band]), np.log(power[band]), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.15)
    assert noise.std() == pytest.approx(1.0, abs=1e-3)


def test_augment_repeats_with_the_same_generator_and_never_clips_over_one() -> None:
    x = tone(300, 2.0)
    first, second = (aug.augment(x, np.random.default_rng(4), aug.Augmentation()) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.float32 and np.abs(first).max() <= 1
