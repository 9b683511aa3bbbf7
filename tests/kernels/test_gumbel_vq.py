"""gumbel_vq beside its definition and transformers' quantiser with the same noise: codes, use, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import assert_close, assert_derived_once, assert_equal_to
from speechkit_kernels.gumbel_vq import Quantised, gumbel_vq
from speechkit_kernels.reference.gumbel_vq import gumbel_noise
from speechkit_kernels.reference.gumbel_vq import gumbel_vq as definition


def parts(found: Quantised) -> tuple[torch.Tensor, torch.Tensor]:
    return found.codes, found.usage


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all frames", "some frames"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (7, 2, 5, 3), (12, 3, 40, 17)], ids=str)
def test_values_and_gradients_are_those_of_the_definition(
    shape: tuple[int, int, int, int], masked: bool, dtype: torch.dtype, device: str
) -> None:
    frames, groups, entries, width = shape
    logits, codebook = torch.randn(frames, groups, entries) * 2, torch.randn(groups, entries, width)
    uniform = torch.rand(frames, groups, entries, device=device)
    mask = torch.arange(frames, device=device) % 3 != 1 if masked else None
    assert_equal_to(
        lambda x, c: parts(gumbel_vq(x, c, 1.5, uniform=uniform, mask=mask)),
        lambda x, c: definition(x, c, uniform, 1.5, mask)[::2],
        [logits.to(device, dtype), codebook.to(device, dtype)],
    )
    indices = gumbel_vq(logits.to(device), codebook.to(device), 1.5, uniform=uniform).indices
    assert torch.equal(indices, definition(logits.to(device), codebook.to(device), uniform, 1.5)[1])


@pytest.fixture
def quantiser(device: str) -> Any:
    wav2vec2 = pytest.importorskip("transformers.models.wav2vec2.modeling_wav2vec2")
    config = wav2vec2.Wav2Vec2Config(
        conv_dim=(6,), conv_kernel=(10,), conv_stride=(5,), codevector_dim=8, num_codevector_groups=2,
        num_codevectors_per_group=11,
    )  # fmt: skip
    layer = wav2vec2.Wav2Vec2GumbelVectorQuantizer(config).to(device)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("masked", [False, True], ids=["all frames", "some frames"])
@pytest.mark.parametrize("training", [False, True], ids=["largest logit", "drawn"])
def test_it_is_transformers_quantiser(
    training: bool, masked: bool, quantiser: Any, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = torch.randn(3, 5, 6, device=device)
    mask = torch.arange(15, device=device).view(3, 5) % 4 != 0 if masked else None
    uniform = torch.rand(15, 2, 11, device=device)

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        logits, codebook = quantiser.weight_proj(hidden).view(15, 2, 11), quantiser.codevectors.view(2, 11, 4)
        flat = None if mask is None else mask.flatten()
        found = gumbel_vq(logits, codebook, quantiser.temperature, uniform=uniform if training else None, mask=flat)
        return found.codes.view(3, 5, 8), found.perplexity

    def drawn(empty: torch.Tensor) -> torch.Tensor:
        return empty.copy_(torch.exp(-gumbel_noise(uniform)).view(empty.shape))

    monkeypatch.setattr(torch.Tensor, "exponential_", drawn)
    quantiser.train(training)
    (codes, perplexity), (expected, expected_perplexity) = ours(), quantiser(hidden, mask)
    assert_close("codes", codes, expected.detach())
    assert_close("perplexity", perplexity, expected_perplexity.detach())
    if training:
        parameters = list(quantiser.parameters())
        got = torch.autograd.grad(codes.square().sum() + 3 * perplexity, parameters)
        for a, b in zip(
            got, torch.autograd.grad(expected.square().sum() + 3 * expected_perplexity, parameters), strict=True
        ):
            assert_close("gradient", a, b)


def test_a_seed_repeats_itself_forward_and_backward_and_draws_by_probability(device: str) -> None:
    logits = torch.log(torch.tensor([0.1, 0.2, 0.7], device=device)).expand(40, 1, 3).contiguous().requires_grad_()
    codebook = torch.eye(3, device=device)[None]
    found = gumbel_vq(logits, codebook, 0.5, seed=4)
    again, other = (gumbel_vq(logits[:9], codebook, 0.5, seed=seed).indices for seed in (4, 5))
    assert torch.equal(found.indices[:9], again) and not torch.equal(again, other)
    shares = found.indices.flatten().bincount() / 40
    torch.testing.assert_close(shares.cpu(), torch.tensor([0.1, 0.2, 0.7]), atol=0.2, rtol=0)
    # moving towards an entry pays most where the noise left it nearly chosen: backward must see forward's noise
    (gradient,) = torch.autograd.grad(found.codes[:, 0].sum(), logits)
    zero, one = ((found.indices == index).flatten() for index in (0, 1))
    assert gradient[zero, 0, 0].mean() > 2 * gradient[one, 0, 0].mean()


def test_numbers_at_the_ends_of_the_range_stay_finite(device: str) -> None:
    logits = torch.zeros(2, 1, 4, device=device, requires_grad=True)
    uniform = torch.tensor([[[0.0, 1.0, 0.5, 1.0]], [[0.0, 0.0, 0.0, 0.0]]], device=device)
    found = gumbel_vq(logits, torch.ones(1, 4, 2, device=device), 0.1, uniform=uniform)
    (gradient,) = torch.autograd.grad(found.codes.sum() + found.perplexity, logits)
    assert found.indices.tolist() == [[1], [0]] and gradient.isfinite().all()


def test_strided_inputs_no_frames_and_a_mask_of_none(device: str) -> None:
    whole, codebook = torch.randn(3, 7, 10, device=device), torch.randn(5, 3, 8, device=device).transpose(0, 1)
    logits, uniform = whole.transpose(0, 1)[..., ::2], torch.rand(3, 7, 5, device=device).transpose(0, 1)
    found, expected = gumbel_vq(logits, codebook, uniform=uniform), definition(logits, codebook, uniform)
    for got, truth in zip((found.codes, found.indices, found.usage), expected, strict=True):
        assert_close("strided", got, truth)
    none = gumbel_vq(logits[:0], codebook, uniform=uniform[:0])
    assert none.codes.shape == (0, 24) and not none.usage.any()
    masked = gumbel_vq(logits, codebook, uniform=uniform, mask=torch.zeros(7, dtype=torch.bool, device=device))
    assert not masked.usage.any() and masked.perplexity.isfinite()


def test_it_is_derived_once(device: str) -> None:
    uniform = torch.rand(4, 2, 5, device=device)
    given = [torch.randn(4, 2, 5, device=device), torch.randn(2, 5, 3, device=device)]
    assert_derived_once(lambda x, c: parts(gumbel_vq(x, c, uniform=uniform)), given)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"logits": torch.ones(2, 4)}, r"logits have shape \(2, 4\); wanted \(N, G, V\)"),
        ({"codebook": torch.ones(2, 4, 3)}, r"codebook has shape \(2, 4, 3\); wanted \(2, 5, D\)"),
        ({"temperature": 0.0}, "temperature is 0.0; give a positive number"),
        ({"uniform": torch.ones(3, 2, 4)}, r"uniform has shape \(3, 2, 4\); wanted \(3, 2, 5\)"),
        ({"uniform": torch.ones(3, 2, 5), "seed": 1}, r"both uniform numbers and a seed \(1\) are given"),
        ({"mask": torch.ones(4, dtype=torch.bool)}, r"mask has shape \(4,\); wanted \(3,\)"),
        ({"mask": torch.ones(3)}, "mask is torch.float32 on cpu; give torch.bool on cpu"),
        ({"logits": torch.ones(3, 2, 5).int()}, "logits is torch.int32; give float32"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], said: str) -> None:
    given = {"logits": torch.ones(3, 2, 5), "codebook": torch.ones(2, 5, 4)} | change
    with pytest.raises(ValueError, match=f"gumbel_vq: {said}"):
        gumbel_vq(**given)
