"""Audio and transcript → a player in the notebook: click a word to hear it. Its twins: static HTML and plain text.

The audio is not a synced trait: notebook tools save every synced trait, and the sound would end up as base64 in the
file. Instead the view asks for it (`{"kind": "audio"}`) and Python answers with one binary message.
Uses only what ipywidgets 7.7 and 8 share. Knows no torch.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anywidget
import numpy as np
import traitlets as t

from speechkit import audio as sound
from speechkit.widgets.html import transcript_html
from speechkit.widgets.rows import about, audio_title, peaks, plain_text, word_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from speechkit.types import Transcript

__all__ = ["Player", "StaticPlayer", "player", "player_html"]

STATIC = Path(__file__).parent / "static"
VIEW = "application/vnd.jupyter.widget-view+json"
Format = Literal["opus", "wav"]
MIME: dict[Format, str] = {"opus": "audio/ogg", "wav": "audio/wav"}


def player(
    audio: Any, transcript: Transcript, title: str = "", fallback: Literal["auto", "always", "never"] = "auto"
) -> Player | StaticPlayer:
    """A player for `audio` (anything `audio.load` takes) with the words of `transcript` under its waveform.

    `title` defaults to the file's name. `fallback` says when the static twin is returned instead of the widget:
    `"auto"` where no notebook kernel runs, `"always"`, or `"never"`. Raises AudioError when the audio cannot be read.
    """
    if fallback not in ("auto", "always", "never"):
        raise ValueError(f'fallback is {fallback!r}; use "auto", "always" or "never"')
    samples = sound.load(audio)
    name = title or audio_title(audio)
    if fallback == "always" or (fallback == "auto" and not _in_kernel()):
        return _static(samples, transcript, name)
    return Player(samples, transcript, name)


def player_html(audio: Any, transcript: Transcript, title: str = "") -> str:
    """The player's static twin as an HTML string; `audio` (None: no waveform) only draws, no sound is embedded."""
    if audio is None:
        return transcript_html(transcript, title=title)
    return _static(sound.load(audio), transcript, title or audio_title(audio)).html


@dataclass(frozen=True)
class StaticPlayer:
    """The twin without a kernel: HTML where it can be shown, plain text elsewhere."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


class Player(anywidget.AnyWidget):
    """The live widget; make it with :func:`player`. `current_s` and `selected` follow what the user does."""

    _esm = STATIC / "player.js"
    _css = STATIC / "player.css"
    _ipython_display_ = None  # ipywidgets 7 has this hook, which would hide the mime bundle and its HTML twin

    title = t.Unicode("").tag(sync=True)
    about = t.Unicode("").tag(sync=True)
    language = t.Unicode("").tag(sync=True)
    words = t.List(t.Dict()).tag(sync=True)  # rows.word_rows
    peaks = t.List(t.Float()).tag(sync=True)  # rows.peaks
    duration_s = t.Float(0.0).tag(sync=True)
    current_s = t.Float(0.0).tag(sync=True)  # written by the view, at most four times a second
    selected = t.Int(-1).tag(sync=True)  # index into words, -1: none

    def __init__(self, samples: NDArray[np.float32], transcript: Transcript, title: str = "") -> None:
        """`samples`: (T,) float32 at 16 kHz, kept in memory as int16 until the widget is closed."""
        seconds = len(samples) / sound.SAMPLE_RATE
        tops = peaks(samples)
        self._samples = np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)
        self._encoded: dict[Format, bytes] = {}
        self._html = transcript_html(transcript, tops, title, seconds)
        self._text = plain_text(transcript, title, seconds)
        super().__init__(
            title=title,
            about=about(transcript, seconds),
            language=transcript.language or "",
            words=word_rows(transcript, seconds),
            peaks=tops,
            duration_s=seconds,
        )
        self.on_msg(self._answer)

    def audio_bytes(self, form: Format = "opus") -> bytes:
        """The sound as the view gets it: Ogg/Opus, or 16 kHz int16 WAV for browsers that cannot play that."""
        if form not in self._encoded:
            self._encoded[form] = sound.encode(self._samples.astype(np.float32) / 32768, format=form)
        return self._encoded[form]

    def _answer(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        if content.get("kind") == "audio":
            form: Format = "opus" if content.get("opus") else "wav"
            self.send({"kind": "audio", "mime": MIME[form]}, buffers=[self.audio_bytes(form)])

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The live view, with both twins beside it for whoever opens the saved notebook."""
        data, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        return {**data, "text/html": self._html, "text/plain": self._text}, metadata

    def __repr__(self) -> str:
        return self._text


def _static(samples: NDArray[np.float32], transcript: Transcript, title: str) -> StaticPlayer:
    seconds = len(samples) / sound.SAMPLE_RATE
    html = transcript_html(transcript, peaks(samples), title, seconds)
    return StaticPlayer(html, plain_text(transcript, title, seconds))


def _in_kernel() -> bool:
    """Whether this process is a notebook kernel; asks IPython only if something has imported it already."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
