"""A real Chromium with a microphone that plays an embedded clip, a loopback server for pages, and a real JupyterLab."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

from speechkit import audio, demo
from speechkit.types import Transcript, Word

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "speechkit" / "widgets" / "static"
FLAGS = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--mute-audio", "--disable-dev-shm-usage"]

LAB = [
    *("--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0"),
    *("--IdentityProvider.token=t", "--LabApp.news_url=None", "--LabApp.extension_manager=readonly"),
    "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
]
PAGE = Path(__file__).with_name("player.html")
WIDGET = Path(__file__).with_name("widget.html")
WAIT_MS = 180_000  # JupyterLab on a busy machine; nothing waits longer than it must


@dataclass
class Watched:
    """A page with what it said and asked for: console errors, exceptions, addresses outside this machine."""

    page: Any
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.route("**/*", self._guard)

    def _guard(self, route: Any) -> None:
        if route.request.url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()


def missing(what: str) -> None:
    """Without its tools a browser test fails in CI and is skipped, with the reason, elsewhere."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


@pytest.fixture
def watched_page():
    return Watched


@pytest.fixture
def stays_clean():
    """An open page → itself; to the end of the test its console stays clean, and it asks for nothing elsewhere."""
    opened: list[Watched] = []

    def watched(page: Watched) -> Watched:
        opened.append(page)
        return page

    yield watched
    assert [page.errors for page in opened] == [[] for _ in opened]
    assert [page.outside for page in opened] == [[] for _ in opened]


@pytest.fixture
def page(watched):
    """The page of the module's own `watched`."""
    return watched.page


@pytest.fixture(scope="session")
def spoken_clip() -> demo.DemoClip:
    """The embedded clip that the browser's microphone hears."""
    return demo.clips("en")[1]


@pytest.fixture(scope="session")
def browser(spoken_clip, tmp_path_factory):
    """Chromium, without permissions: a context that may use the microphone says so. It hears the clip over and over."""
    speech = tmp_path_factory.mktemp("microphone") / "speech.wav"
    pause = np.zeros(16000, np.float32)
    audio.write(speech, np.concatenate([pause, audio.load(spoken_clip.path), pause]))
    hearing = ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={speech}"]
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        missing("no Chromium on this machine: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install 'speechkit[test]'")
    with sync_playwright() as tools:
        chromium = tools.chromium.launch(executable_path=path, args=[*FLAGS, *hearing])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def spoken() -> tuple[np.ndarray, Transcript]:
    """Ten tones as ten words, one every 0.5 s for 0.4 s, with a pause before the last; two doubtful, one middling."""
    texts = ["please", "bring", "the", "patient", "in", "room", "fourteen", "before", "nine", "thirty"]
    starts = [0.2 + 0.5 * i for i in range(9)] + [6.0]
    doubts = {5: 0.71, 6: 0.38, 9: 0.55}
    time_s = np.arange(int(6.6 * 16000)) / 16000
    samples = np.zeros(time_s.size, np.float32)
    for i, start in enumerate(starts):
        inside = (time_s >= start) & (time_s < start + 0.4)
        shape = np.sin(np.pi * (time_s[inside] - start) / 0.4)
        samples[inside] = (0.2 + 0.06 * i) * shape * np.sin(2 * np.pi * (220 + 60 * i) * time_s[inside])
    words = tuple(
        Word(text, s, s + 0.4, doubts.get(i, 0.97)) for i, (text, s) in enumerate(zip(texts, starts, strict=True))
    )
    mean = sum(word.confidence for word in words) / len(words)
    return samples, Transcript(" ".join(texts), words, "en", 6.6, mean, "demo/en")


@pytest.fixture
def open_player(browser, tmp_path, spoken):
    """Serve the ES module with the traits of a real `Player` and open it; `state` overrides traits."""
    from speechkit.widgets.player import Player

    with contextlib.ExitStack() as closing:

        def opened(
            samples=None, transcript=None, scheme="light", title="clinic-07.flac", page=PAGE, **state
        ) -> Watched:
            widget = Player(spoken[0] if samples is None else samples, transcript or spoken[1], title)
            traits = {key: value for key, value in widget.get_state().items() if not key.startswith("_")}
            traits.pop("layout", None)
            (tmp_path / "state.json").write_text(json.dumps({**traits, **state}))
            (tmp_path / "audio.ogg").write_bytes(widget.audio_bytes("opus"))
            (tmp_path / "audio.wav").write_bytes(widget.audio_bytes("wav"))
            shutil.copy(PAGE, tmp_path / "index.html")
            for name in ("player.js", "player.css"):
                shutil.copy(STATIC / name, tmp_path)
            address = closing.enter_context(_served(tmp_path))
            context = browser.new_context(color_scheme=scheme, viewport={"width": 900, "height": 460})
            closing.callback(context.close)
            watched = Watched(context.new_page())
            watched.page.goto(address)
            watched.page.wait_for_function("window.ready")
            return watched

        yield opened


