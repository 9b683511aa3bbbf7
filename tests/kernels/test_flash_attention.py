"""flash_attention beside its definition, the definition beside torch, packed documents beside each alone."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from closeness import assert_close, assert_derived_once, assert_equal_to, results
from eager_attention import eager
from speechkit_kernels import attention_launch
from speechkit_kernels import flash_attention as module
from speechkit_kernels import flash_attention_backward as backward
from speechkit_kernels.attention_tiles import head_block, registers, shared_bytes, shared_limit, tiles
from speechkit_kernels.flash_attention import flash_attention
from speechkit_kernels.launch import hardware_of
from speechkit_kernels.reference.attention import attention as definition
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from collections.abc import Callable

RULES: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"causal": True, "window": 20},
    {"window": 7},
    {"causal": True, "softcap": 2.0, "scale": 0.7},
    {"window": 40, "softcap": 5.0},
]


def qkv(batch: int, queries: int, keys: int, heads: tuple[int, int], width: int, **kwargs: Any) -> list[torch.Tensor]:
    sizes = [(queries, heads[0]), (keys, heads[1]), (keys, heads[1])]
    return [torch.randn(batch, n, h, width).to(**kwargs) for n, h in sizes]


def both(function: Callable[..., Any], **rule: Any) -> Callable[..., Any]:
    """Output and log-sum-exp, finite where no key is seen, so that gradients through both are compared."""

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        o, lse = function(q, k, v, return_lse=True, **rule)
        return o, lse.masked_fill(lse.isinf(), 0.0)

    return run


@pytest.mark.parametrize(
    ("queries", "keys", "rule"),
    [*((50, 50, rule) for rule in RULES), *((17, 70, rule) for rule in RULES[1:4:2]), (70, 17, RULES[2])],
    ids=str,
)
def test_values_and_gradients_are_those_of_the_definition(
    queries: int, keys: int, rule: dict[str, Any], device: str
) -> None:
    inputs = qkv(1, queries, keys, (1, 1), 16, device=device)
    assert_equal_to(both(flash_attention, **rule), both(definition, **rule), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", [{"causal": True}, {"window": 9, "softcap": 4.0}], ids=str)
def test_half_precision_errs_at_most_twice_as_much_as_attention_without_a_fused_kernel(
    dtype: torch.dtype, rule: dict[str, Any], device: str
) -> None:
    """The definition is no measure here: it keeps the probabilities in float32, which no fast kernel does."""
    inputs = qkv(1, 48, 48, (1, 1), 32, device=device, dtype=dtype)
    ours = results(lambda *x: flash_attention(*x, **rule), inputs)
    plain = results(lambda *x: eager(*x, **rule), inputs)
    truth = results(lambda *x: definition(*x, **rule), [x.float() for x in inputs])
    for (name, got), (_, low), (_, exact) in zip(ours, plain, truth, strict=True):
        assert_close(name, got, exact, low)


@pytest.mark.parametrize("width", [1, 16, 40, 64, 96, 128, 256])
def test_heads_of_any_size_up_to_256(width: int, device: str) -> None:
    inputs = qkv(1, 18, 18, (1, 1), width, device=device)
    assert_equal_to(both(flash_attention, causal=True), both(definition, causal=True), inputs)


@pytest.mark.parametrize("group", [1, 3])
def test_query_heads_share_key_heads(group: int, device: str) -> None:
    inputs = qkv(2, 20, 20, (2 * group, 2), 16, device=device)
    assert_equal_to(both(flash_attention), both(definition), inputs)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("group", [1, 2])
def test_the_definition_is_that_of_torch(causal: bool, group: int) -> None:
    def torch_own(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True).transpose(1, 2)

    inputs = qkv(2, 13, 13, (2 * group, 2), 24)
    assert_equal_to(lambda *x: definition(*x, causal=causal), torch_own, inputs)


def test_with_more_keys_than_queries_the_last_stand_together() -> None:
    """Decoding a piece at a time gives what the whole gives."""
    q, k, v = qkv(1, 12, 12, (2, 2), 16)
    whole = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)
    for begin, end in ((0, 5), (5, 6), (6, 12)):
        piece = definition(q[:, begin:end], k[:, :end], v[:, :end], causal=True)
        assert_close("piece", piece, whole[:, begin:end])


def test_a_window_sees_so_many_keys_with_its_own() -> None:
    """Uniform scores: the output is the mean of what is seen."""
    v = torch.eye(9)[None, :, None, :]
    q = torch.zeros(1, 9, 1, 9)
    seen = definition(q, q, v, causal=True, window=3)[0, :, 0] > 0
    assert seen.sum(1).tolist() == [1, 2, 3, 3, 3, 3, 3, 3, 3]
    assert (definition(q, q, v, window=3)[0, :, 0] > 0).sum(1).tolist() == [3, 4, 5, 5, 5, 5, 5, 4, 3]


LENGTHS = [3, 0, 37, 1, 16]


@pytest.mark.parametrize("rule", [RULES[0], RULES[2], RULES[4]], ids=str)
def test_packed_documents_are_as_each_alone(rule: dict[str, Any], device: str) -> None:
    cu = torch.tensor([0, *LENGTHS], device=device).cumsum(0).to(torch.int32)
    total = sum(LENGTHS)

    def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        parts = [definition(q[None, a:b], k[None, a:b], v[None, a:b], **rule)[0] for a, b in pairwise(cu.tolist())]
        return torch.cat(parts)

    inputs = [x[0] for x in qkv(1, total, total, (2, 1), 16, device=device)]
    assert_equal_to(lambda *x: definition(*x, cu_seqlens=cu, **rule), alone, inputs)
    assert_equal_to(lambda *x: flash_attention(*x, cu_seqlens=cu, **rule), alone, inputs)


def test_packed_queries_and_keys_of_other_lengths(device: str) -> None:
    cu = torch.tensor([0, 20, 20, 61], device=device)
    cu_k = torch.tensor([0, 35, 40, 70], device=device)
    inputs = [x[0] for x in qkv(1, 61, 70, (1, 1), 16, device=device)]
    kwargs: dict[str, Any] = {"cu_seqlens": cu, "cu_seqlens_k": cu_k, "causal": True}
    assert_equal_to(both(flash_attention, **kwargs), both(definition, **kwargs), inputs)


def test_more_documents_than_are_looked_up_at_once(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(attention_launch, "LOOKED_UP", 4)
    cu = torch.tensor([0, 1, 2, 2, 3, 20, 20, 21, 22, 23], device=device)
    inputs = [x[0] for x in qkv(1, 23, 23, (1, 1), 16, device=device)]
    assert_equal_to(lambda *x: flash_attention(*x, cu_seqlens=cu), lambda *x: definition(*x, cu_seqlens=cu), inputs)


def test_no_tile_outside_of_a_document_is_read(device: str) -> None:
    """NaN in one document stays in it, in values and gradients: its tiles are never even masked away."""
    cu = torch.tensor([0, 40, 60, 100], device=device)
    q, k, v = (x[0] for x in qkv(1, 100, 100, (1, 1), 16, device=device))
    for x in (q, k, v):
        x[40:60] = float("nan")
        x.requires_grad_()
    o = flash_attention(q, k, v, cu_seqlens=cu, causal=True)
    gradients = torch.autograd.grad(o, (q, k, v), torch.ones_like(o))
    for x in (o, *gradients):
        assert x[40:60].isnan().any() and not x[:40].isnan().any() and not x[60:].isnan().any()


def test_a_window_reads_no_tile_outside_of_it(device: str) -> None:
    q, k, v = qkv(1, 600, 600, (1, 1), 16, device=device)
    wide = tiles(hardware_of(q.device).capability, 16, q.dtype).forward.keys
    k[:, : 493 // wide * wide] = v[:, : 493 // wide * wide] = float("nan")  # queries 512 … see keys 493 …
    o = flash_attention(q, k, v, causal=True, window=20)
    assert not o[:, 512:].isnan().any()
    assert_close("o", o[:, 512:], definition(q[:, 512:], k[:, 493:], v[:, 493:], causal=True, window=20))


def test_heads_first_and_expanded_memory_is_read_where_it_lies(device: str) -> None:
    q, k, v = qkv(2, 10, 10, (2, 2), 16, device=device)
    for other in (
        [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)],
        list(torch.stack([q, k, v], dim=2).unbind(2)),
        [q, k[:1].expand_as(k), v[:1].expand_as(v)],
        [x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v)],
    ):
        assert_equal_to(both(flash_attention, causal=True), both(definition, causal=True), other)


@pytest.mark.parametrize("sizes", [(0, 3, 3), (1, 0, 3), (1, 3, 0)], ids=["no rows", "no queries", "no keys"])
def test_nothing_gives_nothing_and_zero_gradients(sizes: tuple[int, int, int], device: str) -> None:
    inputs = qkv(*sizes, (2, 1), 8, device=device)
    named = results(flash_attention, inputs)
    assert [tuple(x.shape) for _, x in named] == [tuple(inputs[0].shape), *(tuple(x.shape) for x in inputs)]
    assert not any(x.any() for _, x in named)
    packed = torch.zeros(1, dtype=torch.int32, device=device)
    assert flash_attention(*(x[:0].flatten(0, 1) for x in inputs), cu_seqlens=packed).shape == (0, 2, 8)


@pytest.mark.parametrize("scale", [-0.5, 0.0])
def test_a_scale_that_is_not_positive_turns_the_order_of_scores(scale: float, device: str) -> None:
    rule: dict[str, Any] = {"causal": True, "window": 20, "scale": scale}
    inputs = qkv(1, 50, 50, (1, 1), 16, device=device)
    assert_equal_to(both(flash_attention, **rule), both(definition, **rule), [2 * x for x in inputs])


@pytest.mark.parametrize("window", [2**31 - 1, 2**40])
def test_a_window_wider_than_any_sequence_leaves_nothing_out(window: int, device: str) -> None:
    """Sums of positions and window stay within int32."""
    inputs = qkv(1, 40, 50, (1, 1), 16, device=device)
    wide = results(lambda *x: flash_attention(*x, causal=True, window=window), inputs)
    for (name, got), (_, expected) in zip(
        wide, results(lambda *x: flash_attention(*x, causal=True), inputs), strict=True
    ):
        assert_close(name, got, expected)  # masked, and fused, in another order: not the same bits on a GPU


def test_nothing_derives_it_twice(device: str) -> None:
    assert_derived_once(flash_attention, qkv(1, 5, 5, (1, 1), 8, device=device))


@pytest.mark.parametrize("trained", ["q", "k", "v", "kv"])
def test_a_gradient_that_is_not_wanted_is_not_computed(
    trained: str, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    named = dict(zip("qkv", qkv(1, 20, 20, (2, 1), 16, device=device), strict=True))
    wanted = [x.requires_grad_() for name, x in named.items() if name in trained]
    expected = torch.autograd.grad(definition(*named.values(), causal=True).square().sum(), wanted)
    loss = flash_attention(*named.values(), causal=True).square().sum()
    monkeypatch.setattr(backward, "_backward_keys" if trained == "q" else "_backward_queries", None)
    for got, one in zip(torch.autograd.grad(loss, wanted), expected, strict=True):
        assert_close("gradient", got, one)


def test_under_autocast_it_is_in_the_dtype_of_autocast(device: str) -> None:
    """As torch's own attention: rotated queries and keys may be float32 beside values in half."""
    q, k, v = qkv(1, 6, 6, (1, 1), 16, device=device)
    expected = flash_attention(*(x.bfloat16() for x in (q, k, v)))
    q.requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        o = flash_attention(q, k, v.bfloat16())
    assert o.dtype == torch.bfloat16 and torch.equal(o, expected)
    (dq,) = torch.autograd.grad(o.sum(), q)
    assert dq.dtype == torch.float32


