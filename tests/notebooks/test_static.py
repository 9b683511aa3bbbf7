"""What can be said of every notebook without running it: shape, pins, names, no outputs, twin in step."""

import ast
import importlib
import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import jupytext
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from IPython.core.interactiveshell import InteractiveShell
from packaging.requirements import Requirement
from traitlets.config import Config

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAX_LINES = 12
NEVER_MOVED = {"torch", "numpy", "ipywidgets"}  # replacing one of these breaks a running Colab session

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def _cells(path: Path, kind: str) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def _tree(source: str) -> ast.Module:
    return ast.parse(TransformerManager().transform_cell(source))


def _setup(path: Path) -> str:
    return next(source for source in _cells(path, "code") if source.startswith("#@title Setup"))


def test_it_is_a_valid_notebook_for_the_python3_kernel(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata["kernelspec"]["name"] == "python3"


def test_it_opens_with_title_promise_time_and_hardware(path: Path) -> None:
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    for part in ("**You will**", "*Time: ", "CPU", "GPU", "<!-- badges -->", "<!-- /badges -->"):
        assert part in first.source


def test_the_first_code_cell_is_the_one_setup_cell_and_the_second_the_one_config_cell(path: Path) -> None:
    titles = [re.match(r"#@title (\w+)", source) for source in _cells(path, "code")]
    assert [found[1] if found else None for found in titles[:2]] == ["Setup", "Config"]
    assert not any(titles[2:])
    assert not any("#@param" in source for source in [_setup(path), *_cells(path, "code")[2:]])


def test_every_config_line_is_a_form_field_on_one_line_and_the_profile_can_be_overruled(path: Path) -> None:
    config = _cells(path, "code")[1]
    fields = re.findall(r"^([A-Z_]+) = .*#@param (?:\[.*\]|\{.*\})", config, re.MULTILINE)
    assert "PROFILE" in fields and len(fields) == config.count("#@param")
    assert 'PROFILE = os.environ.get("SPEECHKIT_PROFILE", PROFILE)' in config


def test_setup_installs_in_colab_only_and_from_the_tag_of_this_version(path: Path) -> None:
    setup = _setup(path)
    [install] = [line for line in setup.splitlines() if "pip install" in line]
    wanted = re.fullmatch(
        r' {4}%pip install -q \{pins\} "speechkit(\[[a-z,]+\])? @ git\+\{REPOSITORY\}@\{TAG\}"', install
    )
    assert wanted and set(filter(None, (wanted[1] or "").strip("[]").split(","))) <= set(
        PROJECT["optional-dependencies"]
    )
    conditions = [ast.unparse(node.test) for node in _tree(setup).body if isinstance(node, ast.If)]
    assert conditions == ["'google.colab' in sys.modules"]
    assert f'TAG = "v{PROJECT["version"]}"' in setup


def test_setup_keeps_the_versions_that_colab_brings(path: Path) -> None:
    kept = re.search(r"kept = (\{.*\})", _setup(path))
    names = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert kept and set(ast.literal_eval(kept[1])) >= NEVER_MOVED and names >= NEVER_MOVED


def test_setup_in_colab_names_every_kept_version_to_pip(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = re.sub(r'^REPOSITORY = ".*"$', 'REPOSITORY = "https://x.org/r"', _setup(path), flags=re.MULTILINE)
    asked = _run_setup_as_in_colab(setup, monkeypatch)
    assert re.search(rf'"speechkit(\[.*\])? @ git\+https://x.org/r@v{re.escape(PROJECT["version"])}"$', asked[-1])
    assert {f"{name}=={version(name)}" for name in NEVER_MOVED} <= set(asked[-1].split())


def test_setup_in_colab_without_an_address_says_so_before_it_installs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = re.sub(r'^REPOSITORY = ".*"$', 'REPOSITORY = ""', _setup(path), flags=re.MULTILINE)
    with pytest.raises(
        AssertionError, match="this copy has no public address yet to install from: see `make set-repo`"
    ):
        _run_setup_as_in_colab(setup, monkeypatch)


def _run_setup_as_in_colab(setup: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs the cell in a real IPython where `google.colab` is loaded and `%pip` only notes what it is asked.

    What that cannot show is pip's own choice of versions.
    """
    asked: list[str] = []
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # the shell puts itself there
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    shell.register_magic_function(lambda line: asked.append(f"pip {line}"), "line", "pip")
    shell.run_cell(setup).raise_error()
    return asked


def test_the_address_in_setup_is_that_of_pyproject_or_the_cell_says_there_is_none(path: Path) -> None:
    address = PROJECT.get("urls", {}).get("Repository", "")
    assert f'REPOSITORY = "{address}"' in _setup(path)
    assert 'assert REPOSITORY, "this copy has no public address yet' in _setup(path)


def test_code_cells_are_short_and_define_nothing(path: Path) -> None:
    for source in _cells(path, "code"):
        assert len(source.splitlines()) <= MAX_LINES, source
        defined = [node for node in ast.walk(_tree(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert defined == [], source


def test_there_is_at_least_as_much_prose_as_code(path: Path) -> None:
    prose, code = _cells(path, "markdown"), [source for source in _cells(path, "code") if source != _setup(path)]
    assert len(prose) > len(code)
    assert sum(map(len, prose)) >= sum(map(len, code))


def test_the_last_cell_asserts_what_was_promised(path: Path) -> None:
    last = nbformat.read(path, as_version=4).cells[-1]
    assert last.cell_type == "code"
    assert any(isinstance(node, ast.Assert) for node in _tree(last.source).body)


def test_every_speechkit_name_in_it_exists(path: Path) -> None:
    known: dict[str, object] = {}
    for source in _cells(path, "code"):
        tree = _tree(source)
        for node in ast.walk(tree):
            known.update(_imported(node))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
                owner = known[node.value.id]
                assert not isinstance(owner, ModuleType) or hasattr(owner, node.attr), ast.unparse(node)
    assert known, "it uses nothing of speechkit"


def _imported(node: ast.AST) -> dict[str, object]:
    """Local name → object, for what an import statement takes from speechkit; fails where that does not exist."""
    if isinstance(node, ast.Import):
        ours = [alias.name for alias in node.names if alias.name.split(".")[0] == "speechkit"]
        return {name.split(".")[0]: importlib.import_module(name.split(".")[0]) for name in ours}
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "speechkit":
        return {alias.asname or alias.name: _member(str(node.module), alias.name) for alias in node.names}
    return {}


def _member(module: str, name: str) -> object:
    owner = importlib.import_module(module)
    return getattr(owner, name) if hasattr(owner, name) else importlib.import_module(f"{module}.{name}")


def test_no_output_is_committed(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_its_py_twin_holds_the_same_cells(path: Path) -> None:
    twin = jupytext.read(path.with_suffix(".py"), fmt="py:percent")
    cells = nbformat.read(path, as_version=4).cells
    assert [(cell.cell_type, cell.source) for cell in twin.cells] == [(cell.cell_type, cell.source) for cell in cells]


def test_readme_names_it(path: Path) -> None:
    assert path.stem in (ROOT / "README.md").read_text()
