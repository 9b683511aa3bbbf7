from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jiwer
import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit import audio, demo, load_asr
from speechkit.asr.decode import Alphabet, BestPath
from speechkit.asr.frames import FrameGrid
from speechkit.asr.stream import Stream, StreamOptions
from speechkit.errors import AudioError, PlanError

if TYPE_CHECKING:
    from pathlib import Path

    from speechkit.asr.model import Recognizer
    from speechkit.types import Event

GRID = FrameGrid()
LETTERS = "abcdefghij"


class Local:
    """Reads one token per frame off the sample in its middle: no context at all, so every window hears the same.

    Whatever a stream loses, doubles or splits over it is the stream's own doing.
    """

    grid, model = GRID, None
    alphabet = Alphabet(("", "", *LETTERS), blank=0, delimiter=1)

    def best_path(self, clips: list[np.ndarray], _windows: None) -> list[BestPath]:
        paths = []
        for clip in clips:
            middles = clip[200 :: GRID.hop][: GRID.frames(len(clip))]
            paths.append(BestPath(np.round(middles * 100).astype(np.int32), np.full(len(middles), -0.1, np.float32)))
        return paths


def sounded(text: str, rng: np.random.Generator) -> np.ndarray:
    """Text over `LETTERS` → audio that `Local` reads as that text, letters and pauses of random length."""
    tokens: list[int] = []
    for word in text.split():
        for letter in word:
            tokens += [0] * int(rng.integers(1, 3)) + [2 + LETTERS.index(letter)] * int(rng.integers(1, 4))
        tokens += [0] * int(rng.integers(1, 8)) + [1] + [0] * int(rng.integers(0, 8))
    return np.repeat(np.array(tokens, np.float32) / 100, GRID.hop)


def words(rng: np.random.Generator, count: int) -> str:
    return " ".join("".join(rng.choice(list(LETTERS), int(rng.integers(1, 7)))) for _ in range(count))


def run(stream: Stream, samples: np.ndarray, chunks: Any) -> list[Event]:
    """Push `samples` in pieces whose lengths `chunks` gives, and close."""
    events, at = [], 0
    while at < len(samples):
        size = int(next(chunks))
        events += stream.push(samples[at : at + size])
        at += size
    return events + stream.close()


def finals(events: list[Event]) -> list[Event]:
    return [event for event in events if event.kind == "final"]


def sizes(seed: int, longest: int) -> Any:
    rng = np.random.default_rng(seed)
    while True:
        yield rng.integers(1, longest)


def local(**options: Any) -> Stream:
    return Stream(Local(), StreamOptions(vad=False, **options))  # type: ignore[arg-type]


