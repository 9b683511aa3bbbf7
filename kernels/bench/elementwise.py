"""Norms, rotation and gated units beside plain PyTorch, torch.compile and Liger, where installed.

    python kernels/bench/elementwise.py

These kernels only move bytes: the yardstick is a copy on the same card in the same run, counting each input read once
and each output written once. bfloat16, 8192 tokens, width 4096, MLP 14336, 32 query and 8 key heads of 128.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from gpu import Bench, agree, compiled, passes, peer
from speechkit_kernels.glu import geglu, swiglu
from speechkit_kernels.layer_norm import layer_norm
from speechkit_kernels.reference.glu import geglu as geglu_definition
from speechkit_kernels.reference.glu import swiglu as swiglu_definition
from speechkit_kernels.reference.layer_norm import layer_norm as layer_norm_definition
from speechkit_kernels.reference.norms import rms_norm as rms_norm_definition
from speechkit_kernels.reference.rope import rope as rope_definition
from speechkit_kernels.rms_norm import rms_norm
from speechkit_kernels.rope import rope
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH, TOKENS, WIDTH, INNER, HEADS, KEY_HEADS, HEAD = 4, 2048, 4096, 14336, 32, 8, 128
M = BATCH * TOKENS
LIGER = "liger_kernel.transformers.functional"


def random(*shape: int, gradient: bool = True) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_(gradient)


def providers(ours: Callable[..., Any], plain: Callable[..., Any], liger: str) -> dict[str, Callable[..., Any]]:
    theirs = peer(LIGER, liger) if liger else None
    found = {"ours": ours, "torch": plain, "torch.compile": compiled(plain)}
    return found | ({"liger": theirs} if theirs else {})


def measured(
    bench: Bench, name: str, functions: dict[str, Callable[..., Any]], definition: Callable[..., Any],
    inputs: list[torch.Tensor], direction: Any, moved: dict[str, int],
) -> None:  # fmt: skip
    """Rows for each mode in `moved`, bytes in each."""
    made = passes(functions, inputs, direction)
    shape = {f"x{at}": "x".join(map(str, x.shape)) for at, x in enumerate(inputs)}
    for mode, size in moved.items():
        bench.measure(
            f"{name} {mode}", shape, made[mode], moved=size,
            check=partial(agree, functions["ours"], definition, inputs, direction),
        )  # fmt: skip


def llama_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As transformers writes it."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def norms(bench: Bench) -> None:
    x, residual, weight, bias = random(M, WIDTH), random(M, WIDTH), random(WIDTH), random(WIDTH)
    dy, ds, row = random(M, WIDTH, gradient=False), random(M, WIDTH, gradient=False), 2 * M * WIDTH
    liger = peer(LIGER, "liger_rms_norm")
    plain = providers(rms_norm, llama_norm, "")
    plain |= {"liger": lambda x, weight: liger(x, weight, 1e-6)} if liger else {}
    size = {"forward": 2 * row, "backward": 3 * row, "full": 5 * row}
    measured(bench, "rms_norm", plain, rms_norm_definition, [x, weight], dy, size)

    def added(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Any:
        s = x + residual
        return llama_norm(s, weight), s

    fused = providers(lambda x, residual, weight: rms_norm(x, weight, residual=residual), added, "")
    definition = lambda x, residual, weight: rms_norm_definition(x, weight, residual=residual)  # noqa: E731
    size = {"forward": 4 * row, "backward": 4 * row, "full": 8 * row}
    measured(bench, "add + rms_norm", fused, definition, [x, residual, weight], [dy, ds], size)

    liger = peer(LIGER, "liger_layer_norm")
    layer = providers(layer_norm, lambda x, w, b: functional.layer_norm(x, (WIDTH,), w, b), "")
    layer |= {"liger": lambda x, w, b: liger(x, w, b, 1e-5)} if liger else {}
    size = {"forward": 2 * row, "backward": 3 * row, "full": 5 * row}
    measured(bench, "layer_norm", layer, layer_norm_definition, [x, weight, bias], dy, size)


def gated(bench: Bench) -> None:
    gate, up, dy = random(M, INNER), random(M, INNER), random(M, INNER, gradient=False)
    row = 2 * M * INNER
    size = {"forward": 3 * row, "backward": 5 * row, "full": 8 * row}
    functions = providers(swiglu, lambda g, u: functional.silu(g) * u, "liger_swiglu")
    measured(bench, "swiglu", functions, swiglu_definition, [gate, up], dy, size)
    for kind, liger in (("tanh", "liger_geglu"), ("none", "")):
        plain = lambda g, u, kind=kind: functional.gelu(g, approximate=kind) * u  # noqa: E731
        functions = providers(partial(geglu, approximate=kind), plain, liger)
        definition = partial(geglu_definition, approximate=kind)
        measured(bench, f"geglu {'exact' if kind == 'none' else kind}", functions, definition, [gate, up], dy, size)


def llama_rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
    """As transformers writes it."""

    def turned(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, dim=-1)
        return x * cos[:, None] + torch.cat([-b, a], dim=-1) * sin[:, None]

    return turned(q), turned(k)


def rotation(bench: Bench) -> None:
    q, k = (random(BATCH, TOKENS, heads, HEAD).detach().transpose(1, 2) for heads in (HEADS, KEY_HEADS))
    directions = [torch.randn_like(x) for x in (q, k)]
    angles = torch.arange(TOKENS, device="cuda")[:, None] * 1e4 ** (-torch.arange(0, HEAD, 2, device="cuda") / HEAD)
    cos, sin = (
        f(torch.cat([angles, angles], -1))[None].expand(BATCH, -1, -1).bfloat16() for f in (torch.cos, torch.sin)
    )
    theirs = peer(LIGER, "liger_rope")
    functions = {
        "ours": lambda q, k: rope(q, k, cos, sin), "torch": lambda q, k: llama_rope(q, k, cos, sin),
        "torch.compile": compiled(lambda q, k: llama_rope(q, k, cos, sin)),
    } | ({"liger": lambda q, k: theirs(q, k, cos, sin)} if theirs else {})  # fmt: skip
    definition = lambda q, k: rope_definition(q, k, cos, sin)  # noqa: E731
    moved = 2 * 2 * M * (HEADS + KEY_HEADS) * HEAD
    inplace = {"ours": lambda: rope(q, k, cos, sin, inplace=True)}
    inplace |= {name: (lambda f=f: f(q, k)) for name, f in functions.items() if name != "ours"}
    shape = {"B": BATCH, "S": TOKENS, "Hq": HEADS, "Hk": KEY_HEADS, "D": HEAD}
    bench.measure(
        "rope in place forward", shape, inplace, moved=moved,
        check=lambda: agree(functions["ours"], definition, [q, k], directions),
    )  # fmt: skip
    leaves = [x.clone().requires_grad_() for x in (q, k)]
    for mode, size in {"forward": moved, "backward": moved, "full": 2 * moved}.items():
        usable = {name: f for name, f in functions.items() if name != "liger"}  # it writes over leaves
        made = passes(usable, leaves, directions)[mode]
        bench.measure(
            f"rope {mode}", shape, made, moved=size,
            check=lambda: agree(functions["ours"], definition, leaves, directions),
        )  # fmt: skip


def main() -> None:
    bench = Bench("elementwise")
    torch.manual_seed(0)
    for part in (norms, rotation, gated):
        part(bench)
        torch.cuda.empty_cache()
    bench.write()


if __name__ == "__main__":
    main()
