"""Language models in the search: every text's score is its enumerated sound times a plain dictionary model's word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from ctc_enumeration import by_text, enumerate_ctc
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_lm import PlainKatz

from speechkit.asr.beam import BeamDecoder, BeamOptions
from speechkit.asr.decode import Alphabet
from speechkit.asr.lm import NGram
from speechkit.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

BARRED = Alphabet(("", "a", "b", ""), blank=0, delimiter=3)
HAN = Alphabet(("", "士", "事", "十", "是", ""), blank=0, delimiter=5)
TEXTS = ["a b ab", "ab a ba", "a a b", "ba ab", "b ab a"]
WIDE = {"beam": 1500, "token_threshold": 0.0, "blank_skip": 1.0}


def noise(seed: int, frames: int, size: int) -> np.ndarray:
    return np.log(np.random.default_rng(seed).dirichlet(np.full(size, 0.7), frames).reshape(frames, size) + 1e-12)


def spelled(tokens: tuple[int, ...], alphabet: Alphabet) -> str:
    return "".join(" " if token == alphabet.delimiter else alphabet.symbols[token] for token in tokens)


@pytest.fixture(scope="module", params=["word", "char"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[NGram, PlainKatz]:
    """A trigram model and its plain twin, from one ARPA file; "bb" and so on are unknown to the words."""
    path = tmp_path_factory.mktemp("lm") / f"{request.param}.arpa"
    NGram.train(TEXTS, 3, request.param).write(path)
    return NGram.read(path, request.param), PlainKatz(path)


@settings(max_examples=20)
@given(st.integers(0, 9999), st.integers(0, 6))
def test_every_text_scores_sound_plus_language_plus_bonus(
    model: tuple[NGram, PlainKatz], seed: int, frames: int
) -> None:
    lm, plain = model
    log_probs = noise(seed, frames, 4)
    expected = {}
    for tokens, said in enumerate_ctc(log_probs, blank=0).items():
        text = spelled(tokens, BARRED)
        units = text.split() if lm.unit == "word" else list(text.replace(" ", "|"))
        expected[tokens] = said.total + 0.7 * plain.sentence(units) + 0.3 * len(units)
    options = BeamOptions(**WIDE, n_best=30, lm_weight=0.7, word_bonus=0.3)
    (found,) = BeamDecoder(BARRED, options, lm).decode([log_probs])
    texts = by_text(expected, BARRED)
    assert [h.total for h in found] == pytest.approx(list(texts.values())[:30], abs=1e-9)
    for h in found:
        assert h.total == pytest.approx(texts[h.text], abs=1e-9)
        units = h.text.split() if lm.unit == "word" else list(spelled(h.tokens, BARRED).replace(" ", "|"))
        assert h.lm == pytest.approx(plain.sentence(units), abs=1e-9)
        assert h.total == pytest.approx(h.acoustic + 0.7 * h.lm + 0.3 * len(units), abs=1e-9)


def test_weights_of_zero_change_nothing() -> None:
    log_probs = noise(1, 8, 4)
    options = BeamOptions(beam=20, n_best=5, lm_weight=0.0, word_bonus=0.0)
    (plain,), (with_lm,) = (BeamDecoder(BARRED, options, lm).decode([log_probs]) for lm in (None, NGram.train(TEXTS)))
    assert [h.tokens for h in with_lm] == [h.tokens for h in plain]
    assert [h.total for h in with_lm] == pytest.approx([h.total for h in plain], abs=1e-9)


def test_a_sentence_without_an_end_in_its_model_is_scored_without(tmp_path: Path) -> None:
    rows = "-1\t<s>\n-0.5\ta\n-0.3\tb\n-2\t<unk>\n"
    (tmp_path / "open.arpa").write_text(f"\\data\\\nngram 1=4\n\n\\1-grams:\n{rows}\n\\end\\\n")
    log_probs = np.log([[0.01, 0.97, 0.01, 0.01], [0.01, 0.01, 0.01, 0.97], [0.01, 0.01, 0.97, 0.01]])
    for unit, score in (("word", -0.8), ("char", -0.8)):
        lm = NGram.read(tmp_path / "open.arpa", unit)
        (found,) = BeamDecoder(BARRED, lm=lm).decode([log_probs])
        assert found[0].text == "a b" and found[0].lm == pytest.approx(score * np.log(10))


def test_words_of_the_model_win_over_what_sounds_a_little_more_likely() -> None:
    letters = Alphabet(("", "c", "a", "t", "d", ""), blank=0, delimiter=5)
    log_probs = np.log([[0.04, 0.9, 0.02, 0.02, 0.01, 0.01], [0.03, 0.03, 0.9, 0.02, 0.01, 0.01],
                        [0.03, 0.02, 0.02, 0.4, 0.52, 0.01]])  # fmt: skip
    assert BeamDecoder(letters).decode([log_probs])[0][0].text == "cad"
    lm = NGram.train(["cat", "a cat", "the cat at a"])
    with pytest.warns(UserWarning, match="can write .* of the language model's words"):
        helped = BeamDecoder(letters, lm=lm)  # "the" has letters that this alphabet has not
    assert helped.decode([log_probs])[0][0].text == "cat"


def test_mandarin_takes_a_model_of_characters() -> None:
    log_probs = np.log([[0.02, 0.5, 0.4, 0.04, 0.02, 0.02], [0.9, 0.02, 0.02, 0.02, 0.02, 0.02],
                        [0.02, 0.04, 0.02, 0.45, 0.45, 0.02]])  # fmt: skip
    lm = NGram.train(["事是", "是事"] * 3, 2, "char")
    assert BeamDecoder(HAN).decode([log_probs])[0][0].text in ("士是", "士十")
    (found,) = BeamDecoder(HAN, BeamOptions(lm_weight=2.0), lm).decode([log_probs])
    assert found[0].text == "事是"


def test_a_model_of_words_needs_an_alphabet_with_spaces() -> None:
    unparted = Alphabet(("", "士", "事"), blank=0, delimiter=None)
    with pytest.raises(DataError, match="writes no spaces: use a model of characters"):
        BeamDecoder(unparted, lm=NGram.train(["士 a"]))


def test_case_does_not_matter_to_an_alphabet_of_one_case() -> None:
    upper = Alphabet(("", "A", "B", ""), blank=0, delimiter=3)
    decoder = BeamDecoder(upper, lm=NGram.train(TEXTS))
    assert decoder.notes == ()
    log_probs = noise(4, 6, 4)
    (found,), (lower,) = decoder.decode([log_probs]), BeamDecoder(BARRED, lm=NGram.train(TEXTS)).decode([log_probs])
    assert found[0].text == lower[0].text.upper() and found[0].total == pytest.approx(lower[0].total)


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("word", r"can write 0% of the language model's words .* cannot write '.+'.*same language and script"),
        ("char", r"can write \d\d?% of the language model's characters"),
    ],
)
def test_alphabets_that_do_not_meet_are_warned_about_with_their_overlap(unit: str, message: str) -> None:
    lm = NGram.train(["добрый день", "день добрый"], 2, unit)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=message):
        decoder = BeamDecoder(BARRED, lm=lm)
    assert len(decoder.notes) == 1
    assert decoder.decode([noise(0, 5, 4)])[0][0].text is not None, "it still decodes"


def test_a_model_without_unk_does_not_run_unknown_words_together_and_is_noted(tmp_path: Path) -> None:
    rows = "-1\t<s>\n-0.6\t</s>\n-0.4\tab\n"
    (tmp_path / "closed.arpa").write_text(f"\\data\\\nngram 1=3\n\n\\1-grams:\n{rows}\n\\end\\\n")
    ids = [2, 1, 3, 2, 2, 0, 2, 3, 1, 0, 1]  # "ba bb aa", and nothing of it is known
    log_probs = np.log(np.full((len(ids), 4), 0.005) + 0.98 * np.eye(4)[ids])
    with pytest.warns(UserWarning, match="the language model has no <unk>: "):
        decoder = BeamDecoder(BARRED, lm=NGram.read(tmp_path / "closed.arpa", "word"))
    assert len(decoder.notes) == 1
    assert decoder.decode([log_probs])[0][0].text == "ba bb aa"


def test_a_file_name_does_for_a_model(tmp_path: Path) -> None:
    lm = NGram.train(TEXTS)
    lm.write(tmp_path / "lm.arpa.gz")
    log_probs = noise(6, 8, 4)
    (found,), (same,) = (BeamDecoder(BARRED, lm=lm).decode([log_probs]) for lm in (tmp_path / "lm.arpa.gz", lm))
    assert found[0].text == same[0].text and found[0].total == pytest.approx(same[0].total, abs=1e-4)


def test_tokens_that_write_nothing_neither_count_nor_part_words() -> None:
    marked = Alphabet(("", "a", "b", "", ""), blank=0, delimiter=3)  # id 4 is <unk>
    ids = [1, 4, 2, 3, 3, 1]
    log_probs = np.log(np.full((len(ids), 5), 0.002) + 0.99 * np.eye(5)[ids])
    (found,) = BeamDecoder(marked, lm=(lm := NGram.train(TEXTS))).decode([log_probs])
    assert found[0].tokens == (1, 4, 2, 3, 1) and found[0].text == "ab a"
    assert found[0].lm == pytest.approx(lm.score("ab a"))


def test_symbols_of_several_letters_spell_words_longest_first() -> None:
    german = Alphabet(("", "sch", "s", "c", "h", "u", ""), blank=0, delimiter=6)
    ids = [1, 5, 4]
    log_probs = np.log(np.full((3, 7), 0.002) + 0.98 * np.eye(7)[ids])
    (found,) = BeamDecoder(german, lm=(lm := NGram.train(["schuh", "such"]))).decode([log_probs])
    assert found[0].text == "schuh" and found[0].lm == pytest.approx(lm.score("schuh"))
