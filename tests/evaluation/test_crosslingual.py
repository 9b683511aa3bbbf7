"""`speechkit.evaluation.crosslingual`: models that hear in a known way, the embedded model on other languages, and
everything that may be missing.

`Ear` is a model that writes what it is told in the spelling of its language: it proves what the matrix makes of texts.
"""

from __future__ import annotations

import json
from dataclasses import astuple

import numpy as np
import pytest

from speechkit.demo.recipes.espeak import EspeakVoice, synthesize
from speechkit.errors import AudioError, DataError, OutputError
from speechkit.evaluation.cells import Cell
from speechkit.evaluation.crosslingual import CrossLingual, CrossOptions, cross_evaluate
from speechkit.evaluation.families import FAMILIES, UNKNOWN, family_of
from speechkit.types import Transcript

UKRAINIAN = ["школа", "час та муха", "вода може"]
SETS = {
    "uk": [(np.full(800 + at, 0.1, np.float32), text) for at, text in enumerate(UKRAINIAN)],
    "en": [(np.full(900, 0.1, np.float32), "good morning")],
}


class Ear:
    """Writes the text given for a clip of so many samples."""

    def __init__(self, name: str, language: str | None, heard: dict[int, str]) -> None:
        self.name, self.language, self.heard = name, language, heard

    def transcribe(self, audio: list) -> list[Transcript]:
        return [Transcript(self.heard.get(len(clip), ""), language=self.language) for clip in audio]


POLISH = Ear("pl-ear", "pl", {800: "szkola", 801: "czas ta mucha", 802: "woda może", 900: "gud mornink"})
ENGLISH = Ear("en-ear", "en", {800: "skull", 801: "chess the moo", 802: "water", 900: "good morning"})
NATIVE = Ear("uk-ear", "uk", dict(zip((800, 801, 802), UKRAINIAN, strict=True)))


@pytest.fixture(scope="module")
def cross() -> CrossLingual:
    return cross_evaluate([POLISH, ENGLISH, NATIVE], SETS)


def test_another_alphabet_is_all_errors_until_it_is_romanised(cross):
    cell = cross.cell("pl-ear", "uk")
    assert cell.report.wer.value == 1.0
    assert cell.romanized.value == 0.0 and cell.romanized.count == len("školačastamuhavodamože")
    assert [row.raw_hypothesis for row in cell.report.utterances] == ["szkola", "czas ta mucha", "woda może"]


def test_the_matrix_has_a_row_per_model_and_a_column_per_language(cross):
    assert (cross.models, cross.languages) == (("pl-ear", "en-ear", "uk-ear"), ("uk", "en"))
    wer = cross.matrix("wer")
    assert wer.shape == (3, 2)
    assert wer[:, 0].tolist() == [1.0, 1.0, 0.0] and wer[:, 1].tolist() == [1.0, 0.0, 1.0]
    assert cross.matrix("cer")[1, 1] == cross.matrix()[1, 1] == 0
    assert cross.cell("en-ear", "en").native and not cross.cell("en-ear", "uk").native


def test_donors_are_other_languages_models_the_best_first(cross):
    found = cross.donors("uk")
    assert [donor.model for donor in found] == ["pl-ear", "en-ear"]
    assert [donor.kin for donor in found] == [True, False]
    assert found[0].probability == 1.0 and np.isnan(found[1].probability)
    assert "pl-ear (Slavic, kin) 0.0 % [0.0," in repr(found[0])
    with pytest.raises(DataError, match="no model of another language has a wer rate on 'fi'"):
        cross.donors("fi", "wer")


def test_families_pool_their_cells(cross):
    found = cross.by_family()
    pairs = [(row.model_family, row.language_family) for row in found]
    assert pairs == [("Slavic", "Slavic"), ("Germanic", "Slavic"), ("Slavic", "Germanic")], "the best come first"
    pooled = found[2].rate
    parts = [cross.cell(model, "en").romanized for model in ("pl-ear", "uk-ear")]
    assert (pooled.errors, pooled.count) == (sum(p.errors for p in parts), sum(p.count for p in parts))
    assert (pooled.blocks, pooled.drawn) == (1, "clips"), "one clip that two models heard is one draw"


def test_two_unknown_families_are_not_kin():
    row = {"xx": SETS["uk"]}
    assert not cross_evaluate([Ear("yy-ear", "yy", NATIVE.heard)], row).donors("xx")[0].kin


def test_families_can_be_added_and_overridden():
    assert family_of("pt-BR") == family_of("es") == "Romance" and family_of("xx") == family_of(None) == UNKNOWN
    assert family_of("xx", {"xx": "Island"}) == "Island" and family_of("pl", {"pl": "West Slavic"}) == "West Slavic"
    assert {FAMILIES[code] for code in ("pl", "cs", "sk", "uk")} == {"Slavic"}
    found = cross_evaluate([POLISH], SETS, CrossOptions(families={"uk": "East Slavic"})).by_family()
    assert ("Slavic", "East Slavic") in [(row.model_family, row.language_family) for row in found]


