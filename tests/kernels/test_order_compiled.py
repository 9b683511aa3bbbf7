"""What only compiled code shows: in which order memory is read and written, what goes through shared memory. Slow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton.backends.nvidia")
pytestmark = pytest.mark.slow

# In another process: triton decides on interpreting when it is imported.
COMPILE = r"""
import json, sys
import triton.language as tl
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from speechkit_kernels import cross_entropy, nf4_linear

FLOATS = {"smoothing", "softcap", "z_loss", "low_scale"}
WIDE = {"loss_ptr", "total_ptr", "factor_ptr", "levels_ptr", "peak_ptr", "table_ptr", "offset_ptr", "part_ptr"}
OTHER = {"label_ptr": "*i64", "packed_ptr": "*u8", "absmax_ptr": "*u8", "ticket_ptr": "*i32"}


def compiled(kernel, card, constants, divisible=(), **options):
    signature, values, attributes = {}, {}, {}
    for at, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[(at,)] = "constexpr", constants[name]
            continue
        pointer = OTHER.get(name, "*fp32" if name in WIDE else "*bf16")
        signature[name] = pointer if name.endswith("_ptr") else "fp32" if name in FLOATS else "i32"
        if name.endswith("_ptr") or name in divisible:
            attributes[(at,)] = [["tt.divisibility", 16]]
    target = GPUTarget("cuda", card, 32)
    code = compile(ASTSource(kernel, signature, values, attributes), target=target, options=options)
    return {"ttir": code.asm["ttir"], "ptx": code.asm["ptx"], "shared": code.metadata.shared}


def in_place():
    # rows of a vocabulary that is no multiple of 16 bytes: nothing is copied ahead, and nothing waits for that
    return compiled(cross_entropy._forward, 90, {"GRADIENT": True, "CAP": False, "SMOOTH": False, "BLOCK": 8192,
                                                 "STAGES": 4}, num_warps=16)


def tile(card):
    constants = {"KIND": tl.bfloat16, "NESTED": True, "BIAS": False, "LOW": False, "SPLITS": 4, "ROWS": 16, "OUTER": 64,
                 "GROUPS": nf4_linear.GROUPS, "RANK": 16, "rank": 0}
    return compiled(nf4_linear._forward, card, constants, ("x_step", "outer", "inner"), num_warps=4, num_stages=3)


print(json.dumps(eval(sys.argv[1])))
"""


def through_the_compiler(call: str) -> dict[str, Any]:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", COMPILE, call], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_in_place_the_labels_logit_is_read_before_a_barrier_that_comes_before_any_gradient() -> None:
    """Every warp reads it, one may write over it: without a barrier between, the loss could be that of a gradient."""
    found = through_the_compiler("in_place()")
    lines = found["ttir"].splitlines()
    (read,) = (at for at, line in enumerate(lines) if "tt.load" in line and ": !tt.ptr<bf16>" in line)
    walks = [at for at, line in enumerate(lines) if "scf.for" in line]
    assert len(walks) == 3, "zeros of an ignored row, the walk that sums, the walk that writes"
    assert walks[0] < read < walks[1]
    ptx = found["ptx"]
    assert "cp.async" not in ptx, "or the barriers of the copies would hide what is tested"
    assert "bar.sync" in ptx[: ptx.rindex("st.global.b16")]


@pytest.mark.parametrize("card", [80, 90])
def test_a_tile_of_4_bit_weights_goes_from_memory_to_the_product_in_registers(card: int) -> None:
    found = through_the_compiler(f"tile({card})")
    assert "cp.async" not in found["ptx"], "levels that are looked up are not copied one by one"
    loop = found["ptx"].split("mma.sync")[0]
    wide = re.findall(r"ld\.global\.v4\.b32", loop)
    assert len(wide) == 4, "two loads of 16 bytes a thread before the loop, two in it"
    assert found["shared"] <= 4096, "x and scales alone"
    assert len(re.findall(r"st\.shared\S*\.v4", loop)) <= 2, "x alone"
