"""Prefix beam search against the enumeration of all paths, and against a textbook search of the same width."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from ctc_enumeration import by_text, collapse, enumerate_ctc, written
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_beam import plain_beam

from speechkit import audio
from speechkit.asr.beam import BeamDecoder, BeamOptions
from speechkit.asr.decode import Alphabet, best_path, decode, text_of
from speechkit.asr.frames import FrameGrid
from speechkit.asr.lm import NGram
from speechkit.errors import DataError, PlanError

if TYPE_CHECKING:
    from pathlib import Path

    from speechkit import Recognizer
    from speechkit.demo import DemoClip

EVERYTHING = {"token_threshold": 0.0, "blank_skip": 1.0}  # nothing pruned
TOY = Alphabet(("", "a", "b", "c", "", "中", "文"), blank=0, delimiter=4)


def alphabet(size: int) -> Alphabet:
    return Alphabet(TOY.symbols[:size], 0, 4 if size > 4 else None)


def decoder(size: int = len(TOY.symbols), **options: object) -> BeamDecoder:
    return BeamDecoder(alphabet(size), BeamOptions(**{**EVERYTHING, **options}))


def noise(seed: int, frames: int, size: int, impossible: float = 0.0, sharp: float = 0.6) -> np.ndarray:
    """(F, V) natural log, rows sum to one; a share of the entries is -inf, never a whole row."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(size, sharp), frames).reshape(frames, size) + 1e-9
    p[(rng.random(p.shape) < impossible) & (p < p.max(axis=1, keepdims=True))] = 0
    with np.errstate(divide="ignore"):
        return np.log(p / p.sum(axis=1, keepdims=True))


@settings(max_examples=60)
@given(st.integers(0, 9999), st.integers(0, 6), st.integers(1, 4), st.sampled_from([0.0, 0.4]))
def test_a_wide_beam_finds_the_exact_probability_of_every_text(
    seed: int, frames: int, size: int, impossible: float
) -> None:
    log_probs = noise(seed, frames, size, impossible)
    said = enumerate_ctc(log_probs, blank=0)
    (found,) = decoder(size, beam=2000, n_best=50).decode([log_probs])
    ranked = sorted(said, key=lambda tokens: -said[tokens].total)[:50]
    assert [h.acoustic for h in found] == pytest.approx([said[tokens].total for tokens in ranked], abs=1e-9)
    for h in found:
        assert h.total == h.acoustic == pytest.approx(said[h.tokens].total, abs=1e-9)


@settings(max_examples=60)
@given(st.integers(0, 9999), st.integers(1, 6), st.integers(2, 4), st.sampled_from([0.0, 0.4]))
def test_the_path_of_a_hypothesis_is_the_best_of_all_that_say_it(
    seed: int, frames: int, size: int, impossible: float
) -> None:
    log_probs = noise(seed, frames, size, impossible)
    said = enumerate_ctc(log_probs, blank=0)
    for h in decoder(size, beam=2000, n_best=20).decode([log_probs])[0]:
        assert collapse(tuple(h.path.ids.tolist()), 0) == h.tokens
        assert h.path.scores == pytest.approx(log_probs[np.arange(frames), h.path.ids], abs=1e-6)
        assert h.path.scores.sum() == pytest.approx(said[h.tokens].best, abs=1e-5)


@settings(max_examples=80)
@given(st.integers(0, 9999), st.integers(0, 14), st.integers(2, 7), st.integers(1, 9), st.sampled_from([0.0, 0.03]))
def test_a_narrow_beam_is_the_textbooks(seed: int, frames: int, size: int, width: int, threshold: float) -> None:
    log_probs = noise(seed, frames, size)
    (found,) = decoder(size, beam=width, n_best=min(width, 3), token_threshold=threshold).decode([log_probs])
    plain = {t: score for t, score in plain_beam(log_probs.tolist(), 0, width, threshold) if score > -np.inf}
    texts = by_text(plain, alphabet(size))
    assert [h.text for h in found] == list(texts)[: min(width, 3)]
    assert [h.total for h in found] == pytest.approx(list(texts.values())[: len(found)], abs=1e-9)
    for h in found:
        assert h.tokens == max((t for t in plain if written(t, TOY) == h.text), key=plain.__getitem__)


@settings(max_examples=60)
@given(st.integers(0, 9999), st.integers(0, 14), st.floats(0.2, 1.0), st.floats(0.0, 0.5))
def test_pruning_is_taking_what_is_pruned_for_impossible(seed: int, frames: int, skip: float, threshold: float) -> None:
    log_probs = noise(seed, frames, 5, sharp=0.25)
    pruned = decoder(5, beam=8, n_best=4, blank_skip=skip, token_threshold=threshold).decode([log_probs])[0]
    keep = log_probs >= np.log(max(threshold, 1e-300))
    keep |= log_probs == log_probs.max(axis=1, initial=-np.inf, keepdims=True)
    keep[log_probs[:, 0] > np.log(skip)] = False
    keep[:, 0] = True
    whole = decoder(5, beam=8, n_best=4).decode([np.where(keep, log_probs, -np.inf)])[0]
    assert [h.tokens for h in pruned] == [h.tokens for h in whole]
    assert [h.total for h in pruned] == pytest.approx([h.total for h in whole], abs=1e-9)
    for ours, theirs in zip(pruned, whole, strict=True):
        assert ours.path.scores.sum() == pytest.approx(theirs.path.scores.sum(), abs=1e-5)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=7), st.integers(0, 9999))
