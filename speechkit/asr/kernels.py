"""The kernels of speech into a wav2vec 2.0 model and out again: the front-end, and the positional convolution.

Module by module, of one model, with the model's own weights under their own names: a state dict keeps its keys, padding
stays invisible (the lengths of `asr.masks` are handed on), and no copies of weights are kept that could grow stale.
Where a gradient is wanted the front-end goes layer by layer, norm and GELU of each in one kernel; where none is (at
inference, and in training with a frozen front-end) it is channels last from end to end. Where a kernel cannot run its
definition does. In: a `Recognizer` or its model. Knows no audio.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speechkit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SpeechKernels", "apply_kernels", "explain", "undo_kernels"]

_PLACE = "_speechkit_kernels"


@dataclass(frozen=True)
class SpeechKernels:
    """What is in a model."""

    norms: int  # convolutional layers whose norm and GELU are one kernel
    positional: int  # positional convolutions
    fronts: int = 0  # front-ends that are channels last where no gradient is wanted
    left: tuple[str, ...] = field(default=())  # modules that stay as they were, and why

    def __str__(self) -> str:
        lines = [
            f"kernels in {_many(self.norms, 'norm')} of the front-end, "
            f"{_many(self.positional, 'positional convolution')}",
            "front-end channels last where no gradient is wanted" if self.fronts else "front-end layer by layer",
        ]
        return "\n".join([*lines, *(f"   – {reason}" for reason in self.left)])


def apply_kernels(model: Any) -> SpeechKernels:
    """Put kernels into a recogniser or its model, in place. A second call changes nothing.

    Outputs stay the same but for rounding, gradients too. Adapters or hooks put into the front-end later are seen: it
    then goes through them, layer by layer. Raises ModelError for a model without a wav2vec 2.0 front-end.
    """
    model = _model(model)
    changes: list[tuple[nn.Module, str, nn.Module]] = model.__dict__.setdefault(_PLACE, [])
    for parent, name, module, kind, _ in list(_places(model)):
        if kind is not None:
            changes.append((parent, name, module))
            parent._modules[name] = kind(module)
    return explain(model)


def undo_kernels(model: Any) -> int:
    """Take the kernels out again; how many modules were put back. The weights are those that the kernels had."""
    model = _model(model)
    changes = model.__dict__.pop(_PLACE, [])
    for parent, name, original in reversed(changes):
        ours = parent._modules[name]
        original._modules.update(ours._modules)  # a norm may have been exchanged since, see `asr.masks`
        parent._modules[name] = original.train(ours.training)
    return len(changes)


def explain(model: Any) -> SpeechKernels:
    """What kernels are in a recogniser or its model. Raises ModelError as `apply_kernels` does."""
    model = _model(model)
    found = [ours._modules[name] for ours, name, _ in model.__dict__.get(_PLACE, [])]
    norms, positional, fronts = (
        sum(isinstance(module, kind) for module in found)
        for kind in (FusedConvLayer, FusedPositionalConv, ChannelsLastFrontEnd)
    )
    left = tuple(reason for *_, kind, reason in _places(model) if kind is None and reason)
    return SpeechKernels(norms, positional, fronts, left)


class FusedConvLayer(nn.Module):
    """A layer of the front-end: convolution, then norm and GELU in one kernel. x: (B, C, T) → (B, C', F)."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.conv, self.layer_norm = original.conv, original.layer_norm
        self.train(original.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from speechkit_kernels.conv_norm_gelu import conv_norm_gelu

        norm, conv = self.layer_norm, self.conv
        if isinstance(norm, nn.LayerNorm):
            plain = _is_plain(conv)  # an adapter in its place computes for itself
            x = nn.functional.conv1d(x, conv.weight, None, conv.stride) if plain else conv(x)
            bias = conv.bias if plain else None
            return conv_norm_gelu(x, norm.weight, norm.bias, norm.eps, channels=1, conv_bias=bias)
        return _grouped(conv(x), norm)


class FusedPositionalConv(nn.Module):
    """The grouped positional convolution as matrix products, its GELU among them. x: (B, F, D) → (B, F, D)."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.conv = original.conv
        self._original = (original,)  # in a tuple: its convolution is here already
        self.train(original.training)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        from speechkit_kernels.pos_conv import pos_conv

        if not isinstance(self.conv, nn.Conv1d) or _hooked(self.conv):  # an adapter computes for itself
            (original,) = self._original
            original.conv = self.conv
            found: torch.Tensor = original(hidden_states)
            return found
        return pos_conv(hidden_states, self.conv.weight, self.conv.bias, groups=self.conv.groups)


class ChannelsLastFrontEnd(nn.Module):
    """The whole front-end: samples (B, T) → features (B, C, F). Without gradients computed as (B, F, C) throughout.

    No norm then needs a transpose, and convolutions are the products of matrices that tensor cores want.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.conv_layers = original.conv_layers
        self._layer_by_layer = (original,)  # in a tuple: its layers are here already, under their own names
        self.train(original.training)

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        if self._wants_gradient(input_values) or not _is_channels_last(self.conv_layers):
            (original,) = self._layer_by_layer
            original.training = self.training
            features: torch.Tensor = original(input_values)
            return features
        first, *others = self.conv_layers
        x = _first(input_values, first)  # (B, F, C)
        for layer in others:
            x = _next(x, layer)
        return x.transpose(1, 2)

    def _wants_gradient(self, x: torch.Tensor) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))

    def _freeze_parameters(self) -> None:
        """What transformers' `freeze_feature_encoder` calls."""
        self._layer_by_layer[0]._freeze_parameters()


