"""A pytest plugin (`-p stages`): the order of stages, what one of several processes takes at a time, and their times.

A stage is the first folder or file under tests/: `lint`, `asr`, `notebooks`, `browser`, …
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any

import pytest

# quick answers first; what starts kernels, servers and browsers after everything they stand on
RANK = {"lint": -1, "packaging": 1, "notebooks": 2, "browser": 3}
ALONE = {"lint", "notebooks"}  # long tests that share nothing: no process is left with all of them at the end

_seconds: defaultdict[str, float] = defaultdict(float)
_counts: defaultdict[str, int] = defaultdict(int)


def stage_of(nodeid: str) -> str:
    """`tests/asr/test_batch.py::test_x` → `asr`; `tests/test_lint.py::test_y` → `lint`."""
    parts = PurePosixPath(nodeid.split("::", maxsplit=1)[0]).parts
    inner = parts[1:] if parts and parts[0] == "tests" else parts
    return PurePosixPath(inner[0]).stem.removeprefix("test_") if inner else nodeid


def unit_of(nodeid: str) -> str:
    """What pytest-xdist hands to one process whole: a file, for its fixtures are made once; of ALONE each test."""
    return nodeid if stage_of(nodeid) in ALONE else nodeid.split("::", maxsplit=1)[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: RANK.get(stage_of(item.nodeid), 0))  # stable: the order within a stage stays


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """By units. Of pytest-xdist's own ways loadfile knows no ALONE, and loadgroup's marks are lost under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    return ByUnit(config, log)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    stage = stage_of(report.nodeid)
    _seconds[stage] += report.duration
    _counts[stage] += report.when == "call"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("time of each stage")
    for stage, seconds in sorted(_seconds.items(), key=lambda pair: -pair[1]):
        terminalreporter.write_line(f"{seconds:8.1f} s  {stage} ({_counts[stage]} tests)")
