"""Language models: loading them, which kernels one can take, putting those in and taking them out.

The names are loaded at their first use: the table of families prints, and configurations are checked, without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechkit.llm.apply import KINDS, Applied, apply_kernels, explain, undo_kernels
    from speechkit.llm.load import load_llm

__all__ = ["KINDS", "Applied", "apply_kernels", "explain", "load_llm", "undo_kernels"]

_HOME = dict.fromkeys(__all__, "speechkit.llm.apply") | {"load_llm": "speechkit.llm.load"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'speechkit.llm' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
