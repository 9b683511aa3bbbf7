"""The stage of a test is the first folder or file under tests/; what one process takes at a time is a file."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("stages", Path(__file__).parent / "stages.py")
assert SPEC and SPEC.loader
stages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(stages)


@pytest.mark.parametrize(
    ("nodeid", "stage"),
    [
        ("tests/test_lint.py::test_static_check[ruff]", "lint"),
        ("tests/asr/test_batch.py::test_x", "asr"),
        ("tests/notebooks/test_run.py::test_y[01]", "notebooks"),
        ("test_elsewhere.py::test_z", "elsewhere"),
    ],
)
def test_stage_of(nodeid: str, stage: str) -> None:
    assert stages.stage_of(nodeid) == stage


@pytest.mark.parametrize(
    ("nodeid", "unit"),
    [
        ("tests/asr/test_batch.py::test_x", "tests/asr/test_batch.py"),
        ("tests/asr/test_batch.py::TestMany::test_y[a::b]", "tests/asr/test_batch.py"),
        ("tests/notebooks/test_run.py::test_z[01]", "tests/notebooks/test_run.py::test_z[01]"),
        ("tests/test_lint.py::test_static_check[mypy]", "tests/test_lint.py::test_static_check[mypy]"),
    ],
)
def test_unit_of(nodeid: str, unit: str) -> None:
    assert stages.unit_of(nodeid) == unit
