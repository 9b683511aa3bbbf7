"""What many tests share: the real speech beside the repository, the embedded clips, the embedded recognizer."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # `pytest -m gpu tests/kernels` needs torch, triton and pytest alone
    settings = None  # type: ignore[assignment,misc]

if TYPE_CHECKING:
    from speechkit import Recognizer
    from speechkit.demo import DemoClip

ROOT = Path(__file__).resolve().parent.parent

# a busy machine is not a failing test: properties are judged by what they find, not by how fast
if settings is not None:
    settings.register_profile("speechkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("speechkit")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported."""
    _decide_on_interpreting(config.option.markexpr)
    # a shell ignores Ctrl-C on behalf of what it starts in the background, and children inherit that: undo it here
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _decide_on_interpreting(expression: str) -> None:
    """Triton decides when it is imported, for the process, and much imports it. Processes that tests start decide anew.

    It interprets unless the mark expression asks for a GPU or TRITON_INTERPRET says otherwise.
    """
    sys.path.insert(0, str(Path(__file__).with_name("kernels")))
    from mark_expression import asks_for_gpu

    if os.environ.get("TRITON_INTERPRET") or asks_for_gpu(expression):
        return
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        from triton import knobs
    except ImportError:  # macOS, Windows
        return
    finally:
        del os.environ["TRITON_INTERPRET"]
    knobs.propagate_env = False
    knobs.runtime.interpret = True


@pytest.fixture(scope="module", autouse=True)
def _nothing_remembered_of_kernels() -> None:
    """Some folders of tests take Triton away; what the dispatcher keeps of that is not for the next file."""
    for name, kept in (("attention", "_chosen"), ("attention_backends", "available")):
        if module := sys.modules.get(f"speechkit_kernels.{name}"):
            getattr(module, kept).cache_clear()


@pytest.fixture(scope="session")
def speech_data() -> Path:
    """Folder of real recordings with its manifest.tsv; where it is absent a skip, in CI a failure.

    SPEECHKIT_SPEECH_DATA=none says that a CI has none on purpose: a skip there too.
    """
    folder = Path(os.environ.get("SPEECHKIT_SPEECH_DATA", ROOT.parent / "shared/data/speech"))
    if str(folder) == "none":
        pytest.skip("SPEECHKIT_SPEECH_DATA=none: no real speech on this machine")
    if (folder / "manifest.tsv").is_file():
        return folder
    reason = f"no real speech at {folder}; set SPEECHKIT_SPEECH_DATA to the folder that holds its manifest.tsv"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def odd_formats(speech_data: Path) -> Path:
    """Real recordings in the bytes they were published in: WAV of many kinds, AIFF, FLAC, MP3."""
    return speech_data / "odd_formats"


@pytest.fixture(scope="session")
def demo_clips() -> list[DemoClip]:
    """The embedded English clips."""
    from speechkit import demo

    return demo.clips("en")


@pytest.fixture(scope="session")
def recognizer() -> Recognizer:
    """The embedded English recognizer on the CPU, loaded once for the whole run."""
    from speechkit import load_asr

    return load_asr("demo/en", device="cpu")
