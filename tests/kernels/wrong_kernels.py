"""Kernels that must not pass: what the check of compiling.py is worth. Functions take a card, as in launches.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from launches import Card, made


@triton.jit
def _two_types(x_ptr, y_ptr, width):
    found = tl.zeros((64,), tl.float32)
    if width > 64:  # the interpreter, which runs Python, does not mind
        found = tl.load(x_ptr + tl.arange(0, 64)).to(tl.int32)
    tl.store(y_ptr + tl.arange(0, 64), found)


@triton.jit
def _too_much(x_ptr, y_ptr, ROWS: tl.constexpr):
    at = tl.arange(0, ROWS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    x = tl.load(x_ptr + at)
    tl.store(y_ptr + at, tl.dot(x, tl.dot(x, x).to(x.dtype)))


def two_types(card: Card) -> None:
    x = made(64, dtype=torch.float32)
    _two_types[(1,)](x, x, 100)


def too_much(card: Card) -> None:
    x = made(128, 128, dtype=torch.float16)
    _too_much[(1,)](x, x.float(), ROWS=128, num_warps=2)