def test_a_clip_in_a_batch_is_the_clip_alone_even_where_scores_tie(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    # powers of two: many prefixes come to exactly the same probability
    clips = [np.log(2.0) * -rng.integers(1, 4, (frames, 5)).astype(np.float64) for frames in lengths]
    search = decoder(5, beam=4, n_best=3, blank_skip=0.3, token_threshold=0.2)
    for batched, clip in zip(search.decode(clips), clips, strict=True):
        (alone,) = search.decode([clip])
        assert [(h.tokens, h.path.ids.tolist()) for h in batched] == [(h.tokens, h.path.ids.tolist()) for h in alone]
        assert [h.total for h in batched] == pytest.approx([h.total for h in alone], abs=1e-12)


def test_more_clips_than_a_batch_holds_come_back_in_order() -> None:
    clips = [noise(i, 1 + (7 * i) % 23, 4) for i in range(70)]
    search = decoder(4, beam=6)
    assert [h.tokens for (h,) in search.decode(clips)] == [search.decode([clip])[0][0].tokens for clip in clips]


def test_several_threads_may_share_a_decoder() -> None:
    clips = [noise(i, 60, 5) for i in range(12)]
    search = decoder(5, beam=8)
    expected = [search.decode([clip]) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda clip: search.decode([clip]), clips)) == expected


def test_an_array_of_clips_is_taken_as_it_is() -> None:
    clips = np.stack([noise(1, 9, 4), noise(2, 9, 4)])
    assert decoder(4).decode(clips) == decoder(4).decode(list(clips))


@settings(max_examples=30)
@given(st.integers(0, 9999))
def test_text_and_words_are_those_that_decode_makes_of_the_path(seed: int) -> None:
    log_probs = noise(seed, 20, 7)
    if seed % 2:  # ideographs alone, and spaces among them
        log_probs[:, 1:4] = -np.inf
    for h in decoder(beam=16, n_best=4).decode([log_probs])[0]:
        words = decode(h.path, TOY, FrameGrid(), 1e9)
        assert h.text == text_of(words)


def test_a_clear_recording_reads_as_greedy_search_reads_it() -> None:
    ids = [0, 1, 1, 0, 1, 2, 4, 4, 0, 3, 0]
    log_probs = np.log(np.full((len(ids), 7), 0.001) + 0.993 * np.eye(7)[ids])
    (found,) = BeamDecoder(TOY).decode([log_probs])
    assert found[0].text == "aab c" and len(found) == 1
    assert found[0].path.ids.tolist() == best_path(log_probs).ids.tolist()


def test_a_letter_before_and_after_a_skipped_frame_is_two_letters() -> None:
    log_probs = np.log([[0.1, 0.9], [0.9999, 0.0001], [0.1, 0.9]])
    (found,) = decoder(2, blank_skip=0.999).decode([log_probs])
    assert found[0].tokens == (1, 1) and found[0].path.ids.tolist() == [1, 0, 1]
    assert found[0].acoustic == pytest.approx(np.log(0.9 * 0.9999 * 0.9))


@pytest.mark.parametrize(
    ("log_probs", "score"),
    [
        (np.zeros((0, 3)), 0.0),
        (np.log([[1.0]] * 4), 0.0),
        (np.log([[0.9, 0.05, 0.05]] * 3), 3 * np.log(0.9)),
        (np.log([[1.0, 1e-300, 1e-300]] * 3), 0.0),
    ],
    ids=["no-frames", "a-vocabulary-of-the-blank", "mostly-blank", "nothing-but-blank"],
)
def test_what_holds_no_token_is_an_empty_text(log_probs: np.ndarray, score: float) -> None:
    (found,) = BeamDecoder(alphabet(log_probs.shape[1])).decode([log_probs])
    assert (found[0].text, found[0].tokens) == ("", ())
    assert found[0].path.ids.tolist() == [0] * len(log_probs)
    # "mostly blank" can also be heard as one token: only that nothing is said is certain there
    assert found[0].acoustic == pytest.approx(score, abs=1e-12)


def test_no_clips_are_no_results() -> None:
    assert decoder().decode([]) == []


def test_long_audio_and_tiny_probabilities_do_not_underflow() -> None:
    frames = 5_000
    ids = np.random.default_rng(0).integers(0, 3, frames)
    log_probs = np.full((frames, 3), -np.inf)
    log_probs[np.arange(frames), ids] = -40.0  # 10 ** -17 a frame: the whole is 10 ** -87,000
    (found,) = decoder(3, beam=2).decode([log_probs])
    assert found[0].tokens == collapse(tuple(ids.tolist()), 0)
    assert found[0].total == pytest.approx(-40.0 * frames)


