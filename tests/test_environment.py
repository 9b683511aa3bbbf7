"""environment.yml names the same packages in the same ranges as pyproject.toml: both parsed, both directions."""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# conda-forge name → PyPI name, where they differ
PYPI_NAME = {
    "pytorch": "torch",
    "pysoundfile": "soundfile",
    "soxr-python": "soxr",
    "ray-data": "ray",
    "python-build": "build",
}
NOT_FROM_PYPI = {"python", "pip"}
Ranges = dict[str, SpecifierSet]


def _pyproject() -> Ranges:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name, extra in extras.items() if name != "all" for line in extra)]
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(item.name): item.specifier for item in requirements}


def _environment() -> Ranges:
    items = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = [Requirement(item) for item in items if isinstance(item, str)]
    pip = [
        Requirement(item)
        for section in items
        if isinstance(section, dict)
        for item in section["pip"]
        if "-e" not in item
    ]
    named = {PYPI_NAME.get(item.name, item.name): item.specifier for item in conda if item.name not in NOT_FROM_PYPI}
    return {canonicalize_name(name): spec for name, spec in [*named.items(), *((p.name, p.specifier) for p in pip)]}


def test_every_package_of_pyproject_is_in_environment_yml() -> None:
    assert sorted(_pyproject().keys() - _environment().keys()) == []


def test_every_package_of_environment_yml_is_in_pyproject() -> None:
    assert sorted(_environment().keys() - _pyproject().keys()) == []


@pytest.mark.parametrize("name", sorted(_pyproject()))
def test_ranges_are_equal_for(name: str) -> None:
    assert _environment()[name] == _pyproject()[name]


def test_extra_all_takes_in_every_extra_but_test() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    taken = Requirement(extras["all"][0]).extras
    assert taken == extras.keys() - {"all", "test"}


def test_python_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = next(
        item
        for item in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
        if str(item).startswith("python ")
    )
    conda = Requirement(python).specifier
    listed = [
        line.rsplit(" ", 1)[1]
        for line in project["classifiers"]
        if line.startswith("Programming Language :: Python :: 3.")
    ]
    assert listed and all(
        version in conda and version in SpecifierSet(project["requires-python"]) for version in listed
    )


def test_the_package_itself_is_installed_editable_by_environment_yml() -> None:
    items = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert items[-1]["pip"][-1] == "--editable ."


def test_linux_only_packages_are_marked_so_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["llm"]]
    marked = {
        item.name
        for item in map(Requirement, lines)
        if item.marker and not item.marker.evaluate({"sys_platform": "darwin"})
    }
    assert marked == {"triton", "bitsandbytes"}
