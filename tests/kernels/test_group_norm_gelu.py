"""group_norm_gelu beside its definition, and beside transformers' convolution layer on each recording alone."""

from __future__ import annotations

import pytest
import speechkit_kernels.group_norm_gelu as module
import torch
from closeness import assert_close, assert_derived_once, assert_equal_to
from speechkit_kernels.group_norm_gelu import group_norm_gelu
from speechkit_kernels.reference.conv_norm import group_norm_gelu as definition


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("channels", "groups", "lengths"), [(3, 3, [40]), (6, 2, [37, 5, 40]), (4, 1, [9, 33]), (5, 5, [2, 16, 17])]
)
def test_values_and_gradients_are_those_of_the_definition(
    channels: int, groups: int, lengths: list[int], dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRAMES", 16)  # rows of several blocks
    x = torch.randn(len(lengths), channels, max(lengths)) * 3 + 1
    given = [t.to(device, dtype) for t in (x, torch.randn(channels) + 1, torch.randn(channels))]
    assert_equal_to(
        lambda x, w, b: group_norm_gelu(x, w, b, groups, lengths),
        lambda x, w, b: definition(x, lengths, w, b, groups),
        given,
    )


def test_a_recording_in_a_padded_batch_is_the_recording_alone_as_transformers_has_it(device: str) -> None:
    wav2vec2 = pytest.importorskip("transformers.models.wav2vec2.modeling_wav2vec2")
    config = wav2vec2.Wav2Vec2Config(conv_dim=(8,), conv_kernel=(10,), conv_stride=(5,), feat_extract_norm="group")
    layer = wav2vec2.Wav2Vec2GroupNormConvLayer(config).to(device)
    torch.nn.init.normal_(layer.layer_norm.weight)
    torch.nn.init.normal_(layer.layer_norm.bias)
    samples, frames = [300, 120, 55], [59, 23, 10]
    audio = torch.zeros(3, 1, 300, device=device)
    for row, n in enumerate(samples):
        audio[row, 0, :n] = torch.randn(n)
    norm = layer.layer_norm
    y = group_norm_gelu(layer.conv(audio), norm.weight, norm.bias, norm.num_groups, frames, norm.eps)
    for row, (n, f) in enumerate(zip(samples, frames, strict=True)):
        assert_close(f"row {row}", y[row : row + 1, :, :f], layer(audio[row : row + 1, :, :n]))
        assert not y[row, :, f:].any()
    whole = group_norm_gelu(layer.conv(audio), norm.weight, norm.bias, norm.num_groups, None, norm.eps)
    assert_close("without lengths", whole, layer(audio))


def test_padding_is_never_read_and_gets_no_gradient(device: str) -> None:
    x = torch.randn(2, 4, 20, device=device)
    x[1, :, 7:] = float("nan")
    x.requires_grad_()
    one = torch.ones(4, device=device)
    y = group_norm_gelu(x, one, one, 4, [20, 7])
    y.square().sum().backward()
    assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    assert not x.grad[1, :, 7:].any()


def test_a_mean_far_from_zero_costs_no_precision(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRAMES", 64)
    near = torch.randn(1, 2, 500, device=device)
    one, zero = torch.ones(2, device=device), torch.zeros(2, device=device)
    far = group_norm_gelu(near + 1000, one, zero, 2)
    exact = definition((near + 1000).double().sub(1000).float(), [500], one, zero, 2)
    assert (far - exact).abs().max() < 1e-3


def test_views_are_read_where_they_lie(device: str) -> None:
    weight, bias = torch.randn(2, 6, device=device)
    whole = torch.randn(4, 12, 30, device=device)
    for x in (whole[::2, 3:9], whole[:, :6, ::2], whole[:, :, :6].transpose(1, 2), whole[:1, :6].expand(3, 6, 30)):
        lengths = [x.shape[2]] * len(x)
        assert_close("a view", group_norm_gelu(x, weight, bias, 3), definition(x, lengths, weight, bias, 3))


def test_no_rows_and_no_frames_give_none_and_a_zero_gradient(device: str) -> None:
    for shape in ((0, 4, 3), (2, 4, 0)):
        weight = torch.ones(4, device=device, requires_grad=True)
        group_norm_gelu(torch.zeros(shape, device=device), weight, torch.ones(4, device=device), 2).sum().backward()
        assert weight.grad is not None and not weight.grad.any()


def test_weights_with_gaps_are_read_element_by_element_and_no_rows_have_no_lengths(device: str) -> None:
    x, wide = torch.randn(2, 6, 5, device=device), torch.randn(2, 12, device=device)
    weight, bias = wide[:, ::2]
    assert_close("y", group_norm_gelu(x, weight, bias, 3), definition(x, [5, 5], weight, bias, 3))
    assert group_norm_gelu(x[:0], weight, bias, 3, []).shape == (0, 6, 5)


def test_it_is_derived_once(device: str) -> None:
    inputs = [torch.randn(2, 6, 5, device=device), *torch.randn(2, 6, device=device)]
    assert_derived_once(lambda x, weight, bias: group_norm_gelu(x, weight, bias, 3), inputs)


@pytest.mark.parametrize(
    ("x", "groups", "lengths", "said"),
    [
        (torch.ones(4, 3), 2, None, r"x has shape \(4, 3\); wanted \(B, C, F\)"),
        (torch.ones(1, 5, 3), 5, None, r"weight has shape \(4,\); wanted \(5,\)"),
        (torch.ones(1, 4, 3), 3, None, "4 channels cannot be split into 3 groups; choose a divisor"),
        (torch.ones(1, 4, 3), 2, [0], r"lengths hold 0; give values in 1\.\.3"),
        (torch.ones(1, 4, 3), 2, [4], r"lengths hold 4; give values in 1\.\.3"),
        (torch.ones(1, 4, 3), 2, [3, 3], r"lengths have shape \(2,\); wanted \(1,\)"),
    ],
)
def test_what_does_not_fit_is_named(x: torch.Tensor, groups: int, lengths: list[int] | None, said: str) -> None:
    with pytest.raises(ValueError, match=f"group_norm_gelu: {said}"):
        group_norm_gelu(x, torch.ones(4), torch.ones(4), groups, lengths)
