"""The units browser: stretches of each unit, joined sound with its marks, twins, mistakes."""

from __future__ import annotations

import io
import json
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile

from speechkit.asr.frames import FrameGrid
from speechkit.asr.units import Units
from speechkit.errors import AudioError, DataError
from speechkit.types import Char, Transcript, Word
from speechkit.widgets.unit_browser import AROUND_S, GAP_S, TOGETHER, collect, unit_browser, unit_joined, units_html

GRID = FrameGrid()


def clip(*ids: list[int]) -> Units:
    """One list of codes per group."""
    codes = np.array(ids, np.int32).T
    return Units(codes, (9,) * len(ids), GRID, GRID.samples(len(codes)) / 16000, "test")


UNITS = [clip([3] * 20 + [5] * 10 + [3] * 20), clip([5] * 30)]
SOUNDS = [np.linspace(-0.5, 0.5, GRID.samples(50)).astype(np.float32), np.full(GRID.samples(30), 0.2, np.float32)]
HELD = Word("a<", 0.0, 0.6, 1.0, (Char("a", 0.0, 0.4, 1.0), Char("<", 0.4, 0.6, 1.0)))
SPOKEN = [Transcript("a<", (HELD,), "en", 1.0, 1.0, "test"), Transcript("", (), "en", 0.6, 1.0, "test")]


def test_each_unit_has_its_stretches_and_what_is_said_in_them():
    first, second = collect(UNITS, SPOKEN)
    assert (first.name, second.name) == ("3", "5")
    told = [(s.clip, round(s.start_s, 2), round(s.end_s, 2), s.before, s.said, s.after) for s in first.stretches]
    assert told == [(0, 0.0, 0.4, "", "a", "<"), (0, 0.6, 1.0, "", "", "")], "a pause is known as one"
    assert [(s.clip, s.before, s.said) for s in second.stretches] == [(0, "a", "<"), (1, "", "")]
    assert first.said == "a 50%" and second.said == "< 50%"


def test_without_a_transcript_nobody_knows_what_is_said():
    rows = collect(UNITS, [SPOKEN[0], None])
    assert [stretch.said for stretch in rows[1].stretches] == ["<", None]
    assert all(stretch.said is None for row in collect(UNITS) for stretch in row.stretches)
    assert collect(UNITS)[0].said == ""


@pytest.mark.parametrize(
    ("middle_s", "said"), [(0.21, "a"), (0.24, "a"), (0.26, "b"), (0.5, ""), (0.355, "b"), (0.37, "")]
)
def test_a_stretch_says_the_letter_in_its_middle_or_the_nearest_one_close_by(middle_s, said):
    """Letters at 0.18-0.2 s and 0.28-0.3 s, as narrow as CTC writes them; a stretch of two frames around `middle_s`."""
    chars = (Char("a", 0.18, 0.2, 1.0), Char("b", 0.28, 0.3, 1.0))
    spoken = Transcript("ab", (Word("ab", 0.18, 0.3, 1.0, chars),), "en", 1.0, 1.0, "test")
    grid = FrameGrid(hop=80, field=80)
    first = round((middle_s - 0.02) * 200)
    ids = np.zeros((200, 1), np.int32)
    ids[first : first + 8] = 1
    row = next(row for row in collect([Units(ids, (9,), grid, 1.0, "test")], [spoken]) if row.name == "1")
    assert row.stretches[0].said == said


def test_every_frame_is_in_exactly_one_stretch_of_its_unit():
    rng = np.random.default_rng(0)
    many = [clip(rng.integers(0, 4, 60).tolist(), rng.integers(0, 2, 60).tolist()) for _ in range(3)]
    rows = collect(many)
    assert len({row.name for row in rows}) == len(rows) <= 8
    for number, made in enumerate(many):
        frames = [""] * 60
        for row in rows:
            for stretch in (s for s in row.stretches if s.clip == number):
                for frame in range(round(stretch.start_s / 0.02), min(60, round(stretch.end_s / 0.02))):
                    assert frames[frame] == ""
                    frames[frame] = row.name
        assert frames == [f"{a}-{b}" for a, b in made.ids.tolist()]
    counts = [len(row.stretches) for row in rows]
    assert counts == sorted(counts, reverse=True)


