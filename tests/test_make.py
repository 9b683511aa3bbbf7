"""The Makefile says what is missing in one sentence, and does not install again what is installed."""

import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from speechkit.demo_report import next_steps
from speechkit.terminal import Paint

ROOT = Path(__file__).parents[1]


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _stand_in(path: Path, refused: str) -> Path:
    """An interpreter that is the running one, but fails any `-c` code which holds the text `refused`."""
    path.write_text(f'#!/bin/sh\ncase "$*" in *"{refused}"*) exit 1;; esac\nexec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return path


def test_an_interpreter_of_another_version_is_named_with_the_versions_wanted(tmp_path: Path) -> None:
    done = _make("demo", f"VENV={tmp_path}/venv", f"PYTHON={_stand_in(tmp_path / 'python', 'version_info')}")
    assert done.returncode != 0
    assert "speechkit wants Python 3.11 to 3.13. Name one: make PYTHON=python3.12 demo" in done.stderr


def test_a_debian_without_python3_venv_is_told_which_package_to_install(tmp_path: Path) -> None:
    done = _make("demo", f"VENV={tmp_path}/venv", f"PYTHON={_stand_in(tmp_path / 'python', 'ensurepip')}")
    assert done.returncode != 0
    assert "cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv" in done.stderr


@pytest.mark.parametrize("target", ["demo", "test", "bench"])
def test_with_nothing_changed_nothing_is_installed_again_by_make(target: str, tmp_path: Path) -> None:
    for name in (".stamp-venv", ".stamp-demo", ".stamp-test"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() + 60,) * 2)
    done = _make("--dry-run", target, f"VENV={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "pip install" not in done.stdout and "-m venv" not in done.stdout


def test_a_changed_pyproject_is_installed_again(tmp_path: Path) -> None:
    for name in (".stamp-venv", ".stamp-demo"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    assert "pip install" in _make("--dry-run", "demo", f"VENV={tmp_path}").stdout


def test_make_demo_installs_the_jupyter_lab_that_its_last_lines_name(tmp_path: Path) -> None:
    steps = next_steps(".venv/bin/speechkit", Mock(), Paint(False))
    assert ".venv/bin/jupyter-lab notebooks/00_start.ipynb" in steps and (ROOT / "notebooks/00_start.ipynb").is_file()
    assert '--editable ".[lab]"' in _make("--dry-run", "demo", f"VENV={tmp_path}/venv").stdout
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(line.startswith("jupyterlab>=") for line in extras["lab"])


@pytest.mark.parametrize(
    ("data", "outcome"),
    [("none", "1 skipped"), ("/nowhere", "1 error")],
    ids=["none is a skip", "absence is a failure"],
)
def test_in_ci_real_speech_may_be_missing_only_on_purpose(data: str, outcome: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "kernels").mkdir()
    shutil.copy(ROOT / "tests" / "kernels" / "mark_expression.py", tmp_path / "kernels")
    (tmp_path / "test_it.py").write_text("def test_it(speech_data): pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        env={**os.environ, "CI": "true", "SPEECHKIT_SPEECH_DATA": data},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1].startswith(outcome), done.stdout


def test_the_public_ci_says_that_it_has_no_real_speech() -> None:
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]
    assert job["env"] == {"SPEECHKIT_SPEECH_DATA": "none"}


def test_ci_script_is_valid_bash_and_ends_in_make_test() -> None:
    done = subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (ROOT / ".ci" / "run").read_text().endswith("exec make test\n")
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