@given(seed=st.integers(0, 10**6), longest=st.sampled_from([700, 5_000, 100_000]), agree=st.sampled_from([0, 2, 3]))
@settings(max_examples=20, deadline=None)
def test_no_word_is_lost_or_doubled_however_the_audio_is_cut(seed: int, longest: int, agree: int) -> None:
    rng = np.random.default_rng(seed)
    text = words(rng, 30)
    stream = local(window_s=2.0, longest_s=4.0, context_s=0.3, agree=agree)
    events = run(stream, sounded(text, rng), sizes(seed, longest))
    assert " ".join(event.text for event in finals(events)) == text
    assert stream.report.revised == 0, "a model without context has nothing to revise"


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_what_is_called_stable_stays_until_the_final(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stable: list[str] = []
    for event in run(
        local(window_s=2.0, longest_s=6.0, context_s=0.3), sounded(words(rng, 20), rng), sizes(seed, 5000)
    ):
        now = [word.text for word in event.words[: event.stable]]
        shared = min(len(now), len(stable))
        assert now[:shared] == stable[:shared]
        assert event.kind == "final" or len(now) >= len(stable)
        # a cut utterance hands the words behind the cut to the next one
        stable = stable[len(now) :] if event.kind == "final" else now


def test_words_carry_the_time_of_the_stream_not_of_their_window() -> None:
    rng = np.random.default_rng(1)
    quiet = np.zeros(16_000 * 3, np.float32)
    event = finals(run(local(), np.concatenate([quiet, sounded("abc de", rng)]), sizes(1, 4000)))[0]
    assert [word.text for word in event.words] == ["abc", "de"]
    assert event.words[0].start_s == pytest.approx(3.0, abs=0.08)
    assert all(a.end_s <= b.start_s for a, b in zip(event.words, event.words[1:], strict=False))


def test_a_chunk_of_many_hops_gives_one_partial_and_says_how_many_it_left_out() -> None:
    stream = local(hop_s=0.2)
    events = stream.push(sounded("abc abc abc", np.random.default_rng(2))[: 16_000 // 2])
    assert [event.kind for event in events] == ["partial"]
    assert stream.report.thinned == 1 and stream.report.partials == 1
    assert "1 left out" in str(stream.report)


def test_a_word_that_reads_alike_is_stable_before_its_lookahead_and_without_agreement_at_it() -> None:
    class Fickle(Local):
        """Reads the letter a as b in every second window, so that no two partials agree on it."""

        calls = 0

        def best_path(self, clips: list[np.ndarray], windows: None) -> list[BestPath]:
            self.calls += 1
            (path,) = super().best_path(clips, windows)
            ids = np.where((path.ids == 2) & (self.calls % 2 == 0), 3, path.ids).astype(np.int32)
            return [BestPath(ids, path.scores)]

    tokens = [2, 2, 0, 1, *[0] * 6, 4, 4, 0, 1, *[0] * 60]  # "a c": the end of "a" is heard at 0.045 s
    sound = np.repeat(np.array(tokens, np.float32) / 100, GRID.hop)
    heard: dict[tuple[type, int], float] = {}
    for model in (Local, Fickle):
        for agree in (0, 3):
            how = StreamOptions(vad=False, agree=agree, hop_s=0.04, lookahead_s=0.5)
            events = run(Stream(model(), how), sound, iter([320] * 10**6))  # type: ignore[arg-type]
            heard[model, agree] = next(event.heard_s for event in events if event.stable)
    assert heard[Local, 3] < 0.3 < 0.5 < heard[Local, 0] < 0.65
    assert heard[Fickle, 3] == heard[Fickle, 0] == heard[Local, 0], "at its lookahead, whatever it reads"


def test_hops_before_an_utterance_was_known_to_begin_do_not_count_as_left_out() -> None:
    rng = np.random.default_rng(2)
    stream = local(window_s=2.0, longest_s=4.0, context_s=0.3, hop_s=0.1)
    run(stream, sounded(words(rng, 40), rng), iter([320] * 10**6))
    assert stream.report.utterances > 3 and stream.report.thinned == 0


@pytest.mark.parametrize("speech", [True, False], ids=["words", "silence"])
def test_half_an_hour_is_heard_in_the_memory_of_an_utterance(speech: bool) -> None:
    rng = np.random.default_rng(5)
    minute = sounded(words(rng, 150), rng)[: 60 * 16_000] if speech else np.zeros(60 * 16_000, np.float32)
    stream, held, kept = local(hop_s=2.0), [], []
    for _ in range(30):
        for at in range(0, len(minute), 64_000):
            stream.push(minute[at : at + 64_000])
            held.append(stream._samples.nbytes)
            kept.append(len(stream._now.committed) if stream._now else 0)
    assert stream.report.heard_s > 1_500 and stream._samples.base is None, "no view that keeps more alive"
    assert max(held) <= (20 + 4.1) * 16_000 * 4, "longest_s and a chunk, in float32"
    assert stream.report.held_s == held[-1] / 64_000
    assert max(kept) < 150, "words of one utterance"


def test_windows_stay_short_where_nobody_says_a_word() -> None:
    asked: list[int] = []

    class Watched(Local):
        def best_path(self, clips: list[np.ndarray], _windows: None) -> list[BestPath]:
            asked.append(len(clips[0]))
            return super().best_path(clips, _windows)

    hum = np.full(16_000 * 15, 0.001, np.float32)  # read as blanks: 0.1 rounds to 0
    stream = Stream(Watched(), StreamOptions(vad=False, window_s=2.0, hop_s=0.2))  # type: ignore[arg-type]
    run(stream, hum, iter([3_200] * 10**6))
    assert max(asked[:-1]) <= 2.3 * 16_000 < asked[-1], "all but the final, which hears the utterance whole"


# What cannot be pushed


def test_a_stream_that_is_closed_says_so() -> None:
    stream = local()
    stream.close()
    assert stream.close() == []
    with pytest.raises(PlanError, match=r"the stream is closed; open another one with recognizer\.stream\(\)"):
        stream.push(np.zeros(100, np.float32))


def test_a_chunk_at_another_rate_is_refused_and_the_stream_goes_on() -> None:
    stream, rng = local(), np.random.default_rng(3)
    sound = sounded("abc", rng)
    stream.push(sound)
    with pytest.raises(AudioError, match="this stream runs at 16000 Hz, the chunk comes at 48000 Hz"):
        stream.push(sound, rate=48_000)
    with pytest.raises(AudioError, match="the chunk comes at fast Hz"):
        stream.push(sound, rate="fast")  # type: ignore[arg-type]
    assert finals(stream.close())[0].text == "abc"


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.array([0.1, np.nan], np.float32), "is NaN or infinite"),
        (np.array([300.0, 5.0], np.float32), "look like integers stored as floats"),
        (b"\0\0\0", "3 bytes are no whole number of int16 samples"),
        (["a"], "is not audio"),
    ],
    ids=["NaN", "unscaled", "half a sample", "no audio"],
)
def test_a_bad_chunk_is_left_out_whole(chunk: Any, message: str) -> None:
    stream, rng = local(), np.random.default_rng(4)
    stream.push(sounded("abc", rng))
    with pytest.raises(AudioError, match=message):
        stream.push(chunk)
    stream.push(sounded("de", rng))
    assert finals(stream.close())[0].text == "abc de"


