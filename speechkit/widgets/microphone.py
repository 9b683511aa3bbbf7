"""A microphone in the notebook: speak, and see the words as the stream becomes sure of them.

The browser records, and hands over pieces of int16 sound; each goes through `Recognizer.stream`, and the events go
back. One piece is under way at a time: where the machine is slower than speech the next one is longer, so partials get
rarer and nothing is lost. Two transports: the widget's own messages (JupyterLab, VS Code), and Colab's `invokeFunction`
with base64. Where the browser gives no microphone, the view says why and takes a file instead. Uses only what
ipywidgets 7.7 and 8 share. Knows no torch.

What the view sends (`kind`), each answered by one message with the same `seq`:
`start`; `chunk` with its `rate` and the samples; `stop`; `part` of a file, with `first` and `last`, then `more` until
the answer says that nothing is left of it.
"""

from __future__ import annotations

import base64
import logging
import sys
import time
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets as t

from speechkit import audio as sound
from speechkit.errors import AudioError, DataError, SpeechkitError
from speechkit.subtitles import join_words
from speechkit.widgets.palette import SOFT, card

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechkit.asr.model import Recognizer
    from speechkit.asr.stream import Stream
    from speechkit.types import Event

__all__ = ["Microphone", "microphone"]

STATIC = Path(__file__).parent / "static"
BLOCK_S = 0.5  # a file is fed in pieces, so that its utterances end as they would have live
BUDGET_S = 0.4  # computing time on a file before the view hears of it
MAX_FILE = 200 << 20  # bytes; it is held in memory, and a longer recording is no matter of a microphone


def microphone(recognizer: Recognizer, title: str = "", **options: Any) -> Microphone:
    """A live microphone for `recognizer`; `options` are those of `Recognizer.stream`.

    Raises PlanError for an option that does not exist. The widget keeps what was said in `text` and `finals`.
    """
    return Microphone(recognizer, title, **options)


