"""kernels/bench/export_gguf.py runs, on a small model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gguf")
ROOT = Path(__file__).parents[2]


def test_the_script_tells_stages_memory_and_ratios(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "kernels/bench/export_gguf.py", "--cpu-check", "--rounds", "1", "--place", str(tmp_path)],
        capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout  # fmt: skip
    assert re.search(r"weights to Q4_K_M: [\d.]+ s \(prepare .*quantize Q6_K .*write", told)
    assert re.search(r"memory \d\.\d\d GiB", told) and "gguf's Q8_0" in told
    assert list(tmp_path.iterdir()) == []
