"""The attention kernels through the real compiler, for cards that are not here: ptxas needs none. Slow.

What the interpreter cannot show: that they compile at all, that their tiles fit the shared memory of the card, that
`shared_bytes` is an upper bound, and that Hopper's products are those of its warp groups.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

triton = pytest.importorskip("triton")

# In another process: triton decides on interpreting when it is imported.
COMPILE = r"""
import json, sys
import torch
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from speechkit_kernels import flash_attention, paged_attention
from speechkit_kernels.attention_tiles import head_block, shared_bytes, shared_limit, tiles

FLOATS = {"scale", "scale2", "cap"}
WIDE = {"lse_ptr", "delta_ptr", "some_ptr"}
INTEGERS = {"cu_q_ptr", "cu_k_ptr", "table_ptr", "lengths_ptr"}


def compiled(kernel, capability, dtype, constants, **options):
    signature, values, attributes = {}, {}, {}
    for at, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[(at,)] = "constexpr", constants[name]
            continue
        pointer = "*fp32" if name in WIDE else "*i32" if name in INTEGERS else dtype
        signature[name] = pointer if name.endswith("_ptr") else "fp32" if name in FLOATS else "i32"
        if name.endswith(("_ptr", "_batch", "_step", "_head")) or name == "width":
            attributes[(at,)] = [["tt.divisibility", 16]]
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
    return compile(ASTSource(kernel, signature, values, attributes), target=target, options=options)


def flash(capability, width, rule):
    chosen, found = tiles(capability, width, torch.bfloat16), []
    for name in ("forward", "backward_keys", "backward_queries"):
        tile = getattr(chosen, name)
        constants = {"CAUSAL": True, "D": head_block(width), "EXACT": head_block(width) == width, "MANY": 64}
        constants |= {"PRECISION": "ieee", "BLOCK_M": tile.queries, "BLOCK_N": tile.keys, **rule}
        code = compiled(getattr(flash_attention, "_" + name), capability, "*bf16", constants,
                        num_warps=tile.warps, num_stages=tile.stages)
        ptx = code.asm["ptx"]
        found.append({"name": name, "shared": code.metadata.shared, "limit": shared_limit(capability),
                      "estimate": shared_bytes(tile, name, head_block(width), 2),
                      "groups": "wgmma.mma_async" in ptx, "tensor": "mma" in ptx})
    return found


def paged(capability, group):
    constants = {"WINDOW": True, "CAPPED": True, "GROUP": 1 if group == 1 else 16, "PRODUCT": group > 1, "TILE": 64}
    constants |= {"D": 128, "PRECISION": "ieee"}
    code = compiled(paged_attention._part, capability, "*fp16", constants, num_warps=4, num_stages=2)
    return [{"name": "paged", "shared": code.metadata.shared, "limit": 64 * 1024}]


print(json.dumps(eval(sys.argv[1])))
"""
PLAIN = {"PACKED": False, "WINDOW": False, "CAPPED": False}
ALL = {"PACKED": True, "WINDOW": True, "CAPPED": True}


def through_the_compiler(call: str) -> list[dict[str, object]]:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", COMPILE, call], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "width", "rule"),
    [((9, 0), 128, PLAIN), ((9, 0), 96, ALL), ((8, 0), 128, PLAIN)],
    ids=["Hopper", "Hopper, packed, window, soft cap", "A100"],
)
def test_tiles_fit_and_products_run_on_tensor_cores(
    capability: tuple[int, int], width: int, rule: dict[str, bool]
) -> None:
    for found in through_the_compiler(f"flash({capability}, {width}, {rule})"):
        assert found["shared"] <= found["estimate"] <= found["limit"], found  # type: ignore[operator]
        assert found["tensor"] and found["groups"] == (capability == (9, 0)), found


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "group"), [((7, 5), 1), ((9, 0), 4)], ids=["T4", "Hopper, grouped"])
def test_paged_attention_compiles(capability: tuple[int, int], group: int) -> None:
    (found,) = through_the_compiler(f"paged({capability}, {group})")
    assert found["shared"] <= found["limit"], found  # type: ignore[operator]