def test_nothing_may_arrive_for_as_long_as_it_likes() -> None:
    stream = local()
    assert [stream.push(nothing) for nothing in ([], b"", np.zeros(0, np.float32))] == [[], [], []]
    assert stream.close() == []


@pytest.mark.parametrize(
    "options",
    [
        {"hop_s": 0.0},
        {"hop_s": float("nan")},
        {"lookahead_s": 9.0},
        {"window_s": 30.0, "longest_s": 20.0},
        {"window_s": float("inf")},
        {"longest_s": float("inf")},
        {"context_s": 5.5, "longest_s": 20.0},
        {"context_s": -1.0},
        {"context_s": 6.5},
        {"pad_s": -0.1},
        {"agree": 1},
        {"agree": -3},
    ],
    ids=str,
)
def test_lengths_that_leave_nothing_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="it must hold that"):
        StreamOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "context_s", "longest_s"),
    [
        ({}, 1.0, 20.0),
        ({"window_s": 1.0}, 0.5, 20.0),
        ({"window_s": 0.4}, 0.2, 20.0),
        ({"window_s": 30.0}, 1.0, 30.0),
        ({"window_s": 10.0, "context_s": 8.0}, 8.0, 32.0),
        ({"window_s": 2.0, "longest_s": 2.0}, 0.5, 2.0),
    ],
    ids=str,
)
def test_context_and_longest_follow_the_window(given: dict[str, float], context_s: float, longest_s: float) -> None:
    found = StreamOptions(**given)  # type: ignore[arg-type]
    assert (found.context_s, found.longest_s) == (context_s, longest_s)


