"""Vocabularies against transformers' own tokenizer: ids, texts and files; and the rules of each script."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2Processor

from speechkit import demo
from speechkit.errors import DataError, ModelError
from speechkit.text import normalize
from speechkit.training.vocabulary import Vocabulary, build_vocabulary, extend_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

LATIN = "abcdefghijklmnopqrstuvwxyz"
TEXTS = {
    "en": ["Don't stop, it's well-known!", "ROCK ’n’ roll… 100%"],
    "pl": ["Zażółć gęślą jaźń", "PCHNĄĆ w tę łódź"],
    "de": ["Straße, Äpfel – „Öl“", "GRÜẞE"],
    "tr": ["Iğdır ışık", "İstanbul IŞIK"],
    "hi": ["नमस्ते दुनिया", "क्या हाल है।"],
    "ar": ["السَّلامُ عليكم", "كتاب"],
    "zh": ["你好，世界", "今天 天气 很好"],
    "ko": ["안녕하세요 세계", "한국어"],
    "ja": ["こんにちは、カタカナ", "日本語"],
    "th": ["สวัสดี ชาวโลก"],
    "vi": ["Tiếng Việt đẹp lắm"],
    "uk": ["Під’їзд їжака", "ґанок"],
}
NFD = {language: [unicodedata.normalize("NFD", text) for text in texts] for language, texts in TEXTS.items()}


@pytest.mark.parametrize("language", TEXTS)
def test_labels_are_the_ids_of_transformers_and_come_back_as_the_normalised_text(language: str) -> None:
    vocabulary = build_vocabulary(TEXTS[language], language)
    tokenizer = vocabulary.tokenizer()
    assert isinstance(tokenizer, Wav2Vec2CTCTokenizer)
    for text in TEXTS[language]:
        ids = vocabulary.encode(text)
        assert vocabulary.unk not in ids
        assert ids == tokenizer(vocabulary.prepare(text)).input_ids
        assert vocabulary.decode(ids) == normalize(text, language)
        assert tokenizer.decode(ids, group_tokens=False) == normalize(text, language)


@pytest.mark.parametrize("language", TEXTS)
def test_decomposed_and_composed_texts_make_one_vocabulary(language: str) -> None:
    assert build_vocabulary(NFD[language], language) == build_vocabulary(TEXTS[language], language)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=30))
def test_any_text_is_encoded_as_transformers_encodes_its_prepared_form(text: str) -> None:
    ids = ENGLISH.encode(text)
    assert ids == ENGLISH_TOKENIZER(ENGLISH.prepare(text)).input_ids
    assert sum(ENGLISH.missing(text).values()) == ids.count(1)


ENGLISH = Vocabulary(("<pad>", "<unk>", "|", *LATIN, "'"), 0, 1, 2)
ENGLISH_TOKENIZER = ENGLISH.tokenizer()


def test_combining_marks_are_tokens() -> None:
    hindi = build_vocabulary(TEXTS["hi"], "hi")
    assert {"्", "ा", "े", "ि"} <= set(hindi.letters)
    assert "◌्" in str(hindi)


def test_special_tokens_come_first_and_letters_by_code_point() -> None:
    vocabulary = build_vocabulary(["b a", "Ça"], "fr")
    assert vocabulary.tokens == ("<pad>", "<unk>", "|", "a", "b", "ç")
    assert (vocabulary.blank, vocabulary.unk, vocabulary.delimiter) == (0, 1, 2)


def test_rare_characters_are_left_out_and_named() -> None:
    texts = ["abc abc"] * 5 + ["xa", "øa øa", "abd"]
    vocabulary = build_vocabulary(texts, "en", min_count=2)
    assert set(vocabulary.letters) == {"a", "b", "c", "ø"}
    assert vocabulary.notes[:2] == (
        "left out, seen less than 2 times: d (1) x (1)",
        "rare, hardly to be learnt (seen less than 5 times): ø (2)",
    )


def test_digits_bars_and_mixed_scripts_are_noted() -> None:
    notes = "\n".join(build_vocabulary(["call 112 now|please", "саll" * 3], "en").notes)
    assert "digits 12: each is read in many ways" in notes
    assert "1 texts hold '|'" in notes
    assert "more than one script: Latin" in notes


def test_punctuation_stays_where_it_is_kept() -> None:
    vocabulary = build_vocabulary(["well-known, yes"], "en", keep="-")
    assert vocabulary.prepare("Well-known - yes!") == "well-known - yes"
    assert vocabulary.decode(vocabulary.encode("Well-known, yes")) == "well-known yes"


def test_korean_in_jamo_writes_syllables_that_no_text_held() -> None:
    syllables = build_vocabulary(TEXTS["ko"], "ko")
    jamo = build_vocabulary(TEXTS["ko"], "ko", hangul="jamo")
    new = "헤국"  # made of parts of the texts
    assert syllables.missing(new).keys() == {"헤"}
    assert not jamo.missing(new)
    assert jamo.decode(jamo.encode(new)) == new
    assert len(jamo.encode("한국어")) == len(unicodedata.normalize("NFD", "한국어"))
    assert jamo.tokenizer()(jamo.prepare("한국어 세계")).input_ids == jamo.encode("한국어 세계")
    assert "hangul='jamo'" in "".join(syllables.notes)


def test_ideographs_are_noted_as_closed() -> None:
    assert any(note.startswith("4 ideographs") for note in build_vocabulary(["你好世界"], "zh").notes)


@pytest.mark.parametrize(
    ("texts", "language", "message"),
    [
        pytest.param([], "en", "there are no texts", id="nothing"),
        pytest.param(["...", "?"], "en", "none of the texts holds a letter", id="no letter"),
        pytest.param(
            ["a a", "aaa"], "en", "would hold a only; a model with one letter learns nothing", id="one letter"
        ),
        pytest.param(["привет мир"], "en", r"written in Cyrillic 100.0 %.*'en' in Latin: check", id="another script"),
        pytest.param(["hello"], "zh", "'zh' in Han", id="romanised"),
    ],
)
def test_texts_that_make_no_vocabulary_are_errors(texts: list[str], language: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_vocabulary(texts, language)


def test_a_language_without_known_script_is_not_judged() -> None:
    assert build_vocabulary(["ᏣᎳᎩ"], "chr").letters


def test_options_out_of_range_are_errors() -> None:
    with pytest.raises(DataError, match=r"min_count is 0 \(1 or more\)"):
        build_vocabulary(["ab"], min_count=0)


# Published vocabularies


def test_an_upper_case_vocabulary_spells_in_capitals() -> None:
    base = Vocabulary(("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"), 0, 3, 4)
    assert base.prepare("Don’t stop!") == "DON'T STOP"
    assert base.encode("don't") == base.tokenizer()("DON'T").input_ids
    assert (base.case, base.letters[0], len(base.letters)) == ("upper", "E", 27)


def test_dotted_and_dotless_i_keep_apart_in_turkish_capitals() -> None:
    turkish = Vocabulary(("<pad>", "<unk>", "|", *"ABCÇDEFGĞHIİJKLMNOÖPRSŞTUÜVYZ"), 0, 1, 2, language="tr")
    assert turkish.prepare("ışık İzmir") == "IŞIK İZMİR"


def test_a_vocabulary_with_both_cases_keeps_the_case_it_knows() -> None:
    cased = Vocabulary(("<pad>", "<unk>", "|", *LATIN, *"ABC", "'", "."), 0, 1, 2)
    assert cased.prepare("A Big Cat's Day.") == "A Big Cat's day."


def test_a_lowering_tokenizer_reads_any_case_and_answers_in_small() -> None:
    lowering = Vocabulary(("<pad>", "<unk>", "|", "A", "B"), 0, 1, 2, lower=True)
    assert lowering.decode(lowering.encode("Ab b")) == "ab b"
    assert lowering.tokenizer()("Ab b").input_ids == lowering.encode("Ab b")
    assert lowering.tokenizer().decode(lowering.encode("ab b"), group_tokens=False) == "ab b"


def test_tokens_of_several_characters_are_taken_longest_first_with_the_spaces_beside_them() -> None:
    """Transformers strips those spaces, which is why `vocabulary_doctor` warns of such tokens."""
    phones = Vocabulary(("<pad>", "<unk>", "|", "s", "c", "h", "sch", "ö", "n"), 0, 1, 2)
    assert phones.encode("schön sch n") == [6, 7, 8, 2, 6, 2, 8]
    assert phones.decode(phones.encode("schön sch n")) == "schön sch n"
    assert phones.tokenizer()("n sch n").input_ids == [8, 6, 8]
    assert phones.missing("school") == {"o": 2, "l": 1}


def test_without_an_unknown_token_foreign_characters_are_left_out() -> None:
    bare = Vocabulary(("<pad>", "|", "a", "b"), 0, None, 1)
    assert bare.encode("axb ñ a") == [2, 3, 1, 1, 2]


# Files


@pytest.mark.parametrize("language", TEXTS)
def test_what_is_saved_is_what_transformers_reads_and_what_comes_back(language: str, tmp_path: Path) -> None:
    vocabulary = build_vocabulary(TEXTS[language], language)
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(vocabulary.save(tmp_path / "new"))
    assert tokenizer.get_vocab() == dict(vocabulary.ids)
    assert tokenizer.pad_token_id == 0
    assert tokenizer(vocabulary.prepare(TEXTS[language][0])).input_ids == vocabulary.encode(TEXTS[language][0])
    assert Vocabulary.load(tmp_path / "new", language) == vocabulary
    assert Vocabulary.load(tmp_path / "new" / "vocab.json", language) == vocabulary


def test_the_processor_is_genuine_and_survives_its_folder(tmp_path: Path) -> None:
    processor = ENGLISH.processor(mask=False)
    assert isinstance(processor, Wav2Vec2Processor)
    processor.save_pretrained(tmp_path)
    again = Wav2Vec2Processor.from_pretrained(tmp_path)
    assert (again.feature_extractor.sampling_rate, again.feature_extractor.return_attention_mask) == (16000, False)
    assert Vocabulary.load(again) == Vocabulary.load(processor) == Vocabulary.load(tmp_path) == ENGLISH


def test_the_embedded_model_s_vocabulary_loads_with_its_roles(recognizer) -> None:
    vocabulary = Vocabulary.load(demo.model_path("en"))
    assert vocabulary == Vocabulary.load(recognizer)
    assert (vocabulary.blank, vocabulary.unk, vocabulary.delimiter) == (0, 3, 4)
    assert vocabulary.tokens == tuple(recognizer.tokenizer.convert_ids_to_tokens(list(range(32))))


def test_tokens_that_transformers_appends_beyond_the_file_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"가": 0, "|": 1, "[UNK]": 2, "[PAD]": 3}), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "unk_token": "[UNK]"}))
    vocabulary = Vocabulary.load(tmp_path)
    assert vocabulary == Vocabulary(("가", "|", "[UNK]", "[PAD]"), 3, 2, 1)
    assert vocabulary.letters == ("가",)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        pytest.param({"<pad>": 0, "a": 1, "b": 1}, "are not 0 to 2: 'b' has id 1", id="two of one id"),
        pytest.param({"<pad>": 0, "a": 2}, "are not 0 to 1: 'a' has id 2", id="a gap"),
        pytest.param({"a": 0, "b": 1}, "pad token '<pad>' is not in the vocabulary", id="no blank"),
    ],
)
def test_files_that_are_no_vocabulary_are_errors(tmp_path: Path, table: dict[str, int], message: str) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(table))
    with pytest.raises(ModelError, match=message):
        Vocabulary.load(tmp_path)


def test_places_without_a_vocabulary_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no vocab\.json"):
        Vocabulary.load(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        Vocabulary.load(tmp_path)
    with pytest.raises(ModelError, match="dict has no CTC vocabulary"):
        Vocabulary.load({})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param((("a", "b", "a"), 0), "holds a more than once", id="twice"),
        pytest.param((("a", ""), 0), "holds an empty token", id="empty"),
        pytest.param((("a", "b"), 2), "blank is id 2; the 2 tokens have the ids 0 to 1", id="no such blank"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_cannot_be_made(fields: tuple[tuple[str, ...], int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Vocabulary(*fields)


# Extending


def test_an_extended_vocabulary_keeps_every_id_and_adds_what_is_new() -> None:
    old = Vocabulary.load(demo.model_path("en"))
    new = extend_vocabulary(old, ["Café, façade!", "naïve café", "ж"], min_count=2)
    assert new.tokens == (*old.tokens, "é")
    assert new.notes == ("added 1: é", "left out, seen less than 2 times: ç ï ж")
    assert extend_vocabulary(new, ["cafe"]) == new


def test_new_letters_take_the_case_of_the_old_ones() -> None:
    upper = Vocabulary(("<pad>", "<unk>", "|", "A", "B"), 0, 1, 2)
    assert extend_vocabulary(upper, ["bañada"]).tokens[5:] == ("D", "Ñ")
