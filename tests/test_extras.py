"""Optional packages: present, absent, broken."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from speechkit.errors import MissingExtra
from speechkit.extras import available, install_command, require

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def broken_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that is installed and raises on import, like a wheel built for another torch."""
    (tmp_path / "speechkit_broken.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "speechkit_broken"


def test_a_package_that_is_there_is_returned() -> None:
    assert require("json", extra="av") is json


def test_a_package_that_is_absent_is_one_sentence_with_the_command() -> None:
    with pytest.raises(MissingExtra) as caught:
        require("no_such_package.part", extra="av", purpose="reading talk.m4a")
    assert str(caught.value) == (
        "reading talk.m4a needs the package 'no_such_package', which is not installed: pip install \"speechkit[av]\""
    )
    assert caught.value.name == "no_such_package"


def test_a_package_that_is_there_but_broken_is_not_called_absent(broken_package: str) -> None:
    with pytest.raises(MissingExtra, match=r"installed but fails to import \(OSError: libcudart.so.13.*doctor"):
        require(broken_package, extra="audio")


def test_a_package_whose_own_dependency_is_missing_is_not_called_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "speechkit_needy.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtra, match=r"'speechkit_needy', which is installed but .*no_such_dependency"):
        require("speechkit_needy", extra="audio")


def test_available_looks_without_importing(broken_package: str) -> None:
    assert available("json")
    assert available(broken_package)
    assert not available("no_such_package")
    assert not available("no_such_package.part")


def test_every_extra_that_the_code_asks_for_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = set()
    for path in (ROOT / "speechkit").rglob("*.py"):
        asked |= set(re.findall(r"extra=\"(\w+)\"|install_command\(\"(\w+)\"\)", path.read_text(encoding="utf-8")))
    names = {name for pair in asked for name in pair if name}
    assert "av" in names
    assert names <= set(project["optional-dependencies"])


def test_the_command_can_be_pasted_into_a_shell() -> None:
    assert install_command("av") == 'pip install "speechkit[av]"'
