"""Exports that prove themselves: GGUF, merged folders, Ollama and the Hub; each is reloaded before it is called done.

The names are loaded at their first use: importing the package needs no torch and no gguf.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechkit.export.card import Card, model_card
    from speechkit.export.gguf import GgufReport, export_gguf
    from speechkit.export.gguf_adapter import export_gguf_adapter
    from speechkit.export.gguf_chat import GgufChat
    from speechkit.export.hub import PushReport, pull, push
    from speechkit.export.imatrix import importance_of, load_imatrix, save_imatrix
    from speechkit.export.merged import MergedReport, export_merged
    from speechkit.export.ollama import ModelfileReport, write_modelfile
    from speechkit.export.proof import Proof, compare_llms, prove_gguf

__all__ = [
    "Card", "GgufChat", "GgufReport", "MergedReport", "ModelfileReport", "Proof", "PushReport", "compare_llms",
    "export_gguf", "export_gguf_adapter", "export_merged", "importance_of", "load_imatrix",
    "model_card", "prove_gguf", "pull", "push", "save_imatrix", "write_modelfile",
]  # fmt: skip

_HOME = {
    "card": ("Card", "model_card"), "gguf": ("GgufReport", "export_gguf"),
    "gguf_adapter": ("export_gguf_adapter",), "gguf_chat": ("GgufChat",),
    "hub": ("PushReport", "pull", "push"), "imatrix": ("importance_of", "load_imatrix", "save_imatrix"),
    "merged": ("MergedReport", "export_merged"), "ollama": ("ModelfileReport", "write_modelfile"),
    "proof": ("Proof", "compare_llms", "prove_gguf"),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"speechkit.export.{module}"), name)
    raise AttributeError(f"module 'speechkit.export' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
