"""Language models: which kernels a model can take, putting them in and taking them out."""

from __future__ import annotations

from speechkit.llm.apply import Applied, apply_kernels, explain, undo_kernels

__all__ = ["Applied", "apply_kernels", "explain", "undo_kernels"]