def test_the_sound_of_a_unit_is_its_stretches_one_after_the_other():
    row = collect(UNITS)[1]
    samples, marks = unit_joined(SOUNDS, row)
    first, second = 0.2 + 2 * AROUND_S, len(SOUNDS[1]) / 16000
    assert marks == [
        pytest.approx((0, first), abs=0.01),
        pytest.approx((first + GAP_S, first + GAP_S + second), abs=0.02),
    ]
    assert len(samples) / 16000 == pytest.approx(marks[-1][1] + GAP_S)
    assert samples[0] == 0 and samples[-1] == 0, "no click at either end"
    begin, end = round(0.4 * 16000) - 960, round(0.6 * 16000) + 960
    np.testing.assert_array_equal(samples[80 : end - begin - 80], SOUNDS[0][begin + 80 : end - 80])
    gap = samples[round(marks[0][1] * 16000) : round(marks[1][0] * 16000)]
    assert len(gap) == round(GAP_S * 16000) and not gap.any()


@pytest.fixture
def widget():
    found = unit_browser(SOUNDS, UNITS, SPOKEN, "units")
    found.sent = []
    found.send = lambda content, buffers=None: found.sent.append((content, buffers))
    return found


def test_the_view_gets_the_sound_and_where_each_stretch_lies_in_it(widget):
    widget._answer(widget, {"kind": "audio", "unit": 0, "opus": False}, [])
    ((content, buffers),) = widget.sent
    samples, rate = soundfile.read(io.BytesIO(buffers[0]))
    assert rate == 16000 and content["unit"] == 0
    first, second = content["stretches"]
    assert (first["clip"], first["start_s"], first["end_s"], first["said"], first["after"]) == (1, 0.0, 0.4, "a", "<")
    assert first["from_s"] == 0 < first["to_s"] < second["from_s"] < second["to_s"] < len(samples) / rate
    assert json.loads(json.dumps(content)) == content


@pytest.mark.parametrize("unit", [2, -1])
def test_a_unit_that_is_not_there_is_told_to_the_view(widget, unit):
    widget._answer(widget, {"kind": "audio", "unit": unit}, [])
    assert widget.sent[0][0]["kind"] == "failed" and f"no unit {unit}" in widget.sent[0][0]["reason"]
    with pytest.raises(DataError, match=f"no unit {unit} in the list; it has 2"):
        widget.audio_bytes(unit)


def test_messages_that_are_none_of_ours_are_left_alone(widget):
    for content in ({"kind": "other"}, {"kind": "audio"}, {"kind": "audio", "unit": "1"}, {"kind": "units"}):
        widget._answer(widget, content, [])
    assert widget.sent == []


def test_a_clip_that_cannot_be_read_is_told_to_the_view():
    found = unit_browser([SOUNDS[0], "gone.wav"], UNITS)
    sent = []
    found.send = lambda content, buffers=None: sent.append(content)
    found._answer(found, {"kind": "audio", "unit": 1}, [])
    assert sent[0]["kind"] == "failed" and "no such file: gone.wav" in sent[0]["reason"]
    with pytest.raises(AudioError):
        found.audio_bytes(1)


def test_clips_in_another_order_than_their_units_are_told():
    with pytest.raises(DataError, match=r"unit 3 is heard in clip 1 at 0\.60 s, but that clip ends at 0\.20 s"):
        unit_joined([SOUNDS[0][:3200], SOUNDS[1]], collect(UNITS)[0])


OFTEN = [clip([1, 2] * 40) for _ in range(4)]  # each unit 160 times
QUIET = [np.full(GRID.samples(80), 0.01 * (number + 1), np.float32) for number in range(4)]


