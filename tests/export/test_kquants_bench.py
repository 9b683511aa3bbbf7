"""kernels/bench/kquants_cpu.py runs, and a core keeps the lead over llama.cpp's C that was aimed at."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

pytest.importorskip("numba")
pytest.importorskip("xllamacpp")
BENCH = Path(__file__).parents[2] / "kernels/bench/kquants_cpu.py"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_kquants_cpu", BENCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_a_core_is_ahead_of_llama_cpps_c_and_of_gguf(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", "kquants_cpu --kinds Q4_K Q5_K Q6_K Q8_0 --rows 32 --rounds 5".split())
    script.main()
    found = json.loads((tmp_path / "kquants_cpu.json").read_text())
    one = {row["kind"]: row for row in found["rows"] if row["threads"] == 1 and not row["importance"]}
    for row in found["rows"]:
        assert row["equal_blocks"] == 1.0
    for kind in ("Q4_K", "Q5_K", "Q6_K"):  # aimed at 1.5, measured 7.9, 7.8 and 3.7 on a machine with AVX-512
        assert one[kind]["ratio"]["llama.cpp"] >= 1.5
    assert one["Q8_0"]["ratio"]["gguf"] >= 2  # aimed at 3, measured 3.5; tiny here
    assert "Q4_K with importance, 1 threads: ours" in capsys.readouterr().out
