"""Greedy CTC against transformers' tokenizer (text, offsets) and against sums done by hand (times, confidence)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2CTCTokenizer

from speechkit.asr.decode import Alphabet, BestPath, best_path, decode, runs, text_of
from speechkit.asr.frames import FrameGrid

if TYPE_CHECKING:
    from pathlib import Path

GRID = FrameGrid()
TOY = Alphabet(("", "a", "b", "", "中", "文", "\u0301"), blank=0, delimiter=3)  # ids 0 blank, 3 delimiter


def path_of(ids: list[int], probabilities: list[float] | None = None) -> BestPath:
    scores = np.log(probabilities) if probabilities else np.zeros(len(ids))
    return BestPath(np.array(ids, np.int32), scores.astype(np.float32))


def texts(ids: list[int], alphabet: Alphabet = TOY) -> list[str]:
    return [word.text for word in decode(path_of(ids), alphabet, GRID, 1e9)]


@pytest.mark.parametrize("name", ["en", "zh", "ko", "pt", "pl"])
def test_text_equals_the_published_tokenizers_own_decoding(folders: dict[str, Path], name: str) -> None:
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folders[name])
    size = len(tokenizer.encoder)
    alphabet = Alphabet.from_tokenizer(tokenizer, size)
    rng = np.random.default_rng(3)
    for _ in range(40):
        ids = np.repeat(rng.integers(0, size, 60), rng.integers(1, 4, 60))
        at = rng.random(len(ids))
        ids[at < 0.3], ids[at > 0.9] = alphabet.blank, alphabet.delimiter
        ours = text_of(decode(path_of(ids.tolist()), alphabet, GRID, 1e9))
        theirs = tokenizer.batch_decode(ids[None])[0]
        for special in tokenizer.all_special_tokens:
            theirs = theirs.replace(special, "")
        if name == "zh":  # we write no space between ideographs and one beside Latin letters
            ours, theirs = ours.replace(" ", ""), theirs.replace(" ", "")
        assert ours == " ".join(theirs.split())


def test_a_lower_casing_tokenizer_writes_lower_case(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"<pad>": 0, "<unk>": 1, "|": 2, "A": 3, "B": 4}')
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), do_lower_case=True, bos_token=None, eos_token=None)
    assert texts([3, 0, 4], Alphabet.from_tokenizer(tokenizer, 5)) == ["ab"] == [tokenizer.decode([3, 0, 4])]


def test_frames_of_characters_and_words_equal_transformers_offsets(folders: dict[str, Path]) -> None:
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folders["en"])
    alphabet = Alphabet.from_tokenizer(tokenizer, 32)
    h, i, bar, blank = (tokenizer.encoder[t] for t in ("H", "I", "|", "<pad>"))
    ids = [blank, h, h, blank, i, bar, bar, blank, h, i, i, blank, i]
    words = decode(path_of(ids), alphabet, GRID, 1e9)
    theirs = tokenizer.decode(ids, output_word_offsets=True, output_char_offsets=True)
    expected = [(o["start_offset"] * 0.02, (o["end_offset"] - 1) * 0.02 + 0.025) for o in theirs.word_offsets]
    assert [(w.start_s, w.end_s) for w in words] == [pytest.approx(pair) for pair in expected]
    assert [w.text for w in words] == [o["word"] for o in theirs.word_offsets] == ["HI", "HII"]
    letters = [o for o in theirs.char_offsets if o["char"] != " "]
    assert [c.start_s for w in words for c in w.chars] == pytest.approx([o["start_offset"] * 0.02 for o in letters])


def test_a_blank_between_equal_letters_keeps_both() -> None:
    assert texts([1, 1, 1]) == ["a"]
    assert texts([1, 0, 1]) == ["aa"]


def test_every_ideograph_is_a_word_and_letters_beside_it_stay_together() -> None:
    assert texts([4, 5, 1, 2, 4]) == ["中", "文", "ab", "中"]
    assert text_of(decode(path_of([4, 3, 5]), TOY, GRID, 1e9)) == "中文"


def test_a_combining_mark_stays_with_its_letter() -> None:
    assert texts([4, 6, 5, 1, 6]) == ["中\u0301", "文", "a\u0301"]
    assert texts([3, 6]) == ["\u0301"], "a mark with nothing before it is kept, not an error"


def test_a_character_ends_where_its_field_ends_or_where_the_next_begins() -> None:
    (word,) = decode(path_of([1, 2, 0, 0, 1]), TOY, GRID, 1e9)
    assert [(c.start_s, c.end_s) for c in word.chars] == [(0.0, 0.02), (0.02, 0.045), (0.08, 0.105)]
    wide = FrameGrid(hop=320, field=1000)
    first, second = decode(path_of([1, 3, 2]), TOY, wide, 1e9)
    assert (first.end_s, second.start_s, second.end_s) == (0.04, 0.04, 0.1025)


def test_the_end_of_a_word_is_cut_at_the_end_of_the_audio() -> None:
    (word,) = decode(path_of([0, 1]), TOY, GRID, duration_s=0.04)
    assert (word.start_s, word.end_s) == (0.02, 0.04)


def test_confidence_is_the_geometric_mean_over_frames_and_the_minimum_over_characters() -> None:
    (word,) = decode(path_of([1, 1, 0, 2], [0.9, 0.4, 0.99, 0.7]), TOY, GRID, 1e9)
    assert [c.confidence for c in word.chars] == pytest.approx([math.sqrt(0.36), 0.7], abs=1e-6)
    assert word.confidence == pytest.approx(0.6, abs=1e-6)


def test_confidence_of_a_short_run_survives_a_long_file() -> None:
    ids = [0] * 300_000 + [1]
    scores = np.full(len(ids), -7.3, np.float32)
    scores[-1] = np.log(0.5)
    (run,) = runs(BestPath(np.array(ids, np.int32), scores), 0)
    assert run.confidence == pytest.approx(0.5, abs=1e-6)


def test_best_path_takes_the_winner_and_its_log_probability() -> None:
    log_probs = np.log(np.array([[0.1, 0.9], [0.7, 0.3]], np.float32))
    path = best_path(log_probs)
    assert path.ids.tolist() == [0 + 1, 0]
    assert np.exp(path.scores) == pytest.approx([0.9, 0.7])


def test_nothing_but_blanks_and_no_frames_are_no_words() -> None:
    assert decode(path_of([0, 0, 3, 0]), TOY, GRID, 1.0) == ()
    assert decode(path_of([]), TOY, GRID, 0.0) == ()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=80))
def test_words_are_in_order_within_the_audio_and_confidences_in_0_1(ids: list[int]) -> None:
    end = GRID.samples(len(ids)) / 16_000
    words = decode(path_of(ids, [0.5] * len(ids) or None), TOY, GRID, end)
    starts = [c.start_s for w in words for c in w.chars]
    assert starts == sorted(starts)
    ends = [c.end_s for w in words for c in w.chars]
    assert all(a <= b for a, b in zip(ends, starts[1:], strict=False))
    assert all(0 <= w.start_s < w.end_s <= end and 0 <= w.confidence <= 1 for w in words)
    assert all(w.text == "".join(c.text for c in w.chars) and w.text.strip() for w in words)


def test_korean_spelt_in_jamo_is_written_in_syllables() -> None:
    jamo = "\u1112\u1161\u11ab\u1100\u1173\u11af"  # 한글, letter by letter
    alphabet = Alphabet(("", *jamo), blank=0, delimiter=None)
    word = decode(path_of([1, 2, 3, 4, 5, 6]), alphabet, GRID, 1e9)[0]
    assert word.text == "한글" and len(word.chars) == 6
