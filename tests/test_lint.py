"""ruff and mypy find nothing: the first stage of `make test`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "ruff-check-finds-nothing": ["ruff", "check", "--no-cache", "."],
    "ruff-format-would-change-nothing": ["ruff", "format", "--no-cache", "--check", "."],
    "mypy-strict-finds-nothing": ["mypy"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_static_check(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
