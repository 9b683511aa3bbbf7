"""Hotwords: every text earns what counting the phrases in it by hand says, no more and no less."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from ctc_enumeration import by_text, enumerate_ctc, written
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit import audio
from speechkit.asr.beam import BeamDecoder, BeamOptions
from speechkit.asr.decode import Alphabet
from speechkit.asr.lm import NGram
from speechkit.errors import DataError
from speechkit.evaluation.metrics import wer

if TYPE_CHECKING:
    from speechkit import Recognizer
    from speechkit.demo import DemoClip

BARRED = Alphabet(("", "a", "b", ""), blank=0, delimiter=3)
HAN = Alphabet(("", "北", "京", ""), blank=0, delimiter=3)
UNPARTED = Alphabet(("", "a", "b"), blank=0, delimiter=None)
WIDE = {"beam": 1500, "token_threshold": 0.0, "blank_skip": 1.0}


def noise(seed: int, frames: int, size: int) -> np.ndarray:
    return np.log(np.random.default_rng(seed).dirichlet(np.full(size, 0.7), frames).reshape(frames, size) + 1e-12)


def earned(tokens: tuple[int, ...], alphabet: Alphabet, phrases: list[str], whole_words: bool) -> int:
    """Characters in all occurrences of the phrases, overlapping ones too."""
    text = "".join("|" if token == alphabet.delimiter else alphabet.symbols[token] for token in tokens)
    text = re.sub(r"\|+", "|", f"|{text}|") if whole_words else text
    total = 0
    for phrase in set(phrases):
        pattern = phrase.replace(" ", "|")
        pattern = f"|{pattern}|" if whole_words else pattern
        total += len(phrase.replace(" ", "")) * sum(text.startswith(pattern, i) for i in range(len(text)))
    return total


CASES = {
    "words-and-phrases-that-overlap": (BARRED, ["ab", "a b", "ba", "aa", "b a b"], True),
    "one-inside-the-other": (BARRED, ["a", "a a", "a a a"], True),
    "ideographs-anywhere": (HAN, ["北京", "京北", "京", "北北"], False),
    "an-alphabet-without-spaces": (UNPARTED, ["ab", "aba", "bb"], False),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@settings(max_examples=12)
@given(seed=st.integers(0, 9999), frames=st.integers(0, 6))
def test_every_text_earns_its_hotwords_and_nothing_for_what_breaks_off(
    case: tuple[Alphabet, list[str], bool], seed: int, frames: int
) -> None:
    alphabet, phrases, whole_words = case
    log_probs = noise(seed, frames, len(alphabet.symbols))
    said = enumerate_ctc(log_probs, blank=0)
    expected = {tokens: s.total + 0.9 * earned(tokens, alphabet, phrases, whole_words) for tokens, s in said.items()}
    options = BeamOptions(**WIDE, n_best=40, hotword_weight=0.9)
    (found,) = BeamDecoder(alphabet, options, hotwords=phrases).decode([log_probs])
    assert [h.total for h in found] == pytest.approx(list(by_text(expected, alphabet).values())[:40], abs=1e-9)
    sound = by_text({tokens: s.total for tokens, s in said.items()}, alphabet)
    for h in found:
        assert h.text == written(h.tokens, alphabet)
        assert h.hotwords == pytest.approx(0.9 * earned(h.tokens, alphabet, phrases, whole_words), abs=1e-9)
        if whole_words or alphabet.delimiter is None:  # else a space between ideographs breaks a phrase
            assert h.acoustic == pytest.approx(sound[h.text], abs=1e-9)


def test_hotwords_and_a_language_model_add_up() -> None:
    log_probs, lm = noise(3, 6, 4), NGram.train(["a b ab", "ab a"])
    options = BeamOptions(**WIDE, n_best=20)
    (found,) = BeamDecoder(BARRED, options, lm, ["ab"]).decode([log_probs])
    (alone,) = BeamDecoder(BARRED, BeamOptions(**WIDE, n_best=1500), lm).decode([log_probs])
    without = {h.text: h.total for h in alone}
    for h in found:
        assert h.total == pytest.approx(without[h.text] + earned(h.tokens, BARRED, ["ab"], True), abs=1e-9)


def test_a_name_is_heard_when_it_is_expected() -> None:
    letters = Alphabet(("", "a", "n", "i", ""), blank=0, delimiter=4)
    log_probs = np.log(np.array([[2, 90, 4, 3, 1], [2, 3, 90, 4, 1], [2, 3, 3, 60, 32], [90, 2, 3, 4, 1]]) / 100)
    assert BeamDecoder(letters).decode([log_probs])[0][0].text == "ani"
    assert BeamDecoder(letters, hotwords=["an"]).decode([log_probs])[0][0].text == "an"


def test_a_hundred_other_phrases_leave_a_text_alone() -> None:
    rng = np.random.default_rng(0)
    phrases = ["".join(rng.choice(["a", "b"], 12)) for _ in range(100)]
    log_probs = noise(8, 6, 4)
    (found,) = BeamDecoder(BARRED, BeamOptions(**WIDE, n_best=5), hotwords=phrases).decode([log_probs])
    (plain,) = BeamDecoder(BARRED, BeamOptions(**WIDE, n_best=5)).decode([log_probs])
    assert [h.total for h in found] == pytest.approx([h.total for h in plain], abs=1e-9)
    assert [h.hotwords for h in found] == [0.0] * 5


@pytest.mark.parametrize("weight", [4.0, 6.0])
@pytest.mark.parametrize("words", [1, 4], ids=["a-word-and-s", "four-words-and-s"])
def test_a_hotword_that_breaks_off_does_not_take_the_rest_of_the_sentence_with_it(
    recognizer: Recognizer, demo_clips: list[DemoClip], words: int, weight: float
) -> None:
    texts = [clip.text for clip in demo_clips]
    log_probs = recognizer.log_probs([audio.load(clip.path) for clip in demo_clips])
    options = BeamOptions(beam=16, hotword_weight=weight)
    heard = []
    for text, clip in zip(texts, log_probs, strict=True):
        said = text.split()[:4] if words > 1 else [max(text.split(), key=len)]
        decoder = BeamDecoder(recognizer.alphabet, options, hotwords=[" ".join(said) + "s"])
        heard.append(decoder.decode([clip])[0][0].text)
    alone = [found[0].text for found in BeamDecoder(recognizer.alphabet, BeamOptions(beam=16)).decode(log_probs)]
    assert wer(texts, heard) < wer(texts, alone) + 0.02


def test_a_phrase_too_long_for_one_step_still_adds_up() -> None:
    letters, ids = ["a b" * 40], [1, 3, 2] * 40
    log_probs = np.log(np.full((len(ids), 4), 0.004) + 0.984 * np.eye(4)[ids])
    options = BeamOptions(beam=8, hotword_weight=5.0)
    (found,) = BeamDecoder(BARRED, options, hotwords=letters).decode([log_probs])
    (plain,) = BeamDecoder(BARRED, BeamOptions(beam=8)).decode([log_probs])
    assert found[0].tokens == plain[0].tokens and found[0].hotwords > 100
    assert found[0].acoustic == pytest.approx(plain[0].acoustic, abs=0.1), "to what the two beams have dropped"


def test_no_hotwords_may_be_none() -> None:
    assert BeamDecoder(BARRED, hotwords=None).hotwords == () == BeamDecoder(BARRED, hotwords=()).hotwords


def test_hotwords_are_written_as_the_model_writes() -> None:
    decoder = BeamDecoder(BARRED, hotwords=["A, b!", "  a   b ", "Ab"])
    assert decoder.notes == ()
    ids = [1, 3, 2]
    (found,) = decoder.decode([np.log(np.full((3, 4), 0.01) + 0.96 * np.eye(4)[ids])])
    assert found[0].text == "a b" and found[0].hotwords == pytest.approx(2.0)


def test_hotwords_that_cannot_be_written_are_named_and_left_out() -> None:
    with pytest.warns(UserWarning, match=r"cannot write them: the hotwords 'B2B', 'zoo'$"):
        decoder = BeamDecoder(BARRED, hotwords=["ab", "B2B", "zoo"])
    assert len(decoder.notes) == 1 and len(decoder.fusions) == 1
    with pytest.warns(UserWarning, match="and 2 more"):
        assert BeamDecoder(BARRED, hotwords=list("cdefghi")).fusions == ()


@pytest.mark.parametrize(
    ("hotwords", "message"),
    [("ab", "hotwords is one string, 'ab'; give a list"), (["a", "  "], "hotword 2 is empty")],
    ids=["one-string", "an-empty-one"],
)
def test_hotwords_that_are_none_are_refused(hotwords: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        BeamDecoder(BARRED, hotwords=hotwords)
