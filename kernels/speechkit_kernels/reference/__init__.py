"""The definitions that every kernel is tested against: plain PyTorch, float32 inside, written to be read.

In and out: torch tensors. A result has the dtype of its input. Knows no Triton, so it also serves where there is none.
"""

from __future__ import annotations

from speechkit_kernels.reference.conv_norm import conv_norm_gelu, group_norm_gelu
from speechkit_kernels.reference.ctc import ctc_align, ctc_collapse
from speechkit_kernels.reference.glu import geglu, swiglu
from speechkit_kernels.reference.gumbel_vq import gumbel_vq
from speechkit_kernels.reference.layer_norm import layer_norm
from speechkit_kernels.reference.losses import cross_entropy, linear_cross_entropy
from speechkit_kernels.reference.norms import masked_group_norm, rms_norm
from speechkit_kernels.reference.pos_conv import pos_conv
from speechkit_kernels.reference.rope import rope

__all__ = [
    "conv_norm_gelu",
    "cross_entropy",
    "ctc_align",
    "ctc_collapse",
    "geglu",
    "group_norm_gelu",
    "gumbel_vq",
    "layer_norm",
    "linear_cross_entropy",
    "masked_group_norm",
    "pos_conv",
    "rms_norm",
    "rope",
    "swiglu",
]
