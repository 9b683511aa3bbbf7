"""Sparse frames: cut and joined they are what they were, and the search reads the same from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.asr.beam import BeamDecoder, BeamOptions
from speechkit.asr.decode import Alphabet
from speechkit.asr.emissions import Emissions

LETTERS = Alphabet(("", "a", "b", "c"), blank=0, delimiter=None)
FIELDS = ("blank", "kept", "starts", "ids", "scores")


def noise(seed: int, frames: int) -> np.ndarray:
    return np.log(np.random.default_rng(seed).dirichlet(np.full(4, 0.3), frames).reshape(frames, 4) + 1e-12)


def sparse(log_probs: np.ndarray) -> Emissions:
    return Emissions.of(log_probs, blank=0, token_threshold=0.02, blank_skip=0.9)


def same(ours: Emissions, theirs: Emissions) -> bool:
    return all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in FIELDS)


@given(st.integers(0, 999), st.lists(st.integers(0, 9), max_size=6))
def test_joined_parts_are_the_whole_and_slices_are_the_parts(seed: int, sizes: list[int]) -> None:
    log_probs = noise(seed, sum(sizes))
    stops = np.cumsum(sizes).tolist()
    parts = [log_probs[stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]
    whole = sparse(log_probs)
    assert same(Emissions.join([sparse(part) for part in parts]), whole)
    for part, size, stop in zip(parts, sizes, stops, strict=True):
        assert same(whole[stop - size : stop], sparse(part))


def test_what_is_kept_is_what_the_thresholds_keep() -> None:
    log_probs = np.log([[0.5, 0.4, 0.09, 0.01], [0.95, 0.05, 1e-9, 1e-9], [0.98, 0.019, 0.0005, 0.0005]])
    kept = Emissions.of(log_probs, blank=0, token_threshold=0.02, blank_skip=0.96)
    assert kept.kept.tolist() == [0, 1] and kept.starts.tolist() == [0, 2, 3] and kept.ids.tolist() == [1, 2, 1]
    assert np.exp(kept.blank) == pytest.approx([0.5, 0.95, 0.98])
    assert np.exp(kept.scores) == pytest.approx([0.4, 0.09, 0.05])
    assert repr(kept) == "Emissions(3 frames, 2 of them with 3 tokens beside the blank)"


def test_the_best_token_of_a_frame_is_kept_however_improbable() -> None:
    flat = np.log(np.full((1, 4), 0.25))
    assert Emissions.of(flat, blank=0, token_threshold=0.5, blank_skip=0.9).ids.tolist() == [1, 2, 3]
    low = np.log([[0.1, 0.3, 0.4, 0.2]])
    assert Emissions.of(low, blank=0, token_threshold=0.5, blank_skip=0.9).ids.tolist() == [2]


def test_a_search_over_joined_windows_is_a_search_over_the_whole() -> None:
    log_probs = noise(3, 50)
    decoder = BeamDecoder(LETTERS, BeamOptions(beam=8, n_best=3, token_threshold=0.02, blank_skip=0.9))
    joined = Emissions.join([decoder.emissions(log_probs[:20]), decoder.emissions(log_probs[20:])])
    assert decoder.decode([joined]) == decoder.decode([log_probs])


def test_silence_says_nothing_at_no_cost() -> None:
    (found,) = BeamDecoder(LETTERS).decode([Emissions.silence(5)])
    assert (found[0].text, found[0].total, len(found[0].path)) == ("", 0.0, 5)
