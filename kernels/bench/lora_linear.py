"""Times a linear layer with a low-rank update on a CUDA GPU: forward and a training step, 4-bit and dense.

    PYTHONPATH=kernels python kernels/bench/lora_linear.py
    PYTHONPATH=kernels python kernels/bench/lora_linear.py --quick

Beside: the same in plain PyTorch under autograd (dequantise, multiply, add the update), that under torch.compile, and
peft over bitsandbytes' Linear4bit where both can be imported. x, A and B need gradients, W is frozen. The memory is the
peak above what was there before the call. Writes kernels/bench/results/lora_linear.json.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import torch
from gpu import Bench, compiled, passes, peer, require_gpu
from torch.nn.functional import linear

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = [(4096, 4096), (14336, 4096)]  # N, K
ROWS = [1, 16, 64, 512, 2048, 8192]
RANK, SCALE = 16, 2.0


def peft_layer(w: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> Any:
    """peft's layer over bitsandbytes' with the same numbers, or None where either is not installed."""
    inject, config = peer("peft", "inject_adapter_in_model"), peer("peft", "LoraConfig")
    layer = peer("bitsandbytes.nn", "Linear4bit")
    if inject is None or layer is None:
        return None
    outer, inner = w.shape
    base = layer(inner, outer, bias=False, quant_type="nf4", compute_dtype=w.dtype)
    base.load_state_dict({"weight": w.cpu()})
    holder = torch.nn.Module()
    holder.add_module("layer", base.to("cuda"))
    made = inject(config(r=RANK, lora_alpha=SCALE * RANK, target_modules=["layer"]), holder).layer
    made.lora_A["default"].weight = torch.nn.Parameter(a.detach().clone())
    made.lora_B["default"].weight = torch.nn.Parameter(b.detach().clone())
    return made.to("cuda")


def check_of(
    ours: Callable[..., torch.Tensor], plain: Callable[..., torch.Tensor], inputs: list[torch.Tensor], dy: torch.Tensor
) -> Callable[[], None]:
    """Values and gradients of ours beside those of autograd."""

    def check() -> None:
        got, expected = ours(*inputs), plain(*inputs)
        pairs = [(got, expected)]
        pairs += zip(torch.autograd.grad(got, inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True)
        for name, (one, truth) in zip(("y", "dx", "da", "db"), pairs, strict=True):
            off = (one.float() - truth.float()).abs().max().item() / truth.float().abs().max().item()
            assert off <= 0.03, f"{name} is off by {off:.1e} of its largest value"

    return check


def row(bench: Bench, w: torch.Tensor, rows: int, four_bit: bool) -> None:
    """One shape over one kind of weight: forward, and forward with backward."""
    from speechkit_kernels import lora_linear as module
    from speechkit_kernels.nf4 import nf4_dequantise, nf4_quantise

    outer, inner = w.shape
    x = torch.randn(rows, inner, device="cuda").bfloat16().requires_grad_()
    a = (torch.randn(RANK, inner, device="cuda") * inner**-0.5).bfloat16().requires_grad_()
    b = (torch.randn(outer, RANK, device="cuda") * 0.1).bfloat16().requires_grad_()
    dy = torch.randn(rows, outer, device="cuda").bfloat16()
    weight: Any = nf4_quantise(w) if four_bit else w

    def ours(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return module.lora_linear(x, weight, a, b, SCALE)

    def plain(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return linear(x, nf4_dequantise(weight) if four_bit else weight) + SCALE * linear(linear(x, a), b)

    functions: dict[str, Callable[..., Any]] = {"ours": ours, "torch": plain}
    if not four_bit:
        functions["torch.compile"] = compiled(plain)
    inputs, layer = [x, a, b], peft_layer(w, a, b) if four_bit else None
    hardware = module.hardware_of(x.device)
    found = module.plan(hardware, x.dtype, rows, inner, RANK, nf4=four_bit)
    kind = "4-bit" if four_bit else "bfloat16"
    shape = {"M": rows, "N": outer, "K": inner, "R": RANK, "W": kind, "plan": found.value}
    check, flops = check_of(ours, plain, inputs, dy), 2 * rows * (outer * inner + RANK * (outer + inner))
    modes = passes(functions, inputs, dy)
    if layer is not None:
        held = [x, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        theirs = passes({"peft, bitsandbytes": lambda x, a, b: layer(x)}, held, dy)
        for mode, providers in theirs.items():
            modes[mode] |= providers
    moved = (weight.nbytes if four_bit else w.nbytes) + x.nbytes + dy.nbytes
    bench.measure("forward", shape, modes["forward"], check=check, moved=moved, flops=flops)
    bench.measure("forward and backward", shape, modes["full"], check=check, flops=2 * flops)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    require_gpu("lora_linear")
    torch.manual_seed(0)
    bench = Bench("lora_linear")
    for outer, inner in SHAPES[:1] if quick else SHAPES:
        w = (torch.randn(outer, inner, device="cuda") * inner**-0.5).bfloat16()
        for four_bit in (True, False):
            for rows in (1, 16, 8192) if quick else ROWS:
                row(bench, w, rows, four_bit)
    bench.write()


if __name__ == "__main__":
    main()
