"""The made-up domain: new words, sentences and voices on one side only, rows broken as they say."""

from __future__ import annotations

import csv
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from speechkit.demo.domain import SPOILED, TEST_VOICES, TRAIN_VOICES, Domain, DomainOptions, write_domain
from speechkit.demo.recipes.corpus import HELD_OUT_VARIANTS, VARIANTS
from speechkit.demo.recipes.grammar import Grammar
from speechkit.errors import DataError, OutputError
from speechkit.text import normalize
from speechkit.training.check import check_examples
from speechkit.training.data import read_examples

if TYPE_CHECKING:
    from pathlib import Path

FEW = DomainOptions(train=12, test=6, general=4, general_test=5)


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    return write_domain(tmp_path_factory.mktemp("domain"), FEW)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_table_holds_as_many_rows_as_asked_for_and_training_three_more(domain: Domain) -> None:
    counts = [len(rows(path)) for path in (domain.train, domain.test, domain.general, domain.general_test)]
    assert counts == [12 + len(SPOILED), 6, 4, 5]


def test_every_clip_is_mono_sound_at_16_khz_at_one_level_without_long_silence(domain: Domain) -> None:
    for path in (domain.train, domain.test, domain.general, domain.general_test):
        for row in rows(path)[: FEW.test]:
            samples, rate = soundfile.read(domain.folder / row["file"])
            assert rate == 16_000 and samples.ndim == 1 and np.abs(samples).max() == pytest.approx(0.7, abs=0.01)
            assert np.abs(samples[:1600]).max() > 0.005


def test_no_voice_and_no_sentence_stands_on_both_sides(domain: Domain) -> None:
    heard, tested = (
        [row for path in paths for row in rows(path)]
        for paths in ((domain.train, domain.general), (domain.test, domain.general_test))
    )
    assert {row["speaker"] for row in heard} == {voice[1] for voice in TRAIN_VOICES} <= set(VARIANTS)
    assert {row["speaker"] for row in tested} == {voice[1] for voice in TEST_VOICES} == set(HELD_OUT_VARIANTS)
    assert not {row["text"] for row in heard} & {row["text"] for row in tested}


def test_the_new_words_are_in_no_everyday_sentence_and_most_calls_hold_one(domain: Domain) -> None:
    new = set(domain.new_words)
    assert len(new) > 60 and not new & Grammar("en").vocabulary()
    assert {"squawk", "niner", "runway", "wilco"} <= new
    calls = [set(normalize(row["text"]).split()) for row in rows(domain.test)]
    assert all(words & new for words in calls)
    assert not any(set(normalize(row["text"]).split()) & new for row in rows(domain.general_test))


def test_the_check_of_training_data_names_exactly_the_three_bad_rows_each_for_its_own_reason(domain: Domain) -> None:
    report = check_examples(read_examples(domain.train))
    assert Counter(problem.kind for problem in report.left_out) == Counter(
        ["empty text", "unreadable", "label longer than frames"]
    )
    assert sorted(problem.name.rpartition("/")[2] for problem in report.left_out) == sorted(SPOILED)
    assert len(report.kept) == 12 and not report.warnings
    assert check_examples(read_examples(domain.test)).left_out == ()


def test_the_same_seed_gives_the_same_tables_and_another_seed_others(domain: Domain, tmp_path: Path) -> None:
    again, other = (write_domain(tmp_path / str(seed), DomainOptions(12, 6, 4, 5, seed=seed)) for seed in (0, 1))
    for name in ("train", "test", "general", "general_test"):
        texts = [getattr(one, name).read_text() for one in (domain, again, other)]
        assert texts[0] == texts[1] != texts[2]


def test_printing_it_tells_what_each_table_holds(domain: Domain) -> None:
    told = str(domain)
    for part in ("train.csv", "12 clips of the domain by 10 voices, 3 bad rows", "6 clips of the domain by 5 other"):
        assert part in told


@pytest.mark.parametrize("name", ["train", "test", "general", "general_test"])
def test_a_set_without_clips_is_refused_by_name(name: str) -> None:
    with pytest.raises(DataError, match=rf"^{name} is 0; give the number of clips, 1 or more$"):
        DomainOptions(**{name: 0})


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"file cannot be written: .*give another folder"):
        write_domain(tmp_path / "file", FEW)
