"""Words → cues → SRT and WebVTT, read back by a parser that knows only the formats."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.subtitles import Cue, cues, join_words, srt, vtt
from speechkit.types import Word

if TYPE_CHECKING:
    from collections.abc import Sequence

TIME = r"(?:(\d{2,}):)?(\d\d):(\d\d)[.,](\d{3})"
BLOCK = re.compile(rf"{TIME} --> {TIME}\n(.*)")


def seconds(hours: str | None, minutes: str, whole: str, thousandths: str) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(whole) + int(thousandths) / 1000


def parse(text: str) -> list[Cue]:
    found = (match.groups() for match in BLOCK.finditer(text))
    return [Cue(seconds(*row[:4]), seconds(*row[4:8]), row[8]) for row in found]


def spoken(*texts: str, each: float = 0.3, gap: float = 0.1) -> list[Word]:
    return [Word(text, i * (each + gap), i * (each + gap) + each, 1.0) for i, text in enumerate(texts)]


@st.composite
def word_lists(draw: st.DrawFn) -> list[Word]:
    time, words = 0.0, []
    for text in draw(st.lists(st.text("abcdefgh", min_size=1, max_size=60), max_size=20)):
        start = time + draw(st.floats(0, 3))
        time = start + draw(st.floats(0, 4))
        words.append(Word(text, start, time, 1.0))
    return words


def checked(words: Sequence[Word], max_chars: int, max_s: float) -> None:
    """The rules of a cue, stated apart from the code that builds them."""
    made = cues(words, max_chars, max_s)
    assert " ".join(cue.text for cue in made) == " ".join(word.text for word in words)
    for cue in made:
        if " " in cue.text:  # a single word may be longer than any limit: it is not cut
            assert len(cue.text) <= max_chars
            assert cue.end_s - cue.start_s <= max_s + 1e-9
    assert all(a.end_s <= b.start_s for a, b in pairwise(made))


@given(word_lists())
def test_cues_hold_every_word_once_in_order_within_the_limits(words: list[Word]) -> None:
    checked(words, max_chars=42, max_s=6.0)
    checked(words, max_chars=10, max_s=1.0)


def test_a_pause_starts_a_new_cue() -> None:
    words = [Word("one", 0.0, 0.4, 1.0), Word("two", 0.5, 0.9, 1.0), Word("three", 1.8, 2.2, 1.0)]
    assert [cue.text for cue in cues(words)] == ["one two", "three"]


@given(st.lists(st.tuples(st.floats(0, 400_000), st.floats(0, 10), st.text("abc xyz", min_size=1)), max_size=8))
def test_both_formats_give_back_times_to_the_millisecond_and_text(rows: list[tuple[float, float, str]]) -> None:
    items = [Cue(start, start + length, text) for start, length, text in rows]
    for back in (parse(srt(items)), parse(vtt(items))):
        assert [cue.text for cue in back] == [cue.text for cue in items]
        for cue, item in zip(back, items, strict=True):
            assert cue.start_s == pytest.approx(item.start_s, abs=0.00051)
            assert cue.end_s == pytest.approx(item.end_s, abs=0.00051)


def test_a_time_that_rounds_up_carries_into_the_minute_and_the_hour() -> None:
    assert "00:01:00,000 --> 01:00:00,000" in srt([Cue(59.9996, 3599.9999, "x")])


def test_srt_is_numbered_from_one_with_blank_lines_between() -> None:
    text = srt([Cue(0.0, 1.0, "a"), Cue(1.0, 2.0, "b")])
    assert text == "1\n00:00:00,000 --> 00:00:01,000\na\n\n2\n00:00:01,000 --> 00:00:02,000\nb\n"


def test_vtt_escapes_what_would_be_a_tag() -> None:
    assert "a &lt;i> &amp; b" in vtt([Cue(0.0, 1.0, "a <i> & b")])


def test_characters_of_unspaced_scripts_are_joined_without_spaces() -> None:
    assert join_words(["你", "好", "world", "世", "界"]) == "你好 world 世界"
    assert join_words(["안녕", "하세요"]) == "안녕 하세요"
    assert join_words(["你", "好", "，", "世", "界", "！"]) == "你好，世界！"
    assert join_words(["world", "。", "Ｓ", "々"]) == "world。Ｓ 々", "full-width letters are letters"
    assert cues(spoken("你", "好"))[0].text == "你好"
