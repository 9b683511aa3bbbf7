"""Live audio in, words out: partial results while somebody speaks, a final one when the utterance ends.

In: chunks of any size and rate. Out: `Event`s. Utterances come from a voice-activity gate (`vad`); within one, every
`hop_s` of audio the last `window_s` are transcribed. A word that has ended becomes stable when `agree` partials in a
row have read it alike (local agreement: Liu et al. 2020, arXiv:2005.11185), and `lookahead_s` after its end at the
latest (fixed lag). When the utterance ends, all of it is transcribed once more, in one pass, and that is the final
text. wav2vec 2.0 looks both ways, so words near the edge of a window are guesses: waiting makes better ones, and
`kernels/bench/stream.py` measures what it costs.

**The final text depends on the audio alone**: where utterances begin and end is decided on whole 32 ms blocks, and the
final pass takes exactly the samples between. A chunk that holds several hops, because it is long or because the machine
fell behind, gives one partial instead of several; nothing else changes. Memory is bounded by `longest_s` and the chunk.

Windows overlap. Where the front-end's norms allow it, convolution features are kept from one window to the next
(`frontend`); with group norm, as in base-960h and the embedded models, they are computed anew: `Stream.cache` tells.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.asr import commit, decode
from speechkit.asr.frontend import FeatureCache, reusable
from speechkit.asr.meter import SILENT_PEAK
from speechkit.asr.vad import BLOCK, Gate, GateOptions, Vad
from speechkit.audio import Feed
from speechkit.device import Choice
from speechkit.errors import AudioError, PlanError
from speechkit.types import Event

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from speechkit.asr.model import Recognizer
    from speechkit.types import Word

__all__ = ["Stream", "StreamOptions", "StreamReport"]

BUSY = 0.9  # load from which on partials are left out because the machine is slow, not because chunks are long
LENGTHS = ("window_s", "hop_s", "lookahead_s", "longest_s", "context_s", "pad_s")
FOLLOWS: Any = None  # a length that is chosen to fit the others where it is not given
FOLLOWING = ("longest_s", "context_s")


@dataclass(frozen=True)
class StreamOptions:
    """How a stream listens; times in seconds."""

    window_s: float = 6.0  # what the model hears for a partial
    hop_s: float = 0.12  # audio between two partials
    lookahead_s: float = 0.34  # audio heard behind a word after which it is stable, whatever it was read as before
    agree: int = 3  # partials in a row that read a word alike and so make it stable sooner; 0: only lookahead_s does
    vad: bool = True  # without it everything is speech
    # an utterance is cut at its widest pause when it gets this long; by default 20 s, or a window if that is longer
    longest_s: float = FOLLOWS
    # audio before the first word that may still change, for the model to lean on; by default 1 s, or half a window
    context_s: float = FOLLOWS
    pad_s: float = 0.2  # silence put behind a window: the model then takes its edge for a pause, not for a broken word
    cache: bool = True  # keep convolution features from window to window, where the model's norms allow it
    gate: GateOptions = field(default_factory=GateOptions)

    def __post_init__(self) -> None:
        """Raises PlanError for lengths that leave nothing to transcribe."""
        given = [name for name in LENGTHS if name not in FOLLOWING or getattr(self, name) is not FOLLOWS]
        lengths = {name: getattr(self, name) for name in given}
        odd = [f"{name}={value!r}" for name, value in lengths.items() if not isinstance(value, Real)]
        if odd:
            raise PlanError(f"{', '.join(odd)}: lengths are seconds")
        if not isinstance(self.agree, Integral):
            raise PlanError(f"agree={self.agree!r}: it is a number of partials, 0 or from 2")
        self._follow()
        rules = [
            (0 < self.hop_s <= self.window_s, "0 < hop_s <= window_s"),
            (0 <= self.lookahead_s < self.window_s, "0 <= lookahead_s < window_s"),
            (0 <= self.context_s < self.window_s, "0 <= context_s < window_s"),
            (self.agree == 0 or self.agree >= 2, "agree is 0 or a whole number from 2"),
            (0 <= self.pad_s <= self.window_s, "0 <= pad_s <= window_s"),
            # an utterance is cut in its later half, and the next one begins `context_s` before: it must get on
            (4 * self.context_s <= self.longest_s, "4 * context_s <= longest_s"),
            (self.window_s <= self.longest_s < float("inf"), "window_s <= longest_s, and finite"),
        ]
        broken = "; ".join(rule for holds, rule in rules if not holds)
        if broken:
            named = ", ".join(
                f"{name}={getattr(self, name)}" for name in dict.fromkeys(re.findall(r"\w+_s|agree", broken))
            )
            raise PlanError(f"{named}: it must hold that {broken}")

    def _follow(self) -> None:
        """Put in the two lengths that follow the others, so that any window can be had by its own length alone."""
        if self.context_s is FOLLOWS:
            known = [1.0, self.window_s / 2] + ([] if self.longest_s is FOLLOWS else [self.longest_s / 4])
            object.__setattr__(self, "context_s", min(known))
        if self.longest_s is FOLLOWS:
            object.__setattr__(self, "longest_s", max(20.0, self.window_s, 4 * self.context_s))


@dataclass(frozen=True)
class StreamReport:
    """How a stream has fared so far."""

    heard_s: float  # audio received
    busy_s: float  # time spent computing on it
    utterances: int
    partials: int
    thinned: int  # partials left out because a chunk held several hops
    revised: int  # stable words that a final changed
    held_s: float  # audio kept in memory now

    @property
    def load(self) -> float:
        """Computing time over audio time. Near 1 the machine keeps up by leaving partials out, above 1 it does not."""
        return self.busy_s / self.heard_s if self.heard_s else 0.0

    @property
    def left_out(self) -> float:
        """Share of the partials that were left out."""
        return self.thinned / max(1, self.thinned + self.partials)

    def __str__(self) -> str:
        line = f"{self.heard_s:.1f} s heard, {_count(self.utterances, 'utterance')}, load {self.load:.2f}, "
        line += f"{_count(self.partials, 'partial')} ({self.thinned} left out), "
        behind = "; too slow for every partial: a longer hop_s or a smaller model helps" if self.load > BUSY else ""
        return f"{line}{_count(self.revised, 'stable word')} revised{behind}"


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


@dataclass
class _Utterance:
    """The one being heard. Frames count from `start`."""

    start: int  # sample
    own: int = 0  # its first frame; what lies before is context from the utterance before
    boundary: int = 0  # the first frame whose words may still change
    ticks: int = 0  # hops dealt with
    committed: list[Word] = field(default_factory=list)
    read: tuple[tuple[str, ...], ...] = ()  # words behind the boundary as the last partials read them
    said: tuple[str, int] = ("", 0)  # text and stable words of the last partial
    features: FeatureCache | None = None


class Stream:
    """Use :meth:`Recognizer.stream` to get one. One speaker's channel; not for several threads at once."""

    def __init__(self, recognizer: Recognizer, options: StreamOptions | None = None) -> None:
        self.recognizer, self.options = recognizer, options or StreamOptions()
        self.cache = reusable(recognizer.model) if self.options.cache else Choice(False, "cache=False was asked for")
        self._vad = Vad() if self.options.vad else None
        self._gate = Gate(self.options.gate)
        self._feed: Feed | None = None
        self._samples = np.zeros(0, np.float32)  # from `_base` on
        self._base = self._gated = self._received = 0  # samples: first kept, past the gate, received
        self._now: _Utterance | None = None
        self._closed = False
        self._busy_s, self._utterances, self._partials, self._thinned, self._revised = 0.0, 0, 0, 0, 0

    @property
    def report(self) -> StreamReport:
        """Audio received, computing time, and what became of the partials."""
        rate, counts = self.recognizer.grid.rate, (self._utterances, self._partials, self._thinned, self._revised)
        return StreamReport(self._received / rate, self._busy_s, *counts, len(self._samples) / rate)

    def push(self, chunk: Any, rate: float = 16_000) -> list[Event]:
        """Audio (N,) or (N, C), float in ±1 or integers, or bytes of int16 → what there is to say about it.

        Raises AudioError for a chunk that is no audio (it is then left out whole, and the stream goes on) or comes at
        another rate than the first one; PlanError when the stream is closed.
        """
        started = time.perf_counter()
        if self._closed:
            raise PlanError("the stream is closed; open another one with recognizer.stream()")
        feed = self._feed or Feed(rate)
        if feed.rate != rate:
            raise AudioError(
                f"this stream runs at {feed.rate:g} Hz, the chunk comes at {rate} Hz: one stream has one rate; close "
                "it and open another"
            )
        arrived = feed.push(chunk)
        self._feed = feed
        events = self._hear(arrived)
        self._busy_s += time.perf_counter() - started
        return events

    def close(self) -> list[Event]:
        """End the utterance that is open, and the stream. Closing twice says nothing the second time."""
        if self._closed:
            return []
        self._closed = True
        started = time.perf_counter()
        events = self._hear(self._feed.close()) if self._feed else []
        if self._now and self._received > self._now.start:
            events.append(self._finish(self._received))
        self._samples = np.zeros(0, np.float32)
        self._busy_s += time.perf_counter() - started
        return events

    def _hear(self, arrived: NDArray[np.float32]) -> list[Event]:
        self._samples = np.concatenate([self._samples, arrived])
        self._received += len(arrived)
        events = []
        whole = (self._received - self._gated) // BLOCK * BLOCK
        probabilities = self._vad(self._between(self._gated, self._gated + whole)) if self._vad and whole else ()
        for at in range(whole // BLOCK):
            self._gated += BLOCK
            events += self._through_gate(float(probabilities[at]) if self._vad else 1.0)
        if self._now:
            events += self._partial(self._now)
        self._forget()
        return events

    def _through_gate(self, probability: float) -> list[Event]:
        """One more block: the final that it brings, if any."""
        turn = self._gate.step(probability)
        if turn and turn.kind == "open":
            self._now = self._opened(turn.sample)
        if turn and turn.kind == "close" and self._now:
            return [self._finish(turn.sample)]
        if self._now and self._gated - self._now.start >= self.options.longest_s * self.recognizer.grid.rate:
            return [self._cut(self._now)]
        return []

    def _opened(self, start: int, **known: Any) -> _Utterance:
        """A new utterance from sample `start` on. Hops that passed before it was known to begin bring no partial."""
        passed = max(0, (min(self._received, self._gated + BLOCK - 1) - start) // self._hop - 1)
        return _Utterance(
            start, ticks=passed, features=FeatureCache(self.recognizer) if self.cache.value else None, **known
        )

    @property
    def _hop(self) -> int:
        return max(1, round(self.options.hop_s * self.recognizer.grid.rate))

    def _partial(self, now: _Utterance) -> list[Event]:
        """The partial at the last whole hop, unless it says what the one before said."""
        options, grid, hop = self.options, self.recognizer.grid, self._hop
        ticks = (self._received - now.start) // hop
        if ticks <= now.ticks:
            return []
        self._thinned += ticks - now.ticks - 1
        now.ticks = ticks
        frames = grid.frames(ticks * hop)
        if frames <= now.boundary:
            return []
        context = round(options.context_s * grid.rate / grid.hop)
        first = max(0, min(frames - round(options.window_s * grid.rate / grid.hop), now.boundary - context))
        path = self._recent(now, first, now.start + ticks * hop)[now.boundary - first :]
        words = self._words(now, now.boundary, path)
        count = self._commit(now, path, words, frames - now.boundary)
        self._partials += 1
        known = (*now.committed, *words[count:])
        event = self._event("partial", now, known, len(now.committed))
        if (event.text, event.stable) == now.said:
            return []
        now.said = (event.text, event.stable)
        return [event]

    def _commit(self, now: _Utterance, path: decode.BestPath, words: tuple[Word, ...], heard: int) -> int:
        """Move the words of `path` (frames from the boundary on, `heard` of them whole) that are stable behind it.

        Returns how many.
        """
        grid, texts = self.recognizer.grid, tuple(word.text for word in words)
        starts = [self._frame(now, word.start_s) - now.boundary for word in words]
        spans = commit.spans(path, starts, self.recognizer.alphabet)
        lag = round(self.options.lookahead_s * grid.rate / grid.hop)
        count = commit.settled(spans, heard, lag)
        others = self.options.agree - 1
        if 0 < others <= len(now.read):
            alike = min(commit.agreeing(before, texts) for before in now.read[-others:])
            count = max(count, min(alike, commit.settled(spans, heard, 0)))
        moved = commit.seam(spans, count, heard) if count else 0
        # a pause is left behind too: windows stay as long as they are meant to be where nobody says a word
        now.boundary += max(moved, commit.passed(spans[count:], heard, lag))
        now.committed += words[:count]
        now.read = tuple(before[count:] for before in (*now.read, texts)[-max(1, others) :])
        return count

    def _finish(self, end: int) -> Event:
        """The utterance's samples up to `end`, transcribed in one pass."""
        now = self._now
        assert now is not None
        path = self._path(now.start, end)[now.own :]
        self._thinned += max(0, (end - now.start) // self._hop - now.ticks)
        self._now = None
        return self._final(now, self._words(now, now.own, path))

    def _cut(self, now: _Utterance) -> Event:
        """End the utterance at its widest pause; what follows becomes the next one, with a little audio before it."""
        grid = self.recognizer.grid
        path = self._path(now.start, self._gated)
        words = self._words(now, now.own, path[now.own :])
        spans = commit.spans(path, [self._frame(now, word.start_s) for word in words], self.recognizer.alphabet)
        frame = commit.widest_pause(spans, len(path))
        context = min(frame, round(self.options.context_s * grid.rate / grid.hop))
        behind = [word for word in now.committed if self._frame(now, word.start_s) >= frame]
        self._now = self._opened(
            now.start + (frame - context) * grid.hop,
            own=context,
            boundary=max(context, now.boundary - (frame - context)),
            committed=behind,
        )
        now.committed = now.committed[: len(now.committed) - len(behind)]
        return self._final(now, tuple(word for word in words if self._frame(now, word.start_s) < frame))

    def _final(self, now: _Utterance, words: tuple[Word, ...]) -> Event:
        self._utterances += 1
        stable = [word.text for word in now.committed]
        kept = SequenceMatcher(None, stable, [word.text for word in words], autojunk=False).get_matching_blocks()
        self._revised += len(stable) - sum(block.size for block in kept)
        return self._event("final", now, words, len(words))

    def _event(self, kind: Any, now: _Utterance, words: tuple[Word, ...], stable: int) -> Event:
        grid = self.recognizer.grid
        start_s = now.start / grid.rate + grid.start_s(now.own)
        return Event(kind, decode.text_of(words), words, stable, start_s, self._received / grid.rate)

    def _recent(self, now: _Utterance, first: int, end: int) -> decode.BestPath:
        """Best path of the utterance's frames from `first` on, up to sample `end` of the stream."""
        grid, pad = self.recognizer.grid, round(self.options.pad_s * self.recognizer.grid.rate)
        start = now.start + first * grid.hop
        if now.features is None or _silent(self._between(start, end)):
            path = self._path(start, end, pad)
        else:
            path = now.features.best_path(self._between(now.start, end), first, pad)
        # with silence behind them, frames that reach over the edge can be read too
        return path[: grid.frames(end - now.start) - first + (grid.field // grid.hop if pad >= grid.field else 0)]

    def _path(self, start: int, end: int, pad: int = 0) -> decode.BestPath:
        """Best path of the samples `start` to `end`, with `pad` zeros behind; no frames where there are too few."""
        samples = np.pad(self._between(start, end), (0, pad))
        frames = self.recognizer.grid.frames(len(samples))
        if not frames or _silent(samples):
            blank = self.recognizer.alphabet.blank
            return decode.BestPath(np.full(frames, blank, np.int32), np.zeros(frames, np.float32))
        return self.recognizer.best_path([samples], None)[0]

    def _words(self, now: _Utterance, first: int, path: decode.BestPath) -> tuple[Word, ...]:
        """Words of a path that begins at frame `first` of the utterance, in seconds of the stream."""
        shift = now.start / self.recognizer.grid.rate + self.recognizer.grid.start_s(first)
        heard_s = self._received / self.recognizer.grid.rate - shift
        words = decode.decode(path, self.recognizer.alphabet, self.recognizer.grid, heard_s)
        return tuple(_later(word, shift) for word in words)

    def _frame(self, now: _Utterance, seconds: float) -> int:
        grid = self.recognizer.grid
        return round((seconds * grid.rate - now.start) / grid.hop)

    def _between(self, start: int, end: int) -> NDArray[np.float32]:
        return self._samples[start - self._base : end - self._base]

    def _forget(self) -> None:
        """Drop what no later event can need: before the utterance, or before what the gate may still reach back to."""
        reach = self._gated - round(self.options.gate.before_s * self.recognizer.grid.rate) - BLOCK
        keep = max(self._base, self._now.start if self._now else reach)
        self._samples, self._base = self._samples[keep - self._base :].copy(), keep


def _silent(samples: NDArray[np.float32]) -> bool:
    """What `transcribe` takes for silence too, and gives no model."""
    return float(np.abs(samples).max(initial=0.0)) < SILENT_PEAK


def _later(word: Word, shift: float) -> Word:
    chars = tuple(replace(char, start_s=char.start_s + shift, end_s=char.end_s + shift) for char in word.chars)
    return replace(word, start_s=word.start_s + shift, end_s=word.end_s + shift, chars=chars)
