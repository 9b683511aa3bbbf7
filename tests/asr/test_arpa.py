"""ARPA files against a plain dictionary reader; what is malformed is refused with the number of its line."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from plain_lm import PlainKatz

from speechkit.asr.lm import NGram
from speechkit.errors import DataError, OutputError

if TYPE_CHECKING:
    from pathlib import Path

# after the pattern of SRILM's manual: the 3-grams need not hold every 2-gram, back-off weights may be left out
GOOD = """written by hand

\\data\\
ngram 1=6
ngram 2=5
ngram 3=2

\\1-grams:
-1.2\t<unk>
-99\t<s>\t-0.4
-0.9\t</s>
-0.7\tthe\t-0.3
-1.1\tcat\t-0.2
-1.3\tsat

\\2-grams:
-0.3\t<s> the\t-0.1
-0.5\tthe cat\t-0.6
-0.8\tcat sat
-0.4\tsat </s>
-1.0\tthe the

\\3-grams:
-0.2\t<s> the cat
-0.1\tthe cat sat

\\end\\
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "lm.arpa"
    path.write_text(text, encoding="utf-8")
    return path


SENTENCES = ["the cat sat", "the the cat", "sat the", "cat", "", "the dog sat", "dog dog", "the cat sat the cat sat"]


@pytest.mark.parametrize("sentence", SENTENCES, ids=[s or "nothing" for s in SENTENCES])
def test_sentences_score_as_a_plain_back_off_recursion_says(tmp_path: Path, sentence: str) -> None:
    path = written(tmp_path, GOOD)
    assert NGram.read(path).score(sentence) == pytest.approx(PlainKatz(path).sentence(sentence.split()), abs=1e-12)


def test_gz_is_told_by_its_bytes_not_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_bytes(gzip.compress(GOOD.encode()))
    assert NGram.read(path).score("the cat") == NGram.read(written(tmp_path, GOOD)).score("the cat")


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_what_is_written_is_read_back_with_the_same_scores(tmp_path: Path, name: str) -> None:
    model = NGram.train(["the cat sat", "the cat ran", "a dog sat on the cat", "the dog ran"], 3)
    model.write(tmp_path / name)
    again, plain = NGram.read(tmp_path / name), PlainKatz(tmp_path / name)
    assert again.counts == model.counts and again.unit == model.unit
    for sentence in ("the cat sat", "a dog ran on", "zebra the dog"):
        assert again.score(sentence) == pytest.approx(model.score(sentence), abs=1e-5)
        assert plain.sentence(sentence.split()) == pytest.approx(model.score(sentence), abs=1e-5)


def test_spaces_instead_of_tabs_and_crlf_are_read_too(tmp_path: Path) -> None:
    loose = GOOD.replace("\t", "  ").replace("\n", "\r\n")
    path = tmp_path / "loose.arpa"
    path.write_bytes(loose.encode())
    assert NGram.read(path).score("the cat sat") == NGram.read(written(tmp_path, GOOD)).score("the cat sat")


def test_in_a_file_without_unk_an_unknown_word_is_ten_times_rarer_than_the_rarest_and_a_note_says_so(
    tmp_path: Path,
) -> None:
    text = GOOD.replace("-1.2\t<unk>\n", "").replace("ngram 1=6", "ngram 1=5")
    logp, _ = (model := NGram.read(written(tmp_path, text))).step(np.array([0]), model.ids(["zebra"]))
    assert logp[0] == pytest.approx(-2.3 * np.log(10)), "sat has -1.3; <s> at -99 is no word"
    assert "has no <unk>: " in model.note and "(log10 -2.3)" in model.note
    model.write(tmp_path / "again.arpa")
    assert NGram.read(tmp_path / "again.arpa").note == NGram.read(written(tmp_path, GOOD)).note == ""


@pytest.mark.parametrize(
    ("units", "unit"),
    [("a b c d", "char"), ("one two three a", "word"), ("中 文 字 | 母", "char"), ("你好 世界", "word")],
    ids=["letters", "words", "ideographs", "words-of-ideographs"],
)
def test_the_unit_is_told_by_the_length_of_the_units(tmp_path: Path, units: str, unit: str) -> None:
    rows = "".join(f"-1\t{word}\n" for word in ["<s>", "</s>", "<unk>", *units.split()])
    text = f"\\data\\\nngram 1={len(units.split()) + 3}\n\n\\1-grams:\n{rows}\n\\end\\\n"
    assert NGram.read(written(tmp_path, text)).unit == unit
    assert NGram.read(written(tmp_path, text), unit="word").unit == "word"


