"""How long after a word ends is it stable on screen, and what does that cost in word errors?

In: a recognizer, clips and their texts, settings of a stream. Out: `StreamScore`. The clips are played one after the
other with pauses between, in pieces of 20 ms, on a clock that runs at the pace of speech and stands still for nobody: a
piece is handed over when it has been spoken or, if the machine is behind, with all that was spoken meanwhile, when the
stream is free. Nothing sleeps: the clock counts the audio and adds the time that computing took. Knows no torch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit import audio
from speechkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from speechkit.asr.model import Recognizer
    from speechkit.asr.stream import Stream
    from speechkit.types import Event, Word

    Timer = Callable[[], float]

__all__ = ["Step", "StreamScore", "concert", "last_sound_s", "played", "stream_score"]

RATE = audio.SAMPLE_RATE
PIECE = 320  # samples handed over at a time
HALF_FRAME_S = 0.01
PAUSE_S = 1.2  # between clips: longer than the gate needs to end an utterance
LOUD_BLOCK = 160  # samples, 10 ms: the resolution of the last sound
LOUD = 10 ** (-40 / 20)  # of the clip's loudest block


@dataclass(frozen=True)
class StreamScore:
    """One setting's outcome. Latency runs from a word's end to the moment it was first called stable.

    The end is the model's own, the last frame in which it reads the word, which need not be the last sound of it:
    `tail_s` tells by how much the two differ. What a listener waits for is about `p50_s - tail_s`.
    """

    options: Mapping[str, Any]
    latencies_s: tuple[float, ...] = field(repr=False)
    committed_wer: float  # of words as they were first called stable
    final_wer: float
    load: float  # computing time over audio time
    left_out: float  # share of the partials that were left out because the machine was behind
    # last sound of a clip minus the model's end of its last word, median; positive where the model ends words early.
    # Where clips are noisy to their end it is too long.
    tail_s: float = float("nan")

    @property
    def p50_s(self) -> float:
        return float(np.percentile(self.latencies_s, 50)) if self.latencies_s else float("nan")

    @property
    def p95_s(self) -> float:
        return float(np.percentile(self.latencies_s, 95)) if self.latencies_s else float("nan")

    def __str__(self) -> str:
        told = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return (
            f"{told}: latency {self.p50_s * 1000:.0f} ms (p95 {self.p95_s * 1000:.0f} ms), "
            f"committed WER {self.committed_wer:.1%}, final WER {self.final_wer:.1%}, load {self.load:.2f}"
        )


def stream_score(
    recognizer: Recognizer,
    clips: Sequence[Any],
    texts: Sequence[str],
    options: Mapping[str, Any],
    timer: Timer = time.perf_counter,
) -> StreamScore:
    """Play clips (whatever `audio.load` takes) through one stream with `options`.

    timer: what computing took, in seconds; latency and load both count by it. `time.process_time` leaves out what other
    programs took of the machine; it adds up the threads of this one, so set torch to one.

    Raises DataError for lists of different lengths or without a clip, PlanError for options that no stream has.
    """
    from speechkit.evaluation.metrics import wer

    if len(clips) != len(texts) or not clips:
        raise DataError(f"{len(clips)} clips and {len(texts)} texts; give one text per clip, at least one")
    stream = recognizer.stream(**options)
    tally, busy_s = _Tally(), 0.0
    sounds = [audio.load(clip) for clip in clips]
    whole = concert(sounds)
    for step in played(stream, whole, timer):
        busy_s += step.took_s
        for event in step.events:
            tally.hear(event, step.clock_s)
    reference = " ".join(texts)
    return StreamScore(
        options=dict(options),
        latencies_s=tuple(tally.latencies_s),
        committed_wer=wer(reference, " ".join(tally.committed), recognizer.language),
        final_wer=wer(reference, " ".join(tally.finals), recognizer.language),
        load=busy_s / (len(whole) / RATE),
        left_out=stream.report.left_out,
        tail_s=_tail_s(sounds, tally.ends_s),
    )


def last_sound_s(clip: NDArray[np.float32]) -> float:
    """(T,) at 16 kHz → end, in seconds, of the last 10 ms less than 40 dB below the loudest 10 ms; of silence, 0."""
    padded = np.pad(clip, (0, -len(clip) % LOUD_BLOCK)).reshape(-1, LOUD_BLOCK)
    level = np.sqrt(np.square(padded, dtype=np.float64).mean(axis=1))
    loud = np.flatnonzero(level > LOUD * level.max(initial=0.0))
    return float(min((loud[-1] + 1) * LOUD_BLOCK, len(clip))) / RATE if len(loud) else 0.0


def _tail_s(sounds: Sequence[NDArray[np.float32]], ends_s: Sequence[float], pause_s: float = PAUSE_S) -> float:
    """Median over the clips of a concert: last sound minus the last of `ends_s` (of words) in the clip or behind it."""
    tails, start_s = [], 0.0
    for sound in sounds:
        next_s = start_s + len(sound) / RATE + pause_s
        own = [end_s for end_s in ends_s if start_s < end_s <= next_s]
        if own:
            tails.append(start_s + last_sound_s(sound) - max(own))
        start_s = next_s
    return float(np.median(tails)) if tails else float("nan")


def concert(clips: Sequence[NDArray[np.float32]], pause_s: float = PAUSE_S) -> NDArray[np.float32]:
    """Clips (T,) one after the other, with faint noise between them and behind the last."""
    rng = np.random.default_rng(0)
    parts = []
    for clip in clips:
        parts += [clip, (1e-4 * rng.standard_normal(round(pause_s * RATE))).astype(np.float32)]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Step:
    """One piece of sound: what the stream said to it, when by the clock of the sound, and how long that took."""

    events: tuple[Event, ...]
    clock_s: float
    took_s: float


def played(stream: Stream, samples: NDArray[np.float32], timer: Timer = time.perf_counter) -> Iterator[Step]:
    """(T,) at 16 kHz through the stream at the pace of speech, and its end; see the head of this file for the clock."""
    clock, at = 0.0, 0
    while at < len(samples):
        clock = max(clock, (at + PIECE) / RATE)
        spoken = max(at + PIECE, int(clock * RATE) // PIECE * PIECE)
        events, took = _timed(lambda: stream.push(samples[at:spoken]), timer)  # noqa: B023 — called before it changes
        clock, at = clock + took, spoken
        yield Step(events, clock, took)
    events, took = _timed(stream.close, timer)
    yield Step(events, clock + took, took)


def _timed(say: Callable[[], list[Event]], timer: Timer) -> tuple[tuple[Event, ...], float]:
    begun = timer()
    events = tuple(say())
    return events, timer() - begun


@dataclass
class _Tally:
    """What became of the words so far."""

    latencies_s: list[float] = field(default_factory=list)
    committed: list[str] = field(default_factory=list)
    finals: list[str] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)  # of the words of the finals
    stable: tuple[Word, ...] = ()  # of the last partial

    def hear(self, event: Event, clock_s: float) -> None:
        if event.kind == "final":
            # it may have split or joined stable words, so those that it adds are told by time, not by number
            said_s = max((word.end_s for word in self.stable), default=event.start_s)
            fresh = [word for word in event.words if (word.start_s + word.end_s) / 2 > said_s]
            self.finals += [word.text for word in event.words]
            self.ends_s += [word.end_s for word in event.words]
        else:
            # an utterance that grew too long is cut, and hands its stable words behind the cut to the next one
            known = sum(word.start_s > event.start_s - HALF_FRAME_S for word in self.stable)
            fresh = list(event.words[known : event.stable])
            self.stable = event.words[: event.stable]
        self.committed += [word.text for word in fresh]
        self.latencies_s += [clock_s - word.end_s for word in fresh]
