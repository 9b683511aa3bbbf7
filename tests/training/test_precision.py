"""The precision of training and its reason, for machines that are not here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from speechkit.device import Gpu, Hardware
from speechkit.errors import PlanError
from speechkit.training.precision import choose_precision, cpu_features

T4 = Hardware(4, (Gpu("Tesla T4", (7, 5), 15.0),))
H200 = Hardware(16, (Gpu("NVIDIA H200", (9, 0), 139.0),))
P100 = Hardware(4, (Gpu("Tesla P100", (6, 0), 16.0),))


@pytest.mark.parametrize(
    ("device", "hardware", "features", "value", "reason"),
    [
        ("cuda", T4, (), "float16", "no bfloat16"),
        ("cuda", H200, (), "bfloat16", "no loss scaling"),
        ("cuda:0", P100, (), "float32", "no tensor cores"),
        ("cpu", None, ("avx2", "avx512_bf16"), "float32", "avx512_bf16 would be faster"),
        ("cpu", None, ("amx_bf16",), "float32", "amx_bf16 would be faster"),
        ("cpu", None, ("avx2", "avx512_f"), "float32", "no bfloat16 units"),
        ("mps", None, (), "float32", "nothing on mps"),
    ],
    ids=["T4", "H200", "P100", "CPU with AVX-512 BF16", "CPU with AMX", "older CPU", "Apple"],
)
def test_auto_takes_the_fast_format_of_the_device_and_says_why(
    device: str, hardware: Hardware | None, features: tuple[str, ...], value: str, reason: str
) -> None:
    choice = choose_precision(device, "auto", hardware, features)
    assert choice.value == value and reason in choice.reason


def test_a_wish_is_granted_where_the_device_can() -> None:
    assert choose_precision("cuda", "float16", H200).value == "float16"
    assert choose_precision("cuda", "float32", T4).value == "float32"
    assert choose_precision("cpu", "bfloat16", features=()).value == "bfloat16"


@pytest.mark.parametrize(
    ("device", "precision", "said"),
    [
        ("cuda", "bfloat16", 'Tesla T4 .* has none; use "float16"'),
        ("cpu", "float16", "which cpu cannot train in"),
        ("cpu", "int4", "precision is 'int4'; it can be 'auto', 'float32'"),
    ],
)
def test_a_wish_that_cannot_be_granted_is_refused(device: str, precision: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        choose_precision(device, precision, T4, ())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists them in /proc/cpuinfo")
def test_the_features_of_this_cpu_are_those_that_the_system_lists() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    assert ("avx512_bf16" in cpu_features()) == ("avx512_bf16" in flags)
