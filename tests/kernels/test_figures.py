"""The table of aims: "not run" where nobody ran, and of a file of results nothing but what it says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from speechkit_kernels import figures
from speechkit_kernels.figures import GOALS, Table, goals, k_quant_on_cpu, points, stored
from speechkit_kernels.roofline import Card, card_named

if TYPE_CHECKING:
    from pathlib import Path

H200 = card_named("H200")


def written(folder: Path, name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    data = {"name": name, "date": "2030-01-02T03:04:05+00:00", "gpu": "NVIDIA X", "rows": rows} | more
    (folder / f"{name}.json").write_text(json.dumps(data))


def row(title: str, shape: dict[str, Any], **providers: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "shape": shape, "providers": providers, "not_run": {"liger": "ImportError: no"}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    ours = {"median_ms": 0.032, "share_of_copy": 0.9, "ratio": 1.0}
    theirs = {"median_ms": 0.064, "share_of_copy": 0.45, "ratio": 2.0}
    written(tmp_path, "elementwise", [row("rms_norm forward", {}, ours=ours, torch=theirs)])
    slow, fast = ({"median_ms": ms, "ratio": 1.0} for ms in (2.0, 1.0))
    products = [row("forward", {"M": 1, "N": 4096}, ours=slow), row("forward", {"M": 1, "N": 14336}, ours=fast)]
    written(tmp_path, "nf4_linear", products)
    return tmp_path


def test_without_results_every_row_says_not_run_and_has_its_aim() -> None:
    table = goals(H200, ())
    assert len(table.rows) == len(GOALS) and {cells[-1] for cells in table.rows} == {"not run"}
    assert all(cells[3] for cells in table.rows) and "no GPU run is stored" in table.title
    assert points(H200, ()) == {}


def test_a_row_that_was_run_shows_time_share_ratios_card_and_what_was_left_out(run: Path) -> None:
    table = goals(H200, stored(run))
    cells = {cells[0]: cells[-1] for cells in table.rows}
    assert cells["rms_norm"] == "32 µs on NVIDIA X, 90% of a copy's rate, 2.00x torch, liger not run"
    assert cells["rms_norm backward"] == "not run"
    assert "measured on NVIDIA X, 2030-01-02" in table.title


def test_the_row_is_the_one_of_the_shape_that_the_aim_names(run: Path) -> None:
    cells = {cells[0]: cells[-1] for cells in goals(H200, stored(run)).rows}
    assert cells["nf4_linear, M 1"].startswith("1 ms") and cells["nf4_linear, M 16"] == "not run"


def test_a_point_is_operations_over_time(run: Path) -> None:
    assert points(H200, stored(run)) == {}  # another card's run
    assert points(Card("NVID", 1, 1), stored(run)) == {}
    found = points(Card("X", 1, 1), stored(run))
    assert found == {
        "rms_norm": pytest.approx(4 * 8192 * 4096 / 0.032e-3 / 1e12),
        "nf4_linear, M 1": pytest.approx(2 * 14336 * 4096 / 1e-3 / 1e12),
    }


def test_the_stored_files_are_read_and_the_cpus_rows_are_shown() -> None:
    results = stored()
    assert "k_quant_cpu" in [one.name for one in results]
    table = k_quant_on_cpu(results)
    assert [cells[0] for cells in table.rows] == ["Q4_K", "Q5_K", "Q6_K", "Q8_0"]
    [one] = [one for one in results if one.name == "k_quant_cpu"]
    assert one.day in table.title and "one thread" in table.title
    assert k_quant_on_cpu(()).title == "k_quant on a CPU: not run"


def test_where_llama_cpp_was_not_there_its_column_says_so(tmp_path: Path) -> None:
    rows = [{"kind": "Q4_K", "million_weights_per_s": {"ours": 9.0}, "equal_blocks": None}]
    (tmp_path / "a.json").write_text(
        json.dumps({"name": "k_quant_cpu", "date": "2030-01-02", "machine": "x", "rows": rows})
    )
    assert k_quant_on_cpu(stored(tmp_path)).rows == (("Q4_K", "9.0", "not run", "not run"),)


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text('{"name": "odd", "machine": "x"}')
    with pytest.raises(ValueError, match=r"odd.json: no result of kernels/bench: 'date' is missing"):
        stored(tmp_path)


def test_every_aim_names_a_bench_script_that_writes_a_row_of_that_title() -> None:
    bench = figures.RESULTS.resolve().parent
    for goal in GOALS:
        source = (bench / f"{goal.bench}.py").read_text()
        assert f'Bench("{goal.bench}")' in source
        last = goal.row.split()[-1]
        assert last in source, f"{goal.what}: no row {goal.row!r} in {goal.bench}.py"


def test_a_table_is_html_and_text_and_escapes() -> None:
    table = Table("t <", ("a", "b"), (("1 < 2", "x"), ("3", "yy")))
    assert repr(table).splitlines() == ["t <", "a      b", "1 < 2  x", "3      yy"]
    html = table._repr_html_()
    assert "1 &lt; 2" in html and "t &lt;" in html and html.count("<tr>") == 3
