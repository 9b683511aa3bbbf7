"""Transcript and samples → the plain rows that every view draws. Pure functions; knows no widget, HTML or figure."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.subtitles import join_words
from speechkit.widgets.palette import level

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from speechkit.types import Transcript

__all__ = ["about", "audio_title", "clock", "peaks", "plain_text", "word_rows"]

BUCKETS = 600  # enough for one bar per pixel of a notebook cell, and 5 kB of widget state


def peaks(samples: NDArray[np.float32], buckets: int = BUCKETS) -> list[float]:
    """Waveform envelope: samples (T,) → at most `buckets` values in [0, 1], the loudest sample being 1.

    Each value is the largest magnitude of its stretch of samples; silence and empty audio give zeros and no values.
    """
    if buckets < 1:
        raise ValueError(f"buckets is {buckets}, must be 1 or more")
    magnitudes = np.abs(np.asarray(samples, dtype=np.float32))
    if not magnitudes.size:
        return []
    starts = np.linspace(0, magnitudes.size, min(buckets, magnitudes.size), endpoint=False).astype(np.int64)
    tops = np.maximum.reduceat(magnitudes, starts)
    loudest = float(tops.max())
    return [round(float(top) / loudest, 3) if loudest > 0 else 0.0 for top in tops]


def word_rows(transcript: Transcript, duration_s: float | None = None) -> list[dict[str, Any]]:
    """One plain row per word, times clamped to the audio; `spaced` tells whether a space stands before the word."""
    end_s = transcript.duration_s if duration_s is None else duration_s
    rows: list[dict[str, Any]] = []
    for word in transcript.words:
        start = min(max(word.start_s, 0.0), end_s) if end_s else word.start_s
        stop = min(max(word.end_s, start), end_s) if end_s else max(word.end_s, start)
        before = rows[-1]["text"] if rows else ""
        rows.append(
            {
                "text": word.text,
                "start_s": round(start, 3),
                "end_s": round(stop, 3),
                "confidence": round(word.confidence, 3),
                "level": level(word.confidence).name,
                "spaced": bool(before) and len(join_words([before, word.text])) > len(before + word.text),
            }
        )
    return rows


def clock(seconds: float) -> str:
    """`0:04.8`, `1:02:03.4`: tenths, hours only where there are any."""
    tenths = round(max(seconds, 0.0) * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{head}:{rest // 10:02d}.{rest % 10}"


def about(transcript: Transcript, duration_s: float) -> str:
    """The line beside the title: length, model, mean confidence, warnings."""
    parts = [f"{duration_s:.1f} s", transcript.model]
    if transcript.words:
        parts.append(f"mean confidence {transcript.confidence:.2f}")
    parts += [f"warning: {line}" for line in transcript.warnings]
    return " · ".join(part for part in parts if part)


def audio_title(audio: Any) -> str:
    """A file's name; nothing for samples, bytes and streams."""
    return os.path.basename(os.fspath(audio)) if isinstance(audio, str | os.PathLike) else ""


def plain_text(transcript: Transcript, title: str = "", duration_s: float | None = None) -> str:
    """The view for terminals: words below 0.85 carry their confidence, as in `room(0.71)`."""
    words = [
        row["text"] if row["level"] == "high" else f"{row['text']}({row['confidence']:.2f})"
        for row in word_rows(transcript)
    ]
    head = " · ".join(part for part in (title, about(transcript, duration_s or transcript.duration_s)) if part)
    return f"{head}\n{join_words(words) or '(no speech)'}"
