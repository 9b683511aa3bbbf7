"""Wheel and sdist hold what they must, and the wheel works in a clean environment, away from the repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_ASSETS = 64 * 2**20
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("speechkit", "kernels"):
        unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


@pytest.fixture(scope="session")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel in it.

    The heavy dependencies are lent to it by path: a folder named in a .pth file is searched, but its own .pth files are
    not read, so the editable speechkit of the running environment stays out of sight.
    """
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    (own / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def _run(python: Path, code: str, folder: Path) -> str:
    done = subprocess.run([str(python), "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _assets() -> set[str]:
    places = [ROOT / "speechkit" / name for name in ("demo/clips", "demo/models", "demo/figures", "widgets/static")]
    return {path.relative_to(ROOT).as_posix() for place in places for path in place.rglob("*") if path.is_file()}


def test_packages_in_pyproject_are_exactly_the_folders_with_an_init() -> None:
    ours = {path.parent.relative_to(ROOT) for path in (ROOT / "speechkit").rglob("__init__.py")}
    kernels = {path.parent.relative_to(ROOT / "kernels") for path in (ROOT / "kernels").rglob("__init__.py")}
    assert sorted(SETUPTOOLS["packages"]) == sorted(".".join(path.parts) for path in ours | kernels)


def test_folder_kernels_is_no_package_itself() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_wheel_holds_every_asset_both_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert _assets() <= names
    assert "speechkit/demo/recipes/grammar_en.toml" in names
    assert {"speechkit/py.typed", "speechkit_kernels/__init__.py"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"speechkit", "speechkit_kernels"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_holds_every_result_of_the_bench(wheel: Path) -> None:
    results = {path.name: path.read_text() for path in (ROOT / "kernels/bench/results").glob("*.json")}
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name).decode() for name in archive.namelist() if "/results/" in name}
    assert results and held == {f"speechkit_kernels/results/{name}": text for name, text in results.items()}


def test_embedded_assets_include_clips_and_a_model_and_stay_within_their_budget() -> None:
    assets = _assets()
    assert "speechkit/demo/clips/manifest.tsv" in assets and "speechkit/demo/models/en/model.safetensors" in assets
    assert sum((ROOT / name).stat().st_size for name in assets) <= MAX_ASSETS


def test_sdist_holds_the_assets_and_the_kernels(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert _assets() | {"pyproject.toml", "LICENSE", "kernels/speechkit_kernels/__init__.py"} <= names


def test_installed_wheel_is_imported_and_not_the_checkout(clean: Path, tmp_path: Path) -> None:
    code = "import json, speechkit, speechkit_kernels as k; print(json.dumps([speechkit.__file__, k.__file__]))"
    places = [Path(name) for name in json.loads(_run(clean, code, tmp_path))]
    assert all(place.is_relative_to(clean.parents[1]) for place in places), places


def test_installed_wheel_transcribes_as_well_as_the_models_card_says(clean: Path, tmp_path: Path) -> None:
    code = """
import speechkit
from speechkit import demo
from speechkit.evaluation.metrics import wer
clips = demo.clips("en")
heard = speechkit.load_asr("demo/en").transcribe([clip.path for clip in clips])
rate = wer([clip.text for clip in clips], [transcript.text for transcript in heard])
print(rate - demo.results("en")["clips"].wer)
"""
    assert abs(float(_run(clean, code, tmp_path))) <= 0.005


def test_installed_wheel_shows_the_stored_figures_of_the_kernels(clean: Path, tmp_path: Path) -> None:
    code = "from speechkit_kernels.figures import stored; print([one.name for one in stored()])"
    assert "k_quant_cpu" in _run(clean, code, tmp_path)


def test_installed_wheel_brings_the_command(clean: Path, tmp_path: Path) -> None:
    command = [str(clean.parent / "speechkit"), "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert done.returncode == 0 and version in done.stdout, done.stderr


@pytest.mark.parametrize("folder", [ROOT, ROOT / "kernels"], ids=["the-root", "the-folder-kernels"])
def test_hugging_face_kernels_still_imports_as_itself_from(folder: Path) -> None:
    code = "import kernels; print(kernels.__file__); kernels.get_kernel; kernels.LocalLayerRepository"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).is_relative_to(ROOT / "kernels")