def test_hypotheses_are_different_texts_best_first(recognizer: Recognizer, demo_clips: list[DemoClip]) -> None:
    log_probs = recognizer.log_probs([audio.load(clip.path) for clip in demo_clips])
    for found in BeamDecoder(recognizer.alphabet, BeamOptions(beam=32, n_best=24)).decode(log_probs):
        assert len({h.text for h in found}) == len(found) == 24
        assert [h.total for h in found] == sorted((h.total for h in found), reverse=True)


def test_a_space_more_at_an_end_or_between_words_is_no_other_text() -> None:
    p = np.array([[0.1, 0.4, 0.02, 0.03, 0.45], [0.4, 0.0, 0.0, 0.0, 0.6], [0.15, 0.01, 0.3, 0.05, 0.49]])
    with np.errstate(divide="ignore"):
        log_probs = np.log(p)
    said = {tokens: s.total for tokens, s in enumerate_ctc(log_probs, blank=0).items()}
    (found,) = decoder(5, beam=100, n_best=100).decode([log_probs])
    texts = by_text(said, alphabet(5))
    assert [(h.text, h.total) for h in found] == [(t, pytest.approx(total, abs=1e-9)) for t, total in texts.items()]
    assert {h.text for h in found} >= {"", "a", "b", "ab", "a b"}
    for h in found:
        assert written(h.tokens, TOY) == h.text == text_of(decode(h.path, TOY, FrameGrid(), 1e9))


def test_there_may_be_fewer_texts_than_asked_for() -> None:
    (found,) = decoder(2, beam=10, n_best=10).decode([np.log([[0.3, 0.7]])])
    assert [h.tokens for h in found] == [(1,), ()]


def test_identities_tell_apart_models_that_differ_in_one_bigram_or_the_unit(tmp_path: Path) -> None:
    rows = "-1\t<unk>\n-0.5\ta\t-0.2\n-0.5\tb\t-0.2\n"
    for name, bigram in (("one", "a b"), ("same", "a b"), ("other", "b a")):
        text = f"\\data\\\nngram 1=3\nngram 2=1\n\n\\1-grams:\n{rows}\n\\2-grams:\n-0.3\t{bigram}\n\n\\end\\\n"
        (tmp_path / name).write_text(text)

    def identity(name: str, unit: Literal["word", "char"] = "word") -> str:
        return BeamDecoder(TOY, lm=NGram.read(tmp_path / name, unit)).identity

    assert identity("one") == identity("same")
    assert len({identity("one"), identity("other"), identity("one", "char")}) == 3


BAD = {
    "a-nan": (np.log([[0.5, 0.5], [np.nan, 0.5]]), "frame 1 has a NaN"),
    "a-frame-without-any-token": (np.array([[-np.inf, -np.inf]]), "frame 0 every token"),
    "logits": (np.array([[-1.0, -1.0], [2.0, 5.0]]), "frame 1 has a log-probability of 5, above 0: these look like"),
    "another-alphabet": (np.zeros((3, 4)), "4 tokens, the alphabet 2"),
    "no-table": (np.zeros(3), r"shape \(3,\)"),
}


@pytest.mark.parametrize(("log_probs", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_no_log_probability_is_refused_with_the_clips_number(log_probs: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=f"clip 2: .*{message}"):
        decoder(2).decode([np.log([[0.5, 0.5]]), log_probs])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam is 0; it must be a whole number, 1 or more"),
        ({"beam": 2.5}, "beam is 2.5"),
        ({"beam": 4, "n_best": 5}, "widen the beam to at least n_best"),
        ({"token_threshold": -0.1}, "token_threshold is -0.1; it is a probability"),
        ({"blank_skip": 1.5}, "blank_skip is 1.5"),
        ({"blank_skip": float("nan")}, "blank_skip is nan"),
        ({"lm_weight": float("inf")}, "lm_weight is inf; it must be a finite number"),
        ({"lm_weight": -1.0}, "would reward what the language model denies"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_that_cannot_be_are_refused(options: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        BeamOptions(**options)


def test_a_language_model_of_the_grammar_lowers_the_error_rate_on_noisy_clips(
    recognizer: Recognizer, demo_clips: list[DemoClip]
) -> None:
    from speechkit.demo.recipes.grammar import Grammar
    from speechkit.evaluation.metrics import wer

    rng, draw = np.random.default_rng(0), random.Random(0)
    samples = [audio.load(clip.path) for clip in demo_clips]
    noisy = [x + rng.standard_normal(len(x)).astype(np.float32) * x.std() * 10 ** (-10 / 20) for x in samples]
    log_probs = recognizer.log_probs(noisy)
    grammar = Grammar("en")
    model = NGram.train([grammar.sentence(draw) for _ in range(2000)], order=6, unit="char")
    texts = [clip.text for clip in demo_clips]
    alone, helped = (
        wer(texts, [h.text for (h,) in BeamDecoder(recognizer.alphabet, lm=lm).decode(log_probs)])
        for lm in (None, model)
    )
    assert helped < 0.8 * alone
