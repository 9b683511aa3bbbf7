"""Scripts that measure the training of language models run: in miniature here, whole on the machine they are for."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from types import ModuleType

BENCH = Path(__file__).parents[2] / "kernels" / "bench"


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of kernels/bench as a module; they import one another by their bare names."""
    monkeypatch.syspath_prepend(str(BENCH))
    name = f"bench_{request.param}"
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{request.param}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *options])
    script.main()


@pytest.mark.parametrize("script", ["packing"], indirect=True)
def test_packed_and_padded_updates_have_the_same_losses(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "--layers 1 --width 64 --rows 8 --median 12 --longest 32 --batch 4 --rounds 2 --lengths 500".split()
    run(script, monkeypatch, *small)
    said = capsys.readouterr().out
    assert float(said.split("most apart ")[1].split()[0]) < 1e-4
    assert re.search(r"packed / padded: \d+\.\d\d \(turns: .*\); of the \d\.\d\d that padding allows \d+\.\d\d", said)
    assert "500 lengths, mean 0.2" in said and "attention speechkit" in said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", ["llm_train"], indirect=True)
def test_the_whole_path_of_the_step_on_a_gpu_runs_on_a_tiny_model(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(script, monkeypatch, "--cpu-check", "--rows", "4")
    lines = [line for line in capsys.readouterr().out.splitlines() if "; losses " in line]
    assert [line.partition(":")[0] for line in lines] == [
        "same tokens, bf16", "ragged, bf16", "same tokens, nf4", "ragged, nf4"
    ]  # fmt: skip
    assert all(float(line.split("most apart ")[1].rstrip(")")) < 2e-3 for line in lines), lines


@pytest.mark.parametrize("script", ["llm_train"], indirect=True)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would run")
def test_without_a_gpu_it_says_so_and_ends(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(script, monkeypatch)
    assert end.value.code == 0 and capsys.readouterr().out == "llm_train: not run: no CUDA GPU here\n"
