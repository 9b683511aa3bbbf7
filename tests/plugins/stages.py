"""A pytest plugin (`-p stages`) that sums the time of each stage and prints it just before pytest's last line.

A stage is the first folder or file under tests/: `lint`, `asr`, `notebooks`, `browser`, …
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_seconds: defaultdict[str, float] = defaultdict(float)
_counts: defaultdict[str, int] = defaultdict(int)


def stage_of(nodeid: str) -> str:
    """`tests/asr/test_batch.py::test_x` → `asr`; `tests/test_lint.py::test_y` → `lint`."""
    parts = PurePosixPath(nodeid.split("::", maxsplit=1)[0]).parts
    inner = parts[1:] if parts and parts[0] == "tests" else parts
    return PurePosixPath(inner[0]).stem.removeprefix("test_") if inner else nodeid


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    stage = stage_of(report.nodeid)
    _seconds[stage] += report.duration
    _counts[stage] += report.when == "call"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("time of each stage")
    for stage, seconds in sorted(_seconds.items(), key=lambda pair: -pair[1]):
        terminalreporter.write_line(f"{seconds:8.1f} s  {stage} ({_counts[stage]} tests)")