@pytest.mark.parametrize("window_s", [0.4, 30.0])
def test_a_short_and_a_long_window_lose_no_word(window_s: float) -> None:
    rng = np.random.default_rng(10)
    text = words(rng, 60)
    events = run(local(window_s=window_s, hop_s=0.2), sounded(text, rng), sizes(10, 4_000))
    assert " ".join(event.text for event in finals(events)) == text


def test_a_refusal_names_the_lengths_that_do_not_fit_and_no_others() -> None:
    with pytest.raises(PlanError) as refused:
        StreamOptions(window_s=2.0, hop_s=3.0)
    assert str(refused.value) == "hop_s=3.0, window_s=2.0: it must hold that 0 < hop_s <= window_s"


def test_lengths_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(PlanError, match="window_s='6': lengths are seconds"):
        StreamOptions(window_s="6")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="hop_s=None: lengths are seconds"):
        StreamOptions(hop_s=None)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="longest_s='20': lengths are seconds"):
        StreamOptions(longest_s="20")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"agree=2\.5: it is a number of partials, 0 or from 2"):
        StreamOptions(agree=2.5)  # type: ignore[arg-type]
    assert StreamOptions(window_s=np.float32(5), agree=np.int64(2)).window_s == 5  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0, -16_000, float("nan"), "fast"], ids=str)
def test_a_rate_that_cannot_be_is_refused_and_not_remembered(rate: Any) -> None:
    stream = local()
    with pytest.raises(AudioError, match="sample rate is"):
        stream.push(np.zeros(100, np.float32), rate=rate)
    assert stream.push(np.zeros(100, np.float32)) == []


# The real model and the real gate


@pytest.fixture(scope="module")
def feed() -> np.ndarray:
    """Three embedded clips with 0.9 s of faint noise behind each."""
    rng = np.random.default_rng(0)
    pieces = [audio.load(clip.path) for clip in demo.clips("en")[1:4]]
    return np.concatenate([np.r_[piece, 1e-4 * rng.standard_normal(14_400)].astype(np.float32) for piece in pieces])


@pytest.fixture(scope="module")
def whole(recognizer: Recognizer, feed: np.ndarray) -> list[Event]:
    """Finals of the feed pushed at once."""
    found = finals(run(recognizer.stream(), feed, iter([len(feed)])))
    assert len(found) == 3, "one utterance per clip"
    return found


def said(events: list[Event]) -> list[tuple[Any, ...]]:
    return [(event.text, event.words, event.start_s) for event in finals(events)]


@given(seed=st.integers(0, 10**6), longest=st.sampled_from([4_000, 40_000]), hop_s=st.sampled_from([0.4, 1.0]))
@settings(max_examples=3, deadline=None)
def test_the_final_text_depends_on_the_audio_alone(
    recognizer: Recognizer, feed: np.ndarray, whole: list[Event], seed: int, longest: int, hop_s: float
) -> None:
    assert said(run(recognizer.stream(hop_s=hop_s), feed, sizes(seed, longest))) == said(whole)


@given(slow=st.floats(2, 40))
@settings(max_examples=3, deadline=None)
def test_a_slow_machine_says_the_same_with_fewer_partials(
    recognizer: Recognizer, feed: np.ndarray, whole: list[Event], slow: float
) -> None:
    stream = recognizer.stream(hop_s=0.24)
    events, at, clock_s, partials = [], 0, 0.02, 0
    while at < len(feed):
        spoken = min(len(feed), max(at + 320, int(clock_s * 16_000)))  # all that piled up while it was busy
        events += stream.push(feed[at:spoken])
        # a machine on which one partial takes `slow` hops
        clock_s = max(spoken / 16_000, clock_s) + (stream.report.partials - partials) * slow * stream.options.hop_s
        at, partials = spoken, stream.report.partials
    assert said(events + stream.close()) == said(whole)
    hops = stream.report.partials + stream.report.thinned
    assert 0 < stream.report.partials <= hops / slow + 2 * len(whole), "one at most for each time that it was free"
    assert stream.report.left_out > 0.3


