"""nf4 beside bitsandbytes on a CPU, bit for bit: codes, nested absmax, values of definition and kernels; bad input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from closeness import assert_close
from speechkit_kernels.nf4 import NF4Weight, nf4_dequantise, nf4_quantise
from speechkit_kernels.reference import nf4 as definition

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPES = [(1, 1), (3, 5), (5, 64), (5, 130), (96, 70), (33, 71), (260, 68)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def theirs() -> Iterator[Any]:
    functional = pytest.importorskip("bitsandbytes.functional")
    with torch.compiler.set_stance("force_eager"):  # it compiles its own fallback for odd widths
        yield functional


def uneven(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Normal numbers whose size differs from block to block, so that nested absmax use many of their levels."""
    return (torch.randn(shape) * torch.rand(shape[0], 1) ** 3).to(dtype)


def same_bits(ours: NF4Weight, packed: torch.Tensor, state: Any) -> None:
    assert torch.equal(ours.packed, packed.reshape(-1))
    assert torch.equal(ours.absmax, state.absmax)
    assert (ours.nested is None) == (state.state2 is None)
    if ours.nested is not None:
        assert torch.equal(ours.nested.peak, state.state2.absmax)
        assert torch.equal(ours.nested.levels, state.state2.code)
        assert torch.equal(ours.nested.offset, state.offset)


def test_the_levels_are_those_of_bitsandbytes(theirs: Any) -> None:
    assert torch.equal(definition.nf4_levels(), theirs.get_4bit_type("nf4", "cpu"))
    assert torch.equal(definition.dynamic_levels(), theirs.create_dynamic_map())


@pytest.mark.parametrize("quantise", [nf4_quantise, definition.nf4_quantise], ids=["kernel", "definition"])
@pytest.mark.parametrize("nested", [True, False], ids=["nested", "plain"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantising_gives_the_bits_of_bitsandbytes(
    shape: tuple[int, int], dtype: torch.dtype, nested: bool, quantise: Any, theirs: Any
) -> None:
    weight = uneven(shape, dtype)
    packed, state = theirs.quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
    same_bits(quantise(weight.to("cpu"), nested=nested), packed, state)


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "plain"])
@pytest.mark.parametrize("grid", [True, False], ids=["on the grid", "nearest"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_gives_the_definitions_bits(shape: tuple[int, int], grid: bool, nested: bool, device: str) -> None:
    """On each device: bitsandbytes, beside which the definition stands on a CPU, may have another build on a GPU."""
    weight = uneven(shape, torch.float32).to(device)
    ours, expected = (
        quantise(weight, nested=nested, grid=grid) for quantise in (nf4_quantise, definition.nf4_quantise)
    )
    assert torch.equal(ours.packed, expected.packed) and torch.equal(ours.absmax, expected.absmax)
    if ours.nested is not None and expected.nested is not None:
        assert all(
            torch.equal(*pair) for pair in zip(vars(ours.nested).values(), vars(expected.nested).values(), strict=True)
        )


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "plain"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)  # bitsandbytes transposes what has one row
def test_dequantising_what_bitsandbytes_packed_gives_its_bits(
    shape: tuple[int, int], dtype: torch.dtype, nested: bool, theirs: Any, device: str
) -> None:
    packed, state = theirs.quantize_4bit(uneven(shape, dtype), quant_type="nf4", compress_statistics=nested)
    expected = theirs.dequantize_4bit(packed, state)
    read = NF4Weight.from_bitsandbytes(packed, state)
    assert torch.equal(definition.nf4_dequantise(read), expected)
    got = nf4_dequantise(read.to(device)).cpu()
    if dtype == torch.bfloat16 and device == "cpu":  # the interpreter cuts bits off where a GPU rounds
        assert_close("w", got, definition.nf4_dequantise(read, torch.float32), expected)
    else:
        assert torch.equal(got, expected)


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "plain"])
def test_rows_of_16_but_not_64_are_read_as_bitsandbytes_general_path_reads_them(
    nested: bool, theirs: Any, device: str
) -> None:
    """Its vectorised CPU path (0.50.2) gives blocks that cross a row another block's absmax: not an oracle there."""
    weight = torch.randn(6, 96)
    packed, state = theirs.quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
    absmax = theirs.dequantize_blockwise(state.absmax, state.state2) + state.offset if nested else state.absmax
    general = pytest.importorskip("bitsandbytes.backends.default.ops")._dequantize_4bit_compute
    expected = general(packed.reshape(-1), absmax, state.code, 64, state.shape, torch.float32)
    read = NF4Weight.from_bitsandbytes(packed, state)
    assert torch.equal(nf4_dequantise(read.to(device)).cpu(), expected)
    assert torch.equal(definition.nf4_dequantise(read), expected)


