"""Live widgets in a real JupyterLab with a real kernel: a clip spoken into the browser, a map and units to hear."""

from __future__ import annotations

import ast
import json
import time

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WAIT_MS = 180_000  # JupyterLab, a kernel and a model on a busy machine; nothing waits longer than it must
RECORD = """
window.audios = [];
const Real = window.Audio;
window.Audio = function () { const audio = new Real(); window.audios.push(audio); return audio; };
"""
CELLS = [
    """from speechkit import load_asr
from speechkit.widgets.microphone import microphone
live = microphone(load_asr("demo/en", device="cpu"))
live""",
    """import numpy as np
from speechkit.asr.frames import FrameGrid
from speechkit.asr.units import Units
from speechkit.widgets.sound_map import sound_map
from speechkit.widgets.unit_browser import unit_browser
tone = np.sin(np.arange(8000) / 8).astype(np.float32) / 4
sound_map([[0, 0], [1, 1]], [tone, tone], ["low", "high"], ["a", "b"])""",
    """ids = np.array([[3]] * 20 + [[4]] * 4, np.int32)
unit_browser([tone], [Units(ids, (9,), FrameGrid(), 0.5, "test")])""",
    "live.lines",
]


def test_a_microphone_a_map_and_units_work_in_jupyterlab(run_notebook, spoken_clip):
    watched, path = run_notebook(CELLS, allow=["microphone"], before=RECORD)
    page = watched.page
    page.get_by_role("button", name="Start", exact=True).click(timeout=WAIT_MS)
    page.wait_for_function(
        "(words) => [...document.querySelectorAll('.mi-log p')].some((line) =>"
        " words.filter((word) => line.textContent.split(' ').includes(word)).length >= 0.7 * words.length)",
        arg=spoken_clip.text.split(),
        timeout=WAIT_MS,
    )
    assert "sound to screen" in page.locator(".mi-lag").inner_text()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text("Start, speak, Stop.").wait_for(timeout=WAIT_MS)
    lines = page.locator(".mi-log p").all_inner_texts()

    page.locator(".sm-field").focus()
    page.keyboard.press("PageDown")  # the notebook would scroll
    page.keyboard.press("Enter")
    page.wait_for_function("window.audios.some((audio) => audio.ended && audio.duration > 0.4)", timeout=WAIT_MS)
    page.locator(".ub-unit").first.click()
    page.get_by_text("0.00 s").wait_for(timeout=WAIT_MS)
    page.wait_for_function("window.audios.filter((audio) => audio.ended).length === 2", timeout=WAIT_MS)
    assert _kernel_has(page) == lines

    page.keyboard.press("Control+s")
    page.wait_for_function("!document.querySelector('.jp-mod-dirty')", timeout=WAIT_MS)
    _assert_saved_without_sound(path)
    assert watched.errors == []
    assert watched.outside == []


def _kernel_has(page) -> list[str]:
    """What `live.lines` is, asked of the kernel after the view has it."""
    cell = page.locator(".jp-Cell").last
    cell.click()
    page.keyboard.press("Control+Enter")
    until = time.monotonic() + WAIT_MS / 1000
    while time.monotonic() < until:
        shown = ast.literal_eval(cell.locator(".jp-OutputArea-output").inner_text(timeout=WAIT_MS))
        if shown:
            return shown
        page.wait_for_timeout(200)
    return []


def _assert_saved_without_sound(path) -> None:
    saved = path.read_text(encoding="utf-8")
    outputs = [output for cell in json.loads(saved)["cells"] for output in cell["outputs"]]
    twins = ["".join(output["data"].get("text/html", "")) for output in outputs]
    assert [twin[9:].split('"')[1] for twin in twins if twin] == ["Microphone", "Map of sounds", "Units"]
    assert len(saved) < 15_000, "words, a picture and a table"