def test_confusions_are_of_sounds(cross):
    wrong = cross_evaluate([Ear("e", "pl", {800: "szkoda"})], {"uk": SETS["uk"][:1]})
    found = wrong.confusions("e", "uk")
    assert [(row.reference, row.hypothesis) for row in found.substitutions] == [("l", "d")]
    assert cross.confusions("pl-ear", "uk").totals == (0, 0, 0)
    assert wrong.sounds("e", "uk").row("l") == {"d": 1}
    assert cross.sounds("pl-ear", "uk").right == cross.cell("pl-ear", "uk").romanized.count


def test_letters_compare_spelling_instead(cross):
    spelt = cross_evaluate([POLISH], {"uk": SETS["uk"]}, CrossOptions(scheme="letters")).cell("pl-ear", "uk")
    assert spelt.romanized.value > 0


def test_models_that_do_not_know_their_language_can_be_told():
    nameless = Ear("x", None, POLISH.heard)
    told = cross_evaluate({"mine": nameless}, SETS, CrossOptions(languages={"mine": "pl"}))
    assert told.cell("mine", "uk").romanized.value == 0.0 and told.models == ("mine",)


def test_a_matrix_survives_a_file(cross, tmp_path):
    path = cross.save(tmp_path / "cross.json")
    again = CrossLingual.load(path)
    assert again.table() == cross.table() and repr(again.donors("uk")) == repr(cross.donors("uk"))
    for a, b in zip(again.cells, cross.cells, strict=True):
        # as text: an interval of too few clips is NaN, which equals nothing
        assert repr(astuple(a.romanized)) == repr(astuple(b.romanized))
        assert repr(astuple(a.report.wer)) == repr(astuple(b.report.wer))
    with pytest.raises(OutputError, match="cannot be written"):
        cross.save(tmp_path / "none" / "cross.json")


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "other"}', '{"kind": "cross-lingual evaluation"}'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=r"x\.json is no file that CrossLingual\.save wrote"):
        CrossLingual.load(tmp_path / "x.json")


def test_the_table_marks_native_cells_and_shows_intervals(cross):
    told = cross.table("wer")
    assert told.startswith("WER, 95 % intervals, * the model's own language")
    assert "*0.0 % [0.0," in told and "100.0 % [100.0, 100.0]" in told
    assert repr(cross).startswith("error rate of romanised sounds")


def test_what_is_missing_is_a_marked_cell_and_the_rest_stands(tmp_path):
    folder = tmp_path / "empty-folder"
    folder.mkdir()
    lines: list[str] = []
    found = cross_evaluate(
        [NATIVE, folder, "demo/xx"], {"uk": SETS["uk"], "fi": []}, CrossOptions(progress=lines.append)
    )
    assert found.cell("uk-ear", "uk").report is not None
    assert "no clips for language 'fi'" in found.cell("uk-ear", "fi").reason
    assert "the model cannot be loaded" in found.cell(str(folder), "uk").reason
    assert "unknown embedded model 'demo/xx'" in found.cell("demo/xx", "uk").reason
    assert len(found.failures) == 5 and len(lines) == 6
    assert np.isnan(found.matrix()).sum() == 5
    assert "demo/xx on uk, fi: the model cannot be loaded" in found.table(), "a reason is told once"
    with pytest.raises(DataError, match=r"no clips for language 'fi'.*so there are no sounds"):
        found.confusions("uk-ear", "fi")
    again = CrossLingual.load(found.save(tmp_path / "x.json"))
    assert again.table() == found.table()


def test_a_language_without_embedded_clips_is_a_marked_cell():
    cell = cross_evaluate([NATIVE], ["xx"]).cell("uk-ear", "xx")
    assert "no embedded clips for language 'xx'" in cell.reason


def test_clips_that_cannot_be_read_are_left_out_and_noted(tmp_path):
    rows = [(tmp_path / "gone.wav", "час"), SETS["uk"][0], 3, (SETS["uk"][1][0], None)]
    cell = cross_evaluate([NATIVE], {"uk": rows}).cell("uk-ear", "uk")
    assert len(cell.report) == 1 and cell.report.wer.value == 0
    assert "3 of 4 clips left out" in cell.note and "gone.wav" in cell.note
    none = cross_evaluate([NATIVE], {"uk": rows[:1]}).cell("uk-ear", "uk")
    assert none.report is None and "1 of 1 clips left out" in none.reason


class Choosy(Ear):
    """Refuses clips of some lengths, and with them the whole list."""

    def transcribe(self, audio: list) -> list[Transcript]:
        if any(len(clip) not in self.heard for clip in audio):
            raise AudioError("too short")
        return super().transcribe(audio)


def test_a_clip_on_which_a_model_fails_counts_as_unheard():
    cell = cross_evaluate([Choosy("c", "uk", {800: "школа"})], {"uk": SETS["uk"]}).cell("c", "uk")
    assert [row.hypothesis for row in cell.report.utterances] == ["школа", "", ""]
    assert "2 of 3 clips failed and count as unheard, the first because too short" in cell.note
    broken = cross_evaluate([Choosy("c", "uk", {})], {"uk": SETS["uk"]}).cell("c", "uk")
    assert broken.report is None and broken.reason == "the model fails on every clip: too short"


