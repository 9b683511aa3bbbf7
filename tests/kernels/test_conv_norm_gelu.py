"""conv_norm_gelu beside its definition and transformers' convolution layer: values, gradients, both layouts."""

from __future__ import annotations

from functools import partial

import pytest
import speechkit_kernels.conv_norm_gelu as module
import torch
from closeness import assert_close, assert_derived_once, assert_equal_to, results
from speechkit_kernels.conv_norm_gelu import conv_norm_gelu
from speechkit_kernels.reference.conv_norm import conv_norm_gelu as definition

CASES = [(1, 3, 1), (2, 5, 3), (3, 64, 7), (2, 100, 33)]  # rows, channels, frames


def inputs(shape: tuple[int, int, int], channels: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    rows, width, frames = shape
    x = torch.randn((rows, width, frames) if channels == 1 else (rows, frames, width)) * 3 + 1
    parameters = (torch.randn(width) + 1, torch.randn(width), torch.randn(width))
    return [t.to(device, dtype) for t in (x, *parameters)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 2], ids=["channels first", "channels last"])
@pytest.mark.parametrize("shape", CASES, ids=str)
def test_values_and_gradients_are_those_of_the_definition(
    shape: tuple[int, int, int], channels: int, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TILE", 1024)  # several tiles
    x, weight, bias, _ = inputs(shape, channels, dtype, device)
    assert_equal_to(
        partial(conv_norm_gelu, channels=channels), partial(definition, channels=channels), [x, weight, bias]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_convolutions_own_bias_is_added_and_gets_its_gradient(dtype: torch.dtype, device: str) -> None:
    def with_bias(function: object) -> object:
        return lambda x, w, b, c: function(x, w, b, conv_bias=c)  # type: ignore[operator]

    assert_equal_to(with_bias(conv_norm_gelu), with_bias(definition), inputs((2, 20, 9), 1, dtype, device))  # type: ignore[arg-type]


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_it_is_what_transformers_does_after_its_convolution(last: bool, device: str) -> None:
    wav2vec2 = pytest.importorskip("transformers.models.wav2vec2.modeling_wav2vec2")
    config = wav2vec2.Wav2Vec2Config(
        conv_dim=(6, 10), conv_kernel=(4, 3), conv_stride=(2, 2), conv_bias=True, feat_extract_norm="layer"
    )
    layer = wav2vec2.Wav2Vec2LayerNormConvLayer(config, layer_id=1).to(device)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    norm, conv = layer.layer_norm, layer.conv

    def ours(x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.conv1d(x, conv.weight, None, conv.stride)
        if not last:
            return conv_norm_gelu(y, norm.weight, norm.bias, norm.eps, conv_bias=conv.bias)
        y = y.transpose(1, 2)
        return conv_norm_gelu(y, norm.weight, norm.bias, norm.eps, channels=2, conv_bias=conv.bias).transpose(1, 2)

    x = torch.randn(2, 6, 31, device=device)
    for (name, got), (_, truth) in zip(results(ours, [x]), results(layer, [x]), strict=True):
        assert_close(name, got, truth)
    parameters = [norm.weight, norm.bias, conv.bias, conv.weight]
    got = torch.autograd.grad(ours(x).square().sum(), parameters)
    for a, b in zip(got, torch.autograd.grad(layer(x).square().sum(), parameters), strict=True):
        assert_close("parameter", a, b)


def test_views_are_read_where_they_lie(device: str) -> None:
    weight, bias = torch.randn(2, 12, device=device)
    whole = torch.randn(4, 40, 30, device=device)
    for x in (whole[::2, 3:15, 1::2], whole[:, :, 5:17].transpose(1, 2), whole[:1, :12].expand(3, 12, 30)):
        assert_equal_to(conv_norm_gelu, definition, [x, weight, bias])
        found = conv_norm_gelu(x, weight, bias)
        assert_close("a view", found, definition(x, weight, bias))


def test_a_mean_far_from_zero_costs_no_precision(device: str) -> None:
    x = torch.randn(1, 64, 5, device=device) + 1000
    one, zero = torch.ones(64, device=device), torch.zeros(64, device=device)
    exact = definition((x.double() - 1000).float(), one, zero)
    assert (conv_norm_gelu(x, one, zero) - exact).abs().max() < 1e-3


def test_no_rows_and_no_frames_give_none_and_a_zero_gradient(device: str) -> None:
    for shape in ((0, 4, 3), (2, 4, 0)):
        weight = torch.ones(4, device=device, requires_grad=True)
        y = conv_norm_gelu(torch.zeros(shape, device=device), weight, torch.ones(4, device=device))
        y.sum().backward()
        assert tuple(y.shape) == shape and weight.grad is not None and not weight.grad.any()


def test_weights_with_gaps_are_read_element_by_element(device: str) -> None:
    x, wide = torch.randn(2, 6, 5, device=device), torch.randn(3, 12, device=device)
    options = {"channels": 1, "conv_bias": wide[2, ::2]}
    found = conv_norm_gelu(x, wide[0, ::2], wide[1, ::2], **options)
    assert_close("y", found, definition(x, wide[0, ::2], wide[1, ::2], **options))


def test_it_is_derived_once(device: str) -> None:
    assert_derived_once(conv_norm_gelu, [torch.randn(2, 6, 5, device=device), *torch.randn(2, 6, device=device)])


@pytest.mark.parametrize(
    ("x", "more", "said"),
    [
        (torch.ones(2, 4), {}, r"x has shape \(2, 4\), channels is 1; wanted \(B, C, F\)"),
        (torch.ones(2, 4, 3), {"channels": 0}, r"x has shape \(2, 4, 3\), channels is 0; wanted"),
        (torch.ones(2, 5, 4), {}, r"weight has shape \(4,\); wanted \(5,\)"),
        (torch.ones(2, 4, 5), {"channels": 2}, r"weight has shape \(4,\); wanted \(5,\)"),
        (torch.ones(2, 4, 5), {"conv_bias": torch.ones(5)}, r"conv_bias has shape \(5,\); wanted \(4,\)"),
        (torch.ones(2, 4, 5, dtype=torch.int32), {}, "x is torch.int32; give float32"),
    ],
)
def test_what_does_not_fit_is_named(x: torch.Tensor, more: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"conv_norm_gelu: {said}"):
        conv_norm_gelu(x, torch.ones(4), torch.ones(4), **more)  # type: ignore[arg-type]
