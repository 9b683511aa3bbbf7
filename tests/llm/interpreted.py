"""Models with kernels under Triton's interpreter, beside the same without: run by test_interpreted in its own process.

Prints as JSON, for each family, how far loss and gradients are apart; "llama+" is Llama with gradient checkpointing.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
sys.path.insert(0, str(Path(__file__).parent))

import torch
from tiny_llms import loss_and_gradients, tiny

from speechkit.llm import apply_kernels


def compared(kind: str) -> dict[str, Any]:
    checkpointed, kind = kind.endswith("+"), kind.rstrip("+")
    model = tiny(kind, num_hidden_layers=2 if "deepseek" in kind else 1).train()
    _, loss, gradients = loss_and_gradients(model)
    applied = apply_kernels(model)
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    _, our_loss, ours = loss_and_gradients(model)
    assert ours.keys() == gradients.keys()
    worst = max(((ours[name] - x).abs().max() / x.abs().max().clamp(min=1e-3)).item() for name, x in gradients.items())
    return {"loss": abs(our_loss - loss).item(), "gradients": worst, "runs": applied.runs}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({kind: compared(kind) for kind in sys.argv[1:]}))
