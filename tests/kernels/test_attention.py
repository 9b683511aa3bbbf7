"""The dispatcher: its decisions for cards that are not here, and every backend that runs here beside the definition."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from closeness import assert_close, assert_equal_to, results
from eager_attention import eager
from speechkit_kernels import attention_backends as backends
from speechkit_kernels.attention import CANDIDATES, Call, Case, Packing, Pages, Rule, attention, case_of, choose
from speechkit_kernels.attention_backends import available
from speechkit_kernels.launch import Support
from speechkit_kernels.reference.attention import attention as definition
from speechkit_kernels.reference.attention import paged_attention as paged_definition

if TYPE_CHECKING:
    from collections.abc import Callable

T4, A100, A10G, L4, H200, B200 = (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0)
HERE = ["flash", "sdpa_flash", "math"]  # on a CPU, under the interpreter; FlexAttention without gradients
HALVES = ("cudnn", "sdpa_flash", "varlen")  # on a GPU these take nothing wider


def card(capability: tuple[int, int], **kwargs: Any) -> Case:
    dtype = torch.float16 if capability == T4 else torch.bfloat16
    return Case(**({"capability": capability, "dtype": dtype, "training": True} | kwargs))


DECISIONS: list[tuple[str, Case, str]] = [
    ("H200 training, heads of 128", card(H200), "cudnn"),
    ("H200 training, heads of 64", card(H200, head_dim=64), "cudnn"),
    ("H200, short full table, heads of 64", card(H200, head_dim=64, mask="full", queries=576, keys=576), "sdpa_flash"),
    ("H200, short causal table", card(H200, head_dim=64, queries=576, keys=576), "cudnn"),
    ("H200, heads of 256", card(H200, head_dim=256), "sdpa_flash"),
    ("H200, long packed documents", card(H200, packed=True, batch=8), "flex"),
    ("H200, short packed documents", card(H200, packed=True, batch=80, queries=200, keys=200), "varlen"),
    ("H200, window", card(H200, mask="window"), "flex"),
    ("H200, soft cap", card(H200, softcap=True), "flash"),
    ("H200, float32", card(H200, dtype=torch.float32), "sdpa_efficient"),
    ("H200, float64", card(H200, dtype=torch.float64), "math"),
    ("H200, a piece of a prompt", card(H200, queries=100, keys=900, training=False), "varlen"),
    ("H200, decoding", card(H200, queries=1, keys=900, mask="full", training=False), "sdpa_flash"),
    ("H200, decoding from pages", card(H200, queries=1, keys=900, mask="full", training=False, paged=True), "paged"),
    ("H200, a mask of one's own", card(H200, mask="given"), "sdpa_efficient"),
    ("A100 training, heads of 128", card(A100), "sdpa_flash"),
    ("A100, packed documents", card(A100, packed=True), "varlen"),
    ("A100, window", card(A100, mask="window"), "varlen"),
    ("A100, soft cap", card(A100, softcap=True), "flash"),
    ("A100, heads of 100", card(A100, head_dim=100), "flash"),
    ("A10G", card(A10G), "sdpa_flash"),
    ("L4", card(L4), "sdpa_flash"),
    ("L4 training, heads of 256", card(L4, head_dim=256), "flash"),
    ("B200", card(B200), "cudnn"),
    ("T4", card(T4), "sdpa_efficient"),
    ("T4, packed documents", card(T4, packed=True), "sdpa_efficient"),
    ("T4, window", card(T4, mask="window"), "sdpa_efficient"),
    ("T4, soft cap", card(T4, softcap=True), "math"),
    ("T4, bfloat16", card(T4, dtype=torch.bfloat16), "math"),
    ("T4, decoding from pages, one key head each", card(T4, paged=True, training=False), "paged"),
    ("T4, decoding from pages, shared key heads", card(T4, paged=True, training=False, kv_heads=8), "math"),
    ("an unknown NVIDIA card", card((13, 0)), "sdpa_flash"),
    ("an old NVIDIA card", card((6, 1), dtype=torch.float16), "sdpa_efficient"),
    ("an unknown GPU", Case("xpu"), "math"),
    ("an AMD GPU", Case("cuda", None), "math"),
    ("CPU", Case("cpu", dtype=torch.float32), "sdpa_flash"),
    ("CPU, packed documents", Case("cpu", dtype=torch.float32, packed=True), "sdpa_flash"),
    ("CPU, window", Case("cpu", dtype=torch.float32, mask="window"), "sdpa_flash"),
    ("CPU, soft cap", Case("cpu", dtype=torch.float32, softcap=True), "math"),
    ("CPU, decoding from pages", Case("cpu", dtype=torch.float32, paged=True), "math"),
    ("CPU, more queries than keys", Case("cpu", dtype=torch.float32, queries=9, keys=5), "math"),
]


@pytest.mark.parametrize(("case", "name"), [row[1:] for row in DECISIONS], ids=[row[0] for row in DECISIONS])
def test_the_decision(case: Case, name: str) -> None:
    choice = choose(case)
    assert choice.name == name, choice.explain()
    assert choice.reason
    assert [verdict.name for verdict in choice.verdicts] == list(CANDIDATES)
    assert all(verdict.usable or verdict.reason for verdict in choice.verdicts)
    assert next(verdict for verdict in choice.verdicts if verdict.name == name).usable


def test_a_t4_uses_no_product_of_triton_and_nothing_that_needs_ampere() -> None:
    usable = {verdict.name for verdict in choose(card(T4)).verdicts if verdict.usable}
    assert usable == {"sdpa_efficient", "math"}


def test_what_is_not_there_is_passed_over_and_named() -> None:
    have = {"cudnn": Support(False, "this build of torch leaves it out")}
    choice = choose(card(H200), have)
    assert choice.name == "sdpa_flash"
    assert "cudnn           no      this build of torch leaves it out" in choice.explain()
    alone = {name: Support(False, "gone") for name in CANDIDATES if name != "math"}
    assert choose(card(H200), alone).name == "math"


def test_explain_prints_every_candidate_and_one_choice() -> None:
    text = choose(card(A100, kv_heads=8, packed=True)).explain()
    first, *lines = text.splitlines()
    assert first == "attention on sm_80: bfloat16, batch 1, 2048 queries, 2048 keys, 32 heads over 8 of 128, " \
                    "causal, training, packed"  # fmt: skip
    lines = [line.strip() for line in lines]
    assert [line.split()[0] for line in lines] == list(CANDIDATES)
    assert [line.split()[1] for line in lines].count("chosen") == 1
    assert "cudnn           usable  one call a document" in lines
    assert "paged           no      keys and values are not in pages" in lines


def inputs(queries: int, keys: int, heads: int, kv_heads: int, **kwargs: Any) -> list[torch.Tensor]:
    sizes = [(queries, heads), (keys, kv_heads), (keys, kv_heads)]
    return [torch.randn(2, n, h, 16).to(**kwargs) for n, h in sizes]


def test_the_case_is_read_off_the_tensors(device: str) -> None:
    q, k, v = inputs(5, 9, 4, 2, device=device)
    case = case_of(q, k, v, Call(Rule(causal=True, window=3)))
    assert (case.queries, case.keys, case.heads, case.kv_heads, case.batch, case.head_dim) == (5, 9, 4, 2, 2, 16)
    assert case.mask == "window" and not (case.training or case.packed or case.paged or case.softcap)
    assert case_of(q, k, v, Call(Rule(causal=True, window=9))).mask == "causal", "a window that leaves nothing out"
    assert case_of(q[:, :1], k, v, Call(Rule(causal=True))).mask == "full", "one query sees all before it"
    assert case_of(q.requires_grad_(), k, v, Call(Rule(softcap=2.0))).training
    with torch.no_grad():
        assert not case_of(q, k, v, Call(Rule())).training
    packed = case_of(q[0], k[0, :5], v[0, :5], Call(Rule(), Packing.of([2, 3])))
    assert (packed.queries, packed.keys, packed.batch, packed.packed) == (3, 3, 2, True)


RULES: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"causal": True, "window": 4},
    {"window": 3, "scale": 0.3},
    {"causal": True, "softcap": 2.0},
]


ABLE = [
    pytest.param("cpu", name, rule, id=f"{name}-{rule}")
    for name in HERE
    for rule in RULES
    if name != "sdpa_flash" or "softcap" not in rule
] + [
    pytest.param("cuda", name, rule, id=f"cuda-{name}-{rule}", marks=pytest.mark.gpu)
    for name in CANDIDATES
    for rule in RULES
    if name != "paged"
]


def usable_inputs(backend: str, given: list[torch.Tensor], call: Call) -> list[torch.Tensor]:
    """Those of `given` in a dtype that the backend takes; a skip where this card or build of torch has not got it."""
    if given[0].is_cuda and backend in HALVES:
        given = [x.bfloat16() for x in given]
    leaves = [x.detach().requires_grad_() for x in given]
    verdicts = choose(case_of(*leaves, call), available(leaves[0].device)).verdicts
    verdict = next(verdict for verdict in verdicts if verdict.name == backend)
    if not verdict.usable:
        pytest.skip(f"{backend}: {verdict.reason}")
    return given


@pytest.mark.parametrize(("device", "backend", "rule"), ABLE, indirect=["device"])
def test_each_backend_packed_is_each_document_alone_in_values_and_gradients(
    device: str, backend: str, rule: dict[str, Any]
) -> None:
    packing = Packing.of([5, 0, 17, 1], device)

    def alone(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        ends = list(pairwise(packing.cu_seqlens.tolist()))
        return lambda *x: torch.cat([function(*(one[None, a:b] for one in x), **rule)[0] for a, b in ends])

    given = usable_inputs(backend, [x[0] for x in inputs(23, 23, 2, 1, device=device)], Call(Rule(**rule), packing))
    ours = partial(attention, packing=packing, backend=backend, **rule)
    assert_equal_to(ours, alone(definition), given, alone(eager))


@pytest.mark.parametrize(("device", "backend", "rule"), ABLE, indirect=["device"])
@pytest.mark.parametrize("queries", [11, 6, 1])
def test_each_backend_dense_is_the_definition_in_values_and_gradients(
    device: str, backend: str, rule: dict[str, Any], queries: int
) -> None:
    if (device, backend) == ("cuda", "flex") and queries < 11:
        pytest.skip("FlexAttention is compiled for half a minute; fewer queries are in test_flex_attention")
    given = usable_inputs(backend, inputs(queries, 11, 2, 1, device=device), Call(Rule(**rule)))
    ours = partial(attention, backend=backend, **rule)
    assert_equal_to(ours, partial(definition, **rule), given, partial(eager, **rule))


@pytest.mark.parametrize("rule", RULES[2:], ids=str)
def test_flex_attention_packed_and_dense(rule: dict[str, Any], device: str) -> None:
    q, k, v = inputs(14, 14, 4, 2, device=device)
    got = attention(q[:, 3:], k, v, backend="flex", **rule)
    assert_close("dense", got, definition(q[:, 3:], k, v, **rule))
    packing = Packing.of([5, 0, 1, 8], device)
    got = attention(q[0], k[0], v[0], packing=packing, backend="flex", **rule)
    assert_close("packed", got, definition(q[0], k[0], v[0], cu_seqlens=packing.cu_seqlens, **rule))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_what_is_chosen_is_right_packed_and_dense(rule: dict[str, Any], device: str) -> None:
    """On whatever this machine has, through cu_seqlens as well."""
    given = inputs(9, 9, 2, 2, device=device)
    assert_equal_to(lambda *x: attention(*x, **rule), lambda *x: definition(*x, **rule), given)
    cu = torch.tensor([0, 4, 9], device=device)
    assert_equal_to(
        lambda *x: attention(*x, packing=cu, **rule),
        lambda *x: definition(*x, cu_seqlens=cu, **rule),
        [x[0] for x in given],
    )


def test_what_is_kept_from_inference_mode_serves_training(device: str) -> None:
    """A model validated before it is trained: tensors of that mode cannot be saved for a backward pass."""
    backends._block_mask.cache_clear()
    with torch.inference_mode():
        backends._block_mask(True, 3, 256, 256, torch.device(device), None)
        even = backends._even(2, 5, torch.device(device))
    assert not backends._block_mask(True, 3, 256, 256, torch.device(device), None).kv_num_blocks.is_inference()
    assert backends._block_mask.cache_info().hits == 1
    assert even.tolist() == [0, 5, 10] and not backends._even(2, 5, torch.device(device)).is_inference()


def test_under_autocast_it_is_in_the_dtype_of_autocast(device: str) -> None:
    q, k, v = inputs(9, 9, 2, 2, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        o = attention(q, k, v.bfloat16(), causal=True)
    assert o.dtype == torch.bfloat16
    assert torch.equal(o, attention(*(x.bfloat16() for x in (q, k, v)), causal=True))


def test_a_document_does_not_feel_its_neighbours(device: str) -> None:
    q, k, v = (x[0] for x in inputs(20, 20, 2, 2, device=device))
    packing = Packing.of([8, 12], device)
    before = attention(q, k, v, causal=True, packing=packing)
    k[:8], v[:8] = torch.randn(2, 8, 2, 16, device=device)
    after = attention(q, k, v, causal=True, packing=packing)
    assert torch.equal(before[8:], after[8:]) and not torch.equal(before[:8], after[:8])


def test_a_mask_of_ones_own(device: str) -> None:
    q, k, v = inputs(6, 9, 2, 2, device=device)
    mask = torch.rand(2, 1, 6, 9, device=device) < 0.6
    mask[..., 0] = True
    assert_equal_to(lambda *x: attention(*x, mask=mask), lambda *x: definition(*x, mask=mask), [q, k, v])


def test_pages(device: str) -> None:
    k, v = torch.randn(2, 5, 4, 2, 16, device=device)
    pages = Pages(torch.tensor([[3, 1], [0, -1]], device=device), torch.tensor([7, 2], device=device))
    q = torch.randn(2, 4, 16, device=device)
    truth = paged_definition(q, k, v, pages.block_table, pages.lengths, window=5)
    assert_close("chosen", attention(q, k, v, pages=pages, window=5), truth)
    assert_close("kernel", attention(q, k, v, pages=pages, window=5, backend="paged"), truth)


def test_nothing_gives_nothing(device: str) -> None:
    empty = torch.zeros(2, 0, 2, 16, device=device)
    assert all(x.shape == empty.shape for _, x in results(attention, [empty, empty, empty]))
    assert attention(empty[0], empty[0], empty[0], packing=Packing.of([], device)).shape == (0, 2, 16)


def test_lengths_and_ends_make_the_same_packing() -> None:
    one, other = Packing.of([3, 0, 2]), Packing.of(torch.tensor([0, 3, 3, 5]))
    assert one.lengths == other.lengths == (3, 0, 2)
    assert torch.equal(one.cu_seqlens, other.cu_seqlens) and one.cu_seqlens.dtype == torch.int32
    assert (one.tokens, one.longest) == (5, 3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda q: attention(q, q, q, backend="cudnn"), "backend 'cudnn' cannot do this; give one of .*math"),
        (lambda q: attention(q, q, q, backend="fast"), "backend 'fast' cannot do this"),
        (lambda q: attention(q[0], q[0], q[0], packing=Packing.of([2])), "3 queries and 3 keys, packing has 2 tokens"),
        (
            lambda q: attention(q[0], q[0], q[0], packing=Packing.of([3], "meta")),
            "packing is on meta, q on cpu; put them on one device",
        ),
        (lambda q: attention(q[0], q[0], q[0]), r"q has shape \(3, 2, 8\); give \(B, S, H, D\)"),
        (
            lambda q: attention(q[0], q[0], q[0], packing=Packing.of([3]), mask=torch.ones(3, 3).bool()),
            "a mask beside packing or pages; give one of them",
        ),
        (lambda q: Packing.of(torch.tensor([1, 3])), r"Packing: cu_seqlens is \[1, 3\]"),
    ],
)
def test_what_does_not_fit_is_named(call: Callable[[torch.Tensor], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(torch.zeros(1, 3, 2, 8))


def test_a_case_can_be_changed_and_asked_again() -> None:
    case = card(H200)
    assert choose(replace(case, capability=A100)).name != choose(case).name
