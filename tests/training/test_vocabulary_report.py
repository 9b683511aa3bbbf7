"""The vocabulary doctor: one broken case for each finding, and nothing said of sound ones."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer

from speechkit import demo
from speechkit.errors import ModelError
from speechkit.training.vocabulary import Vocabulary, build_vocabulary, vocabulary_doctor

if TYPE_CHECKING:
    from pathlib import Path

SPECIAL = ("<pad>", "<unk>", "|")
PLAIN = Vocabulary((*SPECIAL, *"abcdefghijklmnopqrstuvwxyz'"), 0, 1, 2)
PANGRAM = "the quick brown fox jumps over the lazy dog's back"


def model(pad: int = 0, size: int = len(PLAIN), rows: int | None = None) -> Any:
    head = torch.nn.Linear(2, size if rows is None else rows)
    return SimpleNamespace(config=Wav2Vec2Config(pad_token_id=pad, vocab_size=size), lm_head=head)


def made(*letters: str, **roles: int | None) -> Vocabulary:
    return Vocabulary((*SPECIAL, *letters), **{"blank": 0, "unk": 1, "delimiter": 2, **roles})  # type: ignore[arg-type]


def test_a_sound_vocabulary_has_nothing_to_complain_of() -> None:
    report = vocabulary_doctor(PLAIN, [PANGRAM], model())
    assert report.findings == ()
    assert report.ok
    assert str(report).endswith("0.00% of 41 characters unknown: nothing to complain of")


def test_the_embedded_model_is_sound(recognizer) -> None:
    texts = [clip.text for clip in demo.clips("en")]
    report = vocabulary_doctor(demo.model_path("en"), texts, recognizer.model)
    assert [finding.kind for finding in report.findings] == ["never used"]
    assert report.unknown_share == 0


@pytest.mark.parametrize(
    ("vocabulary", "texts", "net", "kind", "severity", "says"),
    [
        pytest.param(PLAIN, ["a|b"], None, "delimiter in the texts", "warning", "danda", id="bar in the texts"),
        pytest.param(PLAIN, None, model(pad=1), "blank is not pad", "error", "id 1 ('<unk>')", id="blank is not pad"),
        pytest.param(PLAIN, None, model(size=26), "head of another size", "error", "without an output: x", id="head"),
        pytest.param(PLAIN, None, model(rows=30, size=9), "config of another size", "error", "is 9", id="size"),
        pytest.param(made("a", "b", blank=2), None, None, "blank is taken", "error", "delimiter", id="one for two"),
        pytest.param(made("a", "b", blank=3), None, None, "blank is a letter", "error", "'a'", id="a letter as blank"),
        pytest.param(made("a"), None, None, "one character", "error", "a is all", id="one character"),
        pytest.param(made("é", "e\u0301", "e"), None, None, "look-alikes", "error", "U+0065+U+0301", id="NFC and NFD"),
        pytest.param(made("b", "e\u0301"), None, None, "not NFC", "error", "never be met", id="decomposed"),
        pytest.param(made("ａ", "a", "b"), None, None, "look-alikes", "warning", "U+FF41", id="full width"),
        pytest.param(made("a", "A", "b"), None, None, "both cases", "warning", "capitals", id="case twins"),
        pytest.param(made("a", "sch"), None, None, "tokens of several characters", "warning", "spaces", id="long"),
        pytest.param(made("a", "b", unk=None), None, None, "no unknown token", "note", "left out", id="no unknown"),
        pytest.param(made("a", "b", delimiter=None), ["a b"], None, "no word delimiter", "error", "1 sp", id="no gap"),
        pytest.param(PLAIN, [PANGRAM, "ñ"], None, "unknown characters", "warning", "ñ (U+00F1) ×1", id="a few unknown"),
        pytest.param(PLAIN, ["año"], None, "unknown characters", "error", "33.33%", id="many unknown"),
        pytest.param(PLAIN, ["room 12"], None, "digits", "warning", "digits 12", id="digits"),
        pytest.param(PLAIN, ["abc"], None, "never used", "note", "24 of 27", id="unused"),
        pytest.param(PLAIN, ["доброе утро"], None, "another script", "error", "Cyrillic 100.0 %", id="another script"),
        pytest.param(PLAIN, [PANGRAM * 5, "cоde"], None, "stray letters", "warning", "U+043E", id="Cyrillic o"),
    ],
)  # fmt: skip
def test_each_collision_is_named_with_its_fix(
    vocabulary: Vocabulary, texts: list[str] | None, net: Any, kind: str, severity: str, says: str
) -> None:
    finding = vocabulary_doctor(vocabulary, texts, net).found(kind)
    assert finding is not None
    assert finding.severity == severity
    assert says in finding.detail
    assert finding.fix


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        pytest.param('{"<pad>": 0, "a": 1, "b": 1}', "duplicate ids", "'a'/'b'", id="two tokens of one id"),
        pytest.param('{"<pad>": 0, "a": 1, "b": 3}', "gaps in the ids", "no token has id 2", id="a gap"),
        pytest.param('{"<pad>": 0, "a": 1, "b": 2, "a": 3}', "duplicate tokens", "named twice", id="a token twice"),
    ],
)
def test_a_broken_file_is_described_where_it_cannot_be_loaded(tmp_path: Path, data: str, kind: str, says: str) -> None:
    (tmp_path / "vocab.json").write_text(data)
    report = vocabulary_doctor(tmp_path)
    assert not report.ok
    finding = report.found(kind)
    assert finding is not None and says in finding.detail


def test_a_mapping_s_blank_is_found_by_its_name() -> None:
    assert vocabulary_doctor({"a": 0, "b": 1, "[PAD]": 2, "[UNK]": 3, "|": 4}, ["ab ba"], model(2, 5)).findings == ()
    with pytest.raises(ModelError, match="no token of the mapping is called <pad>"):
        vocabulary_doctor({"a": 0, "b": 1})


def test_a_nested_vocabulary_is_judged_by_its_target_language(tmp_path: Path) -> None:
    """MMS keeps one table per language in one file."""
    nested = {"eng": PLAIN.ids, "rus": {"<pad>": 0}}
    (tmp_path / "vocab.json").write_text(json.dumps({key: dict(table) for key, table in nested.items()}))
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), target_lang="eng")
    tokenizer.save_pretrained(tmp_path)
    assert vocabulary_doctor(tmp_path, [PANGRAM], model()).findings == ()


def test_no_vocabulary_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read as a vocabulary"):
        vocabulary_doctor(tmp_path)
    with pytest.raises(ModelError, match="has no CTC vocabulary"):
        vocabulary_doctor(7)


def test_errors_come_first_and_html_is_escaped() -> None:
    report = vocabulary_doctor(made("<", "a", blank=2), ["a <b> 1 ñ"])
    ranks = [finding.severity for finding in report.findings]
    assert ranks == sorted(ranks, key=["error", "warning", "note"].index)
    page = report._repr_html_()
    assert "&lt;" in page and "<b>" not in page


def test_latin_names_in_chinese_texts_are_no_stray_letters() -> None:
    texts = ["你好世界" * 50 + "ab"]
    assert vocabulary_doctor(build_vocabulary(texts, "zh"), texts).found("stray letters") is None


def test_texts_are_read_once() -> None:
    stream = iter([PANGRAM] * 3)
    assert vocabulary_doctor(PLAIN, stream).characters == 3 * 41
    assert next(stream, None) is None