class Microphone(anywidget.AnyWidget):
    """The live widget; make it with :func:`microphone`."""

    _esm = STATIC / "microphone.js"
    _css = STATIC / "microphone.css"
    _ipython_display_ = None  # as in Player: ipywidgets 7 would hide the twins

    title = t.Unicode("").tag(sync=True)
    language = t.Unicode("").tag(sync=True)
    lines = t.List(t.Unicode()).tag(sync=True)  # finals, in order
    channel = t.Unicode("").tag(sync=True)  # the name under which Colab calls Python; empty elsewhere

    def __init__(self, recognizer: Recognizer, title: str = "", **options: Any) -> None:
        self._recognizer, self._options = recognizer, options
        self._stream: Stream | None = recognizer.stream(**options)  # wrong options are told now, not at the first word
        self._settled = 0  # words of the open utterance that are stable
        self._upload = bytearray()
        self._blocks: Iterator[sound.Samples] | None = None  # of the file that is being read
        self._damage = ""  # why it could not be read to its end
        self.finals: list[Event] = []
        super().__init__(title=title or f"{recognizer.name}, live", language=recognizer.language or "")
        self.channel = _colab_channel(self)
        self.on_msg(self._message)

    @property
    def text(self) -> str:
        """Everything that was said so far, one utterance a line."""
        return "\n".join(event.text for event in self.finals)

    def hear(self, content: dict[str, Any], data: bytes = b"") -> dict[str, Any]:
        """One message of the view → the answer to it.

        `kind` is "said", or "failed" with a `reason`: a mistake is an answer too, which the view shows. `finals` are
        the utterances that ended, `count` how many there were in all; `stable` and `open` the words of the one that is
        being spoken, where they have changed; `lags_s` the audio heard after the end of each word before it was stable;
        `load` computing time over audio time; `more` whether some of a file is left.
        """
        acts = {"start": self._start, "chunk": self._chunk, "stop": self._stop, "part": self._part, "more": self._more}
        try:
            act = acts.get(str(content.get("kind")))
            if act is None:
                raise DataError(f"the view sent {content.get('kind')!r}; known are {', '.join(acts)}")
            answer = self._answer(act(content, data))
        except SpeechkitError as error:
            return self._answer([]) | {"kind": "failed", "reason": str(error)}
        if self._damage:
            answer |= {"kind": "failed", "reason": self._damage}
            self._damage = ""
        return answer

    def _start(self, _content: dict[str, Any], _data: bytes) -> list[Event]:
        """End whatever was going on: a page that was reloaded has not said stop."""
        return self._stop({}, b"")

    def _chunk(self, content: dict[str, Any], data: bytes) -> list[Event]:
        rate = content.get("rate")
        if not isinstance(rate, int | float):
            raise AudioError(f"sample rate is {rate!r}; a chunk comes with its rate in Hz, as a number")
        return self._open().push(data, rate=rate)

    def _stop(self, _content: dict[str, Any], _data: bytes) -> list[Event]:
        events = self._stream.close() if self._stream else []
        self._stream, self._blocks = None, None
        return events

    def _part(self, content: dict[str, Any], data: bytes) -> list[Event]:
        """A file comes in parts: one message of 10 MB would make Jupyter's server close the connection."""
        events = []
        if content.get("first"):
            events = self._stop({}, b"")
            self._upload = bytearray()
        if len(self._upload) + len(data) > MAX_FILE:
            self._upload = bytearray()
            raise AudioError(
                f"the file is larger than {MAX_FILE >> 20} MB; copy it to the notebook's machine and use "
                "recognizer.transcribe(path)"
            )
        self._upload += data
        if content.get("last"):
            self._blocks = sound.blocks(self._upload, BLOCK_S)
            self._upload = bytearray()
        return events

    def _more(self, _content: dict[str, Any], _data: bytes) -> list[Event]:
        """Some more of the file, for a moment of computing; at its end its last words."""
        until = time.perf_counter() + BUDGET_S
        events: list[Event] = []
        while self._blocks is not None and time.perf_counter() < until:
            try:
                block = next(self._blocks, None)
            except AudioError as error:  # further on it is damaged: what could be read is said all the same
                self._damage, block = str(error), None
            events += self._stop({}, b"") if block is None else self._open().push(block)
        return events

    def _open(self) -> Stream:
        if self._stream is None:
            self._stream = self._recognizer.stream(**self._options)
        return self._stream

    def _answer(self, events: list[Event]) -> dict[str, Any]:
        said = [event for event in events if event.kind == "final" and event.text]
        if said:
            self.finals += said
            self.lines = [event.text for event in self.finals]
        answer: dict[str, Any] = {"kind": "said", "finals": [event.text for event in said], "count": len(self.finals)}
        if events:
            answer |= _now(events[-1])
        report = self._stream.report if self._stream else None
        load = round(report.load, 2) if report else 0.0
        return answer | {"lags_s": self._lags(events), "load": load, "more": self._blocks is not None}

    def _lags(self, events: list[Event]) -> list[float]:
        lags = []
        for event in events:
            stable = event.stable if event.kind == "partial" else len(event.words)
            lags += [round(event.heard_s - word.end_s, 3) for word in event.words[self._settled : stable]]
            self._settled = event.stable if event.kind == "partial" else 0
        return lags

    def _message(self, _widget: Any, content: dict[str, Any], buffers: Any) -> None:
        data = bytes(buffers[0]) if buffers else b""
        try:
            answer = self.hear(content, data)
        except Exception as error:  # no mistake that we know: the view hears of it, the kernel's log has the rest
            self.send({**self._unforeseen(error), "seq": content.get("seq")})
            raise
        self.send({**answer, "seq": content.get("seq")})

    def _called(self, content: dict[str, Any], text: str = "") -> Any:
        """Colab's way in: the same message, its bytes in base64."""
        from IPython.display import JSON

        return JSON({**self._heard(content, text), "seq": content.get("seq")})  # type: ignore[no-untyped-call]

    def _heard(self, content: dict[str, Any], text: str) -> dict[str, Any]:
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError:  # letters that base64 lacks, or too few
            return self._answer([]) | {
                "kind": "failed",
                "reason": "the sound did not arrive whole; press Start again",
            }
        try:
            return self.hear(content, data)
        except Exception as error:  # as in `_message`, but raised, Colab would tell the view that no kernel was there
            logging.getLogger(__name__).exception("the microphone's message %r failed", content.get("kind"))
            return self._unforeseen(error)

    def _unforeseen(self, error: Exception) -> dict[str, Any]:
        reason = f"{type(error).__name__}: {error}"
        return {"kind": "failed", "reason": reason, "finals": [], "count": len(self.finals)}

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The live view, with both twins beside it for whoever opens the saved notebook."""
        data, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        return {**data, "text/html": self._twin(), "text/plain": repr(self)}, metadata

    def _twin(self) -> str:
        said = "".join(f'<p dir="auto" style="margin:4px 0">{escape(event.text)}</p>' for event in self.finals)
        soft = f"font-size:12.5px;color:{SOFT.light};color:{SOFT.css}"
        note = f'<div style="{soft}">The microphone works in a live notebook.</div>'
        head = f"<strong>{escape(self.title)}</strong>"
        return f'<section aria-label="Microphone" style="{card()}">{head}{said}{note}</section>'

    def __repr__(self) -> str:
        return f"Microphone({self.title}){': ' + self.text if self.finals else ''}"


def _now(event: Event) -> dict[str, str]:
    """The utterance that is open after `event`: what will stay, and what may still change; a final leaves none open."""
    if event.kind == "final":
        return {"stable": "", "open": ""}
    stable = join_words(word.text for word in event.words[: event.stable])
    return {"stable": stable, "open": event.text[len(stable) :]}


def _colab_channel(widget: Microphone) -> str:
    """Register with Colab, where this is Colab; the name that the view calls, or nothing."""
    output = sys.modules.get("google.colab.output")  # its kernels have it; elsewhere it may be installed, and fail
    if output is None:
        return ""
    name = f"speechkit.microphone.{id(widget):x}"
    output.register_callback(name, widget._called)
    return name
