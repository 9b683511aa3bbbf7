"""Bytes of the parts, counted by hand where that is short, and ratios that do not depend on the size."""

from __future__ import annotations

import pytest
import torch
from speechkit_kernels.fusing import PARTS, fusing


def test_a_norm_operation_by_operation() -> None:
    """x → float32, square, mean, + eps, root, product, → bfloat16, product with the weight."""
    m, h = 64, 1024
    whole = 6 + 8 + 4 + 8 + 6 + 4  # bytes an element: read and written by each of the steps that go over (M, H)
    row = 4 + 8 + 8 + 4  # of a row: the mean written, + eps, root, read again
    found = fusing("rms_norm", m, h, torch.bfloat16)
    assert found.plain.moved == m * h * whole + m * row + 2 * h
    assert found.fused.moved == 4 * m * h and found.ratio == pytest.approx(9, rel=0.01)


def test_a_gated_unit_writes_the_activation_and_reads_it_again() -> None:
    found = fusing("swiglu", 64, 1024, torch.float32)
    assert found.plain.moved == 5 * 4 * 64 * 1024 and found.fused.moved == 3 * 4 * 64 * 1024


@pytest.mark.parametrize("what", PARTS)
def test_every_part_moves_less_fused_at_any_size_and_its_table_names_the_cards(what: str) -> None:
    small, large = fusing(what, 8, 4096, torch.bfloat16), fusing(what, 2**15, 2**17, torch.bfloat16)
    assert small.ratio > 1.5 and small.ratio == pytest.approx(large.ratio, rel=0.01)
    assert [row[0] for row in large.table.rows] == ["H200", "A100", "L4", "T4"]


def test_what_is_not_known_and_what_is_empty_is_said() -> None:
    with pytest.raises(ValueError, match="nothing is known of 'conv'; give one of rms_norm, add"):
        fusing("conv", 8, 8, torch.float32)
    with pytest.raises(ValueError, match="fusing: 0 rows of 8; give one or more of each"):
        fusing("swiglu", 0, 8, torch.float32)
