"""The player in a real JupyterLab with a real kernel: it draws, plays, answers clicks, and saves no sound."""

from __future__ import annotations

import ast
import json
import time
from pathlib import Path

import nbformat
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "01_transcription.ipynb"
WAIT_MS = 180_000  # JupyterLab on a busy machine; nothing waits longer than it must
RECORD = """
window.audios = [];
const Real = window.Audio;
window.Audio = function () { const audio = new Real(); window.audios.push(audio); return audio; };
"""
CELLS = """
import numpy as np
from speechkit.types import Transcript, Word
from speechkit.widgets.player import player
time_s = np.arange(48000) / 16000
tone = (0.3 * np.sin(2 * np.pi * 330 * time_s)).astype(np.float32)
words = tuple(Word(text, 0.5 + i, 0.9 + i, c) for i, (text, c) in enumerate([("one", 0.95), ("two", 0.4)]))
view = player(tone, Transcript("one two", words, "en", 3.0, 0.67, "demo/en"), "two tones")
view
# cell
from speechkit.widgets.spectrogram import spectrogram
spectrogram(tone, Transcript("one two", words, "en", 3.0, 0.67, "demo/en"))
"""


def _write(notebook, path: Path) -> None:
    """With a kernel named, JupyterLab starts it instead of asking which."""
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def _run_all(page, address: str, name: str) -> None:
    page.goto(f"{address}/lab/tree/{name}?token=t")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=WAIT_MS)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=WAIT_MS)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def _open(browser, started: str, name: str, watch):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(RECORD)
    watched = watch(context.new_page())
    _run_all(watched.page, started, name)
    return context, watched


def test_a_player_works_in_jupyterlab_and_its_sound_is_not_saved(browser, jupyter_lab, watched_page, tmp_path):
    folder = tmp_path / "lab"
    folder.mkdir()
    cells = [nbformat.v4.new_code_cell(text.strip()) for text in CELLS.split("# cell")]
    cells.append(nbformat.v4.new_code_cell("view.selected, view.current_s"))
    _write(nbformat.v4.new_notebook(cells=cells), folder / "player.ipynb")
    context, watched = _open(browser, jupyter_lab(folder), "player.ipynb", watched_page)
    page = watched.page
    word = page.get_by_role("button", name="two, doubtful")
    word.wait_for(timeout=WAIT_MS)
    page.wait_for_function("window.audios[0].readyState >= 3", timeout=WAIT_MS)
    page.locator(".jp-OutputArea img").first.wait_for(timeout=WAIT_MS)
    assert page.locator(".jp-OutputArea img").count() == 1
    word.click()
    assert 1.4 <= page.evaluate("window.audios[0].currentTime") < 2.0
    page.wait_for_function("window.audios[0].paused")

    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.textContent") == "one"
    page.keyboard.press("Enter")
    page.wait_for_function("window.audios[0].currentTime < 1.2")
    page.wait_for_function("window.audios[0].paused")
    _assert_kernel_follows(page)

    page.keyboard.press("Control+s")
    page.wait_for_function("!document.querySelector('.jp-mod-dirty')", timeout=WAIT_MS)
    _assert_saved_without_sound(folder / "player.ipynb")
    assert watched.errors == []
    assert watched.outside == []
    context.close()


def _assert_kernel_follows(page) -> None:
    """The kernel knows the word and where the sound stopped; asked again, as ipywidgets sends one change at a time."""
    stopped_s = page.evaluate("window.audios[0].currentTime")
    output = page.locator(".jp-Cell").last.locator(".jp-OutputArea-output")
    page.locator(".jp-Cell").last.click()
    shown = (-1, 0.0)
    until = time.monotonic() + WAIT_MS / 1000
    while shown != (0, pytest.approx(stopped_s, abs=0.05)) and time.monotonic() < until:
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(500)
        shown = ast.literal_eval(output.inner_text(timeout=WAIT_MS))
    assert shown == (0, pytest.approx(stopped_s, abs=0.05))


def _assert_saved_without_sound(path: Path) -> None:
    for _ in range(50):
        saved = json.loads(path.read_text(encoding="utf-8"))
        outputs = [output for cell in saved["cells"] for output in cell.get("outputs", [])]
        if outputs:
            break
    [bundle] = [output["data"] for output in outputs if "application/vnd.jupyter.widget-view+json" in output["data"]]
    assert "<section" in "".join(bundle["text/html"])
    assert "two(0.40)" in "".join(bundle["text/plain"])
    assert len(json.dumps(bundle)) < 20_000
    assert len(json.dumps(saved["metadata"])) < 60_000


def test_notebook_01_shows_a_player_that_answers_a_click(browser, jupyter_lab, watched_page, tmp_path):
    if not NOTEBOOK.exists():
        pytest.fail(f"{NOTEBOOK.relative_to(ROOT)} is missing")
    folder = tmp_path / "lab"
    folder.mkdir()
    _write(nbformat.read(NOTEBOOK, as_version=4), folder / NOTEBOOK.name)
    context, watched = _open(browser, jupyter_lab(folder), NOTEBOOK.name, watched_page)
    page = watched.page
    page.locator(".transcript-player").first.wait_for(timeout=WAIT_MS)
    page.wait_for_function("window.audios.length && window.audios[0].readyState >= 3", timeout=WAIT_MS)
    word = page.locator(".transcript-player .tp-words .tp-word").nth(1)
    start_s = float(word.get_attribute("title").split("–")[0].removeprefix("0:"))
    assert start_s > 0.1
    word.click()
    assert start_s - 0.1 <= page.evaluate("window.audios[0].currentTime") < start_s + 0.8
    page.wait_for_function("document.querySelector('.tp-now')")
    assert watched.errors == []
    assert watched.outside == []
    context.close()
