"""What only compiled code shows: in which order memory is read and written, what goes through shared memory. Slow."""

from __future__ import annotations

import re

import pytest
from compiling import Card, Compiled, compiled

pytest.importorskip("triton.backends.nvidia")
pytestmark = pytest.mark.slow


def only(launch: str, kernel: str, card: Card) -> Compiled:
    """The one compiled form of `kernel` that a function of launches.py starts."""
    found = compiled([("launches", launch)], [card], texts=True)
    (one,) = (one for one in found if one.kernel == kernel)
    assert not one.error, str(one)
    return one


def test_in_place_the_labels_logit_is_read_before_a_barrier_that_comes_before_any_gradient() -> None:
    """Every warp reads it, one may write over it: without a barrier between, the loss could be that of a gradient."""
    found = only("an_odd_vocabulary", "cross_entropy._forward", (9, 0))
    lines = found.ttir.splitlines()
    (read,) = (at for at, line in enumerate(lines) if "tt.load" in line and ": !tt.ptr<bf16>" in line)
    walks = [at for at, line in enumerate(lines) if "scf.for" in line]
    assert len(walks) == 3, "zeros of an ignored row, the walk that sums, the walk that writes"
    assert walks[0] < read < walks[1]
    ptx = found.ptx
    assert "cp.async" not in ptx, "or the barriers of the copies would hide what is tested"
    assert "bar.sync" in ptx[: ptx.rindex("st.global.b16")]


@pytest.mark.parametrize("card", [(8, 0), (9, 0)], ids=["80", "90"])
def test_a_tile_of_4_bit_weights_goes_from_memory_to_the_product_in_registers(card: Card) -> None:
    found = only("sixteen_rows", "nf4_linear._forward", card)
    assert "cp.async" not in found.ptx, "levels that are looked up are not copied one by one"
    loop = found.ptx.split("mma.sync")[0]
    wide = re.findall(r"ld\.global\.v4\.b32", loop)
    assert len(wide) == 4, "two loads of 16 bytes a thread before the loop, two in it"
    assert found.shared <= 4096, "x and scales alone"
    assert len(re.findall(r"st\.shared\S*\.v4", loop)) <= 2, "x alone"


def test_dequantising_reads_and_writes_whole_words() -> None:
    """Of 8 weights a thread reads four bytes, one absmax with its peak, and eight levels; it writes 16 bytes."""
    found = compiled([("launches", "four_bits")], [(9, 0)], texts=True)
    (ptx,) = (one.ptx for one in found if one.kernel == "nf4._dequantise" and one.constants["NESTED"] == "True")
    assert len(re.findall(r"ld\.global\S*\.b8", ptx)) == 1, "the code of the absmax"
    assert len(re.findall(r"ld\.global\S*\.b32", ptx)) == 1 + 8 + 3, "bytes, levels, and what the absmax is made of"
    assert len(re.findall(r"st\.global\S*\.v4", ptx)) == len(re.findall(r"st\.global", ptx)) == 1


def test_a_low_rank_update_in_a_tile_leaves_the_weights_in_registers() -> None:
    """A product whose warps lie otherwise than those of x Wᵀ would send W through shared memory to all of them."""
    found = compiled([("launches", "low_rank_products")], [(9, 0)], texts=True)
    (one,) = (one for one in found if one.kernel == "nf4_linear._forward" and one.constants["ROWS"] == "16")
    assert one.constants["LOW"] == "True" and one.spilled == 0, str(one)
    assert one.shared <= 4096, "x, a and scales alone"
