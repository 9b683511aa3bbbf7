"""`speechkit.evaluation.errors`: reports against counts by hand and by jiwer, and every way a list may be wrong."""

from __future__ import annotations

from pathlib import Path

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.errors import AudioError, DataError, OutputError
from speechkit.evaluation.errors import ErrorReport, ScoreOptions, score
from speechkit.types import Transcript, Word

SAID = ["the cat sat on the mat", "good morning", "yes"]
HEARD = ["the hat sat on mat", "oh good morning", "yes"]


def spoken(*words: str, confidence: float = 0.5, model: str = "m", language: str | None = None) -> Transcript:
    rows = tuple(Word(word, at, at + 1.0, confidence) for at, word in enumerate(words))
    return Transcript(" ".join(words), rows, language, float(len(words)), confidence, model)


def kinds(report: ErrorReport) -> list[str]:
    return ["".join(edit.kind[0] for edit in row.edits) for row in report.utterances]


def test_every_edit_stands_in_its_column():
    report = score(SAID, HEARD)
    assert kinds(report) == ["eseede", "iee", "e"]
    assert [(e.reference, e.hypothesis) for e in report.utterances[0].edits] == [
        ("the", "the"), ("cat", "hat"), ("sat", "sat"), ("on", "on"), ("the", ""), ("mat", "mat"),
    ]  # fmt: skip
    assert report.kinds == {"equal": 7, "substitute": 1, "delete": 1, "insert": 1}


def test_rates_are_of_the_corpus_and_say_so():
    report = score(SAID, HEARD)
    assert (report.wer.errors, report.wer.count) == (3, 9)
    assert report.wer.value == jiwer.wer(SAID, HEARD)
    assert report.cer.value == jiwer.cer(SAID, HEARD)
    assert "3 edits over 9 words of 3 utterances taken together" in repr(report)
    assert report.wer.value != pytest.approx(np.mean([row.wer for row in report.utterances]))


WORDS = st.lists(st.lists(st.sampled_from("ab cd ef gh".split()), max_size=6).map(" ".join), min_size=1, max_size=6)


@given(WORDS, st.data())
@settings(max_examples=60)
def test_counts_are_those_of_jiwer_for_words_and_characters(said, data):
    heard = [data.draw(st.lists(st.sampled_from("ab cd ef xy".split()), max_size=6).map(" ".join)) for _ in said]
    report = score(said, heard)
    words, letters = jiwer.process_words(said, heard), jiwer.process_characters(said, heard)
    for found, rate in ((words, report.wer), (letters, report.cer)):
        assert rate.errors == found.substitutions + found.deletions + found.insertions
        assert rate.count == found.hits + found.substitutions + found.deletions
    assert report.kinds["insert"] == words.insertions


def test_raw_rates_count_case_and_punctuation_and_normalised_ones_do_not():
    report = score(["Hello, World!"], ["hello world"])
    assert (report.wer.errors, report.raw_wer.errors, report.raw_cer.errors) == (0, 2, 4)
    assert report.utterances[0].raw_reference == "Hello, World!"


def test_transcripts_bring_words_language_and_model():
    report = score(["one two"], [spoken("one", "too", model="demo/en", language="en")])
    assert (report.name, report.language) == ("demo/en", "en")
    row = report.utterances[0]
    assert [edit.word for edit in row.edits] == [0, 1]
    assert row.words[1].text == "too" and row.confidence == 0.5 and row.seconds == 2.0


def test_texts_with_transcripts_beside_them_take_their_words():
    alone, beside = score(["one"], transcripts=[spoken("one")]), score(["one"], ["one"], transcripts=[spoken("one")])
    assert alone == beside
    assert beside.utterances[0].edits[0].word == 0
    assert score("one", transcripts=spoken("one")) == alone, "one by itself is a list of one"
    assert score(["one"], transcripts=["one"]).utterances[0].words == ()


@pytest.mark.parametrize(
    ("words", "owners"),
    [
        pytest.param(["Well-known", "fact"], [0, 0, 1], id="a word that normalisation splits owns both halves"),
        pytest.param(["well", ",", "known", "fact"], [0, 2, 3], id="a comma owns nothing"),
        pytest.param(["wellknown", "thing"], [None, None, None], id="words that are not the text own nothing"),
    ],
)
def test_edits_know_the_word_they_came_from(words, owners):
    heard = Transcript("well known fact", tuple(Word(word, 0, 1, 0.9) for word in words))
    assert [edit.word for edit in score(["well known fact"], [heard]).utterances[0].edits] == owners


