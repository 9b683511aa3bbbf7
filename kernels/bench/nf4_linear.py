"""Times 4-bit weights on a CUDA GPU: quantise, dequantise, the product at few and many rows, and its gradient.

    PYTHONPATH=kernels python kernels/bench/nf4_linear.py            # all of it, some minutes
    PYTHONPATH=kernels python kernels/bench/nf4_linear.py --quick    # fewer rows of the table

Beside: writing W out and multiplying (with our own dequantisation, the faster one), the product with W in bfloat16
(what the memory saved costs), the same in plain PyTorch, and bitsandbytes where it can be imported. Also the ways of
`plan` beside each other, which is where its bounds come from. Writes kernels/bench/results/nf4_linear.json.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import torch
from gpu import Bench, compiled, peer, require_gpu
from torch.nn.functional import linear

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = [(14336, 4096), (4096, 14336), (4096, 4096), (1024, 4096)]  # N, K of a model of 8 B
ROWS = [1, 2, 4, 16, 32, 64, 128, 2048, 8192]
QUICK_SHAPES, QUICK_ROWS = SHAPES[:1], [1, 16, 64, 8192]


def near(got: Callable[[], torch.Tensor], expected: Callable[[], torch.Tensor], allowed: float) -> Callable[[], None]:
    """Asserts that the largest difference is a small part of the largest value."""

    def check() -> None:
        truth = expected().float()
        off = (got().float() - truth).abs().max().item() / truth.abs().max().item()
        assert off <= allowed, f"off by {off:.1e} of the largest value"

    return check


def tables(bench: Bench, w: torch.Tensor) -> None:
    """Quantise and dequantise; bytes are what must be read and written."""
    from speechkit_kernels.nf4 import nf4_dequantise, nf4_quantise
    from speechkit_kernels.reference import nf4 as definition

    weight = nf4_quantise(w)
    shape, moved = {"N": w.shape[0], "K": w.shape[1]}, w.nbytes + weight.nbytes
    theirs = peer("bitsandbytes.functional", "dequantize_4bit")
    quantise = peer("bitsandbytes.functional", "quantize_4bit")
    dequantised: dict[str, Callable[[], Any]] = {"ours": lambda: nf4_dequantise(weight)}
    quantised: dict[str, Callable[[], Any]] = {"ours": lambda: nf4_quantise(w)}
    if theirs is not None:
        packed, state = quantise(w, quant_type="nf4", compress_statistics=True)
        dequantised["bitsandbytes"] = lambda: theirs(packed, state)
        quantised["bitsandbytes"] = lambda: quantise(w, quant_type="nf4", compress_statistics=True)
    dequantised["torch"] = lambda: definition.nf4_dequantise(weight)
    fused = compiled(definition.nf4_dequantise)
    dequantised["torch.compile"] = lambda: fused(weight)
    quantised["torch"] = lambda: definition.nf4_quantise(w)
    exact = near(dequantised["ours"], dequantised["torch"], 0.0)
    bench.measure("dequantise", shape, dequantised, check=exact, moved=moved)
    same = near(lambda: nf4_quantise(w).packed, lambda: definition.nf4_quantise(w).packed, 0.0)
    bench.measure("quantise", shape, quantised, check=same, moved=moved)


def products(bench: Bench, w: torch.Tensor, rows: int) -> None:
    """Forward, and backward to x, of one shape."""
    from speechkit_kernels import nf4_linear as module
    from speechkit_kernels.nf4 import nf4_dequantise, nf4_quantise
    from speechkit_kernels.reference import nf4 as definition
    from speechkit_kernels.weights import library_gradient, library_product

    (outer, inner), weight = w.shape, nf4_quantise(w)
    x, dy = torch.randn(rows, inner, device="cuda").bfloat16(), torch.randn(rows, outer, device="cuda").bfloat16()
    hardware = module.hardware_of(x.device)
    found = module.plan(hardware, x.dtype, rows, inner)
    shape = {"M": rows, "N": outer, "K": inner, "plan": found.value}
    forward: dict[str, Callable[[], Any]] = {
        "ours": lambda: module.nf4_linear(x, weight),
        "dequantise, matmul": lambda: linear(x, nf4_dequantise(weight)),
        "bfloat16 matmul": lambda: linear(x, w),
        "torch": lambda: definition.nf4_linear(x, weight),
    }
    if rows <= 128:
        forward["way: tile"] = lambda: module.launch_tile(x, weight)
    if rows <= 16:
        forward["way: vector"] = lambda: module._launch_vector(x, weight, None)
    forward["way: library"] = lambda: library_product(x, weight)
    add_bitsandbytes(forward, w, x)
    right = near(forward["ours"], forward["dequantise, matmul"], 0.02)
    flops, moved = 2 * rows * outer * inner, weight.nbytes + x.nbytes + dy.nbytes
    bench.measure("forward", shape, forward, check=right, moved=moved, flops=flops)
    backward: dict[str, Callable[[], Any]] = {
        "ours": lambda: weight.input_gradient(dy),
        "dequantise, matmul": lambda: dy @ nf4_dequantise(weight),
        "bfloat16 matmul": lambda: dy @ w,
        "way: library": lambda: library_gradient(dy, weight),
    }
    shape["plan"] = module.plan(hardware, x.dtype, rows, inner, backward=True).value
    right = near(backward["ours"], backward["dequantise, matmul"], 0.02)
    bench.measure("backward", shape, backward, check=right, moved=moved, flops=flops)


def add_bitsandbytes(providers: dict[str, Callable[[], Any]], w: torch.Tensor, x: torch.Tensor) -> None:
    """Its own product of the same weight, where it is installed."""
    multiply, quantise = peer("bitsandbytes", "matmul_4bit"), peer("bitsandbytes.functional", "quantize_4bit")
    if multiply is not None:
        packed, state = quantise(w, quant_type="nf4", compress_statistics=True)
        providers["bitsandbytes"] = lambda: multiply(x, packed.t(), quant_state=state)


def eight_bit(bench: Bench, w: torch.Tensor, rows: int) -> None:
    """int8 and float8 weights behind the same door."""
    from speechkit_kernels.row_linear import row_linear, row_quantise

    x = torch.randn(rows, w.shape[1], device="cuda").bfloat16()
    for kind in (torch.int8, torch.float8_e4m3fn):
        weight = row_quantise(w, kind)
        providers: dict[str, Callable[[], Any]] = {
            "ours": lambda weight=weight: row_linear(x, weight),
            "dequantise, matmul": lambda weight=weight: linear(x, weight.dequantise()),
            "bfloat16 matmul": lambda: linear(x, w),
        }
        right = near(providers["ours"], providers["dequantise, matmul"], 0.02)
        shape = {"M": rows, "N": w.shape[0], "K": w.shape[1]}
        title = f"forward, {str(kind).removeprefix('torch.')}"
        moved = weight.nbytes + 2 * rows * sum(w.shape)
        bench.measure(title, shape, providers, check=right, moved=moved, flops=2 * rows * w.numel())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    require_gpu("nf4_linear")
    torch.manual_seed(0)
    bench = Bench("nf4_linear")
    for at, (outer, inner) in enumerate(QUICK_SHAPES if quick else SHAPES):
        w = (torch.randn(outer, inner, device="cuda") * inner**-0.5).bfloat16()
        if at < 2:
            tables(bench, w)
        for rows in QUICK_ROWS if quick or at else ROWS:
            products(bench, w, rows)
        if not at:
            for rows in (1, 16, 8192):
                eight_bit(bench, w, rows)
    bench.write()


if __name__ == "__main__":
    main()
