"""What is measured on the spot: every call with its floor, nothing that is wrong, nothing on strange devices."""

from __future__ import annotations

import pytest
import torch
from speechkit_kernels import live, reference
from speechkit_kernels.live import KERNEL, PLAIN, measure_here


def test_on_a_cpu_plain_pytorch_is_measured_beside_the_machines_own_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(live.SIZES, "cpu", (64, 256, 256, 128))
    monkeypatch.setitem(live.ROUNDS, "cpu", 2)
    found = measure_here("cpu")
    assert [one.what for one in found.timed] == ["rms_norm", "add + rms_norm", "swiglu", "cross_entropy"]
    assert {one.provider for one in found.timed} == {PLAIN}
    assert found.card.gb_s > 0 and found.card.tensor_tflop_s > 0 and "CPU" in found.card.name
    for one in found.timed:
        assert one.gb_s == pytest.approx(one.work.moved / one.ms / 1e6) and one.tflop_s > 0
    assert found.rates == {PLAIN: {one.what: one.tflop_s for one in found.timed}}
    assert list(found.works) == list(found.rates[PLAIN])
    assert found.date[:10] in repr(found) and "<table>" in found._repr_html_()


def test_each_kernel_that_a_gpu_would_time_agrees_with_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted: the pairs of calls are those of a GPU, the clock is not."""
    monkeypatch.setitem(live.SIZES, "cpu", (8, 100, 70, 50))
    monkeypatch.setattr(live, "_both", lambda kind, kernel, plain: {KERNEL: kernel, PLAIN: plain})
    checked = []
    for what, _, work, calls in live._calls("cpu", torch.float32):
        live._check(what, calls)
        checked.append(what)
        assert work.moved > 0
    assert len(checked) == 4


@pytest.mark.gpu
def test_on_a_gpu_each_kernel_takes_turns_with_plain_pytorch() -> None:
    found = measure_here("cuda")
    assert {one.provider for one in found.timed} == {KERNEL, PLAIN}
    assert all(one.ms * 1000 > 0.8 * one.work.floor_us(found.card) for one in found.timed)


def test_a_kernel_that_is_wrong_is_not_timed() -> None:
    x = torch.rand(8)
    with pytest.raises(AssertionError, match=r"twice is off by 1.0e\+00 of its norm, so it is not timed"):
        live._check("twice", {KERNEL: lambda: 2 * x, PLAIN: lambda: x})
    live._check("once", {KERNEL: lambda: (x, x), PLAIN: lambda: (x, x + 1e-4)})


def test_the_plain_forms_are_the_definitions() -> None:
    x, residual, weight = torch.randn(3, 64), torch.randn(3, 64), torch.randn(64)
    torch.testing.assert_close(live.plain_rms_norm(x, weight), reference.rms_norm(x, weight))
    pair = live.plain_add_rms_norm(x, residual, weight)
    torch.testing.assert_close(pair, reference.rms_norm(x, weight, residual=residual))
    torch.testing.assert_close(live.plain_swiglu(x, residual), reference.swiglu(x, residual))


def test_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="no way to time 'meta'; give 'cuda' or 'cpu'"):
        measure_here("meta")