@pytest.mark.parametrize("grid", [True, False], ids=["on the grid", "nearest"])
def test_an_absmax_finds_the_level_that_bitsandbytes_gives_it(grid: bool, theirs: Any) -> None:
    """On a CPU in float32 it looks the level up on a grid; in float64 it takes its general path, the nearest."""
    absmax = torch.rand(700) * torch.rand(700) ** 4
    absmax[256:512] = absmax.mean()  # a group whose peak is nearly nothing
    weight = torch.zeros(700, 64)
    weight[:, 3] = absmax
    for quantise in (nf4_quantise, definition.nf4_quantise):
        ours = quantise(weight, grid=grid)
        moved = absmax - absmax.mean()
        codes, peak = torch.ops.bitsandbytes.quantize_blockwise.default(
            moved if grid else moved.double(), theirs.create_dynamic_map(), 256
        )
        assert torch.equal(ours.absmax.int(), codes.int())
        assert torch.equal(ours.nested.peak, peak)


def test_levels_and_middles_are_hit_where_they_lie(device: str) -> None:
    """Every level is its own code; a number on a middle belongs to the lower level, as bitsandbytes has it."""
    levels = definition.nf4_levels().to(device)
    middles = definition.middles_of(levels)
    weight = torch.zeros(2, 64, device=device)
    weight[0, :16], weight[1, :15], weight[1, 15] = levels, middles, 1.0
    packed = nf4_quantise(weight, nested=False).packed.view(2, 32)[:, :8].long()
    codes = torch.stack((packed >> 4, packed & 15), dim=2).view(2, 16)
    assert codes[0].tolist() == list(range(16))
    assert codes[1].tolist() == [*range(15), 15]


def test_blocks_of_zeros_stay_zero_and_the_rest_is_within_half_a_gap(device: str) -> None:
    weight = torch.randn(8, 128, device=device)
    weight[3] = 0
    for nested in (False, True):
        got = nf4_dequantise(nf4_quantise(weight, nested=nested))
        peak = weight.view(-1, 64).abs().amax(dim=1).repeat_interleave(64).view(8, 128)
        # half the widest gap between levels is 0.152; nested absmax are off by up to 1/128 of their range
        allowed = 0.153 * peak + (0.02 * peak.max() if nested else 0)
        assert ((got - weight).abs() <= allowed).all()
        if not nested:
            assert not got[3].any()


def test_a_slice_of_a_weight_is_quantised_where_it_lies(device: str) -> None:
    whole = torch.randn(40, 90, device=device)
    part = whole[::2, 3:70]
    ours, expected = nf4_quantise(part), nf4_quantise(part.contiguous())
    assert torch.equal(ours.packed, expected.packed) and torch.equal(ours.absmax, expected.absmax)


def test_it_is_written_where_it_is_asked_for(device: str) -> None:
    weight = nf4_quantise(torch.randn(6, 70, device=device))
    out = torch.full((6, 70), float("nan"), dtype=torch.float16, device=device)
    assert nf4_dequantise(weight, out=out) is out
    assert torch.equal(out, definition.nf4_dequantise(weight, torch.float16))


