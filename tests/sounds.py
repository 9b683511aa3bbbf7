"""Sounds for tests, made by soundfile, soxr and PyAV: not by the code under test."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from scipy.signal import correlate

RATE = 16000
Floats = NDArray[np.float32]
LIKE = 0.9  # correlation after a lossy codec; a lag of one sample gives 0.8, another sound 0


def voice(seconds: float, rate: int = RATE, seed: int = 0) -> Floats:
    """Noise below 3 kHz with a slow envelope: it survives lossy codecs and any rate from 8 kHz, and never repeats."""
    draw = np.random.default_rng(seed)
    count = round(seconds * 6000)
    low = draw.standard_normal(count) * (0.6 + 0.4 * np.sin(np.arange(count) / 900))
    return (0.1 * soxr.resample(low, 6000, rate)[: round(seconds * rate)]).astype(np.float32)


def encoded(samples: Floats, rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    """Bytes of a file, by soundfile: not by the code under test."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def container(samples: Floats, kind: str, codec: str, rate: int = 48000) -> bytes:
    """Bytes of an MP4, WebM … file, by PyAV. `samples` are 16 kHz."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as out:
        stream: Any = out.add_stream(codec, rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        convert = av.AudioResampler(format=stream.format, layout="mono", rate=rate)
        for part in [*convert.resample(frame), *convert.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def lag(got: Floats, want: Floats) -> int:
    """Samples by which `got` is late."""
    return int(correlate(got, want, mode="full").argmax()) - (len(want) - 1)


def close(got: Floats, want: Floats) -> float:
    """Correlation of what both have."""
    size = min(len(got), len(want))
    return float(np.corrcoef(got[:size], want[:size])[0, 1])
