"""Every notebook runs, offline and away from the repository, through nbmake; and the cells that ran show something."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELL_S, NOTEBOOK_S = 600, 1500  # a busy machine is given time
MAX_BYTES = 1_000_000  # pictures fit; sound stored as base64 would not


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_offline_and_every_code_cell_shows_something(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    done = _nbmake(copy)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    cells = [cell for cell in nbformat.read(copy, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell.outputs, f"ran, but shows nothing:\n{cell.source}"
        noise = [out.text for out in cell.outputs if out.get("name") == "stderr"]
        assert noise == [], f"wrote to stderr:\n{cell.source}"
    assert copy.stat().st_size < MAX_BYTES


def _nbmake(notebook: Path) -> subprocess.CompletedProcess[str]:
    """Runs one notebook as `pytest --nbmake` does, in its own folder, and writes the outputs into it."""
    options = ["--nbmake", "--overwrite", f"--nbmake-timeout={CELL_S}", "--rootdir", str(notebook.parent)]
    offline = {
        "PYTHONPATH": str(ROOT / "tests" / "plugins"),
        "SPEECHKIT_BLOCK_NETWORK": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(notebook)]
    environment = {**os.environ, **offline, "SPEECHKIT_PROFILE": "offline"}
    return subprocess.run(
        command, cwd=notebook.parent, env=environment, capture_output=True, text=True, check=False, timeout=NOTEBOOK_S
    )
