"""Compiles kernels for NVIDIA cards that are not here. In: JSON cases on stdin. Out: one line for each that fails.

Triton's interpreter runs Python: it accepts what the compiler does not (two return types of one function, a constexpr
assigned twice, an attribute of a tuple). Run as a script of its own, because TRITON_INTERPRET is read once a process.
A case: {"kernel": "module.name", "types": {parameter: "*fp16" | "i32" | ...}, "constants": {...}, "cards": [75, 90],
"options": {...}}; a constant "tl.float16" stands for that dtype.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def compile_case(case: dict[str, Any], card: int) -> None:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = case["kernel"].rsplit(".", 1)
    kernel = getattr(importlib.import_module(f"speechkit_kernels.{module}"), name)
    constants = {
        at: getattr(tl, value[3:]) if isinstance(value, str) and value.startswith("tl.") else value
        for at, value in case["constants"].items()
    }
    signature = {at: "constexpr" if at in constants else case["types"][at] for at in kernel.arg_names}
    held = {(index,): constants[at] for index, at in enumerate(kernel.arg_names) if at in constants}
    # as at a launch with tensors that begin at a multiple of 16 bytes
    aligned = {
        (index,): [["tt.divisibility", 16]] for index, at in enumerate(kernel.arg_names) if signature[at][0] == "*"
    }
    triton.compile(
        ASTSource(kernel, signature=signature, constexprs=held, attrs=aligned),
        target=GPUTarget("cuda", card, 32), options=case.get("options", {}),
    )  # fmt: skip


def main() -> None:
    for case in json.load(sys.stdin):
        for card in case["cards"]:
            try:
                compile_case(case, card)
            except Exception as error:  # each case is reported, whatever the compiler raises
                print(f"{case['kernel']} for sm_{card} with {case['constants']}: {error}")


if __name__ == "__main__":
    main()