@pytest.fixture
def open_widget(browser, tmp_path):
    """Open a widget's own module in a page; what it sends goes to the widget itself, in this process, and back.

    `module` names the ES module; `state` overrides traits, `allow` gives permissions, `before` runs before the page,
    `clock` makes its time a matter of the test.
    """
    with contextlib.ExitStack() as closing:

        def opened(widget, module, scheme="light", allow=(), before="", clock=False, **state) -> Watched:
            traits = {key: value for key, value in widget.get_state().items() if not key.startswith("_")}
            traits.pop("layout", None)
            (tmp_path / "state.json").write_text(json.dumps({**traits, "module": module, **state}))
            shutil.copy(WIDGET, tmp_path / "index.html")
            for ending in ("js", "css"):
                shutil.copy(STATIC / f"{module}.{ending}", tmp_path)
            address = closing.enter_context(_served(tmp_path))
            viewport = {"width": 900, "height": 620}
            context = browser.new_context(color_scheme=scheme, viewport=viewport, permissions=list(allow))
            closing.callback(context.close)
            context.add_init_script(before)
            watched = Watched(context.new_page())
            watched.page.expose_function("python", _messages(widget))
            if clock:
                watched.page.clock.install()
            watched.page.goto(address)
            watched.page.wait_for_function("window.ready")
            return watched

        yield opened


def _messages(widget: Any):
    """A widget as the page calls it: a message in, its answers out, bytes in base64 as JSON wants them."""
    answers: list[Any] = []
    widget.send = lambda content, buffers=(): answers.append((content, [_text(data) for data in buffers or ()]))

    def handle(content: dict[str, Any], buffers: list[str]) -> list[Any]:
        answers.clear()
        widget._handle_custom_msg(content, [memoryview(base64.b64decode(data)) for data in buffers])
        return list(answers)

    return handle


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def run_notebook(browser, jupyter_lab, tmp_path):
    """Cells → JupyterLab has run them all, or is at it: the page, watched, and the notebook's path."""
    with contextlib.ExitStack() as closing:

        def ran(cells: list[str], allow=(), before="") -> tuple[Watched, Path]:
            folder = tmp_path / "lab"
            folder.mkdir()
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
            # with a kernel named, JupyterLab starts it instead of asking which
            notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
            path = folder / "cells.ipynb"
            nbformat.write(notebook, path)
            address = jupyter_lab(folder)
            context = browser.new_context(viewport={"width": 1280, "height": 900}, permissions=list(allow))
            closing.callback(context.close)
            context.add_init_script(before)
            watched = Watched(context.new_page())
            _run_all(watched.page, f"{address}/lab/tree/{path.name}?token=t")
            return watched, path

        yield ran


def _run_all(page: Any, address: str) -> None:
    page.goto(address)
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=WAIT_MS)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=WAIT_MS)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        """The test's output is for failures."""


@contextlib.contextmanager
def _served(folder: Path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    # looks often whether it should end: with the default every test would wait for half a second
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def jupyter_lab(tmp_path):
    """Start JupyterLab in a folder, isolated from the user's settings: `folder -> address with its token`."""
    with contextlib.ExitStack() as closing:

        def started(folder: Path) -> str:
            port = _free_port()
            process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *LAB, f"--port={port}", f"--ServerApp.root_dir={folder}"],
                env=_own_settings(tmp_path),
                stdout=(tmp_path / "lab.log").open("w"),
                stderr=subprocess.STDOUT,
            )
            closing.callback(_stop, process)
            address = f"http://127.0.0.1:{port}"
            _wait(f"{address}/api/status?token=t", process, tmp_path / "lab.log")
            return address

        yield started


def _own_settings(folder: Path) -> dict[str, str]:
    own = {
        name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    config = folder / "jupyter_config_dir" / "labconfig"
    config.mkdir(parents=True, exist_ok=True)
    question = "@jupyterlab/apputils-extension:announcements"  # asks whether to fetch news, over the first cells
    (config / "page_config.json").write_text(json.dumps({"disabledExtensions": {question: True}}))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **own, "IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": os.pathsep.join(paths)}


def _wait(address: str, process: subprocess.Popen, log: Path, limit_s: float = 180) -> None:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):  # noqa: S310 (our own http address)
            return
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not answer at {address}; its log ends:\n{log.read_text()[-2000:]}")


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