def test_mandarin_is_lined_up_by_character_and_quotes_characters_first():
    report = score("你好世界", "你 好 世 间", language="zh")
    assert kinds(report) == ["eees"]
    assert report.primary.unit == "char" and report.primary.value == 0.25
    assert repr(report).startswith("zh: CER 25.0 %")


def test_hindi_vowel_signs_count_as_errors():
    assert score("हिन्दी", "हन्दी", language="hi").cer.errors == 1


def test_korean_can_be_scored_by_letter():
    report = score("한글", "한굴", language="ko")
    assert (report.cer.errors, report.cer.count) == (1, 2)
    assert (report.rate("jamo").errors, report.rate("jamo").count) == (1, 6)


def test_arabic_vowels_count_unless_told_otherwise():
    assert score("كَتَبَ", "كتب").wer.errors == 1
    assert score("كَتَبَ", "كتب", options=ScoreOptions(vowels=False)).wer.errors == 0


def test_an_utterance_of_nothing_has_a_rate_only_if_nothing_was_heard():
    quiet, loud = score(["", "..."], ["", ""]), score(["", ""], ["", "hello"])
    assert quiet.wer.value == 0.0 and quiet.utterances[0].wer == 0.0
    assert np.isnan(loud.wer.value) and loud.utterances[1].wer == 1.0
    assert "–" in repr(loud)


def test_a_report_without_utterances_is_empty_in_every_view():
    empty = ErrorReport(())
    assert empty.wer.count == empty.raw_cer.count == 0 and empty.worst() == () and empty.seconds == 0
    assert "0 utterances" in empty.table() and "0 utterances" in empty._repr_html_()
    assert empty.by("speaker").table() == "by speaker: no utterances" and empty.characters().right == 0


def test_raw_rates_of_a_table_without_raw_texts_are_those_of_its_texts(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("name,reference,hypothesis\n1,a b,a c\n", encoding="utf-8")
    assert ErrorReport.from_csv(path).raw_wer.errors == 1


def test_an_empty_hypothesis_deletes_everything():
    assert score("a b c", "").wer.value == 1.0


def test_the_worst_come_first_and_the_table_lines_up_the_words():
    report = score(SAID, HEARD, names=["one", "two", "three"])
    assert [row.name for row in report.worst(2)] == ["one", "two"]
    assert report.worst(0) == ()
    said, heard, marks = report.utterances[0].aligned().splitlines()
    assert said == "ref  the cat sat on the mat"
    assert heard == "hyp  the hat sat on *** mat"
    assert (marks.index("S"), marks.index("D")) == (said.index("cat"), said.index("the", 10))
    assert "one" in report.table(1) and "two" not in report.table(1)


def test_audio_gives_name_seconds_and_noise(demo_clips):
    clip = demo_clips[0]
    row = score([clip.text], [clip.text], audio=[clip.path]).utterances[0]
    assert row.name == clip.path.name and row.audio == clip.path
    assert row.seconds == pytest.approx(clip.seconds, abs=0.01)
    assert row.snr_db is not None
    known = score([clip.text], [clip.text], audio=[clip.path], options=ScoreOptions(snr_db=[7.0]))
    assert known.utterances[0].snr_db == 7.0
    never = score([clip.text], [clip.text], audio=[clip.path], options=ScoreOptions(estimate_snr=False))
    assert never.utterances[0].snr_db is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AudioError, match=r"gone\.wav"):
        score(["a"], ["a"], audio=[tmp_path / "gone.wav"])


@pytest.mark.parametrize(
    ("said", "heard", "more", "told"),
    [
        (["a", "b"], ["a"], {}, "2 references and 1 hypotheses; give one hypothesis per reference"),
        ([], [], {}, "0 references and 0 hypotheses"),
        (["a"], None, {}, "1 references and 0 hypotheses"),
        (["a"], ["a"], {"names": ["x", "y"]}, "2 names for 1 references; give one each, or leave them out"),
        (["a"], ["a"], {"speakers": []}, "0 speakers for 1 references"),
        ("a", "a", {"audio": Path("a.wav")}, "audio is 'a.wav'; give a list with one for each reference"),
        (["a", "b"], ["a", "b"], {"names": "xy"}, "names is 'xy'; give a list"),
        (["a"], ["a"], {"language": ["en", "pl"]}, "2 languages for 1 references"),
        (["a"], ["a"], {"options": ScoreOptions(snr_db=[1, 2])}, "2 snr_db for 1 references"),
        ([None], ["a"], {}, "reference 1 is NoneType; references are texts"),
        (["a", "b"], ["a", 3], {}, "hypothesis 2 is int; it can be a text or a Transcript"),
        (["a"], ["a"], {"transcripts": [3]}, "transcript 1 is int; give a Transcript, or the text alone"),
        (["a"], ["a"], {"transcripts": []}, "0 transcripts for 1 references"),
    ],
)
def test_lists_that_do_not_fit_are_told(said, heard, more, told):
    with pytest.raises(DataError, match=told):
        score(said, heard, **more)


