"""Frame arithmetic of a convolutional front-end: samples ↔ frames ↔ seconds. Integers in, integers and seconds out.

Frame f of a stack of unpadded convolutions covers the samples [f * hop, f * hop + field): 320 and 400 samples, which is
20 and 25 ms at 16 kHz, for every stock wav2vec 2.0. Knows neither torch nor audio files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FrameGrid"]


@dataclass(frozen=True, slots=True)
class FrameGrid:
    """`hop` and `field` in samples, `rate` in samples per second."""

    hop: int = 320
    field: int = 400
    rate: int = 16_000

    @classmethod
    def from_layers(cls, kernels: Sequence[int], strides: Sequence[int], rate: int = 16_000) -> FrameGrid:
        """Kernel and stride of each convolution → grid: each layer widens the field by (kernel - 1) input steps."""
        hop, field = 1, 1
        for kernel, stride in zip(kernels, strides, strict=True):
            field += (kernel - 1) * hop
            hop *= stride
        return cls(hop, field, rate)

    @classmethod
    def from_config(cls, config: Any, rate: int = 16_000) -> FrameGrid:
        """`conv_kernel` and `conv_stride` of a transformers config → grid."""
        return cls.from_layers(config.conv_kernel, config.conv_stride, rate)

    def frames(self, samples: int) -> int:
        """How many whole frames lie in `samples` samples; 0 when there are fewer than one field."""
        return max(0, (samples - self.field) // self.hop + 1)

    def samples(self, frames: int) -> int:
        """The fewest samples that give `frames` frames; the inverse of :meth:`frames` from one frame on."""
        return (frames - 1) * self.hop + self.field if frames else 0

    def start_s(self, frame: int) -> float:
        """When the first sample of `frame` is heard."""
        return frame * self.hop / self.rate

    def end_s(self, frame: int, duration_s: float = float("inf")) -> float:
        """When the last sample of `frame` has been heard, at most `duration_s`."""
        return min((frame * self.hop + self.field) / self.rate, duration_s)
