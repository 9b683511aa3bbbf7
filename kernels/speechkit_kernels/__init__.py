"""Triton kernels and their float32 definitions. In: torch tensors. Out: torch tensors. Knows nothing of speechkit.

One kernel a module, of the same name: `from speechkit_kernels.rms_norm import rms_norm`. The definitions are in
`speechkit_kernels.reference`, which needs no Triton.
"""

from __future__ import annotations

__all__: list[str] = []