def test_scores_far_from_zero_do_not_overflow(device: str) -> None:
    q, k, v = qkv(1, 20, 40, (1, 1), 16, device=device)
    assert all(x.isfinite().all() for _, x in results(both(flash_attention), [q * 1e3, k * 1e3, v]))
    _, lse = flash_attention(q * 1e3, k * 1e3, v, return_lse=True)
    assert_close("lse", lse, definition(q * 1e3, k * 1e3, v, return_lse=True)[1])


def test_where_the_kernels_cannot_run_the_definition_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "use_kernel", lambda *_, **__: False)
    cu = torch.tensor([0, 4, 9])
    q, k, v = (x[0] for x in qkv(1, 9, 9, (2, 1), 8))
    rule: dict[str, Any] = {"causal": True, "window": 3, "softcap": 2.0, "scale": 0.4, "cu_seqlens": cu}
    got, expected = (function(q, k, v, return_lse=True, **rule) for function in (flash_attention, definition))
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


CARDS = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (13, 7)]


@pytest.mark.parametrize("capability", CARDS, ids=str)
@pytest.mark.parametrize("width", [1, 64, 96, 128, 256])
def test_every_tile_fits_its_card(capability: tuple[int, int], width: int) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        chosen = tiles(capability, width, dtype)
        for kernel in ("forward", "backward_keys", "backward_queries"):
            tile, head = getattr(chosen, kernel), head_block(width)
            assert shared_bytes(tile, kernel, head, dtype.itemsize) <= shared_limit(capability), (kernel, dtype)
            assert registers(tile, kernel, head) <= 160, (kernel, dtype)
            assert min(tile.queries, tile.keys) >= 16
            assert capability[0] != 9 or kernel != "forward" or dtype.itemsize > 2 or tile.queries >= 64