def test_a_unit_that_is_everywhere_is_heard_everywhere_part_by_part():
    found = unit_browser(QUIET, OFTEN)
    sent = []
    found.send = lambda content, buffers=None: sent.append((content, buffers))
    for part in range(4):
        found._answer(found, {"kind": "audio", "unit": 0, "part": part}, [])
    told = [(s["clip"], s["start_s"]) for content, _ in sent[:3] for s in content["stretches"]]
    assert told == [(number, round(0.04 * at, 2)) for number in range(1, 5) for at in range(40)]
    assert [len(content["stretches"]) for content, _ in sent[:3]] == [TOGETHER, TOGETHER, 40]
    for content, (data,) in sent[:3]:
        samples, rate = soundfile.read(io.BytesIO(data))
        middles = [(s["from_s"] + s["to_s"]) / 2 for s in content["stretches"]]
        heard = samples[np.round(np.array(middles) * rate).astype(int)]
        np.testing.assert_allclose(heard, [0.01 * s["clip"] for s in content["stretches"]], atol=1e-4)
    assert sent[3][0] == {
        "kind": "failed",
        "unit": 0,
        "part": 3,
        "reason": "unit 1 has no part 3; it has 3, counted from 0",
    }
    joined, marks = unit_joined(QUIET, collect(OFTEN)[0])
    assert len(marks) == 160 and len(joined) == len(soundfile.read(io.BytesIO(found.audio_bytes(0, "wav")))[0])


def test_joining_reads_each_clip_once(monkeypatch):
    read = []
    monkeypatch.setattr(
        "speechkit.widgets.unit_browser.sound.load", lambda source: read.append(source) or QUIET[source]
    )
    unit_joined([0, 1, 2, 3], collect(OFTEN)[0])
    assert read == [0, 1, 2, 3]


def test_the_twins_name_the_units_and_escape(widget):
    assert repr(widget).splitlines()[:2] == ["units", "2 units, 4 stretches"]
    html = units_html(collect(UNITS, SPOKEN), "<i>")
    tree = ElementTree.fromstring(html.replace("&nbsp;", " "))  # noqa: S314 (our own text, well formed or not)
    assert [cell.text or "" for cell in tree.iter("td")] == ["3", "2", "a 50%", "5", "2", "< 50%"]
    assert tree.findtext("strong") == "<i>"
    data, _ = widget._repr_mimebundle_()
    assert data["text/html"] == units_html(collect(UNITS, SPOKEN), "units")


def test_saved_state_holds_names_and_counts_and_no_sound(widget):
    assert widget.units == [{"name": "3", "count": 2, "said": "a 50%"}, {"name": "5", "count": 2, "said": "< 50%"}]
    assert not any(isinstance(value, bytes) for value in widget.get_state().values())


def test_of_very_many_units_the_commonest_are_listed_and_the_others_are_told_when_asked_for():
    found = unit_browser([SOUNDS[0]], [clip(list(range(1100)))])
    assert (len(found.units), found.more) == (500, 600)
    assert "and 1088 more" in repr(found) and "and 1088 more units" in found._html
    sent = []
    found.send = lambda content, buffers=None: sent.append(content)
    for first in (500, 1000, 1100, -1, "0"):
        found._answer(found, {"kind": "units", "first": first}, [])
    assert [(content["first"], len(content["units"])) for content in sent] == [(500, 500), (1000, 100), (1100, 0)]
    names = [unit["name"] for unit in found.units + sent[0]["units"] + sent[1]["units"]]
    assert sorted(map(int, names)) == list(range(1100))


def test_lists_that_do_not_fit_are_told():
    with pytest.raises(DataError, match="1 sounds, 2 clips of units"):
        unit_browser(SOUNDS[:1], UNITS)
    with pytest.raises(DataError, match="2 sounds, 2 clips of units, 1 transcripts"):
        unit_browser(SOUNDS, UNITS, SPOKEN[:1])
    with pytest.raises(DataError, match="no units to show"):
        unit_browser([], [])
