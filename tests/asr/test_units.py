"""Units: runs, strings, bitrate, usage and purity against plain counting and scikit-learn."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from speechkit.asr.frames import FrameGrid
from speechkit.asr.units import Units, bitrate, purity, usage
from speechkit.errors import DataError
from speechkit.types import Char, Transcript, Word

GRID = FrameGrid()


def units(rows: list[list[int]], sizes: tuple[int, ...] = (8, 8)) -> Units:
    ids = np.array(rows, np.int32).reshape(-1, len(sizes))
    return Units(ids, sizes, GRID, GRID.samples(len(ids)) / 16000, "test")


def test_neighbours_with_the_same_codes_are_one_run() -> None:
    clip = units([[1, 2], [1, 2], [1, 3], [1, 3], [1, 2]])
    assert str(clip) == "1-2 1-3 1-2"
    edges = [edge for run in clip.runs() for edge in (run.start_s, run.end_s)]
    assert edges == pytest.approx([0, 0.04, 0.04, 0.08, 0.08, 0.1])
    assert str(units([[4], [4], [0]], (8,))) == "4 0"
    assert units([]).runs() == () and str(units([])) == ""


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_runs_expand_to_the_frames_they_came_from(ids: list[int]) -> None:
    runs = units([[i] for i in ids], (4,)).runs()
    expanded = [run.codes[0] for run in runs for _ in range(round((run.end_s - run.start_s) / 0.02))]
    assert expanded[: len(ids)] == ids
    assert all(a.codes != b.codes and a.end_s == pytest.approx(b.start_s) for a, b in pairwise(runs))


def test_bitrate_is_entropy_times_runs_per_second() -> None:
    even = units([[0], [1], [2], [3]] * 50, (4,))  # 200 runs of two bits each
    assert bitrate([even]) == pytest.approx(2 * 200 / even.duration_s)
    assert bitrate([units([[3]] * 100, (4,))]) == 0
    with pytest.raises(DataError, match="no units to count"):
        bitrate([])


def test_usage_counts_each_group_by_itself() -> None:
    first, second = usage([units([[0, 5], [1, 5], [2, 5], [3, 5]])])
    assert (first.used, second.used) == (4, 1)
    assert first.perplexity == pytest.approx(4) and second.perplexity == pytest.approx(1)
    with pytest.raises(DataError, match="different codebooks"):
        usage([units([[0, 0]]), units([[0]], (8,))])


def spoken(chars: list[tuple[str, float, float]]) -> Transcript:
    found = tuple(Char(text, start, end, 1.0) for text, start, end in chars)
    word = Word("".join(c.text for c in found), found[0].start_s, found[-1].end_s, 1.0, found)
    return Transcript(word.text, (word,), "en", 1.0, 1.0, "test", ())


def test_units_that_follow_the_characters_are_pure() -> None:
    clip = units([[1]] * 10 + [[2]] * 10 + [[3]] * 10, (8,))
    found = purity([clip], [spoken([("a", 0.0, 0.2), ("b", 0.2, 0.4)])])  # the rest is a pause
    assert found.unit == found.character == 1 and found.information == pytest.approx(1)
    assert found.frames == 30


def test_purity_agrees_with_plain_counting() -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 4, 40)
    clip = units([[i] for i in ids], (4,))
    text = spoken([(letter, n * 0.2, n * 0.2 + 0.2) for n, letter in enumerate("abca")])
    middle = (np.arange(40) * 320 + 200) / 16000
    letters = ["abca"[int(t / 0.2)] if t < 0.8 else "" for t in middle]
    table = {u: [letters[f] for f in range(40) if ids[f] == u] for u in set(ids.tolist())}
    best = sum(max(said.count(x) for x in said) for said in table.values())
    found = purity([clip], [text])
    assert found.unit == pytest.approx(best / 40)
    p = np.array([letters.count(x) for x in set(letters)]) / 40
    assert found.information == pytest.approx(mutual_info_score(ids, letters) / -(p * np.log(p)).sum())
    with pytest.raises(DataError, match="1 clips of units and 0 transcripts"):
        purity([clip], [])
    with pytest.raises(DataError, match="no character times"):
        purity([clip], [Transcript("abca", (), "en", 1.0, 1.0, "test", ())])
    with pytest.raises(DataError, match="no units to count"):
        purity([], [])
