"""Changes to a waveform, one function each: speaker, room, line and codec. In and out: float32 (T,), 16 kHz.

What is random takes a NumPy generator. Knows no options and no files; `augment` chooses among these.
"""

from __future__ import annotations

import io

import numpy as np
import soundfile
import soxr

__all__ = [
    "CODECS",
    "RATE",
    "band_limit_hz",
    "change_speed",
    "colored_noise",
    "overload",
    "room",
    "shift_formants",
    "shift_pitch",
    "stretch",
    "through_codec",
]

RATE = 16000
WINDOW, HOP = 512, 128  # 32 ms and 8 ms: long enough to resolve pitch, short enough to follow speech
SEARCH = 192  # samples each way, 12 ms: a whole period of any voice from 42 Hz up lies within
LIFTER = 32  # cepstral coefficients that describe the vocal tract and not the pitch (2 ms)
# name → rate, container and coding of libsndfile. The first three are telephone lines. Nothing here needs torchaudio,
# whose own codecs went with its input and output in 2.9.
CODECS = {
    "ulaw": (8000, "WAV", "ULAW"),
    "gsm": (8000, "WAV", "GSM610"),
    "adpcm": (8000, "WAV", "IMA_ADPCM"),
    "mp3": (16000, "MP3", "MPEG_LAYER_III"),
    "vorbis": (16000, "OGG", "VORBIS"),
    "opus": (16000, "OGG", "OPUS"),
}
_STRONGEST = 0.9  # of libsndfile's scale from 0 (best) to 1 (smallest)


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
    return _overlap_add(pieces, window)[WINDOW : WINDOW + len(x)]


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


def stretch(x: np.ndarray, factor: float) -> np.ndarray:
    """Make the sound `factor` times as long and keep its pitch: (T,) → (round(T · factor),).

    Pieces of 32 ms are laid out at another distance; each is taken within 12 ms of its place where it continues the one
    before best (WSOLA, Verhelst & Roelands 1993). Waveforms stay whole, where a phase vocoder smears voices.
    """
    count = round(len(x) * factor)
    if len(x) < WINDOW or count < WINDOW:
        return np.interp(np.linspace(0, max(0, len(x) - 1), count), np.arange(len(x)), x).astype(np.float32)
    step = WINDOW // 2
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)  # neighbours half a window apart add up to one
    frames = -(-count // step) + 1
    before = SEARCH + step
    room_left = round(frames * step / factor) + 2 * (WINDOW + SEARCH)  # behind the end of the sound
    padded = np.pad(x, (before, max(0, room_left - len(x)))).astype(np.float32)
    energy = np.concatenate([[0.0], np.cumsum(padded.astype(np.float64) ** 2)])
    out = np.zeros((frames + 1) * step, dtype=np.float32)
    chosen = before - step
    for frame in range(frames):
        place = before - step + round(frame * step / factor)
        if frame:
            first = place - SEARCH
            match = np.correlate(padded[first : place + SEARCH + WINDOW], padded[chosen + step :][:WINDOW], "valid")
            starts = np.arange(first, first + len(match))
            # over its own loudness: what truly continues the piece wins over what is merely loud
            match = match / np.sqrt(energy[starts + WINDOW] - energy[starts] + 1e-9)
            # the middle first: in silence all are alike
            place = place if match[SEARCH] >= match.max() else first + int(match.argmax())
        out[frame * step :][:WINDOW] += padded[place : place + WINDOW] * window
        chosen = place
    return out[step : step + count]


def shift_pitch(x: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the pitch by `factor` and keep timing and formants: the same throat, other vocal cords.

    Resampling moves pitch, formants and length together; the length is stretched back, the envelope shifted back.
    """
    if len(x) < WINDOW:
        return x
    moved = stretch(change_speed(x, factor), factor)
    moved = np.pad(moved[: len(x)], (0, max(0, len(x) - len(moved))))
    return shift_formants(moved, 1 / factor)


def overload(x: np.ndarray, gain_db: float) -> np.ndarray:
    """What a microphone set `gain_db` too loud records: peaks cut flat, at the loudness of the peak before."""
    peak = float(np.abs(x).max())
    return np.clip(x * np.float32(10 ** (gain_db / 20)), -peak, peak)


def through_codec(x: np.ndarray, codec: str) -> np.ndarray:
    """Encode and decode again, at the rate of that line; see `CODECS`. (T,) → (T,), peaks above 1 are cut."""
    rate, container, coding = CODECS[codec]
    low = soxr.resample(x, RATE, rate, quality="LQ") if rate != RATE else x
    buffer = io.BytesIO()
    lossy = {"compression_level": _STRONGEST} if container != "WAV" else {}
    soundfile.write(buffer, np.clip(low, -1, 1), rate, format=container, subtype=coding, **lossy)
    buffer.seek(0)
    back = soundfile.read(buffer, dtype="float32")[0]
    back = soxr.resample(back, rate, RATE, quality="LQ") if rate != RATE else back
    return np.pad(back[: len(x)], (0, max(0, len(x) - len(back)))).astype(np.float32)


def _overlap_add(pieces: np.ndarray, window: np.ndarray) -> np.ndarray:
    """(F, WINDOW), windowed before and after → (F · HOP + WINDOW,) at the level of the sound."""
    out = np.zeros(len(pieces) * HOP + WINDOW, dtype=np.float32)
    for start in range(WINDOW // HOP):  # one phase of the hop at a time: those frames do not overlap
        flat = pieces[start :: WINDOW // HOP].reshape(-1)
        out[start * HOP : start * HOP + len(flat)] += flat
    return out / (float((window**2).sum()) / HOP)
