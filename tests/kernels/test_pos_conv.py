"""pos_conv beside its definition and transformers' positional convolution: values, gradients, odd and even kernels."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from closeness import assert_close, assert_derived_once, assert_equal_to, results
from speechkit_kernels.pos_conv import fold_weight_norm, pos_conv
from speechkit_kernels.reference.pos_conv import pos_conv as definition

CASES = [(1, 1, 2, 1, 1), (2, 19, 6, 2, 5), (2, 33, 12, 3, 16), (3, 50, 4, 4, 33), (1, 7, 4, 2, 40)]  # B F H G K


def inputs(rows: int, frames: int, hidden: int, groups: int, taps: int) -> list[torch.Tensor]:
    weight = torch.randn(hidden, hidden // groups, taps) / (hidden // groups * taps) ** 0.5
    return [torch.randn(rows, frames, hidden), weight, torch.randn(hidden)]


def eager(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, groups: int) -> torch.Tensor:
    """As models compute it: the convolution's result, which the gradient needs again, is rounded to the dtype of x."""
    # oneDNN 3 never ends on CPUs with float16 units where each group is one channel in float16
    with torch.backends.mkldnn.flags(enabled=x.dtype != torch.float16):
        y = torch.nn.functional.conv1d(x.transpose(1, 2), weight, bias, padding=weight.shape[2] // 2, groups=groups)
    return torch.nn.functional.gelu(y[:, :, : x.shape[1]]).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_those_of_the_definition(
    case: tuple[int, int, int, int, int], dtype: torch.dtype, device: str
) -> None:
    given = [t.to(device, dtype) for t in inputs(*case)]
    options = {"groups": case[3]}
    assert_equal_to(partial(pos_conv, **options), partial(definition, **options), given, partial(eager, **options))
    bare = {"bias": None, **options}
    assert_equal_to(partial(pos_conv, **bare), partial(definition, **bare), given[:2], partial(eager, **bare))


@pytest.mark.parametrize("taps", [128, 7], ids=["128 taps", "7 taps"])
def test_it_is_transformers_layer_with_its_weight_norm_folded(taps: int, device: str) -> None:
    wav2vec2 = pytest.importorskip("transformers.models.wav2vec2.modeling_wav2vec2")
    config = wav2vec2.Wav2Vec2Config(hidden_size=12, num_conv_pos_embeddings=taps, num_conv_pos_embedding_groups=3)
    layer = wav2vec2.Wav2Vec2PositionalConvEmbedding(config).to(device)
    norm = layer.conv.parametrizations.weight
    torch.nn.init.normal_(norm.original1)
    torch.nn.init.uniform_(norm.original0)

    def ours(x: torch.Tensor) -> torch.Tensor:
        return pos_conv(x, fold_weight_norm(norm.original1, norm.original0), layer.conv.bias, groups=3)

    x = torch.randn(2, 41, 12, device=device)
    for (name, got), (_, truth) in zip(results(ours, [x]), results(layer, [x]), strict=True):
        assert_close(name, got, truth)
    parameters = [norm.original0, norm.original1, layer.conv.bias]
    got = torch.autograd.grad(ours(x).square().sum(), parameters)
    for a, b in zip(got, torch.autograd.grad(layer(x).square().sum(), parameters), strict=True):
        assert_close("parameter", a, b)


def test_nothing_is_unfolded_in_memory(device: str) -> None:
    """The rows that the products read are views of the padded frames: R·I times fewer numbers than unfolding has."""
    from speechkit_kernels.pos_conv import _padded, _plan, _views

    x, weight, _ = (t.to(device) for t in inputs(2, 50, 8, 2, 128))
    plan = _plan(x, weight, 2)
    wide = _padded(x, plan, 64)
    views = _views(wide, 1, plan)
    assert views.untyped_storage().data_ptr() == wide.untyped_storage().data_ptr()
    assert wide.numel() < 9 * x.numel() < 2 * views.numel()


def test_without_gradients_it_is_the_same(device: str) -> None:
    x, weight, bias = (t.to(device).requires_grad_() for t in inputs(2, 21, 8, 2, 6))
    with torch.no_grad():
        assert torch.equal(
            pos_conv(x, weight, bias, groups=2), pos_conv(*(t.detach() for t in (x, weight, bias)), groups=2)
        )
        assert_close("y", pos_conv(x, weight, bias, groups=2), definition(x, weight, bias, 2))


def test_views_and_frozen_weights(device: str) -> None:
    whole = torch.randn(4, 60, 16, device=device)
    weight = torch.randn(8, 4, 6, device=device) / 5
    for x in (whole[::2, 5:25, 3:11], whole[:, :8].transpose(1, 2), whole[:1, :9, :8].expand(3, 9, 8)):
        assert_equal_to(lambda x: pos_conv(x, weight, groups=2), lambda x: definition(x, weight, None, 2), [x])


def test_no_rows_and_no_frames_give_none_and_a_zero_gradient(device: str) -> None:
    for shape in ((0, 4, 6), (2, 0, 6)):
        weight = torch.ones(6, 3, 4, device=device, requires_grad=True)
        y = pos_conv(torch.zeros(shape, device=device), weight, groups=2)
        y.sum().backward()
        assert tuple(y.shape) == shape and weight.grad is not None and not weight.grad.any()


def test_a_bias_with_gaps_is_read_element_by_element_and_autocast_rounds_no_sums(device: str) -> None:
    x, weight, _ = (t.to(device) for t in inputs(2, 21, 8, 2, 6))
    bias = torch.randn(16, device=device)[::2]
    truth = definition(x, weight, bias, 2)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert_close("y", pos_conv(x, weight, bias, groups=2), truth)


def test_it_is_derived_once(device: str) -> None:
    given = [t.to(device) for t in inputs(2, 11, 8, 2, 6)]
    assert_derived_once(lambda x, weight, bias: pos_conv(x, weight, bias, groups=2), given)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "groups", "said"),
    [
        (torch.ones(4, 6), torch.ones(6, 3, 2), None, 2, r"x has shape \(4, 6\); wanted \(B, F, H\)"),
        (torch.ones(1, 4, 6), torch.ones(6, 3, 2), None, 4, "6 channels cannot be split into 4 groups"),
        (torch.ones(1, 4, 6), torch.ones(6, 2, 2), None, 2, r"weight has shape \(6, 2, 2\); wanted \(6, 3, K\)"),
        (torch.ones(1, 4, 6), torch.ones(6, 3, 2), torch.ones(3), 2, r"bias has shape \(3,\); wanted \(6,\)"),
        (torch.ones(1, 4, 6).long(), torch.ones(6, 3, 2), None, 2, "x is torch.int64; give float32"),
    ],
)
def test_what_does_not_fit_is_named(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, groups: int, said: str
) -> None:
    with pytest.raises(ValueError, match=f"pos_conv: {said}"):
        pos_conv(x, weight, bias, groups=groups)
