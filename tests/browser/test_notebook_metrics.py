"""Live metrics in a real JupyterLab: points arrive while a cell trains, and Stop reaches a kernel that is busy."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WAIT_MS = 180_000  # JupyterLab and a kernel on a busy machine; nothing waits longer than it must
TRAINER = """import time
from speechkit.training.curve import Point
from speechkit.widgets.metrics import LiveMetrics

def train(on_point, stop, step_s=0.02):
    "As a trainer does: no message of the view is read between two steps, and a wish to stop leaves a checkpoint."
    began = time.monotonic()
    for step in range(1, 1_000_000):
        time.sleep(step_s)
        on_point(Point(step, time.monotonic() - began, 5 / step, 1e-4, audio_s=2.0 * step, wer=1 / step))
        if stop.requested:
            return f"checkpoint at {step}"
"""
BUSY = """with LiveMetrics(1_000_000, "in the cell") as live:
    left = train(live.add, live)
print("[[", left, live.phase, live.curve.last.step, "]]")"""
THREAD = """import threading
beside = LiveMetrics(1_000_000, "in a thread")
done = []
thread = threading.Thread(target=lambda: done.append(train(beside.add, beside)), daemon=True)
thread.start()
beside"""


def test_stop_reaches_a_trainer_that_keeps_the_kernel_busy_and_leaves_its_checkpoint(run_notebook):
    watched, path = run_notebook([TRAINER, BUSY])
    page = watched.page
    view = page.locator(".live-metrics")
    view.locator(".lm-chart").nth(2).wait_for(timeout=WAIT_MS)
    page.wait_for_function(
        "Number(document.querySelector('.lm-progress').getAttribute('aria-valuenow')) > 5", timeout=WAIT_MS
    )
    view.get_by_role("button", name="Stop", exact=True).click()
    page.wait_for_function("document.querySelector('.live-metrics')?.dataset.phase === 'stopped'", timeout=WAIT_MS)
    page.locator(".jp-OutputArea-output", has_text="[[ checkpoint").wait_for(timeout=WAIT_MS)
    said = page.locator(".jp-OutputArea-output", has_text="[[ checkpoint").inner_text().split()
    assert said[1:5] == ["checkpoint", "at", said[3], "stopped"] and said[3] == said[5]
    assert page.locator(".live-metrics").count() == 1, "it stands where it stood"
    assert page.locator(".lm-stop").is_hidden()

    page.keyboard.press("Control+s")
    page.wait_for_function("!document.querySelector('.jp-mod-dirty')", timeout=WAIT_MS)
    saved = json.loads(path.read_text(encoding="utf-8"))
    twin = "".join(saved["cells"][1]["outputs"][0]["data"]["text/html"])
    assert f"stopped as asked, at step {said[3]}" in twin and twin.count("<svg") == 3
    assert len(json.dumps(saved)) < 80_000
    assert watched.errors == []
    assert watched.outside == []


def test_stop_reaches_a_trainer_in_a_thread(run_notebook):
    watched, _ = run_notebook([TRAINER, THREAD])
    page = watched.page
    page.locator(".lm-chart").nth(2).wait_for(timeout=WAIT_MS)
    page.get_by_role("button", name="Stop", exact=True).click()
    page.wait_for_function("document.querySelector('.live-metrics').dataset.phase === 'stopping'", timeout=WAIT_MS)
    assert watched.errors == []
