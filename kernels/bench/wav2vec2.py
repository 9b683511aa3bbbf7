"""wav2vec 2.0 base and large, 64 × 10 s in bfloat16, beside transformers with SDPA; random weights.

Ours is transformers' own model with two modules exchanged: the feature encoder (channels last throughout, the first
convolution a product of matrices, norm and GELU in one kernel) and the positional convolution. The aims: 1.5 times
transformers for base, 1.4 times for large. What is timed is a forward pass; the parts are timed beside it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from gpu import Bench, compiled, require_gpu
from speechkit_kernels.conv_norm_gelu import conv_norm_gelu
from speechkit_kernels.group_norm_gelu import group_norm_gelu
from speechkit_kernels.pos_conv import fold_weight_norm, pos_conv
from torch import nn
from torch.nn.functional import conv1d, conv2d, gelu, pad

ROWS, SECONDS = 64, 10
LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True,
}  # fmt: skip


class FeatureEncoder(nn.Module):
    """Samples (B, T) → features (B, C, F), computed as (B, F, C)."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.layers = theirs.conv_layers
        first = self.layers[0].conv
        taps = first.kernel_size[0]
        self.first = nn.Buffer(pad(first.weight[:, 0].T, (0, 0, 0, -taps % 16)).contiguous())  # (taps + zeros, C)
        self.others = [
            layer.conv.weight.detach()[:, :, None].to(memory_format=torch.channels_last) for layer in self.layers[1:]
        ]

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        x = self._first(audio)  # (B, F, C)
        for layer, weight in zip(self.layers[1:], self.others, strict=True):
            wide = x.transpose(1, 2)[:, :, None]  # (B, C, 1, F), its channels dense
            x = conv2d(wide, weight, stride=(1, layer.conv.stride[0]))[:, :, 0].transpose(1, 2)
            x = self._after(x, layer)
        return x.transpose(1, 2)

    def _first(self, audio: torch.Tensor) -> torch.Tensor:
        layer = self.layers[0]
        if isinstance(layer.layer_norm, nn.GroupNorm):  # statistics run over frames: they have to lie side by side
            x = conv1d(audio[:, None], layer.conv.weight, layer.conv.bias, layer.conv.stride)
            norm = layer.layer_norm
            return group_norm_gelu(x, norm.weight, norm.bias, norm.num_groups, None, norm.eps).transpose(1, 2)
        taps, step = layer.conv.kernel_size[0], layer.conv.stride[0]
        frames = (audio.shape[1] - taps) // step + 1
        audio = pad(audio, (0, len(self.first)))
        windows = audio.as_strided((len(audio), frames, len(self.first)), (audio.stride(0), step, 1))
        return self._after(windows @ self.first, layer)

    def _after(self, x: torch.Tensor, layer: Any) -> torch.Tensor:
        if not hasattr(layer, "layer_norm"):
            return gelu(x)
        norm = layer.layer_norm
        return conv_norm_gelu(x, norm.weight, norm.bias, norm.eps, channels=2, conv_bias=layer.conv.bias)


class PositionalConvolution(nn.Module):
    """Hidden states (B, F, H) → (B, F, H), weight norm folded once."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        norm, self.groups = theirs.conv.parametrizations.weight, theirs.conv.groups
        self.weight = nn.Buffer(fold_weight_norm(norm.original1.detach(), norm.original0.detach()))
        self.bias = theirs.conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return pos_conv(x, self.weight, self.bias, groups=self.groups)


def exchanged(model: Any) -> Any:
    """A copy of transformers' model with the two modules of ours."""
    ours = copy.deepcopy(model)
    ours.feature_extractor = FeatureEncoder(ours.feature_extractor)
    ours.encoder.pos_conv_embed = PositionalConvolution(ours.encoder.pos_conv_embed)
    return ours


def built(**sizes: Any) -> Any:
    """A model of random weights that is not all noise after the first norm."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    return Wav2Vec2Model(Wav2Vec2Config(attn_implementation="sdpa", **sizes)).eval()


def assert_as_near(ours: Any, theirs: Any, truth: Any, audio: torch.Tensor) -> None:
    """Ours in bfloat16 is at most twice as far from float32 as transformers in bfloat16."""
    exact = truth(audio.float()).last_hidden_state
    mine, other = ((model(audio).last_hidden_state.float() - exact).square().mean().sqrt() for model in (ours, theirs))
    assert mine <= 2 * other, f"off by {mine:.3g}, transformers by {other:.3g}"


@torch.inference_mode()
def main() -> None:
    require_gpu("wav2vec2")
    bench = Bench("wav2vec2")
    for name, sizes in (("base", {}), ("large", LARGE)):
        truth = built(**sizes).cuda()
        theirs = copy.deepcopy(truth).bfloat16()
        ours, fast = exchanged(theirs), compiled(theirs)
        audio = torch.randn(ROWS, 16_000 * SECONDS, device="cuda").bfloat16()

        def check(ours: Any = ours, theirs: Any = theirs, truth: Any = truth, audio: torch.Tensor = audio) -> None:
            assert_as_near(ours, theirs, truth, audio[:2, :48_000])

        shape = {"B": ROWS, "seconds": SECONDS}
        models = {"ours": ours, "transformers": theirs, "compiled": fast}
        bench.measure(
            name, shape, {k: (lambda m=m, x=audio: m(x).last_hidden_state) for k, m in models.items()}, check=check
        )
        parts = {"ours": ours.feature_extractor, "transformers": theirs.feature_extractor}
        bench.measure(
            f"{name}: feature encoder", shape, {k: (lambda m=m, x=audio: m(x)) for k, m in parts.items()}, check=check
        )
        hidden = torch.randn(ROWS, 499, theirs.config.hidden_size, device="cuda").bfloat16()
        parts = {"ours": ours.encoder.pos_conv_embed, "transformers": theirs.encoder.pos_conv_embed}
        bench.measure(
            f"{name}: positional convolution", shape, {k: (lambda m=m, x=hidden: m(x)) for k, m in parts.items()},
            check=check, flops=2 * ROWS * 499 * hidden.shape[2] * (hidden.shape[2] // 16) * 128,
        )  # fmt: skip
    bench.write()


if __name__ == "__main__":
    main()
