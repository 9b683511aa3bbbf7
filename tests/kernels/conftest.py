"""Triton reads this once, when it is imported: kernels run on CPU tensors, interpreted."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
