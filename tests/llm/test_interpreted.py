"""The kernels themselves in models, forward and backward, where there is no GPU: under Triton's interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

TYPES = ["llama", "llama+", "gemma2", "phi3", "mixtral", "deepseek_v2", "deepseek_v3"]  # + gradient checkpointing


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    script = Path(__file__).with_name("interpreted.py")
    done = subprocess.run([sys.executable, str(script), *TYPES], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", TYPES)
def test_loss_and_gradients_of_kernels_are_those_of_transformers(kind: str, interpreted: dict[str, Any]) -> None:
    found = interpreted[kind]
    launched = [kind for kind, how in found["runs"].items() if "interpreter runs kernels" in how]
    assert sorted(launched) == ["gated units", "loss", "norms", "rotary positions"]
    assert found["loss"] <= 1e-5 and found["gradients"] <= 1e-4
