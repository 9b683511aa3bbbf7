"""The static twin, read back by an HTML parser."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from speechkit.types import Transcript, Word
from speechkit.widgets.html import transcript_html
from speechkit.widgets.rows import peaks


class Read(HTMLParser):
    """Tags with attributes in order, the text, and whether every element was closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_words_keep_their_order_their_spaces_and_their_times(transcript):
    page = Read(transcript_html(transcript, title="clinic-07.flac"))
    assert "bring the room0.71 fourteen0.38" in page.text
    titles = [attributes["title"] for _, attributes in page.tags if "title" in attributes]
    assert titles[2] == "0:00.6–0:00.8, confidence 0.71"
    assert len(titles) == 4


def test_without_any_style_the_levels_still_differ(transcript):
    bare = re.sub(r' style="[^"]*"', "", transcript_html(transcript))
    assert re.search(r"<u [^>]*>bring</u>", bare)
    assert re.search(r"<em [^>]*>room</em><small>0.71</small>", bare)
    assert re.search(r"<mark [^>]*>fourteen</mark><small>0.38</small>", bare)


def test_each_level_has_its_underline(transcript):
    html = transcript_html(transcript)
    for tag, line in {"u": "solid", "em": "dashed", "mark": "wavy"}.items():
        assert re.search(rf'<{tag} title="[^"]*" style="text-decoration:underline {line} ', html)


def test_nothing_in_a_transcript_becomes_markup():
    attack = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
    hostile = Transcript(attack, (Word(attack, 0, 1, 0.2),), f'en"{attack}', 1.0, 0.2, attack, (attack,))
    page = Read(transcript_html(hostile, [0.5, 1.0], title=attack))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count(attack) == 4  # title, model, warning, word


def test_there_is_no_sound_no_script_and_no_address_in_it(transcript, samples):
    html = transcript_html(transcript, peaks(samples))
    assert not re.search(r"<audio|<script|base64|https?:|url\(", html)
    assert "Audio plays in a live notebook." in html


def test_the_waveform_follows_the_peaks_and_is_left_out_without_them(transcript):
    path = dict(Read(transcript_html(transcript, [0.0, 0.5, 1.0])).tags)["path"]["d"]
    bars = re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)", path)
    heights = [float(low) - float(high) for _, high, low in bars]
    assert len(bars) == 3
    assert heights[2] == pytest.approx(2 * heights[1], abs=0.2)
    assert heights[0] < heights[1]
    assert "<svg" not in transcript_html(transcript)


def test_unsure_words_are_marked_under_the_waveform_at_their_time(transcript):
    rects = [attributes for tag, attributes in Read(transcript_html(transcript, [1.0])).tags if tag == "rect"]
    assert [(rect["x"], rect["width"]) for rect in rects] == [("400.0", "133.3"), ("666.7", "266.7")]


def test_an_empty_transcript_says_so():
    assert "(no speech)" in transcript_html(Transcript("", duration_s=1.0))


def test_right_to_left_and_unspaced_text_is_left_to_the_browser(transcript):
    words = tuple(Word(char, i * 0.2, i * 0.2 + 0.1, 0.9) for i, char in enumerate("你好"))
    tags = Read(transcript_html(replace(transcript, words=words, language="zh"))).tags
    assert dict(tags)["p"]["dir"] == "auto"
    assert dict(tags)["p"]["lang"] == "zh"
