"""Name → where the model lives. In: a short name, a Hub id or a folder. Out: a frozen `Source`. Loads nothing."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

from speechkit import demo
from speechkit.errors import ModelError

__all__ = ["KNOWN", "Source", "known_names", "resolve"]

KNOWN: dict[str, str] = {
    "en": "facebook/wav2vec2-base-960h",
    "zh": "jonatasgrosman/wav2vec2-large-xlsr-53-chinese-zh-cn",
    "ko": "kresnik/wav2vec2-large-xlsr-korean",
    "pt": "jonatasgrosman/wav2vec2-large-xlsr-53-portuguese",
    "pl": "jonatasgrosman/wav2vec2-large-xlsr-53-polish",
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is: `location` is a folder for kinds "demo" and "folder", a repository id for "hub"."""

    name: str
    kind: Literal["demo", "folder", "hub"]
    location: str
    language: str | None = None


def known_names() -> list[str]:
    """The short names `resolve` accepts: embedded models that are in this package first, then published ones."""
    return [*(f"demo/{code}" for code in demo.models()), *KNOWN]


def resolve(name: str | os.PathLike[str]) -> Source:
    """Short name, Hub id or folder → Source. An existing folder wins over a Hub id that is spelt the same.

    Raises ModelError, listing the known names, when `name` is none of the three.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ModelError(f"a model is named by a string or a path, not by {type(name).__name__}; {_advice()}")
    text = os.fspath(name)
    if text in KNOWN:
        return Source(text, "hub", KNOWN[text], text)
    if text == "demo" or text.startswith("demo/"):
        return _demo(text)
    folder = os.path.expanduser(text)  # os.path answers where pathlib raises: ~nobody, a closed folder, a long name
    if os.path.isdir(folder):
        return Source(text, "folder", folder)
    if os.path.isfile(folder):
        raise ModelError(f"{text} is a file; give the folder that holds config.json and model.safetensors")
    if not isinstance(name, str) or text.startswith((".", "/", "~")) or "\\" in text:
        raise ModelError(f"model folder {text} does not exist, or this user may not enter it; {_advice()}")
    if _HUB_ID.fullmatch(text):
        language = next((code for code, repo in KNOWN.items() if repo == text), None)
        return Source(text, "hub", text, language)
    raise ModelError(f"unknown model {text!r}; {_advice()}")


def _demo(text: str) -> Source:
    code = text.partition("/")[2]
    embedded = demo.models()
    if code not in embedded:
        names = ", ".join(f"demo/{c}" for c in embedded) or "none in this installation"
        raise ModelError(f"unknown embedded model {text!r}; embedded: {names}. {_advice()}")
    return Source(text, "demo", str(demo.model_path(code)), code if code in demo.languages() else None)


def _advice() -> str:
    return f"known names: {', '.join(known_names())}; or a Hub id such as owner/model; or a folder with config.json"
