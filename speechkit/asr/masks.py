"""Group norm that ignores padding, put into a loaded model and taken out again. Per instance; no class is changed.

wav2vec 2.0 with `feat_extract_norm == "group"` (base-960h) normalises each channel of its first convolution over
*time*: padding a clip moves the mean and the variance, and with them every output. `attach` replaces that one module by
one that is told each clip's length. Parameters are shared and keep their names, so the state dict stays the same.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["MaskedGroupNorm", "attach", "detach", "lengths_known"]


class MaskedGroupNorm(nn.Module):
    """`nn.GroupNorm` that, while `lengths` is set, takes its statistics from each row's first `lengths[b]` frames."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.num_groups, self.num_channels, self.eps = norm.num_groups, norm.num_channels, norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        self.lengths: list[int] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, C, F) → (B, C, F)."""
        if self.lengths is None:
            # the module that was replaced, bit for bit: a single clip must equal plain transformers
            return nn.functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        # the native kernel, clip by clip, sees each one's own frames only; it is several times as fast as masked sums
        parts = [x[row : row + 1, :, :frames] for row, frames in enumerate(self.lengths)]
        normed = [nn.functional.group_norm(part, self.num_groups, self.weight, self.bias, self.eps) for part in parts]
        return torch.cat([nn.functional.pad(part, (0, x.shape[-1] - part.shape[-1])) for part in normed])

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, lengths={self.lengths}"


def attach(model: nn.Module) -> int:
    """Replace every group norm of the convolutional front-end; returns how many. Twice is the same as once."""
    return _swap(model, nn.GroupNorm, MaskedGroupNorm)


def detach(model: nn.Module) -> int:
    """The inverse of :meth:`attach`: plain `nn.GroupNorm` with the same parameters. Returns how many."""
    return _swap(model, MaskedGroupNorm, _plain)


@contextmanager
def lengths_known(model: nn.Module, samples: Sequence[int] | None) -> Iterator[None]:
    """While open, attached norms use the frames that `samples` (B,) give after their own convolution; None: all."""
    layers = [layer for layer in _conv_layers(model) if isinstance(layer.layer_norm, MaskedGroupNorm)]
    try:
        for layer in layers if samples is not None else ():
            kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
            # only the first layer has a group norm in any published front-end, so its input is the audio itself
            layer.layer_norm.lengths = [(n - kernel) // stride + 1 for n in samples or ()]
        yield
    finally:
        for layer in layers:
            layer.layer_norm.lengths = None


def _swap(model: nn.Module, old: type[nn.Module], new: Any) -> int:
    layers = [layer for layer in _conv_layers(model) if type(layer.layer_norm) is old]
    for layer in layers:
        layer.layer_norm = new(layer.layer_norm).train(layer.layer_norm.training)
    return len(layers)


def _plain(norm: MaskedGroupNorm) -> nn.GroupNorm:
    plain = nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps)
    plain.weight, plain.bias = norm.weight, norm.bias
    return plain


def _conv_layers(model: nn.Module) -> list[Any]:
    base = getattr(model, getattr(model, "base_model_prefix", ""), model)
    first = list(getattr(getattr(base, "feature_extractor", None), "conv_layers", ()))[:1]
    return [layer for layer in first if hasattr(layer, "layer_norm") and hasattr(layer, "conv")]
