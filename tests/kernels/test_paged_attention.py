"""paged_attention beside its definition, and the definition beside torch on the tokens laid side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import assert_close
from speechkit_kernels import paged_attention as module
from speechkit_kernels.attention_rule import Rule
from speechkit_kernels.paged_attention import paged_attention, parts
from speechkit_kernels.reference.attention import paged_attention as definition


def cache(
    lengths: list[int], page: int, kv_heads: int, width: int, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, ...]:
    """Keys, values (pages, page, Hk, D) in shuffled pages, their table and lengths; the rest is NaN."""
    needed = [-(-n // page) for n in lengths]
    pages = torch.randperm(sum(needed) + 2)
    k, v = torch.full((2, len(pages), page, kv_heads, width), float("nan"))
    table = torch.full((len(lengths), max([*needed, 1])), -1, dtype=torch.int32)
    taken = 0
    for row, (n, many) in enumerate(zip(lengths, needed, strict=True)):
        table[row, :many] = pages[taken : taken + many]
        for at in range(n):
            here = table[row, at // page], at % page
            k[here], v[here] = torch.randn(2, kv_heads, width)
        taken += many
    return k.to(device, dtype), v.to(device, dtype), table.to(device), torch.tensor(lengths, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [(2, 2), (6, 2)], ids=["a key head each", "three query heads to a key head"])
@pytest.mark.parametrize("rule", [{}, {"window": 5}, {"softcap": 3.0, "scale": 0.5}], ids=str)
def test_values_are_those_of_the_definition(
    heads: tuple[int, int], dtype: torch.dtype, rule: dict[str, Any], device: str
) -> None:
    k, v, table, lengths = cache([1, 70, 0, 9], 8, heads[1], 24, dtype, device)
    q = torch.randn(4, heads[0], 24).to(device, dtype)
    got = paged_attention(q, k, v, table, lengths, **rule)
    truth = definition(q.float(), k.float(), v.float(), table, lengths, **rule)
    assert_close("o", got, truth, definition(q, k, v, table, lengths, **rule))
    assert not got[2].any()


@pytest.mark.parametrize("length", [1, 64, 65, 333])
@pytest.mark.parametrize("window", [None, 100])
def test_a_sequence_cut_into_parts_comes_out_as_whole(length: int, window: int | None, device: str) -> None:
    k, v, table, lengths = cache([length, 0, 200], 16, 1, 32, torch.float32, device)
    q = torch.randn(3, 2, 32, device=device)
    whole = module._launch(q, k, v, table, lengths, Rule(window=window), 1)
    for cut in (2, 3, 7):
        assert_close(f"{cut} parts", module._launch(q, k, v, table, lengths, Rule(window=window), cut), whole)
    assert_close("definition", whole, definition(q, k, v, table, lengths, window=window))


@pytest.mark.parametrize(
    ("capability", "dtype", "group", "product"),
    [
        ((9, 0), torch.bfloat16, 1, True),
        ((8, 0), torch.float16, 1, True),
        ((8, 0), torch.float32, 1, False),
        ((8, 0), torch.float32, 4, True),
        ((7, 5), torch.float16, 1, False),
        (None, torch.float16, 1, False),
    ],
)
def test_scores_are_products_where_there_are_tensor_cores_or_heads_enough(
    capability: tuple[int, int] | None, dtype: torch.dtype, group: int, product: bool
) -> None:
    assert module.by_product(capability, dtype, group) is product


@pytest.mark.parametrize("cut", [1, 3])
def test_a_key_head_to_each_query_head_by_products_as_on_tensor_cores(
    cut: int, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    k, v, table, lengths = cache([70, 0, 333], 16, 2, 24, torch.float32, device)
    q = torch.randn(3, 2, 24, device=device)
    monkeypatch.setattr(module, "by_product", lambda *_: True)
    got = module._launch(q, k, v, table, lengths, Rule(), cut)
    assert_close("o", got, definition(q, k, v, table, lengths))


def test_the_definition_is_that_of_torch_on_tokens_side_by_side() -> None:
    k, v, table, lengths = cache([13, 4], 4, 2, 16, torch.float32, "cpu")
    q = torch.randn(2, 4, 16)
    for row, n in enumerate(lengths.tolist()):
        near = [torch.stack([x[table[row, at // 4], at % 4] for at in range(n)], 1)[None] for x in (k, v)]
        expected = torch.nn.functional.scaled_dot_product_attention(q[row, None, :, None], *near, enable_gqa=True)
        assert_close("o", definition(q, k, v, table, lengths)[row], expected[0, :, 0])


def test_a_layer_of_a_larger_cache_is_read_where_it_lies(device: str) -> None:
    k, v, table, lengths = cache([20], 4, 2, 16, torch.float32, device)
    both = torch.stack([k, v], dim=2)  # (pages, page, 2, Hk, D)
    q = torch.randn(16, 1, 2, device=device).permute(1, 2, 0)
    got = paged_attention(q, both[:, :, 0], both[:, :, 1], table, lengths)
    assert_close("o", got, definition(q, k, v, table, lengths))


def test_a_long_cache_for_few_sequences_is_cut_and_for_many_is_not() -> None:
    assert parts(rows=8, keys=32_768, multiprocessors=132) == 33
    assert parts(rows=1, keys=131_072, multiprocessors=132) == 64
    assert parts(rows=1, keys=300, multiprocessors=132) == 1
    assert parts(rows=512, keys=32_768, multiprocessors=132) == 1
    assert parts(rows=0, keys=0, multiprocessors=132) == 1


ALL = {"q": (2, 4, 16), "k_cache": (3, 4, 2, 16), "v_cache": (3, 4, 2, 16)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"q": torch.zeros(2, 3, 16)}, "3 query heads cannot share 2 key heads"),
        ({"q": torch.zeros(2, 4, 16, dtype=torch.float16)}, "q is torch.float16, the cache torch.float32"),
        ({"lengths": torch.ones(3, dtype=torch.int32)}, r"lengths has shape \(3,\); wanted \(2,\)"),
        ({"block_table": torch.zeros(1, 2, dtype=torch.int32)}, r"block_table has shape \(1, 2\); wanted \(2, pages"),
        ({"q": torch.zeros(2, 4, 16, requires_grad=True)}, "has no backward"),
        ({"window": 0}, "window is 0; a query sees at least itself, give 1 or more"),
        ({"softcap": 0.0}, "softcap is 0.0; give a number above zero, or None"),
        (
            {name: torch.zeros(shape).double() for name, shape in ALL.items()},
            "q is torch.float64; give float32, float16 or bfloat16",
        ),
        ({"q": torch.zeros(2, 4, 8)}, r"k_cache has shape \(3, 4, 2, 16\); wanted \(3, 4, 2, 8\)"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {name: torch.zeros(shape) for name, shape in ALL.items()}
    given |= {"block_table": torch.zeros(2, 2, dtype=torch.int32), "lengths": torch.ones(2, dtype=torch.int32)}
    with pytest.raises(ValueError, match=f"paged_attention: {said}"):
        paged_attention(**(given | change))


def test_no_sequences_give_none(device: str) -> None:
    k, v, _, _ = cache([3], 4, 1, 16, torch.float32, device)
    empty = torch.zeros(0, 2, dtype=torch.int32, device=device)
    assert paged_attention(torch.zeros(0, 1, 16, device=device), k, v, empty, empty[:, 0]).shape == (0, 1, 16)