def _first(audio: torch.Tensor, layer: Any) -> torch.Tensor:
    """(B, T) → (B, F, C), past convolution, norm and GELU."""
    conv, norm = layer.conv, layer.layer_norm
    if not isinstance(norm, nn.LayerNorm):  # its statistics run over frames: they have to lie side by side
        return _grouped(conv(audio[:, None]), norm).transpose(1, 2)
    (taps,), (step,) = conv.kernel_size, conv.stride
    frames = (audio.shape[1] - taps) // step + 1
    if frames < 1:
        return layer(audio[:, None]).transpose(1, 2)  # raises, as it does without kernels
    more = -taps % 16  # taps of zeros, for rows of 32 bytes
    weight = nn.functional.pad(conv.weight[:, 0], (0, more)).T  # (taps, C)
    audio = nn.functional.pad(audio, (0, more)).contiguous()
    windows = audio.as_strided((len(audio), frames, taps + more), (audio.stride(0), step, 1))
    return _normed(windows @ weight, layer)


def _next(x: torch.Tensor, layer: Any) -> torch.Tensor:
    """(B, F, C) → (B, F', C')."""
    conv, normed = layer.conv, hasattr(layer, "layer_norm")
    wide = x.transpose(1, 2)[:, :, None]  # (B, C, 1, F), its channels dense
    weight = conv.weight[:, :, None].contiguous(memory_format=torch.channels_last)
    x = nn.functional.conv2d(wide, weight, None if normed else conv.bias, (1, conv.stride[0]))
    x = x[:, :, 0].transpose(1, 2)
    return _normed(x, layer) if normed else nn.functional.gelu(x)


def _grouped(x: torch.Tensor, norm: Any) -> torch.Tensor:
    """(B, C, F) → the same, past group norm and GELU; where no kernel runs the norm's own pass is the faster one."""
    from speechkit_kernels.group_norm_gelu import group_norm_gelu

    if not _kernel_runs(x):
        return nn.functional.gelu(norm(x))
    lengths = getattr(norm, "lengths", None)
    return group_norm_gelu(x, norm.weight, norm.bias, norm.num_groups, lengths, norm.eps)


def _kernel_runs(x: torch.Tensor) -> bool:
    from speechkit_kernels.launch import hardware_of, support

    return support(hardware_of(x.device), x.dtype).value


def _normed(x: torch.Tensor, layer: Any) -> torch.Tensor:
    from speechkit_kernels.conv_norm_gelu import conv_norm_gelu

    norm = layer.layer_norm
    return conv_norm_gelu(x, norm.weight, norm.bias, norm.eps, channels=2, conv_bias=layer.conv.bias)


def _is_channels_last(layers: Any) -> bool:
    """Whether `_first` and `_next` say what these layers do: plain convolutions, and norms of one of the two makes."""
    norms = [getattr(layer, "layer_norm", None) for layer in layers]
    made = all(isinstance(norm, nn.LayerNorm) for norm in norms) or (
        hasattr(norms[0], "num_groups") and not any(norm is not None for norm in norms[1:])
    )
    known = all(_is_plain(layer.conv) and not _hooked(layer) for layer in layers)
    return made and known and layers[0].conv.in_channels == 1


def _is_plain(conv: Any) -> bool:
    """Whether a convolution is no more than its weight, bias and stride."""
    return (
        type(conv) is nn.Conv1d and not _hooked(conv) and conv.groups == 1 and conv.dilation == (1,)
        and conv.padding == (0,)
    )  # fmt: skip


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


Place = tuple[nn.Module, str, nn.Module, "type[nn.Module] | None", str]


def _places(model: nn.Module) -> Iterator[Place]:
    """Parent, name, module of all that a kernel may stand for; its class, or None and the reason."""
    base: Any = getattr(model, str(getattr(model, "base_model_prefix", "")), model)
    layers = base.feature_extractor.conv_layers
    for name, layer in layers.named_children():
        norm = getattr(layer, "layer_norm", None)
        if norm is None or isinstance(layer, FusedConvLayer):
            continue
        reason = "" if _is_gelu(layer) else f"layer {name} of the front-end: its activation is no GELU"
        yield layers, name, layer, None if reason else FusedConvLayer, reason
    front = base.feature_extractor
    if not isinstance(front, ChannelsLastFrontEnd):
        gelu = all(_is_gelu(layer) or isinstance(layer, FusedConvLayer) for layer in layers)
        reason = "" if gelu and _is_channels_last(layers) else "the front-end as a whole: it is not of the usual make"
        yield base, "feature_extractor", front, None if reason else ChannelsLastFrontEnd, reason
    positional = getattr(base.encoder, "pos_conv_embed", None)
    if positional is None or isinstance(positional, FusedPositionalConv):
        return
    plain = hasattr(positional, "conv") and getattr(positional, "batch_norm", None) is None and _is_gelu(positional)
    reason = "" if plain else "the positional convolution: it is no single grouped convolution with GELU"
    yield base.encoder, "pos_conv_embed", positional, None if reason else FusedPositionalConv, reason


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _is_gelu(module: Any) -> bool:
    return type(getattr(module, "activation", None)).__name__ in ("GELUActivation", "GELU")


def _model(model: Any) -> nn.Module:
    inner: nn.Module = model.model if hasattr(model, "transcribe") else model
    base: Any = getattr(inner, str(getattr(inner, "base_model_prefix", "")), inner)
    if not hasattr(getattr(base, "feature_extractor", None), "conv_layers") or not hasattr(base, "encoder"):
        raise ModelError(f"{type(inner).__name__} has no front-end of wav2vec 2.0, so no kernel here fits it")
    return inner
