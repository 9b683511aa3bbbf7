"""The README's table of kernels says what the stored results say."""

from __future__ import annotations

from pathlib import Path

from speechkit_kernels.figures import goals
from speechkit_kernels.roofline import card_named


def test_the_readme_repeats_aims_floors_and_stored_figures() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    block = readme.split("<!-- figures: kernels -->\n")[1].split("\n<!-- /figures: kernels -->")[0]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
    table = goals(card_named("H200"))
    assert tuple(head) == table.head and [tuple(row) for row in rows] == list(table.rows)
