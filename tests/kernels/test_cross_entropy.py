"""cross_entropy beside its definition, and the definition beside torch.nn.functional and Gemma 2's cap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from closeness import assert_close, assert_derived_once, assert_equal_to
from speechkit_kernels.cross_entropy import cross_entropy
from speechkit_kernels.reference.losses import cross_entropy as definition

if TYPE_CHECKING:
    from collections.abc import Callable

OPTIONS = {
    "plain": {"softcap": None},
    "smoothed": {"label_smoothing": 0.1},
    "capped": {"softcap": 5.0},
    "z-loss": {"z_loss": 1e-2},
    "all": {"label_smoothing": 0.2, "softcap": 3.0, "z_loss": 1e-2, "ignore_index": 0},
}


def of_logits(function: Callable[..., Any], labels: torch.Tensor, **options: Any) -> Callable[..., Any]:
    """`function` of the logits alone; in place it may have a copy, which is no leaf."""
    if not options.get("inplace"):
        return lambda x: function(x, labels, **options)
    return lambda x: function(x * 1, labels, **options)


def made(
    rows: int, width: int, dtype: torch.dtype, device: str, ignored: int = -100
) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(0, width, (rows,))
    labels[1::3] = ignored
    return (4 * torch.randn(rows, width)).to(device, dtype), labels.to(device)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.15])
def test_the_definition_is_that_of_torch(reduction: str, smoothing: float) -> None:
    x, labels = made(7, 11, torch.float32, "cpu")
    options = {"reduction": reduction, "label_smoothing": smoothing}
    expected = torch.nn.functional.cross_entropy(x, labels, **options)
    assert_close("loss", definition(x, labels, **options), expected)


def test_the_definition_of_cap_and_z_loss_is_that_of_the_papers() -> None:
    x, labels = torch.randn(5, 9) * 50, torch.randint(0, 9, (5,))
    capped = torch.tanh(x / 30.0) * 30.0  # transformers' Gemma 2: divided, tanh, multiplied
    expected = torch.nn.functional.cross_entropy(capped, labels) + 1e-4 * torch.logsumexp(capped, 1).pow(2).mean()
    assert_close("loss", definition(x, labels, softcap=30.0, z_loss=1e-4), expected)


@pytest.mark.parametrize("inplace", [False, True], ids=["apart", "in place"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients_are_those_of_the_definition(
    name: str, dtype: torch.dtype, inplace: bool, device: str
) -> None:
    for reduction in ("mean", "sum", "none"):
        options: dict[str, Any] = {"reduction": reduction, **OPTIONS[name]}
        x, labels = made(5, 37, dtype, device, options.get("ignore_index", -100))
        assert_equal_to(
            of_logits(cross_entropy, labels, inplace=inplace, **options), of_logits(definition, labels, **options), [x]
        )


@pytest.mark.parametrize("width", [1, 2, 4096, 4097, 20_011])
@pytest.mark.parametrize("inplace", [False, True], ids=["apart", "in place"])
def test_vocabularies_of_one_block_and_of_many_give_the_same(width: int, inplace: bool, device: str) -> None:
    x, labels = made(3, width, torch.float32, device)
    x[0, -1], x[2, 0] = 60.0, 60.0  # the greatest last and first: sums made smaller, or not at all
    labels[0] = width - 1
    options = {"label_smoothing": 0.1, "z_loss": 1e-3}
    assert_equal_to(
        of_logits(cross_entropy, labels, inplace=inplace, **options), of_logits(definition, labels, **options), [x]
    )


@pytest.mark.parametrize("inplace", [False, True], ids=["apart", "in place"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_labels_ignored_give_zero_loss_and_zero_gradient(reduction: str, inplace: bool, device: str) -> None:
    x = torch.randn(4, 33, device=device, requires_grad=True)
    loss = cross_entropy(x * 1, torch.full((4,), -100, device=device), reduction=reduction, inplace=inplace)
    loss.sum().backward()
    assert not loss.any() and x.grad is not None and torch.equal(x.grad, torch.zeros_like(x))


def test_words_that_cannot_be_and_very_large_logits_bring_no_nan(device: str) -> None:
    x = torch.randn(3, 5000, device=device)
    x[0, :4500], x[1, 7], x[2] = -float("inf"), 3e4, -3e4  # a whole block of impossible words first
    labels = torch.tensor([4600, 7, 2], device=device)
    assert_equal_to(of_logits(cross_entropy, labels), of_logits(definition, labels), [x])


def test_a_label_outside_the_vocabulary_gives_nan_and_reads_no_strangers_memory(device: str) -> None:
    x, labels = torch.randn(3, 8, device=device), torch.tensor([8, 3, -1], device=device)
    for function in (cross_entropy, definition):
        assert function(x, labels, reduction="none").isnan().tolist() == [True, False, True]


def test_rows_of_a_batch_far_apart_and_transposed_are_read_where_they_lie(device: str) -> None:
    whole = torch.randn(4, 6, 50, device=device)
    labels = torch.randint(0, 12, (4, 6), device=device)
    for x, y in ((whole[..., 3:15], labels), (whole[:, ::2, :12], labels[:, ::2]), (whole[:2, :, :12], labels[2:])):
        for reduction in ("mean", "none"):
            options = {"reduction": reduction}
            assert_equal_to(of_logits(cross_entropy, y, **options), of_logits(definition, y, **options), [x])
    x = torch.randn(12, 5, device=device).T
    assert_equal_to(of_logits(cross_entropy, labels[0, :5].int()), of_logits(definition, labels[0, :5]), [x])


def test_in_place_the_gradient_lies_where_the_logits_lay_and_backward_runs_once(device: str) -> None:
    x = torch.randn(3, 9, device=device, requires_grad=True)
    logits = x * 1
    loss = cross_entropy(logits, torch.tensor([1, -100, 8], device=device), inplace=True)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    assert gradient.data_ptr() == logits.data_ptr()
    with pytest.raises(RuntimeError, match="backward gave its gradient away; leave inplace out"):
        loss.backward()


def test_in_place_over_logits_that_were_kept_is_an_error_not_a_wrong_gradient(device: str) -> None:
    x = torch.randn(3, 9, device=device, requires_grad=True)
    loss = cross_entropy(x.exp(), torch.tensor([1, 2, 8], device=device), inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_gradient_in_place_leaves_the_logits_alone(device: str) -> None:
    x = torch.randn(3, 9, device=device)
    before = x.clone()
    cross_entropy(x, torch.tensor([1, 2, 8], device=device), inplace=True)
    assert torch.equal(x, before)


def test_rows_that_share_memory_are_not_written_over(device: str) -> None:
    """One row of logits for all labels: in place each program would read what another wrote."""
    x, labels = torch.randn(1, 9, device=device), torch.tensor([1, 2, 8], device=device)
    assert_equal_to(
        lambda x: cross_entropy((x * 1).expand(3, 9), labels, inplace=True),
        lambda x: definition(x.expand(3, 9), labels),
        [x],
    )


def test_under_no_grad_logits_that_have_a_gradient_are_left_alone_too(device: str) -> None:
    x = torch.randn(3, 9, device=device, requires_grad=True)
    logits = x * 1
    with torch.no_grad():
        cross_entropy(logits, torch.tensor([1, 2, 8], device=device), inplace=True)
    assert torch.equal(logits, x)


@pytest.mark.parametrize("inplace", [False, True], ids=["apart", "in place"])
def test_nothing_derives_it_twice(inplace: bool, device: str) -> None:
    labels = torch.tensor([1, 2, 8], device=device)
    assert_derived_once(of_logits(cross_entropy, labels, inplace=inplace), [torch.randn(3, 9, device=device)])


def test_a_scaled_loss_scales_the_gradient_in_float16_before_it_is_rounded(device: str) -> None:
    x = torch.randn(64, 40, device=device).half()
    x[:, 0] = -8  # its probability over 64 is about the smallest float16
    labels = torch.full((64,), 3, device=device)
    for inplace in (False, True):
        leaf = x.clone().requires_grad_()
        (cross_entropy(leaf * 1, labels, inplace=inplace) * 2.0**14).backward()
        wide = x.float().requires_grad_()
        (definition(wide, labels) * 2.0**14).backward()
        assert leaf.grad is not None and wide.grad is not None
        torch.testing.assert_close(leaf.grad[:, 0].float(), wide.grad[:, 0], rtol=0.05, atol=0)


def test_no_rows_give_zero(device: str) -> None:
    x = torch.zeros(0, 5, device=device, requires_grad=True)
    loss = cross_entropy(x, torch.zeros(0, dtype=torch.long, device=device))
    loss.backward()
    assert loss.item() == 0 and x.grad is not None and x.grad.shape == (0, 5)


def test_where_no_kernel_runs_the_definition_does_with_the_same_words(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    x, labels = made(7, 11, torch.float32, device, ignored=3)
    options: dict[str, Any] = {"ignore_index": 3, "label_smoothing": 0.1, "softcap": 2.0, "z_loss": 0.1}
    options |= {"reduction": "sum"}
    expected = cross_entropy(x, labels, **options)
    monkeypatch.setattr("speechkit_kernels.cross_entropy.use_kernel", lambda *_, **__: False)
    assert_close("loss", cross_entropy(x, labels, **options, inplace=True), expected)


X, LABELS = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("x", "labels", "options", "said"),
    [
        (X, LABELS[:1], {}, r"labels has shape \(1,\); wanted \(2,\)"),
        (X, LABELS.float(), {}, "labels are torch.float32; give integers"),
        (X.long(), LABELS, {}, "logits is torch.int64; give float32, float16"),
        (X, LABELS.to("meta"), {}, "labels is on meta, logits on cpu"),
        (X[:, :0], LABELS, {}, r"logits of shape \(2, 0\) have no vocabulary"),
        (X, LABELS, {"reduction": "avg"}, "reduction is 'avg'; give one of 'mean', 'sum', 'none'"),
        (X, LABELS, {"label_smoothing": 1.5}, "label_smoothing is 1.5; give a share in 0..1"),
        (X, LABELS, {"softcap": -1.0}, "softcap is -1.0, z_loss 0.0; give numbers from 0 on"),
        (X.clone().requires_grad_(), LABELS, {"inplace": True}, "logits are a leaf that wants its gradient"),
    ],
)
def test_what_does_not_fit_is_named(x: torch.Tensor, labels: torch.Tensor, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"cross_entropy: {said}"):
        cross_entropy(x, labels, **options)
