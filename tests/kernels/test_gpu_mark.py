"""Which runs compile the kernels, and that a run on a GPU without one fails instead of passing over its tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mark_expression import asks_for_gpu

HERE = Path(__file__).parent
DEFAULT = "not gpu"  # in pyproject.toml


@pytest.mark.parametrize("expression", ["gpu", "gpu and not slow", "gpu or slow", "(gpu)"])
def test_an_expression_that_chooses_tests_for_their_gpu_mark_compiles(expression: str) -> None:
    assert asks_for_gpu(expression)


@pytest.mark.parametrize("expression", ["", DEFAULT, "slow", "not slow", "slow and not gpu", "gpu or not slow"])
def test_any_other_interprets(expression: str) -> None:
    assert not asks_for_gpu(expression)


def pytest_says(expression: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Of one test that takes `device`, in a process that sees no GPU."""
    test = f"{HERE / 'test_rms_norm.py'}::test_a_frozen_weight_gets_no_gradient"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", expression, test]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": ""} | environment
    return subprocess.run(command, capture_output=True, text=True, env=hidden, cwd=HERE.parents[1], check=False)


def test_on_a_machine_without_a_gpu_a_gpu_test_fails_and_says_why() -> None:
    done = pytest_says("gpu")
    assert done.returncode == 1 and "no CUDA GPU here: `-m gpu` is for a machine that has one" in done.stdout


def test_where_kernels_are_compiled_a_test_on_the_cpu_is_skipped_and_says_why() -> None:
    done = pytest_says(DEFAULT, TRITON_INTERPRET="0")
    assert done.returncode == 0 and "1 skipped" in done.stdout and "kernels are compiled in this process" in done.stdout