def test_finals_are_what_transcribe_says_of_the_same_samples(
    recognizer: Recognizer, feed: np.ndarray, whole: list[Event]
) -> None:
    stream = recognizer.stream()
    turns = []
    step = stream._gate.step
    stream._gate.step = lambda probability: turns.append(step(probability)) or turns[-1]  # type: ignore[method-assign]
    run(stream, feed, sizes(3, 20_000))
    edges = [turn.sample for turn in turns if turn]
    assert [recognizer.transcribe(feed[a:b]).text for a, b in zip(edges[::2], edges[1::2], strict=True)] == [
        event.text for event in whole
    ]


@pytest.mark.parametrize("rate", [16_000, 44_100], ids="{} Hz".format)
def test_integers_and_other_rates_are_heard_as_well(
    recognizer: Recognizer, feed: np.ndarray, whole: list[Event], rate: int
) -> None:
    stream = recognizer.stream(hop_s=0.5)
    sound = feed if rate == 16_000 else soxr.resample(feed, 16_000, rate)
    data = (np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes()
    events = [event for at in range(0, len(data), 64_002) for event in stream.push(data[at : at + 64_002], rate)]
    heard = finals(events + stream.close())
    assert [event.start_s for event in heard] == pytest.approx([event.start_s for event in whole], abs=0.07)
    assert jiwer.wer([event.text for event in whole], [event.text for event in heard]) <= 0.1


def test_channels_are_mixed(recognizer: Recognizer, feed: np.ndarray, whole: list[Event]) -> None:
    both = np.stack([feed * 2, np.zeros_like(feed)], axis=1)
    assert said(run(recognizer.stream(hop_s=0.5), both, sizes(6, 30_000))) == said(whole)


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_in_chunks_shorter_than_they_are_many_say_what_one_chunk_says(channels: int) -> None:
    sound = sounded("abc de", np.random.default_rng(9))
    frames = np.repeat(sound[:, None], channels, axis=1)
    stream = local(hop_s=0.5)
    events = run(stream, frames, sizes(9, 10))
    assert [event.text for event in finals(events)] == ["abc de"]
    assert stream.report.heard_s == len(sound) / 16_000
    assert said(events) == said(run(local(hop_s=0.5), frames, iter([len(frames)])))


def test_minutes_of_silence_give_no_utterance_and_are_not_kept(recognizer: Recognizer) -> None:
    stream, held = recognizer.stream(), []
    for _ in range(60):
        assert stream.push(np.zeros(32_000, np.float32)) == []
        held.append(stream.report.held_s)
    assert stream.close() == [] and stream.report.utterances == 0 and stream.report.partials == 0
    assert max(held) < 0.5, "what the gate may reach back to"


def test_silence_without_the_gate_has_no_words_as_in_transcribe(recognizer: Recognizer) -> None:
    dither = (2e-5 * np.random.default_rng(0).standard_normal(16_000 * 3)).astype(np.float32)
    events = run(recognizer.stream(vad=False), dither, sizes(5, 30_000))
    assert [(event.kind, event.text) for event in events] == [("final", "")]


def test_kept_features_change_no_final_and_are_told(folders: dict[str, Path]) -> None:
    from asr_shapes import noise

    layered = load_asr(folders["pt"], device="cpu")
    kept, anew = (layered.stream(vad=False, cache=cache, hop_s=0.4, window_s=2.0) for cache in (True, False))
    assert "layer norm" in str(kept.cache) and "cache=False was asked for" in str(anew.cache)
    sound = noise(7.0)
    events = run(kept, sound, sizes(7, 9_000))
    assert said(events) == said(run(anew, sound, sizes(8, 5_000)))
    assert all(word.end_s <= event.heard_s + 1e-9 for event in events for word in event.words)
    assert kept.report.partials > 5


def test_an_option_that_does_not_exist_is_answered_with_those_that_do(recognizer: Recognizer) -> None:
    with pytest.raises(PlanError, match="a stream has no option beam; it has window_s, hop_s"):
        recognizer.stream(beam=4)
