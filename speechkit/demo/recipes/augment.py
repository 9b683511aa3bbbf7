"""Waveform augmentation: make few voices sound like many speakers, rooms and microphones.

In and out: float32 (T,), 16 kHz. The same generator state gives the same sound. Speaker changes (rate, formants) come
before channel changes (room, equaliser, band limit, noise), as they do in nature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr

__all__ = ["Augmentation", "augment", "band_limit_hz", "change_speed", "colored_noise", "room", "shift_formants"]

RATE = 16000
WINDOW, HOP = 512, 128  # 32 ms and 8 ms: long enough to resolve pitch, short enough to follow speech
LIFTER = 32  # cepstral coefficients that describe the vocal tract and not the pitch (2 ms)


@dataclass(frozen=True)
class Augmentation:
    """How far and how often a clip is changed; probabilities are per clip."""

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


def augment(samples: np.ndarray, rng: np.random.Generator, how: Augmentation) -> np.ndarray:
    """Apply a random selection of changes; float32 (T',), peak below 1."""
    x = samples
    if rng.random() < how.speed_p:
        x = change_speed(x, float(rng.uniform(*how.speed)))
    if rng.random() < how.formants_p:
        x = shift_formants(x, float(rng.uniform(*how.formants)))
    before, after = (int(rng.uniform(*how.pad_s) * RATE) for _ in range(2))
    x = np.pad(x, (before, after))
    x = _channel(x, rng, how)
    if rng.random() < how.noise_p:
        x = _add_noise(x, rng, float(rng.uniform(*how.snr_db)))
    x = x * 10 ** (float(rng.uniform(*how.gain_db)) / 20)
    return np.clip(x, -1, 1).astype(np.float32)


def change_speed(x: np.ndarray, factor: float) -> np.ndarray:
    """Play `factor` times faster: a smaller, quicker speaker. Rate, pitch and formants all move."""
    return soxr.resample(x, RATE * factor, RATE, quality="LQ").astype(np.float32)


def shift_formants(x: np.ndarray, factor: float) -> np.ndarray:
    """Stretch the spectral envelope by `factor` and keep pitch and timing: another vocal-tract length.

    The envelope is the liftered cepstrum of each frame (Oppenheim & Schafer); each frame is multiplied by the ratio of
    the warped to the original envelope.
    """
    if len(x) < WINDOW:
        return x
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    padded = np.pad(x, (WINDOW, WINDOW + (-len(x)) % HOP))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * window  # (F, WINDOW)
    spectrum = np.fft.rfft(frames)
    cepstrum = np.fft.irfft(np.log(np.abs(spectrum) + 1e-5))
    cepstrum[:, LIFTER:-LIFTER] = 0
    envelope = np.fft.rfft(cepstrum).real  # (F, WINDOW / 2 + 1), log
    bins = np.arange(envelope.shape[1])
    source = np.clip(bins / factor, 0, bins[-1])
    low = np.minimum(source.astype(int), bins[-1] - 1)
    warped = envelope[:, low] + (source - low) * (envelope[:, low + 1] - envelope[:, low])
    gain = np.exp(np.clip(warped - envelope, -3.0, 3.0))
    pieces = np.fft.irfft(spectrum * gain, WINDOW).astype(np.float32) * window
    out = np.zeros(len(padded), dtype=np.float32)
    for start in range(WINDOW // HOP):  # overlap-add, one phase of the hop at a time
        chosen = pieces[start :: WINDOW // HOP]
        flat = chosen.reshape(-1)[: len(out) - start * HOP]
        out[start * HOP : start * HOP + len(flat)] += flat
    scale = float((window**2).sum()) / HOP
    return out[WINDOW : WINDOW + len(x)] / scale


def room(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """A room's impulse response: direct path and exponentially decaying noise; float32, first sample 1."""
    count = max(2, int(seconds * RATE))
    tail = rng.standard_normal(count).astype(np.float32) * np.exp(-6.9 * np.arange(count) / count)
    tail[: int(0.002 * RATE)] = 0
    tail *= rng.uniform(0.1, 0.7) / (np.sqrt((tail**2).sum()) + 1e-9)
    tail[0] = 1.0
    return tail.astype(np.float32)


def band_limit_hz(frequencies: np.ndarray, low: float, high: float) -> np.ndarray:
    """Magnitude of a smooth band-pass between `low` and `high` Hz (Butterworth shape, 8th order above, 4th below)."""
    safe = np.maximum(frequencies, 1.0)
    return 1 / np.sqrt(1 + (safe / high) ** 16) / np.sqrt(1 + (low / safe) ** 8)


def colored_noise(rng: np.random.Generator, count: int, exponent: float) -> np.ndarray:
    """Noise whose power falls as 1 / f^exponent (0 white, 1 pink, 2 brown); float32 (count,), RMS 1."""
    size = 1 << max(8, (count - 1).bit_length())
    spectrum = np.fft.rfft(rng.standard_normal(size).astype(np.float32))
    spectrum *= np.maximum(np.arange(len(spectrum)), 8) ** (-exponent / 2)
    noise = np.fft.irfft(spectrum)[:count]
    return (noise / (noise.std() + 1e-9)).astype(np.float32)


def _channel(x: np.ndarray, rng: np.random.Generator, how: Augmentation) -> np.ndarray:
    """Room, equaliser and band limit are all filters: one multiplication in the frequency domain."""
    response = room(rng, float(rng.uniform(0.05, 0.45))) if rng.random() < how.room_p else None
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


def _add_noise(x: np.ndarray, rng: np.random.Generator, snr_db: float) -> np.ndarray:
    level = float(np.sqrt(np.mean(x**2))) * 10 ** (-snr_db / 20)
    return x + level * colored_noise(rng, len(x), float(rng.uniform(0, 2)))
