"""`speechkit.evaluation.breakdown`: parts are the utterances they name, and together the whole."""

from __future__ import annotations

import pytest

from speechkit.errors import DataError
from speechkit.evaluation.errors import ScoreOptions, score
from speechkit.types import Transcript, Word

SAID = ["a b", "a b c", "a b c d e f g h", "a"]
HEARD = ["a b", "a x c", "a b c d e f", "z"]
REPORT = score(
    SAID,
    [
        Transcript(t, tuple(Word(w, 0, 1, 0.9) for w in t.split()), None, s, 0.75)
        for t, s in zip(HEARD, (0.5, 1, 9, 0), strict=True)
    ],
    speakers=["s1", "s2", "s1", ""],
    language=["en", "en", "pl", None],
    options=ScoreOptions(snr_db=[-1, 5, 4.99, None]),
)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("speaker", {"s2": (1, 3, 1), "s1": (2, 10, 2), "unknown": (1, 1, 1)}),
        ("language", {"pl": (2, 8, 1), "en": (1, 5, 2), "unknown": (1, 1, 1)}),
        ("length", {"0–1 words": (1, 1, 1), "2–3 words": (1, 5, 2), "8–15 words": (2, 8, 1)}),
        ("seconds", {"< 1 s": (0, 2, 1), "1 to 2 s": (1, 3, 1), "8 to 16 s": (2, 8, 1), "unknown": (1, 1, 1)}),
        ("snr", {"< 0 dB": (0, 2, 1), "0 to 5 dB": (2, 8, 1), "5 to 10 dB": (1, 3, 1), "unknown": (1, 1, 1)}),
        ("confidence", {"0.7 to 0.8": (4, 14, 4)}),
    ],
)
def test_parts_hold_the_errors_and_words_of_their_utterances_in_order(key, expected):
    parts = REPORT.by(key).parts
    assert [(p.label, (p.rate.errors, p.rate.count, p.utterances)) for p in parts] == list(expected.items())


@pytest.mark.parametrize("key", ["speaker", "language", "length", "seconds", "snr", "confidence"])
@pytest.mark.parametrize("unit", ["word", "char"])
def test_parts_together_are_the_whole(key, unit):
    parts = REPORT.by(key, unit).parts
    whole = REPORT.rate(unit)
    assert sum(p.rate.errors for p in parts) == whole.errors and sum(p.rate.count for p in parts) == whole.count
    assert sum(p.seconds for p in parts) == REPORT.seconds


def test_a_part_is_the_report_on_its_utterances_alone():
    alone = score([SAID[0], SAID[2]], [HEARD[0], HEARD[2]])
    assert REPORT.by("speaker")["s1"].rate == alone.wer
    with pytest.raises(KeyError, match="'s9'; there are 's2', 's1', 'unknown'"):
        REPORT.by("speaker")["s9"]


def test_the_table_names_rates_and_counts():
    told = REPORT.by("speaker").table()
    assert told.startswith("WER by speaker, 95 % intervals") and "20.0 % [0.0, 25.0]" in told and "10 words" in told


def test_letters_are_called_letters():
    assert "6 letters" in score("한글", "한굴", language="ko").by("language", "jamo").table()


def test_another_key_is_told():
    with pytest.raises(DataError, match="by is 'voice'; it can be 'speaker', 'language', 'length'"):
        REPORT.by("voice")
