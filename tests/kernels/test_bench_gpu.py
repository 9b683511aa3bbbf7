"""The bench helper where there is no GPU: a clock in place of the card's events shows what is written, and when not."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from speechkit_kernels import figures, timing
from speechkit_kernels.roofline import CARDS

BENCH = Path(__file__).resolve().parents[2] / "kernels/bench"


def loaded(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("gpu", BENCH / "gpu.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, on a card that is a clock: 1 ms asleep is 1 ms."""
    module = loaded(monkeypatch)
    monkeypatch.setattr(timing, "_on_gpu", timing._on_cpu)
    monkeypatch.setattr(timing, "SECONDS", 0.1)
    for name, fake in {
        "require_gpu": lambda name: None, "copy_bandwidth": lambda: 100.0, "peak_bytes": lambda call: 3 * 2**20,
        "environment": lambda: {"gpu": "a clock"}, "RESULTS": tmp_path,
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, fake)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a clock")
    return module


def test_a_peer_of_twice_the_time_has_ratio_two_and_one_that_fails_is_named(gpu: Any, tmp_path: Path) -> None:
    def broken() -> None:
        raise RuntimeError("out of memory\nand more")

    bench = gpu.Bench("nap")
    providers = {"ours": lambda: time.sleep(0.01), "twice": lambda: time.sleep(0.02), "broken": broken}
    row = bench.measure("nap", {"M": 1}, providers, check=lambda: None, moved=1_000_000)
    assert row.providers["twice"].ratio == pytest.approx(2, rel=0.3)
    assert row.providers["ours"].gb_s == pytest.approx(0.1, rel=0.3)
    assert row.providers["ours"].share_of_copy == pytest.approx(0.001, rel=0.3)
    assert row.not_run == {"broken": "RuntimeError: out of memory"}
    bench.write()
    written = json.loads((tmp_path / "nap.json").read_text())
    assert written["gpu"] == "a clock" and written["rows"][0]["providers"]["twice"]["rounds"] >= timing.LEAST_ROUNDS


def test_what_the_bench_writes_is_what_the_package_reads(gpu: Any, tmp_path: Path) -> None:
    bench = gpu.Bench("cross_entropy")
    bench.measure("cross_entropy full", {"M": 8192, "V": 128_256}, {"ours": lambda: None}, check=lambda: None)
    bench.write()
    [row] = [row for row in figures.goals(CARDS[0], figures.stored(tmp_path)).rows if row[0] == "cross_entropy"]
    assert row[-1].endswith("on a clock")


def test_a_result_that_is_wrong_gives_no_figure(gpu: Any, tmp_path: Path) -> None:
    def check() -> None:
        raise AssertionError("off by 1.0")

    bench = gpu.Bench("nap")
    with pytest.raises(SystemExit, match=r"nap: nap \{'M': 1\} is wrong, so nothing is measured .* off by 1.0"):
        bench.measure("nap", {"M": 1}, {"ours": lambda: pytest.fail("was run")}, check=check)
    assert not list(tmp_path.iterdir())


def test_what_is_put_back_before_each_call_is_there_and_not_timed(gpu: Any) -> None:
    x, before = torch.ones(1), lambda: (time.sleep(0.02), x.fill_(1))

    def call() -> None:
        assert x.item() == 1
        x.zero_()

    row = gpu.Bench("nap").measure("nap", {}, {"ours": call}, check=lambda: None, before=before)
    assert row.providers["ours"].median_ms < 10


def test_agree_sees_a_wrong_value_and_a_wrong_gradient(gpu: Any) -> None:
    x, dy = torch.randn(64, requires_grad=True), torch.ones(64)
    gpu.agree(torch.sin, torch.sin, [x], dy)
    with pytest.raises(AssertionError, match="output 0 is off by"):
        gpu.agree(lambda x: torch.sin(x) * 1.05, torch.sin, [x], dy)
    with pytest.raises(AssertionError, match="gradient 0 is off by"):
        gpu.agree(lambda x: torch.sin(x).detach() + (x - x.detach()), torch.sin, [x], dy)


def test_ours_must_run(gpu: Any) -> None:
    def broken() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        gpu.Bench("nap").measure("nap", {}, {"ours": broken, "torch": lambda: None}, check=lambda: None)


def test_the_bench_writes_where_the_package_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(monkeypatch).RESULTS.resolve() == figures.RESULTS.resolve()


def test_passes_give_the_gradients_that_autograd_gives_again_and_again(gpu: Any) -> None:
    x = torch.randn(3, requires_grad=True)
    made = gpu.passes({"ours": torch.square}, [x], torch.ones(3))
    for mode in ("backward", "backward", "full", "full"):
        assert torch.equal(made[mode]["ours"]()[0], 2 * x.detach())
    assert torch.equal(made["forward"]["ours"](), x.square())


def test_without_a_gpu_one_line_says_so_and_the_script_ends_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as done:
        loaded(monkeypatch).Bench("nap")
    assert (done.value.code, capsys.readouterr().out) == (0, "nap: not run: no CUDA GPU here\n")
