"""rope beside its definition, and the definition beside transformers' for Llama, GPT-J and Cohere."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from closeness import assert_close, assert_derived_once, assert_equal_to
from speechkit_kernels.reference.rope import rope as definition
from speechkit_kernels.rope import rope

if TYPE_CHECKING:
    from collections.abc import Callable


def table(rows: int, rotary: int, layout: str = "half") -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of positions 0, 1, …: (P, R) for "half" and "interleaved", (P, R/2) for "pairs"."""
    angles = torch.arange(rows)[:, None] * 100.0 ** (-torch.arange(0, rotary, 2) / rotary)
    if layout == "half":
        angles = torch.cat([angles, angles], dim=-1)
    if layout == "interleaved":
        angles = angles.repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def both(function: Callable[..., Any], cos: torch.Tensor, sin: torch.Tensor, **options: Any) -> Callable[..., Any]:
    """`function` of q and k alone; cosines as they are, whatever becomes of q."""
    return lambda q, k: function(q, k, cos, sin, **options)


def test_the_definition_is_that_of_llama() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k = torch.randn(2, 4, 7, 16), torch.randn(2, 2, 7, 16)
    cos, sin = (x.unflatten(0, (2, 7)) for x in table(14, 16))
    for ours, theirs in zip(definition(q, k, cos, sin), apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        assert_close("turned", ours, theirs)


def test_the_definition_of_the_interleaved_layout_is_that_of_gptj_and_cohere() -> None:
    from transformers.models.cohere import modeling_cohere as cohere
    from transformers.models.gptj import modeling_gptj as gptj

    q, k = torch.randn(2, 3, 7, 12), torch.randn(2, 3, 7, 12)
    cos, sin = (x.unflatten(0, (2, 7)) for x in table(14, 12, "pairs"))
    ours = definition(q, k, cos, sin, rotary_dim=12, interleaved=True)
    for one, x in zip(ours, (q, k), strict=True):
        assert_close("GPT-J", one, gptj.apply_rotary_pos_emb(x.transpose(1, 2), sin, cos).transpose(1, 2))
    wide = [x.repeat_interleave(2, dim=-1) for x in (cos, sin)]
    expected = cohere.apply_rotary_pos_emb(q, k, *wide)
    for one, theirs in zip(definition(q, k, *wide, interleaved=True), expected, strict=True):
        assert_close("Cohere", one, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["half", "interleaved", "pairs"])
@pytest.mark.parametrize(
    ("shape", "k_heads", "rotary"),
    [((2, 4, 5, 16), 2, 16), ((1, 3, 3, 20), 1, 12), ((2, 5, 1, 6), 5, 2), ((1, 1, 4, 80), 1, 80)],
    ids=["grouped", "partial", "one token", "width 80"],
)
def test_values_and_gradients_are_those_of_the_definition(
    shape: tuple[int, ...], k_heads: int, rotary: int, layout: str, dtype: torch.dtype, device: str
) -> None:
    q = torch.randn(shape).to(device, dtype)
    k = torch.randn(shape[0], k_heads, *shape[2:]).to(device, dtype)
    cos, sin = (x.to(device) for x in table(shape[2], rotary, layout))
    options = {"interleaved": layout != "half", "rotary_dim": rotary}
    assert_equal_to(both(rope, cos, sin, **options), both(definition, cos, sin, **options), [q, k])


def test_more_heads_than_a_program_holds_at_a_time_all_turn(device: str) -> None:
    q, k = torch.randn(1, 37, 2, 256, device=device).half(), torch.randn(1, 19, 2, 256, device=device).half()
    cos, sin = (x.to(device) for x in table(2, 256))
    assert_equal_to(both(rope, cos, sin), both(definition, cos, sin), [q, k])


def test_projections_are_turned_where_they_lie_and_keep_their_strides(device: str) -> None:
    whole = torch.randn(2, 5, 6 * 8, device=device).view(2, 5, 6, 8).transpose(1, 2)
    q, k = whole[:, :4], whole[:, 4:]
    cos, sin = (x.to(device) for x in table(5, 8))
    found = rope(q, k, cos, sin)
    for ours, theirs in zip(found, definition(q, k, cos, sin), strict=True):
        assert_close("turned", ours, theirs)
    assert found[0].stride(2) > found[0].stride(1)  # tokens apart, heads beside each other: no transposed copy
    odd = torch.randn(2, 8, 5, 4, device=device).transpose(1, 3)  # columns apart
    assert_equal_to(both(rope, cos[:5], sin[:5]), both(definition, cos[:5], sin[:5]), [odd, odd.expand(2, 4, 5, 8)])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_packed_positions_equal_each_sequence_alone(dtype: torch.dtype, device: str) -> None:
    q, k = torch.randn(1, 4, 9, 8, device=device), torch.randn(1, 2, 9, 8, device=device)
    cos, sin = (x.to(device) for x in table(6, 8))
    positions = torch.cat([torch.arange(4), torch.arange(5)]).to(device, dtype)
    packed = rope(q, k, cos, sin, positions=positions)
    for part in (slice(0, 4), slice(4, 9)):
        n = part.stop - part.start
        alone = rope(q[:, :, part], k[:, :, part], cos[:n], sin[:n])
        for whole, one in zip(packed, alone, strict=True):
            torch.testing.assert_close(whole[:, :, part], one, rtol=0, atol=1e-6)  # compiled twice, fused in two ways


def test_each_row_may_have_its_own_positions_and_one_beyond_the_table_is_nan(device: str) -> None:
    q, k = torch.randn(2, 3, 4, 8, device=device), torch.randn(2, 3, 4, 8, device=device)
    cos, sin = (x.to(device) for x in table(10, 8, "interleaved"))
    positions = torch.tensor([[0, 3, 9, 1], [2, 2, 7, 5]], device=device)
    options = {"positions": positions, "interleaved": True}
    assert_equal_to(both(rope, cos, sin, **options), both(definition, cos, sin, **options), [q, k])
    positions[1, 2], positions[0, 0] = 10, -1
    turned, _ = rope(q, k, cos, sin, positions=positions)
    assert turned.isnan().all(dim=(1, 3)).tolist() == [[True, False, False, False], [False, False, True, False]]


def test_cosines_of_each_row_and_of_all_rows_transposed_or_expanded_are_read(device: str) -> None:
    q, k = torch.randn(2, 3, 4, 8, device=device), torch.randn(2, 3, 4, 8, device=device)
    cos, sin = (x.to(device).unflatten(0, (2, 4)) for x in table(8, 8))
    for c, s in ((cos, sin), (cos[:1], sin[:1]), (cos.transpose(0, 1).contiguous().transpose(0, 1), sin)):
        for ours, theirs in zip(rope(q, k, c, s), definition(q, k, c, s), strict=True):
            assert_close("turned", ours, theirs)


@pytest.mark.parametrize("interleaved", [False, True])
def test_in_place_writes_over_q_and_k_and_the_gradient_is_the_same(interleaved: bool, device: str) -> None:
    x = torch.randn(2, 5, 6, 8, device=device, requires_grad=True)
    cos, sin = (t.to(device) for t in table(5, 4, "interleaved" if interleaved else "half"))

    def through(function: Callable[..., Any]) -> tuple[Any, Any, Any]:
        whole = (x * 2).transpose(1, 2)  # multiplication keeps x, not its product: nothing is lost
        q, k = whole.split([4, 2], dim=1)
        a, b = function(q, k, cos, sin, interleaved=interleaved)
        return whole, (a, b), torch.autograd.grad(a.square().sum() + (b**3).sum(), x)[0]

    whole, turned, gradient = through(partial(rope, inplace=True))
    _, expected, wanted = through(definition)
    for ours, theirs in zip(turned, expected, strict=True):
        assert_close("turned", ours.detach(), theirs.detach())
    assert torch.equal(whole, torch.cat(turned, dim=1))
    assert_close("gradient", gradient, wanted)


def test_in_place_over_what_an_earlier_operation_kept_is_an_error_not_a_wrong_gradient(device: str) -> None:
    x = torch.randn(1, 2, 3, 4, device=device, requires_grad=True)
    q = x.exp()  # keeps its result for its gradient
    turned, _ = rope(q, torch.zeros(1, 2, 3, 4, device=device), *(t.to(device) for t in table(3, 4)), inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        turned.sum().backward()


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 2, 0, 4)], ids=str)
def test_no_tokens_give_no_tokens(shape: tuple[int, ...], device: str) -> None:
    q = torch.zeros(shape, device=device, requires_grad=True)
    turned, _ = rope(q, q.detach(), *(x.to(device) for x in table(shape[2], 4)))
    turned.sum().backward()
    assert turned.shape == shape and q.grad is not None


