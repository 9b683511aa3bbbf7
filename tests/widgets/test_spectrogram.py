"""The figure's content, and the spectrum against scipy."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from scipy.signal import stft

from speechkit.errors import DataError
from speechkit.types import Transcript, Word
from speechkit.widgets.palette import INK, LEVELS, PAPER
from speechkit.widgets.spectrogram import lanes, power_db, spectrogram


def test_the_power_equals_scipys_short_time_fourier_transform(samples):
    ours = power_db(samples)
    window = np.hanning(401)[:-1]
    _, _, theirs = stft(samples, 16000, window=window, nperseg=400, noverlap=240, boundary="zeros", padded=False)
    frames = min(ours.shape[1], theirs.shape[1])
    power = np.abs(theirs[:, :frames]) ** 2
    decibel = 10 * np.log10(np.maximum(power / power.max(), 1e-12))
    loud = decibel > -80
    np.testing.assert_allclose(ours[:, :frames][loud], decibel[loud], atol=0.05)


def test_silence_and_less_than_one_window_have_a_spectrum_too():
    assert np.all(power_db(np.zeros(16000, np.float32)) <= 0)
    assert power_db(np.ones(3, np.float32)).shape[0] == 201


def _label_axes(figure):
    return figure.axes[1]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_word_stands_over_the_middle_of_its_span_in_the_themes_ink(samples, transcript, theme):
    figure = spectrogram(samples, transcript, theme=theme)
    labels = {text.get_text(): text for text in _label_axes(figure).texts}
    assert list(labels) == transcript.text.split()
    for word in transcript.words:
        assert labels[word.text].get_position()[0] == pytest.approx((word.start_s + word.end_s) / 2)
        assert to_hex(labels[word.text].get_color()) == INK.of(theme)
    assert to_hex(figure.get_facecolor()) == PAPER.of(theme)


def test_the_marks_span_the_words_in_the_colour_and_line_of_their_level(samples, transcript):
    axes = _label_axes(spectrogram(samples, transcript, theme="light"))
    marks = [line for line in axes.lines if len(line.get_xdata()) == 200]
    assert [to_hex(mark.get_color()) for mark in marks] == [LEVELS[i].shade.light for i in (0, 0, 1, 2)]
    assert [mark.get_linestyle() for mark in marks] == ["-", "-", "--", "-"]
    waves = [np.ptp(mark.get_ydata()) > 0 for mark in marks]
    assert waves == [False, False, False, True]
    for mark, word in zip(marks, transcript.words, strict=True):
        assert word.start_s <= mark.get_xdata().min() <= word.start_s + 0.01
        assert word.end_s - 0.01 <= mark.get_xdata().max() <= word.end_s


def test_words_and_picture_share_the_seconds(samples, transcript):
    _, words, picture = spectrogram(samples, transcript).axes
    assert words.get_xlim() == picture.get_xlim() == (0.0, 1.5)
    assert picture.get_xlabel() == "seconds"


def test_labels_that_would_touch_take_different_lanes():
    words = [Word("considerable", 0.1 * i, 0.1 * i + 0.1, 0.9) for i in range(4)]
    assert lanes(words, seconds_per_inch=0.1) == [0, 1, 0, 1]
    assert lanes(words, seconds_per_inch=1e-4) == [0, 0, 0, 0]


def test_drawn_labels_do_not_overlap(samples):
    texts = ["international", "considerations", "frequently", "necessitate", "a", "i", "am", "extraordinarily"]
    words = tuple(Word(text, i * 0.18, i * 0.18 + 0.15, 0.9) for i, text in enumerate(texts))
    figure = spectrogram(samples, Transcript(" ".join(texts), words, "en", 1.5))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in _label_axes(figure).texts]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)]


def test_a_range_shows_only_its_words(samples, transcript):
    figure = spectrogram(samples, transcript, start_s=0.55, end_s=0.9)
    assert [text.get_text() for text in _label_axes(figure).texts] == ["room"]
    assert figure.axes[2].get_xlim() == (0.55, 0.9)


def test_a_range_without_audio_is_refused_with_the_length(samples, transcript):
    with pytest.raises(DataError, match=r"start_s=2.0 and end_s=None hold no audio: the recording is 1.50 s long"):
        spectrogram(samples, transcript, start_s=2.0)


def test_no_words_are_said_to_be_no_speech(samples):
    figure = spectrogram(samples, Transcript("", duration_s=1.5))
    assert [text.get_text() for text in _label_axes(figure).texts] == ["(no speech)"]


def test_the_theme_follows_matplotlib_unless_told(samples, transcript):
    with mpl.rc_context({"figure.facecolor": "#111111"}):
        assert to_hex(spectrogram(samples, transcript).get_facecolor()) == PAPER.dark
    assert to_hex(spectrogram(samples, transcript).get_facecolor()) == PAPER.light
    with pytest.raises(ValueError, match='theme is \'blue\'; use "auto", "light" or "dark"'):
        spectrogram(samples, transcript, theme="blue")


def test_the_figure_is_closed_for_pyplot_and_leaves_its_settings_alone(samples, transcript):
    before = dict(mpl.rcParams)
    spectrogram(samples, transcript)
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before
