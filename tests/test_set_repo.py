"""`make set-repo` writes one address everywhere it is needed, twice the same, and takes it back without a trace."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
URL = "https://github.com/an-owner/speech.kit"
OTHER = "https://github.com/another/name"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that set-repo reads and writes, in a folder of their own, with no address set."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in (".ci", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    assert _set(tmp_path, "--none").returncode == 0
    return tmp_path


def _set(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / ".ci" / "set_repo.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.is_file()}


def test_the_address_lands_in_pyproject_badges_and_setup_cells(copy: Path) -> None:
    assert _set(copy, URL).returncode == 0
    assert tomllib.loads((copy / "pyproject.toml").read_text())["project"]["urls"] == {"Repository": URL}
    readme = (copy / "README.md").read_text()
    assert f"{URL}/actions/workflows/ci.yml/badge.svg" in readme
    for path in (copy / "notebooks").glob("*.ipynb"):
        link = f"https://colab.research.google.com/github/an-owner/speech.kit/blob/main/notebooks/{path.name}"
        cells = nbformat.read(path, as_version=4).cells
        assert link in readme and link in cells[0].source
        assert any(f'REPOSITORY = "{URL}"' in cell.source for cell in cells if cell.cell_type == "code")


def test_the_tag_that_colab_installs_is_named_with_the_command_that_pushes_it(copy: Path) -> None:
    [setup] = {
        line for path in (copy / "notebooks").glob("*.py") for line in path.read_text().splitlines() if "TAG = " in line
    }
    tag = ast.literal_eval(setup.removeprefix("TAG = "))
    assert f"git tag {tag} && git push origin {tag}" in _set(copy, URL).stdout
    assert "git tag" not in _set(copy, "--none").stdout


def test_what_is_committed_is_what_the_address_in_pyproject_makes(copy: Path) -> None:
    address = (
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {}).get("Repository", "--none")
    )
    assert _set(copy, address).returncode == 0
    notebooks = [path for path in (ROOT / "notebooks").glob("*.*") if path.is_file()]  # JupyterLab adds a folder
    for path in ("README.md", *(str(path.relative_to(ROOT)) for path in notebooks)):
        assert (copy / path).read_text() == (ROOT / path).read_text(), path


def test_notebooks_stay_valid_and_in_step_with_their_twins(copy: Path) -> None:
    _set(copy, URL)
    for path in (copy / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        twin = jupytext.read(path.with_suffix(".py"), fmt="py:percent")
        assert [cell.source for cell in twin.cells] == [cell.source for cell in notebook.cells]


def test_a_second_run_changes_nothing(copy: Path) -> None:
    _set(copy, URL)
    before = _contents(copy)
    again = _set(copy, f"{URL}.git/")
    assert again.stdout.splitlines()[0] == f"repository: {URL}"
    assert _contents(copy) == before


def test_a_new_address_replaces_the_old_one_everywhere(copy: Path) -> None:
    _set(copy, URL)
    _set(copy, OTHER)
    assert not [name for name, content in _contents(copy).items() if URL.encode() in content]


def test_taking_the_address_out_restores_every_byte(copy: Path) -> None:
    before = _contents(copy)
    _set(copy, URL)
    _set(copy, "--none")
    assert _contents(copy) == before


def test_without_an_address_there_are_no_badges_and_the_readme_says_so(copy: Path) -> None:
    readme = (copy / "README.md").read_text()
    assert "badge.svg" not in readme and "has no public address yet" in readme


@pytest.mark.parametrize("given", ["speechkit", "http://github.com/a/b", "https://github.com/a", "https://x.org/a/b"])
def test_what_is_no_repository_address_is_refused_with_the_form_wanted(copy: Path, given: str) -> None:
    before = _contents(copy)
    done = _set(copy, given)
    assert done.returncode == 2
    assert done.stderr == f"{given!r} is not a repository address; wanted: https://github.com/OWNER/NAME\n"
    assert _contents(copy) == before


def test_the_script_needs_the_standard_library_only() -> None:
    tree = ast.parse((ROOT / ".ci" / "set_repo.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)
