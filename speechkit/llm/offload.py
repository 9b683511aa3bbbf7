"""Activations that the backward pass will want, kept in main memory meanwhile. In: a context. Out: less GPU memory.

`Offload()` around forward and backward; whatever autograd saves then goes to pinned memory on a stream of its own and
comes back when it is asked for. With layers checkpointed these are the inputs of the layers alone, so that little is
moved. Weights stay, and so does what is small or not contiguous in a way that a copy would lose. trl's
`activation_offloading` does the like, but hangs hooks on the head, which keeps the loss without logits out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["Offload"]

LEAST = 2**16  # numbers: smaller tensors stay, moving them costs more than they take


class Offload(saved_tensors_hooks):
    """A context; `moved_bytes` and `back_bytes` say what went out and came back within it.

    kept: the weights, which are on the device anyway. device: whose tensors are moved (a CPU's own for tests).
    """

    def __init__(self, kept: tuple[torch.Tensor, ...] = (), device: str = "cuda", least: int = LEAST) -> None:
        super().__init__(self._out, self._back)
        self.kept = {weight.untyped_storage().data_ptr() for weight in kept}
        self.device, self.least = device, least
        self.moved_bytes = self.back_bytes = 0
        self._stream: Any = None

    def __enter__(self) -> Offload:  # type: ignore[override]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def _out(self, tensor: torch.Tensor) -> Any:
        if not self._fits(tensor):
            return tensor
        self.moved_bytes += tensor.nbytes
        # of the same strides: kernels were chosen for them
        place = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        if not tensor.is_cuda:
            return tensor.device, place.copy_(tensor), None
        self._stream = self._stream or torch.cuda.Stream(tensor.device)
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self._stream):
            place.copy_(tensor, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self._stream)
        tensor.record_stream(self._stream)  # its memory is not given away before the copy is done
        return tensor.device, place, done

    def _back(self, saved: Any) -> torch.Tensor:
        if isinstance(saved, torch.Tensor):
            return saved
        device, place, done = saved
        self.back_bytes += place.nbytes
        if done is not None:
            torch.cuda.current_stream(device).wait_event(done)
        back: torch.Tensor = place.to(device, non_blocking=True) if done is not None else place
        return back

    def _fits(self, tensor: torch.Tensor) -> bool:
        return (
            type(tensor) is torch.Tensor
            and tensor.device.type == self.device
            and tensor.numel() >= self.least
            and tensor.is_floating_point()
            and tensor.untyped_storage().data_ptr() not in self.kept
        )
