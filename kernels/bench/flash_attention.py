"""flash_attention beside torch's own attention on a CUDA GPU: forward, and forward with backward.

    python kernels/bench/flash_attention.py            24 shapes → kernels/bench/results/flash_attention.json
    python kernels/bench/flash_attention.py --tune     tiles by the clock, for attention_tiles.py; writes nothing

Shapes as in the papers: B · S = 16,384 tokens, H · D = 2,048, bfloat16. TFLOP/s count 4 · B · H · S² · D forward, half
of it causal, 3.5 times that with backward. Before anything is timed, one head is compared with float32: ours may err
twice as much as torch's flash attention.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from gpu import Bench, interleaved, passes, require_gpu
from speechkit_kernels import flash_attention as forward
from speechkit_kernels import flash_attention_backward as backward
from speechkit_kernels.attention_tiles import Tile, Tiles, head_block, shared_bytes, shared_limit, tiles
from speechkit_kernels.flash_attention import flash_attention
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from collections.abc import Callable

TOKENS, WIDTH = 16_384, 2_048
LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384)
BACKENDS = {
    "SDPA default": None,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
}


@dataclass(frozen=True)
class Shape:
    """One of the 24."""

    length: int
    head_dim: int
    causal: bool

    @property
    def named(self) -> dict[str, Any]:
        batch, heads = TOKENS // self.length, WIDTH // self.head_dim
        return {"B": batch, "S": self.length, "H": heads, "D": self.head_dim, "causal": self.causal}

    @property
    def flops(self) -> int:
        """Forward."""
        return 4 * TOKENS * WIDTH * self.length // (2 if self.causal else 1)

    def inputs(self, grad: bool = True) -> list[torch.Tensor]:
        """q, k, v (B, S, H, D)."""
        size = (TOKENS // self.length, self.length, WIDTH // self.head_dim, self.head_dim)
        return [torch.randn(size, device="cuda", dtype=torch.bfloat16, requires_grad=grad) for _ in range(3)]


SHAPES = [Shape(length, dim, causal) for dim in (64, 128) for causal in (True, False) for length in LENGTHS]


def torch_own(causal: bool, backend: SDPBackend | None = None) -> Callable[..., torch.Tensor]:
    """Torch's attention on (B, S, H, D), by one backend or by its own choice."""

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if backend is None:
            return scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)

    return call


def check(ours: Callable[..., torch.Tensor], causal: bool, inputs: list[torch.Tensor], dy: torch.Tensor) -> None:
    """Raise AssertionError unless one head's values and gradients err at most twice as much as torch's flash."""

    def run(function: Callable[..., torch.Tensor], wide: bool) -> list[torch.Tensor]:
        head = [x.detach()[:1, :, :1].to(torch.float32 if wide else x.dtype).requires_grad_() for x in inputs]
        o = function(*head)
        return [o, *torch.autograd.grad(o, head, dy[:1, :, :1].to(o.dtype))]

    truth = run(torch_own(causal, SDPBackend.EFFICIENT_ATTENTION), True)
    plain = run(torch_own(causal, SDPBackend.FLASH_ATTENTION), False)
    for name, got, low, exact in zip(("o", "dq", "dk", "dv"), run(ours, False), plain, truth, strict=True):
        size = exact.abs().max()
        error, allowed = ((x.float() - exact).abs().max() / size for x in (got, low))
        assert error <= 2 * allowed + 1e-3, f"{name} is off by {error:.1e}, torch's flash by {allowed:.1e}"


def bench() -> None:
    table = Bench("flash_attention")
    for shape in SHAPES:
        torch.manual_seed(0)
        inputs = shape.inputs()
        dy = torch.randn_like(inputs[0])

        def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = shape.causal) -> torch.Tensor:
            return flash_attention(q, k, v, causal=causal)

        peers = {name: torch_own(shape.causal, backend) for name, backend in BACKENDS.items()}
        closures = passes({"ours": ours, **peers}, inputs, dy)
        for title, flops in (("forward", shape.flops), ("full", shape.flops * 7 // 2)):
            table.measure(
                title, shape.named, closures[title], flops=flops,
                check=lambda ours=ours, shape=shape, inputs=inputs, dy=dy: check(ours, shape.causal, inputs, dy),
            )  # fmt: skip
    table.write()


def tune() -> None:
    """Print the tiles of each kernel from fast to slow, at S 4096, causal."""
    require_gpu("flash_attention")
    capability = torch.cuda.get_device_capability()
    sizes = [(m, n) for m in (32, 64, 128) for n in (32, 64, 128)]
    wishes = [Tile(m, n, warps, stages) for m, n in sizes for warps in (4, 8) for stages in (1, 2, 3, 4)]
    for dim in (64, 128, 256):
        shape = Shape(4096, dim, True)
        inputs = shape.inputs()
        dy = torch.randn_like(inputs[0])
        for kernel in ("forward", "backward_keys", "backward_queries"):
            fits = [t for t in wishes if shared_bytes(t, kernel, head_block(dim), 2) <= shared_limit(capability)]
            taken = {}
            for tile in fits:
                median = timed(with_tile(tiles(capability, dim, torch.bfloat16), kernel, tile), kernel, inputs, dy)
                if median is not None:
                    taken[tile] = median
            best = sorted(taken, key=lambda tile: taken[tile])[:5]
            now = getattr(tiles(capability, dim, torch.bfloat16), kernel)
            print(f"D {dim} {kernel}: now {now} {taken.get(now, float('nan')):.3f} ms")
            for tile in best:
                print(f"    {tile}  {taken[tile]:.3f} ms", flush=True)


def with_tile(chosen: Tiles, kernel: str, tile: Tile) -> Tiles:
    all_of = {"forward": chosen.forward, "backward_keys": chosen.backward_keys,
              "backward_queries": chosen.backward_queries}  # fmt: skip
    return Tiles(**(all_of | {kernel: tile}))


def timed(chosen: Tiles, kernel: str, inputs: list[torch.Tensor], dy: torch.Tensor) -> float | None:
    """Median milliseconds of the pass that `kernel` is in; None where the tile does not fit after all."""
    with patch.object(forward, "tiles", lambda *_: chosen), patch.object(backward, "tiles", lambda *_: chosen):
        try:
            if kernel == "forward":
                plain = [x.detach() for x in inputs]
                call: Callable[[], Any] = lambda: flash_attention(*plain, causal=True)  # noqa: E731
            else:
                o = flash_attention(*inputs, causal=True)
                call = lambda: torch.autograd.grad(o, inputs, dy, retain_graph=True)  # noqa: E731
            return statistics.median(interleaved({"one": call}, rounds=7, warm=2)["one"])
        except Exception as error:  # out of shared memory, or of registers: that tile is not one
            print(f"    {chosen}: {type(error).__name__}", file=sys.stderr)
            return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", action="store_true", help="time tiles instead of shapes")
    tune() if parser.parse_args().tune else bench()


if __name__ == "__main__":
    main()