def test_hopper_holds_wider_tiles_than_ada_and_float32_narrower_ones() -> None:
    def scores(capability: tuple[int, int], dtype: torch.dtype) -> int:
        tile = tiles(capability, 128, dtype).forward
        return tile.queries * tile.keys

    assert scores((9, 0), torch.bfloat16) > scores((8, 9), torch.bfloat16)
    assert scores((9, 0), torch.bfloat16) > scores((9, 0), torch.float32)
    assert tiles((8, 0), 96, torch.float16) == tiles((8, 0), 128, torch.float16)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"q": torch.zeros(2, 4, 3, 8)}, "3 query heads cannot share 2 key heads; give a multiple"),
        ({"q": torch.zeros(2, 4, 8)}, r"q has shape \(2, 4, 8\); give \(B, S, H, D\)"),
        ({"v": torch.zeros(2, 5, 2, 8)}, r"v has shape \(2, 5, 2, 8\); wanted that of k, \(2, 4, 2, 8\)"),
        ({"q": torch.zeros(2, 4, 2, 9)}, r"k has shape \(2, 4, 2, 8\), q \(2, 4, 2, 9\)"),
        ({"k": torch.zeros(2, 4, 2, 8, dtype=torch.float16)}, "k is torch.float16, q torch.float32; give one dtype"),
        ({"window": 0}, "window is 0; a query sees at least itself"),
        ({"softcap": -1.0}, "softcap is -1.0; give a number above zero"),
        ({"cu_seqlens": torch.tensor([0, 4])}, r"q has shape \(2, 4, 2, 8\); give \(S, H, D\) with cu_seqlens"),
        ({"cu_seqlens_k": torch.tensor([0, 4])}, "cu_seqlens_k without cu_seqlens"),
        ({x: torch.zeros(2, 4, 2, 257) for x in "qkv"}, "heads of 257 values; give at most 256"),
        ({x: torch.zeros(2, 4, 2, 8).double() for x in "qkv"}, "q is torch.float64; give float32, float16 or bfloat16"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {x: torch.zeros(2, 4, 2, 8) for x in "qkv"}
    with pytest.raises(ValueError, match=f"flash_attention: {said}"):
        flash_attention(**(given | change))


@pytest.mark.parametrize(
    ("cu", "said"),
    [
        (torch.tensor([0, 3]), "cu_seqlens runs from 0 to 3; wanted 0 to 4, rising"),
        (torch.tensor([1, 4]), "cu_seqlens runs from 1 to 4; wanted 0 to 4, rising"),
        (torch.tensor([0, 3, 2, 4]), "rising"),
        (torch.zeros(2, dtype=torch.int32, device="meta"), "cu_seqlens is on meta, the tokens on cpu"),
        (torch.tensor([0]), "cu_seqlens names no document for 4 tokens; give one more end"),
        (torch.tensor([0.0, 4.0]), r"cu_seqlens is torch.float32 \(2,\); give int32 or int64"),
    ],
)
def test_documents_that_do_not_cover_the_tokens_are_named(cu: torch.Tensor, said: str) -> None:
    q = torch.zeros(4, 2, 8)
    with pytest.raises(ValueError, match=f"flash_attention: .*{said}"):
        flash_attention(q, q, q, cu_seqlens=cu)
