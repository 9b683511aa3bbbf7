"""The choice of device, precision and threads for machines that are described, not present."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from speechkit.device import Gpu, Hardware, choose_device, choose_dtype, choose_threads, cpu_cores, detect
from speechkit.errors import PlanError

if TYPE_CHECKING:
    from pathlib import Path

LAPTOP = Hardware(cores=8, note="this torch is built without CUDA")
MAC = Hardware(cores=10, mps=True)
P100 = Hardware(cores=2, gpus=(Gpu("Tesla P100", (6, 0), 16.0),))
T4 = Hardware(cores=2, gpus=(Gpu("Tesla T4", (7, 5), 14.6),))
NODE = Hardware(cores=64, gpus=tuple(Gpu("NVIDIA H200", (9, 0), 139.8) for _ in range(8)))


@pytest.mark.parametrize(
    ("hardware", "value", "reason"),
    [
        (LAPTOP, "cpu", "this torch is built without CUDA"),
        (Hardware(cores=1), "cpu", "no GPU"),
        (MAC, "mps", "Apple GPU"),
        (T4, "cuda", "Tesla T4, 15 GiB"),
        (NODE, "cuda", "NVIDIA H200, 140 GiB"),
    ],
    ids=["laptop", "no note", "mac", "T4", "H200 node"],
)
def test_auto_takes_the_best_device_and_says_which(hardware: Hardware, value: str, reason: str) -> None:
    choice = choose_device("auto", hardware)
    assert (choice.value, choice.reason) == (value, reason)
    assert str(choice) == f"{value} ({reason})"


@pytest.mark.parametrize(("device", "hardware"), [("cpu", NODE), ("cuda:7", NODE), ("cuda", T4), ("mps", MAC)])
def test_a_device_that_is_there_is_taken_as_asked(device: str, hardware: Hardware) -> None:
    assert choose_device(device, hardware).value == device


@pytest.mark.parametrize(
    ("device", "hardware", "text"),
    [
        ("gpu", T4, 'device is \'gpu\'; it can be "auto", "cpu", "cuda"'),
        ("cuda:x", T4, "device is 'cuda:x'; it can be"),
        ("cpu:1", T4, "device is 'cpu:1'; it can be"),
        ("cuda", LAPTOP, "device is 'cuda', but the machine has: this torch is built without CUDA"),
        ("cuda:1", T4, 'but the machine has: cuda:0 Tesla T4; use device="auto"'),
        ("mps", T4, "torch finds no Apple GPU here"),
    ],
)
def test_a_device_that_is_not_there_is_an_error_that_names_one_that_is(
    device: str, hardware: Hardware, text: str
) -> None:
    with pytest.raises(PlanError) as caught:
        choose_device(device, hardware)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("device", "hardware", "value"),
    [
        ("cpu", NODE, "float32"),
        ("mps", MAC, "float32"),
        ("cuda", P100, "float32"),
        ("cuda", T4, "float16"),
        ("cuda:3", NODE, "float16"),
    ],
)
def test_auto_precision_is_half_only_where_the_gpu_has_units_for_it(
    device: str, hardware: Hardware, value: str
) -> None:
    choice = choose_dtype(device, "auto", hardware)
    assert choice.value == value
    assert choice.reason


def test_a_precision_asked_for_is_taken() -> None:
    assert choose_dtype("cuda", "float32", T4).value == "float32"
    assert choose_dtype("cuda", "bfloat16", NODE).value == "bfloat16"
    assert choose_dtype("cpu", "bfloat16", LAPTOP).value == "bfloat16"


def test_bfloat16_on_a_t4_is_refused_with_what_works() -> None:
    with pytest.raises(PlanError, match=r"Tesla T4 \(capability 7.5\) has none; use \"float16\""):
        choose_dtype("cuda", "bfloat16", T4)


def test_an_unknown_precision_lists_the_known() -> None:
    with pytest.raises(PlanError, match="dtype is 'fp8'; it can be \"auto\", 'float32', 'float16', 'bfloat16'"):
        choose_dtype("cpu", "fp8", LAPTOP)


def test_threads_are_the_cores_unless_given() -> None:
    assert choose_threads("auto", LAPTOP).value == 8
    assert choose_threads(3, LAPTOP).value == 3
    assert str(choose_threads("auto", Hardware(cores=1))) == "1 (1 core may be used by this process)"
    with pytest.raises(PlanError, match='threads is 0; it can be "auto" or a whole number from 1'):
        choose_threads(0, LAPTOP)


@pytest.mark.parametrize(("quota", "most"), [("50000 100000", 1), ("100000 100000", 1), ("max 100000", 10**6)])
def test_a_containers_quota_limits_the_cores(tmp_path: Path, quota: str, most: int) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert cpu_cores(tmp_path / "cpu.max") == min(most, cpu_cores(tmp_path / "absent"))


def test_detect_agrees_with_torch_and_the_system() -> None:
    import torch

    found = detect()
    assert len(found.gpus) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert found.gpus or found.mps or found.note


@pytest.mark.parametrize(
    ("hardware", "told"),
    [
        (Hardware(2), "2 CPU cores"),
        (Hardware(1), "1 CPU core"),
        (Hardware(8, mps=True), "Apple GPU"),
        (Hardware(2, (Gpu("Tesla T4", (7, 5), 14.7),)), "Tesla T4, 15 GiB"),
        (Hardware(2, (Gpu("Tesla T4", (7, 5), 14.7),) * 2), "2 × Tesla T4, 15 GiB"),
    ],
)
def test_hardware_is_told_in_a_few_words(hardware: Hardware, told: str) -> None:
    assert str(hardware) == told
