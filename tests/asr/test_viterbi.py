"""The path search against torchaudio's `forced_align`, against every path there is (tiny sizes), and against itself."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.asr import viterbi
from speechkit.asr.viterbi import ONE_PASS, frames_needed, search

if TYPE_CHECKING:
    from numpy.typing import NDArray

ANY_SEED = st.integers(0, 2**32 - 1)


def flat(rng: np.random.Generator, frames: int, width: int, sharpness: float = 1.0) -> NDArray[np.float64]:
    """(F, U) natural log of random distributions; sharper ones have a clearer winner."""
    logits = sharpness * rng.normal(size=(frames, width))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def fitting_target(rng: np.random.Generator, frames: int, width: int) -> NDArray[np.int64]:
    """Tokens 1..width-1 that fit into `frames`, up to a full house."""
    target = rng.integers(1, width, rng.integers(1, frames + 1))
    while frames_needed(target) > frames:
        target = target[:-1]
    return target


def tokens_of(owners: NDArray[np.int32], target: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(owners < 0, 0, target[owners])


def collapsed(path: tuple[int, ...]) -> list[int]:
    return [token for token, _ in itertools.groupby(path) if token]


@settings(max_examples=60)
@given(ANY_SEED, st.integers(1, 8))
def test_the_path_is_torchaudios_in_one_pass_and_in_segments(seed: int, segment: int) -> None:
    import torch
    from torchaudio.functional import forced_align

    rng = np.random.default_rng(seed)
    frames, width = int(rng.integers(1, 60)), int(rng.integers(2, 6))
    log_probs, target = flat(rng, frames, width, rng.choice([0.3, 1, 6])), fitting_target(rng, frames, width)
    path, scores = forced_align(torch.from_numpy(log_probs)[None], torch.from_numpy(target)[None], blank=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(viterbi, "SEGMENT", segment)
        for one_pass in (ONE_PASS, 0):
            found = search(log_probs[None], target[None], one_pass=one_pass)
            assert tokens_of(found.owners[0], target).tolist() == path[0].tolist()
            assert found.scores[0] == pytest.approx(scores.sum().item(), abs=1e-9)


@settings(max_examples=25)
@given(ANY_SEED)
def test_no_path_of_the_same_text_is_more_probable(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = int(rng.integers(1, 7))
    log_probs, target = flat(rng, frames, 3), fitting_target(rng, frames, 3)
    every = [path for path in itertools.product(range(3), repeat=frames) if collapsed(path) == target.tolist()]
    sums = [log_probs[range(frames), path].sum() for path in every]
    found = search(log_probs[None], target[None])
    assert found.scores[0] == pytest.approx(max(sums))
    assert tuple(tokens_of(found.owners[0], target)) == every[int(np.argmax(sums))]


@settings(max_examples=30)
@given(ANY_SEED, st.integers(1, 9))
def test_a_ragged_batch_equals_its_items_alone_in_one_pass_and_in_segments(seed: int, segment: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [flat(rng, int(rng.integers(1, 40)), 4) for _ in range(4)]
    targets = [fitting_target(rng, len(row), 4) for row in rows]
    frames, tokens = np.array([*map(len, rows)]), np.array([*map(len, targets)])
    padded = np.full((4, frames.max(), 4), 9.0)  # what lies beyond an item would win if it were looked at
    ids = np.full((4, tokens.max()), 2)
    for item, (row, target) in enumerate(zip(rows, targets, strict=True)):
        padded[item, : len(row)], ids[item, : len(target)] = row, target
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(viterbi, "SEGMENT", segment)
        for one_pass in (ONE_PASS, 0):
            together = search(padded, ids, frames, tokens, one_pass=one_pass)
            for item, (row, target) in enumerate(zip(rows, targets, strict=True)):
                alone = search(row[None], target[None])
                assert together.owners[item, : len(row)].tolist() == alone.owners[0].tolist()
                assert (together.owners[item, len(row) :] == -1).all()
                assert together.scores[item] == alone.scores[0]


@pytest.mark.parametrize(
    "silence", [slice(0, 2000), slice(600, 2600), slice(1000, 3000)], ids=["first", "amid", "last"]
)
def test_a_long_pause_leads_the_path_far_off_the_diagonal_and_segments_follow(silence: slice) -> None:
    rng = np.random.default_rng(5)
    log_probs, target = flat(rng, 3000, 8, 2.0), rng.integers(1, 8, 450)
    log_probs[silence] = np.log(1e-9)
    log_probs[silence, 0] = 0.0
    whole, parts = (search(log_probs[None], target[None], one_pass=size) for size in (ONE_PASS, 0))
    assert parts.owners.tolist() == whole.owners.tolist()
    assert parts.scores.tolist() == whole.scores.tolist()
    assert (whole.owners[0, silence][1:-1] == -1).all()


def test_of_equal_paths_the_one_that_stays_wins() -> None:
    log_probs = np.log(np.full((1, 4, 3), 1 / 3))
    assert search(log_probs, np.array([[1, 2]])).owners.tolist() == [[0, 1, 1, 1]]


def test_equal_neighbours_have_a_blank_between_even_where_the_model_is_sure_of_none() -> None:
    log_probs = np.log(np.tile([0.01, 0.99], (1, 5, 1)))
    owners = search(log_probs, np.array([[1, 1]])).owners[0]
    assert (owners[0], owners[-1]) == (0, 1)
    assert np.count_nonzero(owners == -1) == 1


@pytest.mark.parametrize(("target", "needed"), [([1], 1), ([1, 2, 1], 3), ([1, 1], 3), ([2, 2, 2, 1], 6)], ids=str)
def test_frames_needed_is_what_the_search_can_just_do(target: list[int], needed: int) -> None:
    assert frames_needed(np.array(target)) == needed
    log_probs = np.log(np.full((1, needed, 3), 1 / 3))
    assert np.isfinite(search(log_probs, np.array([target])).scores[0])
    assert needed == 1 or search(log_probs[:, 1:], np.array([target])).scores[0] == -np.inf


def test_a_target_that_the_model_rules_out_scores_minus_infinity_and_its_neighbour_in_the_batch_does_not() -> None:
    log_probs = np.zeros((2, 3, 3))
    log_probs[0, :, 1] = -np.inf
    assert search(log_probs, np.array([[1], [1]])).scores.tolist() == [-np.inf, 0.0]


@pytest.mark.parametrize(("frames", "tokens"), [(100, 10), (500, 120), (2000, 600), (9000, 2500)], ids=str)
@pytest.mark.parametrize("one_pass", [ONE_PASS, 0], ids=["one pass", "segments"])
def test_back_pointers_and_kept_scores_take_at_most_027_of_a_byte_per_state(
    frames: int, tokens: int, one_pass: int
) -> None:
    rng = np.random.default_rng(1)
    found = search(flat(rng, frames, 30)[None], rng.integers(1, 30, (1, tokens)), one_pass=one_pass)
    table = np.empty((frames, 2 * tokens + 1), np.int8).nbytes
    assert 0 < found.pointer_bytes + found.score_bytes <= 0.27 * table


def test_all_that_a_search_allocates_stays_under_027_of_the_int8_table() -> None:
    """The table alone is 0.19; the rest is scratch, which does not grow with the frames."""
    rng = np.random.default_rng(2)
    log_probs, target = flat(rng, 5000, 30).astype(np.float32)[None], rng.integers(1, 30, (1, 1400))
    tracemalloc.start()
    try:
        search(log_probs, target)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 0.27 * 5000 * 2801


def test_ten_minutes_and_their_text_take_a_few_megabytes() -> None:
    rng = np.random.default_rng(3)
    found = search(flat(rng, 30_000, 30).astype(np.float32)[None], rng.integers(1, 30, (1, 8300)))
    assert found.pointer_bytes + found.score_bytes < 0.01 * 30_000 * 16_601
    owners = found.owners[0][found.owners[0] >= 0]
    assert np.unique(owners).tolist() == list(range(8300))
    assert (np.diff(owners) >= 0).all()
