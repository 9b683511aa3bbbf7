"""Kernels compile for the cards they are for, on a machine without one; that they run there is not shown here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def quantised(half: str) -> dict[str, str]:
    """Types of the parameters that kernels of 4-bit and 8-bit weights share; `half` of the tensors beside W."""
    tables = ("levels_ptr", "peak_ptr", "table_ptr", "offset_ptr", "part_ptr", "middles_ptr", "scale_ptr")
    sizes = ("x_step", "dy_step", "rows", "outer", "inner", "rank", "each", "total", "count")
    tensors = ("x_ptr", "y_ptr", "dy_ptr", "dx_ptr", "bias_ptr", "a_ptr", "b_ptr", "w_ptr")
    return {
        **dict.fromkeys(tables, "*fp32"), **dict.fromkeys(sizes, "i32"), **dict.fromkeys(tensors, f"*{half}"),
        "packed_ptr": "*u8", "absmax_ptr": "*u8", "code_ptr": "*u8", "ticket_ptr": "*i32", "half": "fp32",
        "low_scale": "fp32",
    }  # fmt: skip


def case(kernel: str, half: str, cards: list[int], types: dict[str, str] | None = None, **constants: Any) -> Any:
    found = {"kernel": kernel, "types": quantised(half) | (types or {}), "cards": cards, "constants": constants}
    return found | {"options": {"num_warps": 8 if constants.get("ROWS") == 64 else 4}}


PLAIN = {"absmax_ptr": "*fp32"}
CASES = [
    case("nf4._quantise", "fp32", [75, 90], PLAIN, SMALLEST=1e-38, ROWS=32),
    case("nf4._nest", "fp32", [75], PLAIN, GRIDDED=True),
    case("nf4._dequantise", "fp16", [75], NESTED=True, ROWS=32),
    case("nf4._dequantise", "bf16", [90], PLAIN, NESTED=False, ROWS=32),
    case("nf4_linear._vector", "fp16", [75], NESTED=True, BIAS=True, OUTER=4, GROUPS=16),
    case("nf4_linear._vector", "fp32", [90], PLAIN, NESTED=False, BIAS=False, OUTER=4, GROUPS=16),
    case("nf4_linear._forward", "fp16", [80], KIND="tl.float16", NESTED=True, BIAS=True, LOW=False, SPLITS=1, ROWS=16,
         OUTER=64, GROUPS=2, RANK=16, rank=0),
    case("nf4_linear._forward", "bf16", [90], KIND="tl.bfloat16", NESTED=True, BIAS=True, LOW=True, SPLITS=4, ROWS=64,
         OUTER=64, GROUPS=2, RANK=16, rows=1, each=1),
    case("nf4_linear._backward", "bf16", [80, 90], KIND="tl.bfloat16", NESTED=True, SPLITS=4, ROWS=16, OUTER=64,
         GROUPS=2),
    case("row_linear._forward", "bf16", [80], {"value_ptr": "*i8"}, KIND="tl.bfloat16", BIAS=True, SPLITS=1, ROWS=16,
         OUTER=64, INNER=64),
    case("row_linear._forward", "fp16", [89, 90], {"value_ptr": "*fp8e4nv"}, KIND="tl.float16", BIAS=True, SPLITS=4,
         ROWS=16, OUTER=64, INNER=64),
]  # fmt: skip


def compiled(cases: list[Any]) -> str:
    """What compiling.py says of them, in a process that does not interpret."""
    pytest.importorskip("triton.backends.nvidia")
    paths = [str(HERE.parents[1] / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, str(HERE / "compiling.py")], input=json.dumps(cases), env=environment, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_kernels_compile_for_the_cards_they_are_for() -> None:
    assert compiled(CASES) == ""


def test_what_does_not_compile_is_told() -> None:
    """Operands of 64-bit integers have no product: the check sees a kernel that is wrong."""
    wrong = case(
        "nf4_linear._backward", "fp64", [90], KIND="tl.int64", NESTED=True, SPLITS=1, ROWS=16, OUTER=64, GROUPS=2
    )
    assert "nf4_linear._backward for sm_90 with" in compiled([wrong])
