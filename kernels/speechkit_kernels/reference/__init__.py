"""The definitions that every kernel is tested against: plain PyTorch, float32 inside, written to be read.

In and out: torch tensors. A result has the dtype of its input. Knows no Triton, so it also serves where there is none.
"""

from __future__ import annotations

from speechkit_kernels.reference.norms import masked_group_norm, rms_norm

__all__ = ["masked_group_norm", "rms_norm"]
