"""Floors beside those that were worked out by hand for an H200 of measured rates (4.3 TB/s, 790 TFLOP/s)."""

from __future__ import annotations

import subprocess
import sys

import pytest
from speechkit_kernels import roofline
from speechkit_kernels.roofline import CARDS, Card, Work, card_named

MEASURED = Card("H200 as measured", 4300, 790, 67)
M, H, INNER, V = 8192, 4096, 14336, 128_256


@pytest.mark.parametrize(
    ("work", "us", "bound"),
    [
        (roofline.rms_norm(M, H), 31, "memory"),
        (roofline.rms_norm(M, H, backward=True), 47, "memory"),
        (roofline.add_rms_norm(M, H), 62, "memory"),
        (roofline.rope(M, 5120), 39, "memory"),
        (roofline.swiglu(M, INNER), 164, "memory"),
        (roofline.swiglu(M, INNER, backward=True), 273, "memory"),
        (roofline.cross_entropy(M, V), 980, "memory"),
        (roofline.linear_cross_entropy(M, H, V), 21_800, "arithmetic"),
        (roofline.linear_cross_entropy(M, H, V, frozen=False), 32_700, "arithmetic"),
        (roofline.nf4_dequantise(H, INNER), 34, "memory"),
        (roofline.nf4_linear(1, H, INNER), 7.0, "memory"),
        (roofline.wav2vec2(640), 19 * 640, "arithmetic"),
        (roofline.wav2vec2(640, large=True), 49 * 640, "arithmetic"),
    ],
    ids=str,
)
def test_the_floor_is(work: Work, us: float, bound: str) -> None:
    assert work.floor_us(MEASURED) == pytest.approx(us, rel=0.02)
    assert work.bound(MEASURED) == bound


def test_a_causal_product_is_half_of_a_full_one() -> None:
    full, half = (roofline.attention(16_384, 2048, 4096, causal=causal) for causal in (False, True))
    assert full.operations == 4 * 16_384 * 2048 * 4096 == 2 * half.operations and full.moved == half.moved


def test_a_low_rank_pair_adds_little_to_a_large_product() -> None:
    forward = roofline.nf4_linear(M, H, H)
    assert 2 < roofline.lora_linear(M, H, H, 16).operations / forward.operations < 2.05


def test_the_roof_is_the_bandwidth_on_the_left_and_the_rate_on_the_right() -> None:
    slope, flat = Work(10, 1, tensor=True), Work(1, 10_000, tensor=True)
    assert MEASURED.best_tflop_s(slope) == pytest.approx(0.43)
    assert MEASURED.best_tflop_s(flat) == 790
    assert MEASURED.best_tflop_s(Work(1, 10_000)) == 67
    assert Card("unknown", 40, 0.2).best_tflop_s(Work(1, 10_000)) == 0.2


def test_bandwidths_are_those_of_the_data_sheets() -> None:
    assert {card.name: card.gb_s for card in CARDS} == {"H200": 4800, "A100": 2039, "L4": 300, "T4": 320}
    assert all("data sheet" in card.source for card in CARDS)


def test_a_card_without_a_data_sheet_is_named() -> None:
    assert card_named("T4").tensor_tflop_s == 65
    with pytest.raises(ValueError, match="no data sheet of 'B200' here; give one of H200, A100, L4, T4"):
        card_named("B200")


def test_it_needs_no_torch() -> None:
    code = "import sys, speechkit_kernels.roofline, speechkit_kernels.figures; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
