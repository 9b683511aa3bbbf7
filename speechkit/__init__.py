"""speechkit: transcribe, inspect and improve wav2vec 2.0 CTC speech models; load and fine-tune language models.

The names below are loaded at their first use, so that `import speechkit` costs milliseconds and no torch. Everything
else is imported by its path: `from speechkit.widgets.player import player`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechkit.asr.model import Recognizer, load_asr
    from speechkit.errors import SpeechkitError
    from speechkit.llm.load import load_llm
    from speechkit.types import FileResult, Transcript, Word

    __version__: str

__all__ = ["FileResult", "Recognizer", "SpeechkitError", "Transcript", "Word", "__version__", "load_asr", "load_llm"]

_HOME = {
    "FileResult": "speechkit.types",
    "Recognizer": "speechkit.asr.model",
    "SpeechkitError": "speechkit.errors",
    "Transcript": "speechkit.types",
    "Word": "speechkit.types",
    "load_asr": "speechkit.asr.model",
    "load_llm": "speechkit.llm.load",
}
# so that `speechkit.audio.load(…)` works after a plain `import speechkit`
_MODULES = frozenset(
    {
        "asr",
        "audio",
        "demo",
        "device",
        "doctor",
        "errors",
        "evaluation",
        "extras",
        "live",
        "llm",
        "subtitles",
        "text",
        "textgrid",
        "types",
        "widgets",
    }
)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _MODULES:
        return import_module(f"speechkit.{name}")
    if name == "__version__":
        return _version()
    raise AttributeError(f"module 'speechkit' has no attribute {name!r}; it has {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("speechkit")
    except PackageNotFoundError:  # used from a checkout that was never installed
        return "0+uninstalled"
