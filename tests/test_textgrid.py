"""TextGrids read back by the rules of Praat's manual: only free-standing numbers, quoted texts and flags count."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.errors import DataError
from speechkit.textgrid import textgrid
from speechkit.types import Char, Transcript, Word

# a quoted text, a <flag>, or a number with white space around it; all else (`xmin =`, `item [1]:`) is comment
FREE = re.compile(r'"((?:[^"]|"")*)"|<(\w+)>|(?<!\S)(-?\d+(?:\.\d+)?(?:e-?\d+)?)(?!\S)')


@dataclass
class Tier:
    name: str
    span: tuple[float, float]
    intervals: list[tuple[float, float, str]]


def read(text: str) -> tuple[tuple[float, float], list[Tier]]:
    """Praat's text reader in small: values in the order that the TextGrid class reads them in."""
    values = iter(
        match[1].replace('""', '"') if match[1] is not None else match[2] or float(match[3])
        for match in FREE.finditer(text)
    )
    assert (next(values), next(values)) == ("ooTextFile", "TextGrid")
    span = (next(values), next(values))
    assert next(values) == "exists"
    tiers = []
    for _ in range(int(next(values))):
        assert next(values) == "IntervalTier"
        name, low, high, count = (next(values) for _ in range(4))
        tiers.append(Tier(name, (low, high), [tuple(next(values) for _ in range(3)) for _ in range(int(count))]))
    assert next(values, None) is None, "something follows the last interval"
    return span, tiers


HELLO = Word("Hello,", 0.5, 1.0, 0.9, (Char("H", 0.5, 0.58, 0.9), Char("i", 0.72, 1.0, 0.8)))
WORLD = Word("world", 1.0, 1.25, 0.7, (Char("w", 1.0, 1.02, 0.7),))
SAID = Transcript("Hello, world", (HELLO, WORLD), duration_s=2.0)


def test_words_and_characters_are_two_tiers_that_cover_the_whole_time() -> None:
    span, (words, chars) = read(textgrid(SAID))
    assert span == words.span == chars.span == (0.0, 2.0)
    assert (words.name, chars.name) == ("words", "characters")
    assert words.intervals == [(0.0, 0.5, ""), (0.5, 1.0, "Hello,"), (1.0, 1.25, "world"), (1.25, 2.0, "")]
    assert [row[2] for row in chars.intervals] == ["", "H", "", "i", "w", ""]


def test_the_layout_is_that_of_a_file_that_praat_saves() -> None:
    lines = textgrid(Transcript("a", (Word("a", 0.0, 1.5, 1.0),), duration_s=1.5)).split("\n")
    assert [line.rstrip() for line in lines] == [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        "xmax = 1.5",
        "tiers? <exists>",
        "size = 1",
        "item []:",
        "    item [1]:",
        '        class = "IntervalTier"',
        '        name = "words"',
        "        xmin = 0",
        "        xmax = 1.5",
        "        intervals: size = 1",
        "        intervals [1]:",
        "            xmin = 0",
        "            xmax = 1.5",
        '            text = "a"',
        "",
    ]


@pytest.mark.parametrize(
    "text", ['say "hi"', '"', '""', "<exists>", " 7 ", "中文", "a\nb", 'item [2]: "x'], ids=lambda text: repr(text)
)
def test_any_text_comes_back_with_its_quotes_and_on_one_line(text: str) -> None:
    written = textgrid(Transcript(text, (Word(text, 0.1, 0.2, 1.0),), duration_s=1.0))
    _, (words,) = read(written)
    assert words.intervals[1][2] == " ".join(text.split())
    assert written.count("\n") == textgrid(Transcript("x", (Word("x", 0.1, 0.2, 1.0),), duration_s=1.0)).count("\n")


def test_no_words_are_one_silent_interval() -> None:
    _, (words,) = read(textgrid(Transcript("", duration_s=3.25)))
    assert words.intervals == [(0.0, 3.25, "")]


def test_a_word_that_begins_before_the_last_one_ended_is_cut() -> None:
    said = Transcript("a b", (Word("a", 0.0, 0.5, 1.0), Word("b", 0.4999, 1.0, 1.0)), duration_s=0.9)
    span, (words,) = read(textgrid(said))
    assert words.intervals == [(0.0, 0.5, "a"), (0.5, 1.0, "b")]
    assert span == (0.0, 1.0), "a duration shorter than the words is not believed"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((Word("b", 1.0, 1.0, 1.0),), "'b' lasts from 1.0 to 1.0 s"),
        ((Word("a", 0.0, 1.0, 1.0), Word("b", 0.2, 0.9, 1.0)), "1.0 s are taken before it"),
        ((Word("a", math.nan, 1.0, 1.0),), "'a' lasts from nan"),
    ],
    ids=["no length", "within another", "NaN"],
)
def test_a_word_that_cannot_be_an_interval_is_refused(words: tuple[Word, ...], reason: str) -> None:
    with pytest.raises(DataError, match=re.escape(reason)):
        textgrid(Transcript("", words, duration_s=2.0))


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_a_transcript_without_a_length_is_refused(seconds: float) -> None:
    with pytest.raises(DataError, match="give it its duration_s"):
        textgrid(Transcript("", duration_s=seconds))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40), st.text(max_size=5)), max_size=12), st.integers(1, 9))
def test_intervals_meet_without_gap_and_every_word_keeps_its_times(rows: list[tuple[int, int, str]], tail: int) -> None:
    words, expected, at = [], [], 0  # in frames of 20 ms
    for gap, length, text in rows:
        start, at = at + gap, at + gap + length
        words.append(Word(text, start * 0.02, at * 0.02, 0.5))
        expected += [(start - gap, start, "")] * (gap > 0) + [(start, at, " ".join(text.split()))]
    expected.append((at, at + tail, ""))
    _, (tier,) = read(textgrid(Transcript("", tuple(words), duration_s=(at + tail) * 0.02)))
    assert [(round(low * 50, 6), round(high * 50, 6), text) for low, high, text in tier.intervals] == expected
    assert all(a[1] == b[0] for a, b in itertools.pairwise(tier.intervals)), "Praat compares them digit for digit"
