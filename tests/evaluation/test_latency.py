"""Latency and word errors of a stream: played at the pace of speech, against what the clips hold."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from speechkit import Recognizer, demo
from speechkit.errors import DataError, PlanError
from speechkit.evaluation import latency
from speechkit.evaluation.latency import PAUSE_S, concert, played, stream_score
from speechkit.evaluation.plots import latency_curve
from speechkit.types import Event, Word


class Slow:
    """A stream that needs `work_s` for every push, on a clock of its own."""

    def __init__(self, work_s: float) -> None:
        self.work_s, self.now, self.pieces = work_s, 0.0, []

    def timer(self) -> float:
        return self.now

    def push(self, samples: np.ndarray) -> list[Event]:
        self.now += self.work_s
        self.pieces.append(samples)
        return []

    def close(self) -> list[Event]:
        return []


def event(kind: Any, words: str, stable: int, start_s: float = 0.0, times: Any = None) -> Event:
    """Words of 0.2 s, one each half second, from `start_s` on or at `times`."""
    texts = words.split()
    starts = times or [start_s + n / 2 for n in range(len(texts))]
    made = tuple(Word(text, at, at + 0.2, 1.0) for text, at in zip(texts, starts, strict=True))
    return Event(kind, words, made, stable, start_s)


def told(*events: Event) -> latency._Tally:
    tally = latency._Tally()
    for number, one in enumerate(events):
        tally.hear(one, 10.0 + number)
    return tally


def test_a_machine_that_keeps_up_gets_20_ms_at_a_time() -> None:
    stream: Any = Slow(0.005)
    steps = list(played(stream, np.arange(3200, dtype=np.float32), stream.timer))
    assert [len(piece) for piece in stream.pieces] == [320] * 10
    assert [step.clock_s for step in steps[:2]] == pytest.approx([0.025, 0.045])


def test_a_machine_that_is_behind_gets_all_that_was_spoken_meanwhile() -> None:
    stream: Any = Slow(0.3)
    sound = np.arange(32_000, dtype=np.float32)
    steps = list(played(stream, sound, stream.timer))
    assert np.array_equal(np.concatenate(stream.pieces), sound)
    assert [len(piece) for piece in stream.pieces][:3] == [320, 4800, 4800]
    assert [step.took_s for step in steps[:2]] == pytest.approx([0.3, 0.3])
    assert steps[-1].clock_s == pytest.approx(0.02 + 8 * 0.3), "never more than one push behind"


def test_a_words_latency_is_counted_once_when_it_is_first_stable() -> None:
    found = told(event("partial", "a b", 1), event("partial", "a b c", 2), event("final", "a b c", 3))
    assert found.committed == found.finals == ["a", "b", "c"]
    assert found.latencies_s == pytest.approx([10 - 0.2, 11 - 0.7, 12 - 1.2])


def test_a_final_that_splits_or_joins_stable_words_adds_its_last_word_once() -> None:
    split = told(event("partial", "ab c", 1, times=[0.0, 0.5]), event("final", "a b c", 3, times=[0.0, 0.01, 0.5]))
    assert split.committed == ["ab", "c"] and split.finals == ["a", "b", "c"]
    joined = told(event("partial", "a b c", 2, times=[0.0, 0.1, 0.5]), event("final", "ab c", 2, times=[0.0, 0.5]))
    assert joined.committed == ["a", "b", "c"] and joined.finals == ["ab", "c"]


def test_stable_words_behind_a_cut_are_not_counted_again() -> None:
    found = told(
        event("partial", "a b c d", 3),
        event("final", "a b", 2),  # cut before c
        event("partial", "c d e", 2, start_s=1.0),
        event("final", "c d e", 3, start_s=1.0),
    )
    assert found.committed == ["a", "b", "c", "d", "e"] == found.finals


def test_words_come_after_they_end_and_finals_match_whole_clips(recognizer: Recognizer) -> None:
    clips = demo.clips("en")[:3]
    found = stream_score(recognizer, [c.path for c in clips], [c.text for c in clips], {"hop_s": 0.32})
    assert len(found.latencies_s) > 10 and min(found.latencies_s) >= 0
    assert found.p50_s <= found.p95_s and found.load > 0
    assert abs(found.tail_s) < 0.3
    assert 0 <= found.final_wer <= 0.4 and "committed WER" in str(found)


def test_load_is_counted_by_the_timer_that_was_given(recognizer: Recognizer) -> None:
    ticks = itertools.count()
    clip = demo.clips("en")[1]
    found = stream_score(recognizer, [clip.path], [clip.text], {}, timer=lambda: next(ticks) * 0.005)
    played_s = clip.seconds + PAUSE_S
    pushes = math.ceil(played_s / 0.02) + 1  # 5 ms each, so 20 ms are handed over at a time
    assert found.load == pytest.approx(pushes * 0.005 / played_s, rel=0.01)


@pytest.mark.parametrize(("quiet", "end_s"), [(1e-4, 0.5), (0.1, 1.0), (0.0, 0.5)], ids=["noise", "speech", "nothing"])
def test_the_last_sound_is_less_than_40_db_below_the_loudest(quiet: float, end_s: float) -> None:
    tone = np.sin(np.arange(16_000) / 5).astype(np.float32)
    tone[8_000:] *= quiet
    assert latency.last_sound_s(tone) == pytest.approx(end_s)
    assert latency.last_sound_s(tone[:8_050]) == pytest.approx(end_s if quiet < 0.1 else 8_050 / 16_000)


def test_silence_has_no_last_sound() -> None:
    assert latency.last_sound_s(np.zeros(1_000, np.float32)) == latency.last_sound_s(np.zeros(0, np.float32)) == 0.0


def test_the_tail_is_what_sounds_on_behind_the_models_end_of_a_clip() -> None:
    sounds = [np.r_[np.ones(n), np.zeros(1_600)].astype(np.float32) for n in (8_000, 16_000, 24_000)]
    begin = np.cumsum([0.0, 0.6 + PAUSE_S, 1.1 + PAUSE_S])  # last sounds 0.5, 1.0 and 1.5 s behind these
    ends_s = [begin[0] + 0.2, begin[0] + 0.45, begin[1] + 0.97, begin[2] + 1.52]
    assert latency._tail_s(sounds, ends_s) == pytest.approx(0.03)
    assert latency._tail_s(sounds, ends_s[2:]) == pytest.approx(0.005), "a clip without a word has no say"
    assert np.isnan(latency._tail_s(sounds, []))


def test_clips_are_parted_by_pauses_that_are_not_quite_silent() -> None:
    whole = concert([np.ones(100, np.float32), np.ones(50, np.float32)])
    pause = round(PAUSE_S * 16000)
    assert len(whole) == 150 + 2 * pause
    assert 0 < np.abs(whole[100 : 100 + pause]).max() < 1e-3


def test_wrong_input_is_told(recognizer: Recognizer) -> None:
    with pytest.raises(DataError, match="1 clips and 0 texts"):
        stream_score(recognizer, [np.zeros(100, np.float32)], [], {})
    with pytest.raises(PlanError, match="no option speed"):
        stream_score(recognizer, [np.zeros(1600, np.float32)], ["a"], {"speed": 2})


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_curve_has_a_numbered_mark_for_each_setting(theme: Any) -> None:
    scores = [
        latency.StreamScore({"hop_s": hop_s}, (0.1, 0.2, wait_s), committed, 0.05, 0.3, 0.0)
        for hop_s, wait_s, committed in ((0.1, 0.4, 0.2), (0.3, 0.9, 0.1))
    ]
    axes = latency_curve(scores, theme).axes[0]
    bars, stable, finals = axes.collections
    assert np.asarray(stable.get_offsets()) == pytest.approx(np.array([[200, 20], [200, 10]]))
    assert np.asarray(finals.get_offsets())[:, 1] == pytest.approx([5, 5])
    ends = [segment[-1].tolist() for segment in bars.get_segments()]
    assert ends == [pytest.approx([1000 * score.p95_s, 100 * score.committed_wer]) for score in scores]
    assert [(text.get_text(), list(text.xy)) for text in axes.texts] == [("1", ends[0]), ("2", ends[1])]
    assert axes.get_xlim()[1] > max(score.p95_s for score in scores) * 1000


def test_a_stream_that_said_nothing_has_no_latency_and_can_be_drawn() -> None:
    empty = latency.StreamScore({}, (), 1.0, 1.0, 0.0, 0.0)
    assert np.isnan(empty.p50_s) and np.isnan(empty.p95_s)
    latency_curve([empty]).canvas.draw()