def test_where_no_kernel_runs_the_definition_does_with_the_same_words(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    q, k = torch.randn(2, 3, 4, 8, device=device), torch.randn(2, 1, 4, 8, device=device)
    cos, sin = (x.to(device) for x in table(9, 6, "pairs"))
    options = {"positions": torch.tensor([8, 0, 1, 5], device=device), "rotary_dim": 6, "interleaved": True}
    expected = rope(q, k, cos, sin, **options)
    monkeypatch.setattr("speechkit_kernels.rope.use_kernel", lambda *_, **__: False)
    for ours, theirs in zip(rope(q, k, cos, sin, **options, inplace=True), expected, strict=True):
        assert_close("turned", ours, theirs)


Q = torch.zeros(2, 4, 3, 8)
FLAT = torch.zeros(3, 8)


def test_q_and_k_that_share_heads_cannot_be_turned_in_place(device: str) -> None:
    cos, sin = (x.to(device) for x in table(5, 8))
    whole = torch.randn(2, 5, 6, 8, device=device).transpose(1, 2)
    for q, k in ((whole, whole), (whole[:, :4], whole[:, 3:]), (whole[:, 2:], whole[:, :3])):
        with pytest.raises(ValueError, match="rope: q and k are the same memory, which would turn twice"):
            rope(q, k, cos, sin, inplace=True)
    expected = definition(whole[:, 2:], whole[:, :2], cos, sin)
    for ours, theirs in zip(rope(whole[:, 2:], whole[:, :2], cos, sin, inplace=True), expected, strict=True):
        assert_close("turned", ours, theirs)


def test_it_is_derived_once(device: str) -> None:
    cos, sin = (x.to(device) for x in table(5, 8))
    assert_derived_once(both(rope, cos, sin), [torch.randn(1, 2, 5, 8, device=device) for _ in range(2)])


@pytest.mark.parametrize(
    ("q", "k", "cos", "options", "said"),
    [
        (Q[0], Q, FLAT, {}, r"q is \(4, 3, 8\), k \(2, 4, 3, 8\); give \(B, Hq, S, D\)"),
        (Q, Q[:, :, :2], FLAT, {}, r"q is \(2, 4, 3, 8\), k \(2, 4, 2, 8\)"),
        (Q, Q, torch.zeros(3, 10), {}, "10 columns of 8 cannot turn; give an even number up to 8"),
        (Q, Q, torch.zeros(3, 8), {"rotary_dim": 3}, "3 columns of 8 cannot turn"),
        (Q, Q, torch.zeros(3, 6), {"rotary_dim": 8}, r"cos is \(3, 6\), .* with 8 or 4 columns"),
        (Q, Q, torch.zeros(4, 8), {}, r"cos is \(4, 8\); q of 2 rows and 3 tokens wants \(2 or 1, 3, R\)"),
        (Q, Q, FLAT[None], {"positions": torch.arange(3)}, r"with positions cos is a table \(P, R\), not \(1, 3, 8\)"),
        (Q, Q, FLAT, {"positions": torch.zeros(3)}, "positions are torch.float32 on cpu; give integers"),
        (Q, Q, FLAT, {"positions": torch.arange(4)}, r"positions have shape \(4,\); wanted \(2 or 1, 3\)"),
        (Q.long(), Q, FLAT, {}, "q is torch.int64; give float32, float16"),
        (Q, Q.to("meta"), FLAT, {}, "k is on meta, q on cpu; put them on one device"),
        (Q[:1].expand(2, 4, 3, 8), Q, FLAT, {"inplace": True}, "q is expanded"),
        (Q, Q.clone().requires_grad_(), FLAT, {"inplace": True}, "k is a leaf that wants its gradient"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=f"rope: {said}"):
        rope(q, k, cos, cos, **options)
