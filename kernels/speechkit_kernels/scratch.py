"""Memory that is written, read once and written again: one buffer a device and stream, grown to the largest need.

In: a shape. Out: a view that is valid inside the `with` alone. Kernels of one stream run in the order in which they
were launched, so the next user cannot overwrite what the last one's kernel still reads; a lock keeps threads apart.

While a CUDA graph is captured nothing is shared: memory comes from that graph's own pool, which gives it out again to
the next layer by itself. Graphs may be replayed on other streams, beside each other, and after what is held here is
freed; and a buffer first zeroed inside a capture would not be zero until a replay.
"""

from __future__ import annotations

import math
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["free_scratch", "scratch", "tickets"]

_LOCK = threading.RLock()
_BUFFERS: dict[tuple[torch.device, int], torch.Tensor] = {}
_TICKETS: dict[tuple[torch.device, int], torch.Tensor] = {}


@contextmanager
def scratch(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Uninitialised `shape` of `dtype`, lent until the block ends. Not to be asked for again inside."""
    size = math.prod(shape) * dtype.itemsize
    if _capturing(device):
        yield torch.empty(shape, dtype=dtype, device=device)
        return
    with _LOCK:
        key = _key(device)
        held = _BUFFERS.get(key)
        if held is None or held.nbytes < size:
            _BUFFERS.pop(key, None)  # before the larger one is asked for, so that both need not fit
            del held
            with torch.inference_mode(False):  # a tensor made in that mode could not be written to outside it
                held = _BUFFERS[key] = torch.empty(size, dtype=torch.uint8, device=device)
        yield held[:size].view(dtype).view(shape)


def tickets(device: torch.device, count: int) -> torch.Tensor:
    """(≥ count,) int32, all zero. Who counts in it leaves it zero, so that no launch is spent on that."""
    if _capturing(device):
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = _key(device)
    with _LOCK:
        held = _TICKETS.get(key)
        if held is None or held.numel() < count:
            with torch.inference_mode(False):
                held = _TICKETS[key] = torch.zeros(max(count, 1024), dtype=torch.int32, device=device)
        return held


def free_scratch() -> int:
    """Give all of it back; how many bytes that were."""
    with _LOCK:
        freed = sum(held.nbytes for held in _BUFFERS.values())
        _BUFFERS.clear()
        _TICKETS.clear()
    return freed


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _key(device: torch.device) -> tuple[torch.device, int]:
    if device.type != "cuda":
        return device, 0
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    return device, torch.cuda.current_stream(device).cuda_stream
