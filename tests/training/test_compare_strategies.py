"""A table of strategies. Oracles: `finetune` called by hand, jiwer, and the numbers of the model's own parameters."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import jiwer
import pytest
from transformers import Wav2Vec2ForCTC

sys.path.insert(0, str(Path(__file__).parent))

from tiny_runs import examples, model_folder, small

from speechkit.asr.model import load_asr
from speechkit.errors import DataError, PlanError
from speechkit.training.compare_strategies import FACTORS, StrategyRun, StrategyTable, compare_strategies
from speechkit.training.finetune import finetune

TRAIN, DEV = examples(24), examples(6, seed=1)
TESTS = {"new": examples(8, seed=2), "old": examples(6, seed=3)}
RUNS = {"head": {}, "all": {}, "slow all": {"strategy": "all", "learning_rate": 1e-4}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def seen() -> list[StrategyRun]:
    return []


@pytest.fixture(scope="module")
def table(model: Path, seen: list[StrategyRun], tmp_path_factory: pytest.TempPathFactory) -> StrategyTable:
    config = small(tmp_path_factory.mktemp("runs"), model, strategy_options={}, steps=6)
    return compare_strategies(config, TRAIN, DEV, TESTS, RUNS, on_run=seen.append)


def test_the_model_before_comes_first_and_then_every_run_as_it_was_made(
    table: StrategyTable, seen: list[StrategyRun]
) -> None:
    assert [run.name for run in table.runs] == ["before", "head", "all", "slow all"]
    assert list(table.runs) == seen and table.before.result is None and table.tests == ("new", "old")


def test_each_run_is_what_finetune_makes_of_the_same_settings(
    table: StrategyTable, model: Path, tmp_path: Path
) -> None:
    alone = finetune(small(tmp_path, model, strategy_options={}, steps=6, strategy="head"), TRAIN, DEV)
    row = table["head"].result
    assert row is not None and [p.loss for p in row.curve.points] == [p.loss for p in alone.curve.points]
    rates = [table[name].result.curve.points[-1].learning_rate for name in ("all", "slow all")]  # type: ignore[union-attr]
    assert rates[0] == pytest.approx(100 * rates[1])


def test_the_rates_are_jiwers_of_the_model_that_the_run_left(table: StrategyTable, model: Path) -> None:
    sources = {"before": model, "all": table["all"].result.best}  # type: ignore[union-attr]
    for name, source in sources.items():
        asr = load_asr(source, "cpu")
        for test, rows in TESTS.items():
            heard = [asr.transcribe(row.audio).text for row in rows]
            assert table[name].rate(test).value == pytest.approx(jiwer.wer([row.text for row in rows], heard))


def test_the_numbers_that_learn_are_counted_from_the_model_itself(table: StrategyTable, model: Path) -> None:
    plain = Wav2Vec2ForCTC.from_pretrained(model)
    head = sum(weight.numel() for weight in plain.lm_head.parameters())
    rest = sum(weight.numel() for weight in plain.wav2vec2.feature_extractor.parameters())
    total = sum(weight.numel() for weight in plain.parameters())
    assert [table[name].result.trainable for name in ("head", "all")] == [head, total - rest]  # type: ignore[union-attr]
    assert f"{head:,} ({head / total:.1%})" in repr(table).splitlines()[2]


def test_the_comparison_with_the_model_before_has_the_sign_of_the_rates(table: StrategyTable) -> None:
    for name in ("head", "all"):
        change = table.against_before(name, "new")
        assert change.names == ("before", name)
        assert change.difference == pytest.approx(table[name].rate("new").value - table.before.rate("new").value)


def test_the_best_is_that_with_the_lowest_rate_the_model_before_included(table: StrategyTable) -> None:
    rates = {run.name: run.rate("old").value for run in table.runs}
    assert table.best("old").rate("old").value == min(rates.values())
    alone = StrategyTable(table.runs[:1])
    assert alone.best("new").name == "before"


def test_a_table_that_was_broken_off_goes_on_and_trains_nothing_twice(
    table: StrategyTable, model: Path, tmp_path: Path
) -> None:
    config = small(tmp_path, model, strategy_options={}, steps=6)
    stopped: list[str] = []
    part = compare_strategies(
        config, TRAIN, DEV, TESTS, RUNS, on_run=lambda run: stopped.append(run.name), stop=lambda: "head" in stopped
    )
    assert [run.name for run in part.runs] == ["before", "head"]
    first = (tmp_path / "head/checkpoints").stat().st_mtime_ns
    whole = compare_strategies(config, TRAIN, DEV, TESTS, RUNS)
    assert [run.name for run in whole.runs] == [run.name for run in table.runs]
    assert (tmp_path / "head/checkpoints").stat().st_mtime_ns == first
    for run in whole.runs:
        assert run.rate("new") == table[run.name].rate("new")


def test_a_run_made_elsewhere_is_added_if_it_was_measured_on_the_same_sets(table: StrategyTable) -> None:
    row = replace(table["all"], name="all, again")
    assert [run.name for run in table.with_run(row).runs][-1] == "all, again"
    fewer = StrategyRun("less", None, {"new": table.before.reports["new"]})
    with pytest.raises(DataError, match="less was measured on new, the table on new, old"):
        table.with_run(fewer)


def test_text_and_html_hold_a_row_per_run_with_every_rate(table: StrategyTable) -> None:
    lines = repr(table).splitlines()
    assert lines[0].split()[:3] == ["strategy", "WER", "new"] and len(lines) == 1 + len(table.runs)
    html = table._repr_html_()
    for run in table.runs:
        for cell in run.cells:
            assert any(cell in line for line in lines) and f">{cell}</td>" in html
    hostile = table.with_run(replace(table["all"], name="<script>"))
    assert "<script>" not in hostile._repr_html_()


def test_without_runs_every_strategy_of_the_list_is_tried_at_its_own_rate(model: Path, tmp_path: Path) -> None:
    config = small(tmp_path, model, strategy_options={}, steps=2, eval_every=2, warmup=0.0, decay=0.0)
    found = compare_strategies(config, TRAIN, DEV, {"new": TESTS["new"]})
    assert [run.name for run in found.runs] == ["before", *FACTORS]
    for name, factor in FACTORS.items():
        result = found[name].result
        assert result is not None and result.strategy == name
        assert result.curve.points[-1].learning_rate == pytest.approx(config.learning_rate * factor)


@pytest.mark.parametrize("name", ["before", "", "..", "a/b", "a\\b"])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a name becomes a folder"):
        compare_strategies(small(tmp_path, model), TRAIN, DEV, TESTS, {name: {"strategy": "all"}})


def test_bad_settings_are_told_before_anything_runs(model: Path, tmp_path: Path) -> None:
    config, nothing = small(tmp_path / "never", model), lambda run: pytest.fail("a run was made")
    with pytest.raises(PlanError, match="strategy is 'magic'"):
        compare_strategies(config, TRAIN, DEV, TESTS, {"all": {}, "magic": {}}, on_run=nothing)
    with pytest.raises(PlanError, match="no setting 'learning'"):
        compare_strategies(config, TRAIN, DEV, TESTS, {"all": {"learning": 1}}, on_run=nothing)
    with pytest.raises(DataError, match=r"no test set; give at least one, tests="):
        compare_strategies(config, TRAIN, DEV, {}, on_run=nothing)
    assert not (tmp_path / "never").exists()


def test_a_test_set_or_a_run_that_is_not_there_is_told_with_those_that_are(table: StrategyTable) -> None:
    with pytest.raises(DataError, match="no test set 'other'; there are 'new', 'old'"):
        table.before.rate("other")
    with pytest.raises(KeyError, match="there are 'before', 'head', 'all', 'slow all'"):
        table["lora"]
