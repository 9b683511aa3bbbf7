"""Alignment against the greedy decoder (where its text is the given one), torchaudio, and known cut points."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit import audio
from speechkit.asr.align import STAR_COST, Columns, align, place, prepare
from speechkit.asr.decode import Alphabet, best_path, decode, text_of
from speechkit.asr.frames import FrameGrid
from speechkit.asr.targets import spell
from speechkit.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from speechkit import Recognizer
    from speechkit.demo import DemoClip

GRID = FrameGrid()
TOY = Alphabet(("", "", "a", "b", "c", "中", "文"), blank=0, delimiter=1)


def peaky(ids: list[int], seed: int = 0, width: int = 7) -> NDArray[np.float32]:
    """(F, V) natural log in which `ids` (F,) win, with random probabilities from about 0.4 up."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(ids), width))
    logits[range(len(ids)), ids] = logits.max(axis=1) + rng.uniform(0.1, 6, len(ids))
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def frames_of(tokens: list[int], seed: int, blank: int = 0) -> list[int]:
    """A random CTC path through `tokens`: runs of one to three frames, blanks where they must and may be."""
    rng = np.random.default_rng(seed)
    ids = [blank] * int(rng.integers(0, 3))
    for before, token in zip([None, *tokens], tokens, strict=False):
        ids += [blank] * (int(rng.integers(0, 4)) or token == before) + [token] * int(rng.integers(1, 4))
    return ids + [blank] * int(rng.integers(0, 3))


def seconds(frames: int) -> float:
    return GRID.samples(frames) / GRID.rate


LINES = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=5).map(" ".join) | st.text(
    "中文", min_size=1, max_size=6
)


@given(LINES, st.integers(0, 999))
def test_the_text_that_the_decoder_writes_is_placed_where_the_decoder_heard_it(text: str, seed: int) -> None:
    """The winning path is the best of all, so also of those of its own text: words, times, confidences are equal."""
    log_probs = peaky(frames_of(spell(text, TOY).tokens.tolist(), seed), seed)
    heard = decode(best_path(log_probs), TOY, GRID, seconds(len(log_probs)))
    assert text_of(heard) == text
    assert align(log_probs, text, TOY, GRID, seconds(len(log_probs))) == heard


def test_words_are_those_of_the_text_and_their_characters_what_was_spelt_of_it() -> None:
    log_probs = peaky([2, 2, 0, 3, 1, 4, 0, 0, 2])
    words = align(log_probs, "“Áb”,  c-a!", TOY, GRID, 0.17)
    assert [word.text for word in words] == ["“Áb”,", "c-a!"]
    assert [[char.text for char in word.chars] for word in words] == [["Á", "b"], ["c", "a"]]
    assert [(word.start_s, word.end_s) for word in words] == [(0.0, 0.085), (0.1, 0.17)], "cut at the audio's end"


def test_confidence_is_the_geometric_mean_over_frames_and_the_minimum_over_characters() -> None:
    log_probs = np.log(np.full((4, 7), 0.01, np.float32))
    log_probs[[0, 1, 3], [2, 2, 3]] = np.log([0.9, 0.4, 0.7])
    log_probs[2, 0] = math.log(0.94)
    (word,) = align(log_probs, "ab", TOY, GRID, 1.0)
    assert [char.confidence for char in word.chars] == pytest.approx([0.6, 0.7], abs=1e-6)
    assert word.confidence == pytest.approx(0.6, abs=1e-6)


def test_a_letter_of_two_tokens_lasts_from_the_first_to_the_last_and_is_as_sure_as_the_lesser() -> None:
    known = Alphabet(("", "S", "A"), 0, None)
    log_probs = np.log(np.full((5, 3), 0.05, np.float32))
    log_probs[range(5), [2, 1, 0, 1, 0]] = np.log([0.9, 0.8, 0.9, 0.6, 0.9])
    (word,) = align(log_probs, "aß", known, GRID, 1.0)
    assert [(char.text, char.start_s, char.end_s) for char in word.chars] == [("a", 0.0, 0.02), ("ß", 0.02, 0.085)]
    assert word.confidence == pytest.approx(0.6, abs=1e-6)


@settings(max_examples=40)
@given(LINES, st.integers(0, 999))
def test_words_of_any_text_are_in_order_within_the_audio_and_do_not_overlap(text: str, seed: int) -> None:
    text = f"{text} 7 b" if seed % 2 else text
    frames = 60 + seed % 50
    log_probs = peaky(np.random.default_rng(seed).integers(0, 7, frames).tolist(), seed)
    words = align(log_probs, text, TOY, GRID, seconds(frames) - 0.004)
    edges = [edge for word in words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)
    assert edges[0] >= 0 and edges[-1] <= seconds(frames) - 0.004
    assert all(word.end_s > word.start_s and 0 <= word.confidence <= 1 for word in words)
    letters = [edge for word in words for char in word.chars for edge in (char.start_s, char.end_s)]
    assert letters == sorted(letters)


