"""The map of sounds: places, legend, twins, sounds on demand, nothing becomes markup, no sound in what is saved."""

from __future__ import annotations

import io
import json
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from scipy.spatial.distance import pdist

from speechkit.errors import AudioError, DataError
from speechkit.widgets.palette import KINDS, legend_of
from speechkit.widgets.sound_map import EDGE, TALL, WIDE, map_html, map_text, placed, sound_map

POINTS = np.array([[-1.0, -1.0], [0.0, 0.5], [1.0, 1.0], [0.9, 1.0]])
SOUNDS = [np.full(1600 * (n + 1), 0.1 * n, np.float32) for n in range(2)] + ["none.wav", None]
TEXTS, LABELS = ["one", "two", "<b>three</b>", "four"], ["a", "b", "a", "c"]


@pytest.fixture
def widget():
    found = sound_map(POINTS, SOUNDS, TEXTS, LABELS, "words")
    found.sent = []
    found.send = lambda content, buffers=None: found.sent.append((content, buffers))
    return found


def test_a_click_brings_the_sound_of_that_point_alone(widget):
    widget._answer(widget, {"kind": "audio", "row": 1, "opus": False}, [])
    ((content, buffers),) = widget.sent
    samples, rate = soundfile.read(io.BytesIO(buffers[0]))
    assert (content["kind"], content["row"], rate, len(samples)) == ("audio", 1, 16000, 3200)


def test_a_view_that_plays_opus_gets_opus(widget):
    widget._answer(widget, {"kind": "audio", "row": 1, "opus": True}, [])
    ((content, buffers),) = widget.sent
    assert content["mime"] == "audio/ogg" and soundfile.info(io.BytesIO(buffers[0])).subtype == "OPUS"


@pytest.mark.parametrize(
    ("row", "reason"),
    [(2, "no such file: none.wav"), (3, "has no sound"), (99, "no point 99; the map has 4"), (-1, "no point -1")],
)
def test_a_sound_that_cannot_be_had_is_told_to_the_view(widget, row, reason):
    widget._answer(widget, {"kind": "audio", "row": row}, [])
    ((content, _),) = widget.sent
    assert content["kind"] == "failed" and content["row"] == row and reason in content["reason"]
    with pytest.raises((AudioError, DataError), match=reason):
        widget.audio_bytes(row)


def test_messages_that_are_none_of_ours_are_left_alone(widget):
    for content in ({"kind": "other"}, {"kind": "audio"}, {"kind": "audio", "row": "1"}):
        widget._answer(widget, content, [])
    assert widget.sent == []


def test_places_keep_the_ratios_of_distances_and_fill_the_picture():
    points = np.random.default_rng(0).normal(3, 40, (30, 2))
    spots = placed(points)
    ratios = pdist(spots) / pdist(points)
    assert np.ptp(ratios) < 1e-9, "one scale for both directions"
    low, high = spots.min(axis=0), spots.max(axis=0)
    assert (low >= EDGE - 1e-9).all() and high[0] <= WIDE - EDGE + 1e-9 and high[1] <= TALL - EDGE + 1e-9
    assert high[0] - low[0] == pytest.approx(WIDE - 2 * EDGE) or high[1] - low[1] == pytest.approx(TALL - 2 * EDGE)
    assert spots[points[:, 1].argmax(), 1] == low[1], "up is up"


def test_one_point_or_equal_points_stand_in_the_middle():
    for points in (np.array([[7.0, -3.0]]), np.full((3, 2), 5.0)):
        np.testing.assert_allclose(placed(points), np.tile([WIDE / 2, TALL / 2], (len(points), 1)))


def test_the_legend_is_ranked_and_rare_labels_share_the_last_place():
    assert legend_of(LABELS) == (["a", "b", "c"], [0, 1, 0, 2])
    many = [f"k{n}" for n in range(12) for _ in range(12 - n)]
    names, kinds = legend_of(many)
    assert len(names) == len(KINDS) and names[-1] == "other" and kinds[-1] == len(KINDS) - 1


