"""The panel of sliders: a point for each setting tried, a sentence for one that cannot be, twins to be saved."""

import base64

import pytest

from speechkit import Recognizer, demo
from speechkit.errors import DataError
from speechkit.evaluation.latency import StreamScore, stream_score
from speechkit.widgets.latency_panel import SHOWN, LatencyPanel, latency_panel

CLIPS = demo.clips("en")[:1]
PATHS, TEXTS = [clip.path for clip in CLIPS], [clip.text for clip in CLIPS]


@pytest.fixture(scope="module")
def before(recognizer: Recognizer) -> StreamScore:
    return stream_score(recognizer, PATHS, TEXTS, {"hop_s": 0.5, "lookahead_s": 0.5})


@pytest.fixture
def panel(recognizer: Recognizer, before: StreamScore) -> LatencyPanel:
    return latency_panel(recognizer, PATHS, TEXTS, [before], lookahead_s=0.5)


def test_moving_a_slider_measures_that_setting_and_draws_it(panel: LatencyPanel, before: StreamScore) -> None:
    picture = panel.picture.value
    panel.hop.value = 0.7
    assert panel.scores[0] == before
    assert panel.scores[1].options == {"lookahead_s": 0.5, "window_s": 6.0, "hop_s": pytest.approx(0.7)}
    assert panel.picture.value != picture and bytes(panel.picture.value[:4]) == b"\x89PNG"
    assert "2: " in panel.told.value and "latency" in panel.told.value


def test_a_setting_that_cannot_be_is_told_and_the_curve_stays(recognizer: Recognizer, before: StreamScore) -> None:
    panel = latency_panel(recognizer, PATHS, TEXTS, [before], lookahead_s=3.0)
    picture = panel.picture.value
    panel.window.value = 2.0
    assert "lookahead_s" in panel.told.value
    assert panel.scores == (before,) and panel.picture.value == picture


def test_what_is_no_question_of_settings_is_told_too(recognizer: Recognizer, before: StreamScore) -> None:
    panel = latency_panel(recognizer, PATHS, [], [before])
    panel.hop.value = 0.9
    assert "0 texts" in panel.told.value
    with pytest.raises(DataError, match="0 texts"):
        stream_score(recognizer, PATHS, [], {})


def test_points_of_the_sliders_make_room_and_those_given_stay(panel: LatencyPanel, before: StreamScore) -> None:
    panel._given = (before,) * (SHOWN - 1)
    for hop in (0.7, 0.8):
        panel.hop.value = hop
    assert len(panel.scores) == SHOWN
    assert panel.scores[-1].options["hop_s"] == pytest.approx(0.8)


def test_a_saved_notebook_keeps_the_picture_and_the_lines(panel: LatencyPanel, before: StreamScore) -> None:
    data, _ = panel._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.model_id
    assert base64.b64encode(panel.picture.value).decode() in data["text/html"]
    assert str(before) in data["text/plain"] and str(before) in data["text/html"]


def test_the_sliders_stay_within_their_ends(recognizer: Recognizer) -> None:
    panel = latency_panel(recognizer, PATHS, TEXTS, window_s=99.0, hop_s=0.01)
    assert (panel.window.value, panel.hop.value) == (12.0, 0.08)
    assert panel.scores == () and repr(panel) == "latency and word errors by setting"
