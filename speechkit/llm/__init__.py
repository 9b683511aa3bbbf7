"""Language models: which kernels a model can take, putting them in and taking them out."""

from __future__ import annotations

from speechkit.llm.apply import KINDS, Applied, apply_kernels, explain, undo_kernels

__all__ = ["KINDS", "Applied", "apply_kernels", "explain", "undo_kernels"]
