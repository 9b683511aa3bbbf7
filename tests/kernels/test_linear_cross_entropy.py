"""linear_cross_entropy beside its definition, that beside transformers, and what it holds in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from closeness import assert_close, assert_derived_once, assert_equal_to
from speechkit_kernels import linear_cross_entropy as module
from speechkit_kernels.linear_cross_entropy import chunk_of, linear_cross_entropy
from speechkit_kernels.reference.losses import linear_cross_entropy as definition

if TYPE_CHECKING:
    from collections.abc import Callable


def made(rows: int, dtype: torch.dtype, device: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    """x (M, 24), weight (37, 24), bias (37,), and labels of which a third is ignored."""
    inputs = [torch.randn(rows, 24), torch.randn(37, 24), torch.randn(37)]
    labels = torch.randint(0, 37, (rows,), device=device)
    labels[1::3] = -100
    return [x.to(device, dtype) for x in inputs], labels


def of(function: Callable[..., Any], labels: torch.Tensor, **options: Any) -> Callable[..., Any]:
    """`function` of the floating inputs; its loss in their dtype, as exact as the logits in it can make it."""
    return lambda x, weight, bias=None: function(x, weight, labels, bias=bias, **options).to(x.dtype)


def test_the_definition_is_the_loss_of_transformers_causal_models() -> None:
    from transformers.loss.loss_utils import ForCausalLMLoss

    (x, weight, _), _ = made(12, torch.float32, "cpu")
    labels = torch.randint(0, 37, (2, 6))
    labels[0, :3] = -100
    expected = ForCausalLMLoss((x @ weight.T).view(2, 6, 37), labels, 37)
    shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    assert_close("loss", definition(x.view(2, 6, 24), weight, shifted), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chunk", [3, None], ids=["three rows", "all rows"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_values_and_gradients_are_those_of_the_definition(
    reduction: str, chunk: int | None, dtype: torch.dtype, device: str
) -> None:
    (x, weight, bias), labels = made(7, dtype, device)
    for inputs, options in (
        ([x, weight], {}),
        ([x, weight, bias], {"label_smoothing": 0.1, "softcap": 5.0, "z_loss": 1e-3}),
    ):
        options = {"reduction": reduction, **options}
        assert_equal_to(
            of(linear_cross_entropy, labels, chunk=chunk, **options), of(definition, labels, **options), inputs
        )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("frozen", [(1, 2), (0,), (0, 1), (2,)], ids=["head", "states", "all but bias", "bias"])
def test_what_is_frozen_gets_no_gradient_and_changes_none(frozen: tuple[int, ...], reduction: str, device: str) -> None:
    inputs, labels = made(7, torch.float32, device)
    found = []
    options = {"reduction": reduction}
    for function in (of(linear_cross_entropy, labels, chunk=3, **options), of(definition, labels, **options)):
        leaves = [x.clone().requires_grad_(at not in frozen) for at, x in enumerate(inputs)]
        (function(*leaves) * torch.arange(1, 8, device=device)).sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for at, (ours, theirs) in enumerate(zip(*found, strict=True)):
        assert (ours is None) == (theirs is None) == (at in frozen)
        if ours is not None:
            assert_close(f"input {at}", ours, theirs)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Most bytes of any tensor that an operation gives back, and the shapes of the products."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self.products = 0, list[tuple[int, ...]]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.most = max(self.most, result.untyped_storage().nbytes())
            if "mm" in str(function):
                self.products.append(tuple(result.shape))
        return result


def test_with_a_frozen_head_nothing_as_large_as_the_logits_and_no_gradient_of_the_head_is_made(device: str) -> None:
    x, weight = torch.randn(16, 2, device=device, requires_grad=True), torch.randn(500, 2, device=device)
    labels = torch.randint(0, 500, (16,), device=device)
    with Largest() as seen:
        linear_cross_entropy(x, weight, labels, chunk=4).backward()
    assert seen.most == 4 * 500 * 4  # a chunk in float32, of 16 · 500 · 4
    assert set(seen.products) == {(4, 500), (4, 2)} and len(seen.products) == 2 * 4  # logits and dx, once a chunk
    with Largest() as definitions:
        definition(x, weight, labels).backward()
    assert definitions.most == 16 * 500 * 4  # or the count above would show nothing


def test_without_gradient_only_the_logits_are_computed(device: str) -> None:
    (x, weight, _), labels = made(6, torch.float32, device)
    with Largest() as seen:
        linear_cross_entropy(x, weight, labels, chunk=2)
    assert seen.products == [(2, 37)] * 3
    with Largest() as seen, torch.no_grad():  # validation while the head is trained
        linear_cross_entropy(x.requires_grad_(), weight.requires_grad_(), labels, chunk=2)
    assert seen.products == [(2, 37)] * 3


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_derives_it_twice(reduction: str, device: str) -> None:
    inputs, labels = made(5, torch.float32, device)
    assert_derived_once(of(linear_cross_entropy, labels, reduction=reduction, chunk=2), inputs)


def test_under_autocast_products_are_in_its_dtype_and_gradients_in_that_of_the_inputs(device: str) -> None:
    """A float32 head over float32 or half states, as autocast training has them."""
    (x, weight, bias), labels = made(6, torch.float32, device)
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    low = [leaf.detach().bfloat16().requires_grad_() for leaf in leaves]
    expected = linear_cross_entropy(low[0], low[1], labels, bias=low[2], chunk=4)
    for states in (x, low[0].detach()):
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = linear_cross_entropy(states, weight, labels, bias=bias, chunk=4)
        assert loss.item() == expected.item()
    gradients = torch.autograd.grad(linear_cross_entropy(*low[:2], labels, bias=low[2], chunk=4), low)
    with torch.autocast(device, dtype=torch.bfloat16):
        loss = linear_cross_entropy(x, weight, labels, bias=bias, chunk=4)
    for got, one in zip(torch.autograd.grad(loss, leaves), gradients, strict=True):
        assert got.dtype == torch.float32 and torch.equal(got.bfloat16(), one)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_labels_ignored_give_zero_loss_and_zero_gradient(reduction: str, device: str) -> None:
    (x, weight, bias), labels = made(5, torch.float32, device)
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    loss = linear_cross_entropy(x, weight, torch.full_like(labels, -100), bias=bias, reduction=reduction, chunk=2)
    loss.sum().backward()
    assert not loss.any()
    for leaf in leaves:
        assert leaf.grad is not None and torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_batches_keep_their_shape_and_backward_may_run_twice(device: str) -> None:
    (x, weight, _), labels = made(12, torch.float32, device)
    states = x.view(3, 4, 24).transpose(0, 1).requires_grad_()
    turned = labels.view(3, 4).T
    loss = linear_cross_entropy(states, weight, turned, reduction="none", chunk=5)
    assert_close("loss", loss.detach(), definition(states, weight, turned, reduction="none").detach())
    total = loss.sum()
    first, second = (torch.autograd.grad(total, states, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.shape == states.shape


def test_a_loss_scale_saves_small_gradients_in_float16(device: str) -> None:
    weight = torch.eye(37, device=device)
    labels = torch.arange(60, device=device) % 37
    x = (11 * weight[labels]).half()  # a share of e^-11 for each other word, over 60 of them less than float16 keeps
    assert_equal_to(
        lambda x: linear_cross_entropy(x, weight.to(x.dtype), labels, chunk=32) * 4096.0,
        lambda x: definition(x, weight.to(x.dtype), labels) * 4096.0,
        [x],
    )


def test_no_rows_give_zero(device: str) -> None:
    x, weight = (torch.ones(rows, 4, device=device, requires_grad=True) for rows in (0, 5))
    loss = linear_cross_entropy(x, weight, torch.zeros(0, dtype=torch.long, device=device))
    loss.backward()
    assert loss.item() == 0 and weight.grad is not None and not weight.grad.any()


@pytest.mark.parametrize(
    ("rows", "vocabulary", "size", "chunk"),
    [
        (8192, 128_256, 2, 2048),  # 2048 rows are 501 MiB
        (8192, 128_256, 4, 1024),
        (8192, 32_000, 2, 8192),
        (100, 128_256, 2, 100),
        (8192, 5_000_000, 2, 256),  # never fewer, for the products' sake
        (0, 1000, 2, 1),
    ],
)
def test_a_chunk_is_half_a_gibibyte_of_logits(rows: int, vocabulary: int, size: int, chunk: int) -> None:
    assert chunk_of(rows, vocabulary, size) == chunk
    assert chunk * vocabulary * size <= module.CHUNK_BYTES or chunk == module.LEAST_CHUNK


def test_where_no_kernel_runs_the_definition_does_with_the_same_words(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    (x, weight, bias), labels = made(7, torch.float32, device)
    options: dict[str, Any] = {"ignore_index": 3, "label_smoothing": 0.1, "softcap": 2.0, "z_loss": 0.1}
    options |= {"reduction": "sum"}
    labels = labels.where(labels >= 0, 3)
    expected = linear_cross_entropy(x, weight, labels, bias=bias, **options)
    monkeypatch.setattr("speechkit_kernels.linear_cross_entropy.use_kernel", lambda *_, **__: False)
    assert_close("loss", linear_cross_entropy(x, weight, labels, bias=bias, **options), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_where_no_kernel_runs_there_is_one_chunk_of_logits_at_a_time_too(
    monkeypatch: pytest.MonkeyPatch, device: str, reduction: str
) -> None:
    monkeypatch.setattr("speechkit_kernels.linear_cross_entropy.use_kernel", lambda *_, **__: False)
    inputs, labels = made(16, torch.float32, device)
    options: dict[str, Any] = {"label_smoothing": 0.1, "softcap": 2.0, "reduction": reduction}
    assert_equal_to(of(linear_cross_entropy, labels, chunk=5, **options), of(definition, labels, **options), inputs)
    x, weight = torch.randn(16, 2, device=device, requires_grad=True), torch.randn(500, 2, device=device)
    with Largest() as seen:
        linear_cross_entropy(x, weight, labels, chunk=4, reduction=reduction).sum().backward()
    assert seen.most == 4 * 500 * 4


X, W, LABELS = torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("x", "weight", "labels", "options", "said"),
    [
        (X, W.T, LABELS, {}, r"x is \(2, 4\), weight \(4, 3\); give \(…, H\) and \(V, H\)"),
        (X, W.half(), LABELS, {}, "weight is torch.float16, x torch.float32; give both in one dtype"),
        (X, W, LABELS[:1], {}, r"labels has shape \(1,\); wanted \(2,\)"),
        (X, W, LABELS.float(), {}, "labels are torch.float32; give integers"),
        (X, W, LABELS, {"bias": torch.zeros(4)}, r"bias has shape \(4,\); wanted \(3,\)"),
        (X, W.to("meta"), LABELS, {}, "weight is on meta, x on cpu"),
        (X, W, LABELS, {"chunk": 0}, "chunk is 0; give 1 row or more"),
        (X, W, LABELS, {"reduction": "avg"}, "reduction is 'avg'; give one of"),
    ],
)
def test_what_does_not_fit_is_named(
    x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=f"linear_cross_entropy: {said}"):
        linear_cross_entropy(x, weight, labels, **options)
