"""Where kernels run, for hardware that is here and hardware that is not; sizes of blocks and numbers of programs."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from speechkit_kernels import launch
from speechkit_kernels.launch import Hardware, support

T4, A100, OLD = (Hardware("cuda", capability, name) for capability, name in
                 (((7, 5), "T4"), ((8, 0), "A100"), ((7, 0), "V100")))  # fmt: skip


@pytest.mark.parametrize(
    ("hardware", "dtype", "matmul", "value", "reason"),
    [
        (A100, torch.bfloat16, True, True, "compiled for A100 (sm_80)"),
        (T4, torch.float16, False, True, "compiled for T4 (sm_75)"),
        (T4, torch.bfloat16, False, False, "T4 (sm_75) has no bfloat16"),
        (T4, torch.float16, True, False, "a matrix product in Triton uses no tensor cores on T4 (sm_75)"),
        (OLD, torch.float16, False, False, "V100 (sm_70) is older than sm_75"),
        (Hardware("cpu"), torch.float32, False, False, "on a CPU the definition is the fast path"),
        (Hardware("cpu", interpreted=True), torch.bfloat16, True, True, "Triton's interpreter runs kernels on CPU"),
        (Hardware("cuda", (9, 0), interpreted=True), torch.float32, False, False, "Triton's interpreter"),
        (Hardware("mps"), torch.float32, False, False, "no kernel was written for mps"),
        (Hardware("cuda", (9, 0), triton=False), torch.float32, False, False, "triton is not installed"),
    ],
)
def test_the_decision_is_one_of_hardware_and_dtype_and_says_why(
    hardware: Hardware, dtype: torch.dtype, matmul: bool, value: bool, reason: str
) -> None:
    found = support(hardware, dtype, matmul=matmul)
    assert found.value is value and found.reason.startswith(reason)


def test_a_gpu_that_cannot_is_warned_of_once_and_a_cpu_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "hardware_of", lambda _: OLD)
    launch._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"rope runs by its definition in plain PyTorch: V100 \(sm_70\) is older"):
        assert not launch.use_kernel("rope", torch.ones(1))
    monkeypatch.undo()
    monkeypatch.setattr(launch, "hardware_of", lambda _: Hardware("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not launch.use_kernel("rope", torch.ones(1))


def test_kernels_are_launched_on_the_gpu_of_their_input(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[Any] = []

    class Device:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device)

        def __exit__(self, *_: object) -> None:
            entered.append("left")

    class There:
        device = torch.device("cuda:1")

    monkeypatch.setattr(torch.cuda, "device", Device)
    called = launch.on_its_device(lambda x, scale=1: (x, scale))
    here, there = torch.ones(1), There()
    assert called(here, scale=2) == (here, 2) and not entered
    assert called(x=there) == (there, 1)
    assert called(here, there) == (here, there)
    assert entered == [torch.device("cuda:1"), "left"] * 2


def test_blocks_are_powers_of_two_that_hold_the_width() -> None:
    assert [launch.block_of(width) for width in (0, 1, 2, 3, 64, 65, 4096, 4097)] == [1, 1, 2, 4, 64, 128, 4096, 8192]
    assert [launch.warps_of(block) for block in (1, 512, 4096, 65_536)] == [1, 1, 8, 16]


def test_norms_fill_a_multiprocessor_with_warps_and_its_shared_memory_with_rows() -> None:
    assert [launch.each_of(block) for block in (1, 1024, 4096, 65_536)] == [8, 8, 2, 2]
    half, single = torch.empty(3, 4096, dtype=torch.bfloat16), torch.empty(3, 4096)
    assert [launch.stages_of(4096, *rows) for rows in ((half, half), (half,) * 3, (single,) * 3)] == [3, 3, 2]
    wide = torch.empty(1, 65_536)
    assert launch.stages_of(65_536, wide, wide) == 1, "more than there is"
    assert launch.stages_of(4095, half[:, :4095]) == launch.stages_of(8, torch.empty(2, 9)[:, :8]) == 1, "odd"


def test_rows_are_a_view_where_they_can_be() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert launch.rows_of(x).data_ptr() == x.data_ptr() and launch.rows_of(x).shape == (6, 4)
    turned = torch.arange(12.0).reshape(3, 4).T
    assert torch.equal(launch.rows_of(turned), turned) and launch.rows_of(turned).stride(1) == 1