BROKEN = {
    "no-data-line": (GOOD.replace("\\data\\", "data"), 27, r"no line was \\data\\"),
    "a-count-that-is-no-number": (GOOD.replace("ngram 2=5", "ngram 2=five"), 5, "'ngram 2=five' stands where"),
    "counts-out-of-order": (GOOD.replace("ngram 2=5", "ngram 3=5"), 5, "'ngram 2=COUNT'"),
    "too-few-entries": (GOOD.replace("ngram 1=6", "ngram 1=7"), 16, "promised 7 1-grams, there are 6"),
    "a-probability-that-is-no-number": (GOOD.replace("-0.7\tthe", "much\tthe"), 12, "'much', not a number"),
    "a-probability-above-one": (GOOD.replace("-0.7\tthe", "0.7\tthe"), 12, "must not be above 0"),
    "a-probability-that-is-nan": (GOOD.replace("-0.7\tthe", "nan\tthe"), 12, "a finite number"),
    "a-back-off-that-is-no-number": (GOOD.replace("the\t-0.3", "the\tlittle"), 12, "back-off weight is 'little'"),
    "too-many-fields": (GOOD.replace("-0.5\tthe cat\t", "-0.5\tthe cat sat on\t"), 18, "6 fields; a 2-gram has 3"),
    "too-few-fields": (GOOD.replace("-0.8\tcat sat", "-0.8\tcat"), 19, "2 fields"),
    "a-word-that-is-no-1-gram": (GOOD.replace("cat sat\n-0.4", "cat dog\n-0.4"), 19, "'dog' is not among the 1-grams"),
    "a-1-gram-twice": (GOOD.replace("\tsat\n\n", "\tcat\n\n"), 14, "'cat' stands twice"),
    "a-2-gram-twice": (GOOD.replace("the the", "the cat"), 21, "'the cat' stands twice among the 2-grams"),
    "a-3-gram-without-its-context": (GOOD.replace("the cat sat\n", "sat cat sat\n"), 25, "'sat cat' is not among"),
    "a-section-left-out": (GOOD.replace("\\2-grams:", "\\3-grams:"), 16, r"stands where '\\2-grams:' is expected"),
    "cut-off": (GOOD[: GOOD.index("\\end\\")], 26, "it is cut off"),
    "empty": ("", 0, r"no line was \\data\\"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "line", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_malformed_files_are_refused_with_the_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        NGram.read(written(tmp_path, text))
    assert f"lm.arpa, line {line}: " in str(caught.value)


def test_a_gz_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa.gz"
    path.write_bytes(gzip.compress(GOOD.encode())[:-30])
    with pytest.raises(DataError, match="damaged or cut off"):
        NGram.read(path)


def test_a_gz_with_overwritten_bytes_is_refused(tmp_path: Path) -> None:
    path, messages = tmp_path / "lm.arpa.gz", set()
    packed = gzip.compress(GOOD.encode(), mtime=0)
    for at in range(20, len(packed) - 12):
        path.write_bytes(packed[:at] + b"\xff" * 4 + packed[at + 4 :])
        with pytest.raises(DataError, match=r"lm\.arpa\.gz, line \d+: ") as caught:
            NGram.read(path)
        messages.add("zlib" if isinstance(caught.value.__cause__, zlib.error) else "other")
    assert "zlib" in messages, "some of the damage shows only while unpacking"


def test_bytes_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.arpa"
    path.write_bytes(GOOD.replace("cat", "chaîne").encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        NGram.read(path)


def test_a_missing_file_and_an_unknown_unit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.arpa: cannot be read: No such file"):
        NGram.read(tmp_path / "none.arpa")
    with pytest.raises(DataError, match="'syllable'; it can be 'auto', 'word' or 'char'"):
        NGram.read(written(tmp_path, GOOD), unit="syllable")  # type: ignore[arg-type]


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        NGram.read(written(tmp_path, GOOD)).write(tmp_path / "no" / "folder.arpa")
