"""Triton kernels and their float32 definitions. In: torch tensors. Out: torch tensors. Knows nothing of speechkit."""

from __future__ import annotations

__all__: list[str] = []