def test_a_script_without_a_table_keeps_its_wer_and_says_why_it_is_not_romanised():
    hebrew = {"he": [(np.full(800, 0.1, np.float32), "שלום")]}
    cell = cross_evaluate([Ear("he-ear", "he", {800: "שלום"})], hebrew).cell("he-ear", "he")
    assert cell.report.wer.value == 0 and cell.romanized is None and "no romanisation for" in cell.unread
    assert cell.rate("romanized") is None and cell.rate("wer").value == 0


def test_why_a_cell_is_not_romanised_is_found_anew_after_a_file(tmp_path):
    gone = (tmp_path / "gone.wav", "שלום")
    found = cross_evaluate([Ear("m", "he", {800: "שלום"})], {"he": [gone, (np.full(800, 0.1, np.float32), "שלום")]})
    again = CrossLingual.load(CrossLingual.load(found.save(tmp_path / "a.json")).save(tmp_path / "b.json"))
    assert again.cells[0].remark == found.cells[0].remark
    assert found.table().count("no romanisation for") == again.table().count("no romanisation for") == 1
    assert "1 of 2 clips left out" in again.table(), "what was seen when it was measured stays"


def test_a_region_makes_no_other_language():
    found = cross_evaluate([Ear("us", "en-US", ENGLISH.heard), POLISH], {"en": SETS["en"]})
    assert found.cell("us", "en").native and [donor.model for donor in found.donors("en")] == ["pl-ear"]


class Mute(Ear):
    """Forgets the last clip of a list, and answers with `last` to a single one."""

    last: object = None

    def transcribe(self, audio: list) -> list:
        return super().transcribe(audio)[:-1] if len(audio) > 1 else [self.last]


def test_a_model_that_does_not_answer_for_each_clip_is_a_marked_cell():
    mute = Mute("mute", "uk", NATIVE.heard)
    cell = cross_evaluate([mute], SETS).cell("mute", "uk")
    assert "fails on every clip: it gave 1 rows (NoneType) for 1 clips; a model gives a Transcript each" in cell.reason
    mute.last = "час"
    cell = cross_evaluate([mute], SETS).cell("mute", "uk")
    assert [row.hypothesis for row in cell.report.utterances] == ["час"] * 3, "one by one it does answer"


@pytest.mark.parametrize(
    ("models", "sets", "told"),
    [
        ([], SETS, "0 models and 2 languages; give at least one of each"),
        ([POLISH], {}, "1 models and 0 languages"),
        ([POLISH, POLISH], SETS, "model 'pl-ear' is given twice"),
        ([POLISH], ["uk", "uk"], "one is given twice"),
    ],
)
def test_calls_that_make_no_matrix_are_told(models, sets, told):
    with pytest.raises(DataError, match=told):
        cross_evaluate(models, sets)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"limit": 0}, "limit is 0; give the number of clips per language, 1 or more, or None for all"),
        ({"limit": -1}, "limit is -1"),
        ({"scheme": "ipa"}, 'scheme is \'ipa\'; it can be "letters" or "sounds"'),
    ],
)
def test_options_are_checked_before_any_model_hears(options, told):
    with pytest.raises(DataError, match=told):
        CrossOptions(**options)


def test_unknown_cells_and_figures_are_told(cross):
    with pytest.raises(DataError, match="no cell for model 'x' and language 'uk'; models: pl-ear, en-ear, uk-ear"):
        cross.cell("x", "uk")
    for call in (cross.matrix, cross.table, cross.by_family):
        with pytest.raises(DataError, match='figure is \'per\'; it can be "wer", "cer" or "romanized"'):
            call("per")


def test_the_embedded_model_hears_english_and_hardly_polish(recognizer, demo_clips, tmp_path):
    polish = [
        (synthesize(text, EspeakVoice("pl", "", 150, 50, 50)), text)
        for text in ("dzień dobry państwu", "gdzie jest dworzec")
    ]
    found = cross_evaluate([recognizer], {"en": demo_clips, "pl": polish}, CrossOptions(limit=4))
    english, other = found.cell("demo/en", "en"), found.cell("demo/en", "pl")
    assert len(english.report) == 4 and english.native and english.report.wer.value < 0.2
    assert other.report.wer.value > 0.6 and other.romanized.value > english.romanized.value
    assert english.audio_s == pytest.approx(sum(clip.seconds for clip in demo_clips[:4]), abs=0.05)
    assert english.report.utterances[0].audio == demo_clips[0].path
    assert english.report.utterances[0].words, "times stay for the error board"
    json.loads(found.save(tmp_path / "x.json").read_text(encoding="utf-8"))


def test_a_cell_by_itself_prints_what_it_holds():
    assert repr(Cell("m", "pl", "uk", reason="no weights")) == "m on uk: no weights"