def test_languages_may_differ_between_utterances():
    report = score(["ISPARTA", "ISPARTA"], ["ısparta", "isparta"], language=["tr", "en"])
    assert report.wer.errors == 0 and report.language is None
    assert [row.language for row in report.utterances] == ["tr", "en"]


def test_speakers_drawn_whole_give_a_wider_interval():
    rng = np.random.default_rng(0)
    said = ["a b c d e f g h i j"] * 100
    speakers = [f"s{at // 10}" for at in range(100)]
    bad = np.repeat(rng.random(10) * 0.8, 10)
    heard = [" ".join("x" if rng.random() < p else word for word in said[0].split()) for p in bad]
    report = score(said, heard, speakers=speakers)
    whole, single = report.rate(by_speaker=True), report.wer
    assert whole.value == single.value and (whole.blocks, whole.drawn) == (10, "speakers")
    assert whole.high - whole.low > 1.5 * (single.high - single.low)
    assert report.rate("char", by_speaker=True).blocks == 10


def test_a_page_marks_errors_by_elements_and_escapes_what_was_said():
    page = score(["a <b> c"], ["a x & d"], names=["<i>.wav"], language="en")._repr_html_()
    assert "&lt;i&gt;.wav" in page and "<i>" not in page and "<b>" not in page
    assert "<del" in page and "<ins" in page and 'dir="auto" lang="en"' in page


def full_report() -> ErrorReport:
    return score(
        ["Hello, World", "=1+1 zwei", "'quoted'", "naïve 你好"],
        [spoken("hello", "word", language="en"), "-x", "line\nbreak", spoken("naive", "你", "好")],
        names=["a.wav", "@b", "-c", "d"],
        speakers=["s1", "", "s2", "s1"],
        options=ScoreOptions(name="demo", snr_db=[-3.25, None, 1 / 3, 60.0]),
    )


def test_a_report_survives_csv(tmp_path):
    report = full_report()
    again = ErrorReport.from_csv(report.to_csv(tmp_path / "errors.csv"))
    assert again == report
    assert again.confusions() == report.confusions()


def test_words_keep_their_places_in_csv_where_vowel_signs_were_dropped(tmp_path):
    report = score(["كتب"], [spoken("كَتَبَ", language="ar")], options=ScoreOptions(vowels=False))
    assert report.utterances[0].edits[0].word == 0
    assert ErrorReport.from_csv(report.to_csv(tmp_path / "errors.csv")) == report


def test_no_cell_of_the_csv_is_a_formula(tmp_path):
    text = full_report().to_csv(tmp_path / "errors.csv").read_text(encoding="utf-8-sig")
    assert "'=1+1 zwei" in text and "'@b" in text and ",=1+1" not in text
    assert "-3.25" in text and "'-3.25" not in text


def test_a_table_made_elsewhere_needs_three_columns(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("name,reference,hypothesis\n1,a b,a c\n", encoding="utf-8")
    assert ErrorReport.from_csv(path).wer.value == 0.5


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "holds no rows; a table of errors has rows with hypothesis, name, reference"),
        ("name,text\n1,a\n", "holds name, text; a table of errors has rows"),
        ("name,reference,hypothesis,seconds\n1,a,b,soon\n", "line 2 cannot be read as an utterance"),
        ("name,reference,hypothesis,words\n1,a,b,[1]\n", "line 2 cannot be read as an utterance"),
    ],
)
def test_a_file_that_is_no_table_of_errors_is_told(tmp_path, content, told):
    path = tmp_path / "broken.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=told):
        ErrorReport.from_csv(path)


def test_files_that_cannot_be_opened_are_told(tmp_path):
    with pytest.raises(DataError, match="cannot be read as a table of errors"):
        ErrorReport.from_csv(tmp_path / "none.csv")
    with pytest.raises(OutputError, match="cannot be written"):
        full_report().to_csv(tmp_path / "no folder" / "errors.csv")
