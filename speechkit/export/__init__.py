"""Exports that prove themselves: GGUF, merged folders, Ollama and the Hub; each is reloaded before it is called done.

The names are loaded at their first use: importing the package needs no torch and no gguf.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "GgufReport": "gguf",
    "Proof": "proof",
    "compare_llms": "proof",
    "export_gguf": "gguf",
    "export_gguf_adapter": "gguf_adapter",
    "export_merged": "merged",
    "prove_gguf": "proof",
    "write_modelfile": "ollama",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"speechkit.export.{_HOME[name]}"), name)
    raise AttributeError(f"module 'speechkit.export' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")


def __dir__() -> list[str]:
    return sorted(_HOME)
