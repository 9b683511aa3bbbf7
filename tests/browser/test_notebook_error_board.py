"""The error board in a real JupyterLab with a real kernel: filters, a word to hear and a table to save."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WAIT_MS = 180_000  # JupyterLab and a kernel on a busy machine; nothing waits longer than it must
RECORD = """
window.audios = [];
const Real = window.Audio;
window.Audio = function () { const audio = new Real(); window.audios.push(audio); return audio; };
"""
CELL = """
import numpy as np
from speechkit import audio
from speechkit.evaluation.errors import ScoreOptions, score
from speechkit.types import Transcript, Word
from speechkit.widgets.error_board import ErrorBoard
tone = np.sin(np.arange(48000) / 8).astype(np.float32) / 4
path = audio.write("tone.wav", tone)
words = tuple(Word(text, 0.2 + i, 0.8 + i, 0.9) for i, text in enumerate(["bring", "forty"]))
heard = [Transcript("bring forty", words, "en", 3.0, 0.9, "test")] + [Transcript(f"right {i}") for i in range(30)]
said = ["bring fourteen"] + [f"right {i}" for i in range(30)]
names, quick = [f"clip-{i}" for i in range(31)], ScoreOptions(estimate_snr=False)
ErrorBoard(score(said, heard, names=names, audio=[path] * 31, options=quick), "in the lab")
"""


def test_a_board_answers_in_jupyterlab(run_notebook):
    watched, _ = run_notebook([CELL.strip()], before=RECORD)
    page = watched.page
    word = page.get_by_role("button", name="substituted: fourteen, heard forty")
    word.click(timeout=WAIT_MS)
    page.wait_for_function("window.audios.some((audio) => audio.ended && audio.duration > 0.6)", timeout=WAIT_MS)
    assert page.locator(".eb-row").count() == 20
    page.get_by_role("button", name="next ›").click()
    page.wait_for_function("document.querySelectorAll('.eb-row').length === 11", timeout=WAIT_MS)

    page.get_by_role("searchbox", name="Find a word, a file, a speaker").click()
    page.keyboard.type("forty dd")  # d d deletes a cell where JupyterLab takes keys for its own
    page.get_by_text("No utterance is like that.").wait_for(timeout=WAIT_MS)
    for _ in range(3):
        page.keyboard.press("Backspace")
    page.wait_for_function("document.querySelectorAll('.eb-row').length === 1", timeout=WAIT_MS)
    assert page.locator(".jp-Notebook .jp-CodeCell").count() == 1

    page.get_by_role("tab", name="Confused words").click()
    page.get_by_role("button", name="fourteen heard as forty: show these utterances").first.wait_for(timeout=WAIT_MS)
    with page.expect_download(timeout=WAIT_MS) as saving:
        page.get_by_role("button", name="Save as CSV").click()
    assert saving.value.suggested_filename == "in-the-lab.csv"
    assert watched.errors == []
    assert watched.outside == []