def _pictures(html: str) -> list[ElementTree.Element]:
    """The SVGs, read as XML: what is not well formed or not escaped does not get through."""
    found = ElementTree.fromstring(html.replace("&nbsp;", " "))  # noqa: S314 (our own text)
    return [node for node in found.iter() if node.tag == "svg"]


def test_the_static_twin_has_every_point_at_its_place_with_its_text(widget):
    picture, *keys = _pictures(map_html(POINTS, TEXTS, LABELS, "<i>title</i>"))
    assert [mark.findtext("title") for mark in picture] == ["one (a)", "two (b)", "<b>three</b> (a)", "four (c)"]
    circle = picture[0].get("d")
    assert circle.startswith(f"M{widget.points[0][0] - 5:.1f} {widget.points[0][1]:.1f}a")
    assert len(keys) == 3
    assert "<i>title</i>: 4 points" in picture.get("aria-label")


def test_the_text_twin_counts_labels_and_tells_how_often_neighbours_agree():
    assert map_text(POINTS, LABELS) == "4 points; a 2, b 1, c 1; the nearest point has the same label in 0%"
    pairs = np.array([[0, 0], [0, 1], [9, 0], [9, 1.0]])
    assert "in 100%" in map_text(pairs, ["x", "x", "y", "y"])
    assert map_text(np.zeros((20, 2)), [f"k{n}" for n in range(20)]).count(",") == len(KINDS), "8 names and a rest"


def test_the_mime_bundle_holds_the_view_and_both_twins(widget):
    data, _ = widget._repr_mimebundle_()
    assert data["text/html"] == map_html(POINTS, TEXTS, LABELS, "words")
    assert data["text/plain"] == repr(widget) and repr(widget).startswith("words: 4 points")
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.model_id


def test_saved_state_holds_no_sound(widget):
    state = widget.get_state()
    assert not any(isinstance(value, bytes) for value in state.values())
    assert len(state["points"]) == len(state["texts"]) == len(state["kinds"]) == 4
    assert len(json.dumps(state)) < 25_000


def test_thousands_of_points_are_small_and_their_twin_is_saved_without_texts():
    points = np.random.default_rng(0).normal(size=(2000, 2))
    found = sound_map(points, None, [f"text {n}" for n in range(2000)], [str(n % 3) for n in range(2000)])
    picture, *_ = _pictures(found._html)
    assert len(picture) == 3 and found.size == 3.0 and found.mute
    assert picture[0].get("d").count("Z") == 667, "every point is still drawn"
    assert len(found._html) < 150_000


def test_no_points_at_all_are_an_empty_map():
    for points in ([], np.zeros((0, 2))):
        found = sound_map(points, [], [], [])
        assert repr(found) == "0 points" and found.points == [] and found.legend == []
        assert len(_pictures(found._html)) == 1


@pytest.mark.parametrize(
    ("points", "sizes", "message"),
    [
        (POINTS[:3], (4, 4, 4), "3 points, 4 sounds, 4 texts and 4 labels; give one of each"),
        (POINTS, (4, 3, 4), "4 points, 4 sounds, 3 texts and 4 labels"),
        (np.zeros((4, 3)), (4, 4, 4), r"points have shape \(4, 3\); give them as \(N, 2\)"),
        (np.zeros(4), (4, 4, 4), r"points have shape \(4,\)"),
        ([[0, 0], [1]], (2, 2, 2), "points cannot be read as numbers"),
        ([[0, 0], ["x", 1]], (2, 2, 2), "points cannot be read as numbers"),
        ([[0, 0], [np.nan, 1]], (2, 2, 2), r"point 1 is \[nan, 1.0\]: NaN and infinity have no place"),
    ],
)
def test_points_and_lists_that_do_not_fit_are_told(points, sizes, message):
    sounds, texts, labels = ([each] * size for each, size in zip((None, "text", "label"), sizes, strict=True))
    with pytest.raises(DataError, match=message):
        sound_map(points, sounds, texts, labels)