def test_a_star_is_placed_on_what_was_said_there_with_confidence_0_and_no_characters() -> None:
    ids = [2, 0, 1, 0, 0, 4, 4, 0, 3, 1, 5, 0, 0, 0, 1, 3]
    log_probs = np.log(np.full((len(ids), 7), 0.005, np.float32))
    log_probs[range(len(ids)), ids] = math.log(0.97)
    a, star, b = align(log_probs, "a 1984 b", TOY, GRID, 1.0)
    assert (star.text, star.confidence, star.chars) == ("1984", 0.0, ())
    assert (star.start_s, star.end_s) == (5 * 0.02, 10 * 0.02 + 0.025), "from c to 中, the word gap within included"
    assert a.confidence == b.confidence == pytest.approx(0.97, abs=1e-6)


def test_a_word_with_a_star_in_it_keeps_the_characters_that_are_spelt() -> None:
    (word,) = align(peaky([2, 2, 0, 5, 5, 0, 3]), "a7b", TOY, GRID, 1.0)
    assert [char.text for char in word.chars] == ["a", "b"]
    assert min(char.confidence for char in word.chars) > 0.3
    assert (word.confidence, word.start_s, word.end_s) == (0.0, 0.0, 6 * 0.02 + 0.025)


def test_the_stars_column_is_the_likelier_of_blank_and_not_blank_less_its_cost() -> None:
    log_probs = np.log(np.array([[0.7, 0.3], [0.1, 0.9], [0.5, 0.5], [1.0, 0.0]], np.float32).clip(1e-30))
    columns = Columns.of([spell("a 1", Alphabet(("", "a"), 0, None))], Alphabet(("", "a"), 0, None))
    star = columns.take(log_probs)[:, -1]
    assert star == pytest.approx(np.log([0.7, 0.9, 0.5, 1.0]) - STAR_COST, abs=1e-6)


def test_with_a_star_too_the_path_is_torchaudios_over_the_same_columns() -> None:
    import torch
    from torchaudio.functional import forced_align

    log_probs, text = peaky(np.random.default_rng(4).integers(0, 7, 80).tolist(), 4), "ab 12 c b3a"
    (spelling,), columns = prepare([text], TOY)
    emissions, target = columns.take(log_probs), columns.targets(spelling.tokens)
    path, _ = forced_align(torch.from_numpy(emissions)[None], torch.from_numpy(target)[None], blank=columns.blank)
    star = np.flatnonzero(path[0].numpy() == len(columns.ids))
    words = align(log_probs, text, TOY, GRID, 9.0)
    runs = np.split(star, np.flatnonzero(np.diff(star) > 1) + 1)
    assert (words[1].start_s, words[1].end_s) == pytest.approx((runs[0][0] * 0.02, runs[0][-1] * 0.02 + 0.025))


def test_many_texts_at_once_are_placed_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    texts = [" ".join("".join(rng.choice(list("abc7"), 3)) for _ in range(rng.integers(1, 6))) + " a" for _ in range(9)]
    rows = [peaky(rng.integers(0, 7, rng.integers(60, 160)).tolist(), seed) for seed in range(9)]
    spellings, columns = prepare(texts, TOY)
    alone = [align(row, text, TOY, GRID, 1.5) for row, text in zip(rows, texts, strict=True)]
    for limit in (2**25, 30_000, 1):  # all together, some together, each by itself
        monkeypatch.setattr("speechkit.asr.align.BATCH_BYTES", limit)
        assert place([columns.take(row) for row in rows], spellings, columns, GRID, [1.5] * 9) == alone


def test_only_the_columns_of_the_text_are_held() -> None:
    known = Alphabet(("", *(chr(0x4E00 + i) for i in range(3502))), 0, None)
    columns = Columns.of([spell("\u4e05\u4e03\u4e05", known)], known)
    assert columns.ids.tolist() == [0, 4, 6]
    assert columns.take(np.full((50, 3503), -8.0)).nbytes == 50 * 4 * 4


UNIFORM = np.full((9, 7), math.log(1 / 7), np.float32)


def changed(frame: int, token: int | slice, value: float) -> NDArray[np.float32]:
    log_probs = UNIFORM.copy()
    log_probs[frame, token] = value
    return log_probs


