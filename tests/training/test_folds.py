"""Folds by speaker: who trains, who stops, who judges; and what cannot be divided so."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.errors import DataError
from speechkit.training.data import Example
from speechkit.training.folds import folds_by_speaker, take_per_text


def rows(speakers: str = "abcd", takes: int = 3, texts: tuple[str, ...] = ("yes", "no")) -> list[Example]:
    return [
        Example(None, text, f"{speaker}-{text}-{take}", speaker)
        for speaker in speakers
        for text in texts
        for take in range(takes)
    ]


@given(st.lists(st.sampled_from("abcde"), min_size=4, max_size=40).filter(lambda found: len(set(found)) > 1))
def test_every_row_stands_on_exactly_one_side_and_no_test_speaker_on_another(speakers: list[str]) -> None:
    made = [Example(None, "yes", f"row {at}", speaker) for at, speaker in enumerate(speakers)]
    if max(Counter(speakers).values()) > len(speakers) - 2:
        return  # too few are left: see below
    folds = folds_by_speaker(made)
    assert [fold.speakers for fold in folds] == [(speaker,) for speaker in sorted(set(speakers))]
    for fold in folds:
        sides = [row.name for side in (fold.train, fold.dev, fold.test) for row in side]
        assert sorted(sides) == sorted(row.name for row in made)
        assert {row.speaker for row in fold.test} == set(fold.speakers)
        assert not {row.speaker for row in (*fold.train, *fold.dev)} & set(fold.speakers)
        assert fold.train and fold.dev


def test_groups_of_speakers_are_kept_out_together() -> None:
    (fold,) = folds_by_speaker(rows(), [("b", "d")], dev=0.25)
    assert {row.speaker for row in fold.test} == {"b", "d"}
    assert (len(fold.train), len(fold.dev), len(fold.test)) == (9, 3, 12)
    assert str(fold) == (
        "b+d: 9 clips of 2 speakers to train on, 3 more of them for development, 12 clips of 2 other speakers to be "
        "judged by"
    )


def test_the_same_seed_draws_the_same_development_clips_whatever_the_order_of_the_rows() -> None:
    def drawn(made: list[Example], seed: int) -> list[str]:
        return sorted(row.name for row in folds_by_speaker(made, [("a",)], dev=0.3, seed=seed)[0].dev)

    assert drawn(rows(), 1) == drawn(rows()[::-1], 1) != drawn(rows(), 2)


@pytest.mark.parametrize(
    ("made", "kept_out", "message"),
    [
        ([Example(None, "yes", "clip 7")], None, r"1 of 1 rows name no speaker \(first: clip 7\); name their column"),
        (rows("a"), None, "1 speaker in 6 rows; a fold needs two"),
        ([], None, "0 speakers in 0 rows"),
        (rows("ab"), [("c",)], "c cannot be kept out: the speakers here are a, b"),
        (rows("ab"), [()], "nobody cannot be kept out"),
        (rows("ab"), [("a", "b")], "keeping a, b out leaves 0 clips"),
    ],
)
def test_what_cannot_be_divided_by_speaker_is_refused(
    made: list[Example], kept_out: list[tuple[str, ...]] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        folds_by_speaker(made, kept_out)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_that_leaves_a_side_empty_is_refused(share: float) -> None:
    with pytest.raises(DataError, match="should lie between 0 and 1"):
        folds_by_speaker(rows(), dev=share)


def test_a_smaller_set_has_as_many_takes_of_each_word_by_each_speaker() -> None:
    kept = take_per_text(rows(takes=5), 2)
    assert set(Counter((row.speaker, row.text) for row in kept).values()) == {2}
    assert [row.name for row in kept] == [row.name for row in rows(takes=5) if row.name[-1] in "01"]
    with pytest.raises(DataError, match="takes is 0; give 1 or more"):
        take_per_text(rows(), 0)
