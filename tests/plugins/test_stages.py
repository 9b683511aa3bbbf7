"""The stage of a test is the first folder or file under tests/."""

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