@pytest.mark.parametrize(
    ("log_probs", "text", "reason"),
    [
        (UNIFORM, "aabb ccab", "needs at least 12 frames (0.245 s): one for each of 9 letters and word gaps, one more "
         "between equal neighbours. The audio has 9 frames (0.185 s). Is it the text of this audio alone?"),
        (UNIFORM[:0], "a", "needs at least 1 frame (0.025 s): "),
        (UNIFORM, "", "the text is ''"),
        (UNIFORM, "Привет 12", "nothing in the text 'Привет 12' is in the model's alphabet (abc中文)"),
        (changed(3, 5, math.nan), "ab", "NaN in 1 of 9 frames, first in frame 3"),
        (changed(3, 5, 2.5), "ab", "reaches 2.5; a log-probability is at most 0: apply log_softmax first"),
        (changed(3, 5, math.inf), "ab", "reaches inf"),
        (UNIFORM[:, :6], "ab", "shape (9, 6); the alphabet of 7 tokens wants (F, 7)"),
        (UNIFORM[None], "ab", "shape (1, 9, 7)"),
        (changed(4, slice(None), -math.inf), "ab", "every path through the text has probability 0"),
    ],
    ids=[
        "text that cannot fit", "no frames", "empty text", "text outside the alphabet", "NaN", "logits", "infinity",
        "another width", "a batch", "a frame that is impossible",
    ],
)  # fmt: skip
def test_what_cannot_be_aligned_is_refused_with_its_reason(
    log_probs: NDArray[np.float32], text: str, reason: str
) -> None:
    with pytest.raises(DataError, match=re.escape(reason)):
        align(log_probs, text, TOY, GRID, 1.0)


def test_nan_in_a_column_that_the_text_does_not_need_is_refused_too() -> None:
    with pytest.raises(DataError, match="NaN"):
        align(changed(0, 6, math.nan), "a", TOY, GRID, 1.0)


def test_among_several_the_one_that_does_not_fit_is_named() -> None:
    spellings, columns = prepare(["a", "abcabcabcabc", "b"], TOY)
    with pytest.raises(DataError, match=r"^item 2 of 3: the text needs at least 12 frames"):
        place([columns.take(UNIFORM)] * 3, spellings, columns, GRID, [1.0] * 3)
    with pytest.raises(DataError, match=r"^item 2 of 2: nothing in the text"):
        prepare(["a", "Привет"], TOY)


@pytest.fixture(scope="module")
def heard(recognizer: Recognizer, demo_clips: list[DemoClip]) -> list[NDArray[np.float32]]:
    """Log-probabilities of the embedded clips."""
    return recognizer.log_probs([clip.path for clip in demo_clips])


def test_boundaries_on_concatenated_embedded_clips_are_within_40_ms_of_the_cuts(
    recognizer: Recognizer, demo_clips: list[DemoClip]
) -> None:
    parts = [audio.load(clip.path) for clip in demo_clips]
    ends = np.cumsum([len(part) for part in parts]) / audio.SAMPLE_RATE
    text, whole = " ".join(clip.text for clip in demo_clips), np.concatenate(parts)
    words = align(recognizer.log_probs(whole), text, recognizer.alphabet, recognizer.grid, ends[-1])
    last = np.cumsum([len(clip.text.split()) for clip in demo_clips]) - 1
    first = [0, *(last[:-1] + 1)]
    errors = [words[word].end_s - cut for word, cut in zip(last, ends, strict=True)]
    errors += [words[word].start_s - cut for word, cut in zip(first, [0.0, *ends[:-1]], strict=True)]
    assert np.median(np.abs(errors)) <= 0.040


def test_a_star_in_place_of_a_word_of_the_embedded_clips_stands_where_the_word_stood(
    recognizer: Recognizer, demo_clips: list[DemoClip], heard: list[NDArray[np.float32]]
) -> None:
    errors = []
    for clip, log_probs in zip(demo_clips, heard, strict=True):
        names = clip.text.split()
        spelt = align(log_probs, clip.text, recognizer.alphabet, recognizer.grid, 99.0)
        for at, word in enumerate(spelt):
            starred = " ".join([*names[:at], "7", *names[at + 1 :]])
            found = align(log_probs, starred, recognizer.alphabet, recognizer.grid, 99.0)[at]
            errors += [abs(found.start_s - word.start_s), abs(found.end_s - word.end_s)]
    assert np.median(errors) <= 0.020
    assert np.mean(errors) <= 0.030, "the published stars are off by 33 and 87 ms on average"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "the text is None, no str; give the words that are spoken in the audio"),
        (["a", "b"], "the text is ['a', 'b'], no str; give the words"),
        (b"a", "the text is b'a', no str"),
    ],
    ids=["none", "a list for one audio", "bytes"],
)
def test_what_is_no_text_is_refused(text: object, reason: str) -> None:
    with pytest.raises(DataError, match="^" + re.escape(reason)):
        prepare([text], TOY)  # type: ignore[list-item]
    with pytest.raises(DataError, match="^item 2 of 2: " + re.escape(reason)):
        prepare(["a", text], TOY)  # type: ignore[list-item]
