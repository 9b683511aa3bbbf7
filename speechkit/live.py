"""`speechkit stream`: a file at the pace at which it was spoken, or raw PCM from stdin → lines on a terminal, or JSON.

In: a recognizer and where the sound comes from. Out: what the stream says, as it says it. Knows no arguments.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from speechkit import audio, terminal
from speechkit.errors import AudioError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechkit.asr.stream import Stream
    from speechkit.types import Event

__all__ = ["Chunk", "Screen", "paced", "raw", "run"]

Chunk = tuple[Any, float]  # samples (or bytes of int16) and their rate in Hz
PIECE_S = 0.04
HURRY_S = 1.0  # a piece when nobody waits for it: fewer partials on the way to the same finals
FILES = {b"RIFF": "WAV", b"fLaC": "FLAC", b"OggS": "Ogg", b"caff": "CAF", b"FORM": "AIFF"}


def paced(path: str, real_time: bool = True) -> Iterator[Chunk]:
    """A file's sound in pieces of 40 ms, each when it would have been spoken; all that is late comes as one piece.

    Without `real_time`, pieces of a second, at once. Raises AudioError for what cannot be read.
    """
    begun, sent = time.monotonic(), 0
    waiting: list[Any] = []
    for piece in audio.blocks(path, PIECE_S if real_time else HURRY_S):
        waiting.append(piece)
        sent += len(piece)
        early = begun + sent / audio.SAMPLE_RATE - time.monotonic()
        if real_time and early < 0:
            continue
        if real_time:
            time.sleep(early)
        yield np.concatenate(waiting), audio.SAMPLE_RATE
        waiting = []
    if waiting:
        yield np.concatenate(waiting), audio.SAMPLE_RATE


def raw(pipe: BinaryIO, rate: float) -> Iterator[Chunk]:
    """int16, little endian, mono, as it arrives: whatever has piled up while we computed comes as one chunk.

    Raises AudioError for the bytes of a file, whose header would be heard as noise.
    """
    rest, first = b"", True
    while data := pipe.read1(1 << 20):  # type: ignore[attr-defined]
        data = rest + data
        if first and data[:4] in FILES:
            raise AudioError(
                f"stdin begins like a {FILES[data[:4]]} file, and - takes raw int16 samples: give the file's name "
                "instead of -, or let its player write raw samples"
            )
        first = False
        whole = len(data) - len(data) % 2
        rest = data[whole:]
        yield data[:whole], rate


class Screen:
    """Finals as lines of their own, the growing partial on the line below: stable words plain, the others dim."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.paint = terminal.Paint.of(sys.stdout)
        self.live = sys.stdout.isatty() and not as_json

    def __call__(self, event: Event) -> None:
        if self.as_json:
            print(json.dumps(_row(event), ensure_ascii=False), flush=True)
        elif event.kind == "final":
            if event.text:
                clear = "\r\x1b[K" if self.live else ""
                print(f"{clear}{self.paint(f'{event.start_s:8.2f}  ', 'dim')}{event.text}", flush=True)
        elif self.live:
            print(f"\r\x1b[K{self._line(event)}", end="", flush=True)

    def _line(self, event: Event) -> str:
        """The end of the partial: as many words as fit into one line."""
        room, shown = terminal.columns() - 12, []
        for index in range(len(event.words) - 1, -1, -1):
            text = event.words[index].text
            room -= terminal.width(text) + 1
            if room < 0:
                break
            shown.append(text if index < event.stable else self.paint(text, "dim"))
        return f"{self.paint(f'{event.start_s:8.2f}  ', 'dim')}{' '.join(reversed(shown))}"

    def close(self) -> None:
        if self.live:
            print("\r\x1b[K", end="", flush=True)


def run(stream: Stream, chunks: Iterator[Chunk], screen: Screen) -> bool:
    """Feed the stream until its sound ends. False when Ctrl-C ended it.

    What was heard is told to its end, also after Ctrl-C, and before an error of the sound goes on to the caller.
    """
    whole = True
    try:
        for samples, rate in chunks:
            for event in stream.push(samples, rate):
                screen(event)
    except KeyboardInterrupt:
        whole = False
    finally:
        for event in stream.close():
            screen(event)
        screen.close()
    return whole


def _row(event: Event) -> dict[str, Any]:
    """An event as one line of JSON: times to the millisecond, no characters."""
    words = [
        {"text": w.text, "start_s": _ms(w.start_s), "end_s": _ms(w.end_s), "confidence": _ms(w.confidence)}
        for w in event.words
    ]
    times = {"start_s": _ms(event.start_s), "heard_s": _ms(event.heard_s)}
    return {"kind": event.kind, "text": event.text, "stable": event.stable, **times, "words": words}


def _ms(value: float) -> float:
    return round(value, 3)