def test_a_layer_of_bitsandbytes_is_read_without_a_copy(theirs: Any) -> None:
    layer = pytest.importorskip("bitsandbytes").nn.Linear4bit(128, 6, bias=False, quant_type="nf4")
    weight = torch.randn(6, 128)
    layer.load_state_dict({"weight": weight})
    with pytest.raises(ValueError, match="has no quant_state yet; move it to its device first"):
        NF4Weight.from_bitsandbytes(layer.weight)
    layer.to("cpu")
    read = NF4Weight.from_bitsandbytes(layer.weight)
    assert read.packed.data_ptr() == layer.weight.data.data_ptr() and read.shape == (6, 128)
    assert type(read.packed) is torch.Tensor
    assert repr(read) == "NF4Weight(6 x 128, 8-bit absmax, 400 bytes, cpu)"
    assert torch.equal(nf4_dequantise(read), theirs.dequantize_4bit(layer.weight.data, layer.weight.quant_state))


def test_data_stored_as_another_dtype_are_read_as_bytes(theirs: Any) -> None:
    weight = torch.randn(8, 64)
    packed, state = theirs.quantize_4bit(weight, quant_type="nf4", quant_storage=torch.bfloat16)
    assert packed.dtype == torch.bfloat16
    assert torch.equal(NF4Weight.from_bitsandbytes(packed, state).packed, nf4_quantise(weight, nested=False).packed)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"quant_type": "fp4"}, r"got fp4 in blocks of 64, shape \(8, 64\); wanted nf4 in blocks of 64"),
        ({"quant_type": "nf4", "blocksize": 128}, "got nf4 in blocks of 128"),
    ],
    ids=["fp4", "blocks of 128"],
)
def test_other_formats_of_bitsandbytes_are_refused(made: dict[str, Any], said: str, theirs: Any) -> None:
    with pytest.raises(ValueError, match=f"from_bitsandbytes: {said}"):
        NF4Weight.from_bitsandbytes(*theirs.quantize_4bit(torch.randn(8, 64), **made))


def test_weights_that_bitsandbytes_repacked_for_its_cpu_product_are_refused(theirs: Any) -> None:
    packed, state = theirs.quantize_4bit(torch.randn(8, 64), quant_type="nf4")
    state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match="was repacked for bitsandbytes' CPU product"):
        NF4Weight.from_bitsandbytes(packed, state)


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (torch.ones(4, dtype=torch.float32), r"weight has shape \(4,\); give \(N, K\)"),
        (torch.ones(0, 4), r"weight has shape \(0, 4\); give \(N, K\) with at least one element"),
        (torch.ones(4, 4, dtype=torch.int32), "weight is torch.int32; give float32"),
    ],
)
def test_what_cannot_be_quantised_is_named(weight: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=f"nf4_quantise: {said}"):
        nf4_quantise(weight)


@pytest.mark.parametrize(
    ("out", "dtype", "said"),
    [
        (torch.empty(3, 64), None, r"out has shape \(3, 64\); wanted \(4, 64\)"),
        (torch.empty(64, 4).T, None, r"out is torch.float32 with strides \(1, 4\); give torch.float32 without gaps"),
        (torch.empty(4, 64), torch.float16, r"out is torch.float32 with strides \(64, 1\); give torch.float16"),
        (torch.empty(4, 64, dtype=torch.uint8), None, "out is torch.uint8; give float32"),
        (torch.empty(4, 64, device="meta"), None, "weight is on cpu, out on meta"),
    ],
)
def test_an_out_that_does_not_fit_is_named(out: torch.Tensor, dtype: torch.dtype | None, said: str) -> None:
    with pytest.raises(ValueError, match=f"nf4_dequantise: {said}"):
        nf4_dequantise(nf4_quantise(torch.randn(4, 64)), dtype, out=out)
