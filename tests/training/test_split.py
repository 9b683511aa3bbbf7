"""Splits as properties: every clip once, no voice on two sides, shares of time, the same again with the same seed."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.errors import DataError
from speechkit.training.data import Example
from speechkit.training.split import Split, split_examples


def corpus(speakers: int, clips: int, seconds: float = 2.0, texts: int | None = None) -> list[Example]:
    return [
        Example(f"{s}-{c}.wav", f"sentence {(s * clips + c) % (texts or 10**9)}", f"{s}-{c}", f"s{s}", "en", seconds)
        for s in range(speakers)
        for c in range(clips)
    ]


def names(split: Split) -> dict[str, set[str]]:
    return {side: {row.name for row in rows} for side, rows in split.sides()}


def apart(split: Split, field: str) -> bool:
    values = [{getattr(row, field) for row in rows} for _, rows in split.sides()]
    return all(left.isdisjoint(right) for left, right in combinations(values, 2))


rows = st.lists(
    st.tuples(st.sampled_from(["", "a", "b", "c", "d", "e"]), st.floats(0.1, 30.0), st.integers(0, 30)),
    min_size=3, max_size=60,
)  # fmt: skip


@given(rows, st.sampled_from([0.0, 0.05, 0.1, 0.4]), st.sampled_from([0.05, 0.1, 0.4]), st.integers(0, 5))
def test_every_clip_is_on_one_side_and_no_asked_side_is_empty(
    drawn: list[tuple[str, float, int]], dev: float, test: float, seed: int
) -> None:
    examples = [Example(f"{n}.wav", f"t{t}", str(n), s, None, sec) for n, (s, sec, t) in enumerate(drawn)]
    split = split_examples(examples, dev=dev, test=test, seed=seed)
    assert sorted(row.name for _, side in split.sides() for row in side) == sorted(row.name for row in examples)
    assert split.train and split.test and bool(split.dev) == bool(dev)
    if split.reason.startswith("by speaker"):
        known = replace(split, train=tuple(row for row in split.train if row.speaker))
        assert apart(known, "speaker")
        assert all(row.speaker for row in (*split.dev, *split.test))


@given(rows, st.integers(0, 3), st.randoms())
def test_the_order_of_the_rows_does_not_matter(
    drawn: list[tuple[str, float, int]], seed: int, draw: random.Random
) -> None:
    examples = [Example(f"{n}.wav", f"t{t}", str(n), s, None, sec) for n, (s, sec, t) in enumerate(drawn)]
    mixed = draw.sample(examples, len(examples))
    assert names(split_examples(examples, seed=seed)) == names(split_examples(mixed, seed=seed))


def test_another_seed_is_another_split() -> None:
    examples = corpus(30, 4)
    assert len({frozenset(names(split_examples(examples, seed=seed))["test"]) for seed in range(5)}) > 1


def test_sizes_are_shares_of_audio_time_not_of_rows() -> None:
    draw = random.Random(0)
    examples = [replace(row, seconds=draw.expovariate(0.2) + 0.5) for row in corpus(60, 10)]
    split = split_examples(examples, dev=0.1, test=0.2)
    total = sum(row.length_s() for row in examples)
    shares = {side: sum(row.length_s() for row in rows) / total for side, rows in split.sides()}
    assert shares == pytest.approx({"train": 0.7, "dev": 0.1, "test": 0.2}, abs=0.02)
    assert apart(split, "speaker")
    assert split.reason == "by speaker: 60 speakers, none on two sides"


def test_one_speaker_only_is_split_by_utterance_and_says_so() -> None:
    split = split_examples(corpus(1, 50))
    assert "by utterance, since only one speaker is known, 's0'" in split.reason
    assert [len(rows) for _, rows in split.sides()] == [40, 5, 5]


def test_one_speaker_only_is_refused_where_speakers_are_demanded() -> None:
    with pytest.raises(DataError, match="only one speaker is known, 's0', so the sides cannot be kept apart"):
        split_examples(corpus(1, 50), by="speaker")
    with pytest.raises(DataError, match="no row names a speaker"):
        split_examples([replace(row, speaker="") for row in corpus(3, 5)], by="speaker")
    with pytest.raises(DataError, match=r"2 speakers cannot fill 3 sides.*ask for fewer sides"):
        split_examples(corpus(2, 5), by="speaker")
    assert apart(split_examples(corpus(2, 5), by="speaker", dev=0), "speaker")


def test_a_speaker_longer_than_the_share_is_mentioned() -> None:
    split = split_examples(corpus(4, 10), dev=0, test=0.1)
    assert len(split.test) == 10
    assert "test holds 25% of the audio, not 10%" in split.reason


def test_rows_without_a_speaker_among_others_with_one_are_trained_on() -> None:
    examples = [*corpus(20, 5), *(replace(row, speaker="", name=f"x{row.name}") for row in corpus(1, 7))]
    split = split_examples(examples, by="speaker")
    assert all(row.speaker for row in (*split.dev, *split.test))
    assert "7 rows without a speaker train" in split.reason


def test_no_text_on_two_sides_where_that_is_asked_for() -> None:
    examples = corpus(1, 100, texts=25)
    assert not apart(split_examples(examples, by="utterance"), "text")
    shouted = [replace(row, text=row.text.upper() if n % 2 else row.text) for n, row in enumerate(examples)]
    split = split_examples(shouted, by="utterance", disjoint_text=True)
    lowered = Split(*(tuple(replace(row, text=row.text.lower()) for row in side) for _, side in split.sides()), "")
    assert apart(lowered, "text")
    assert split.reason.endswith("no text on two sides")


def test_prompts_that_everybody_reads_cannot_be_kept_apart_together_with_speakers() -> None:
    with pytest.raises(DataError, match="shared speakers and texts join the clips into 1 part, too few for 3 sides"):
        split_examples(corpus(10, 10, texts=10), disjoint_text=True)


def test_speakers_and_texts_are_kept_apart_together_where_they_can_be() -> None:
    split = split_examples(corpus(12, 5), by="speaker", disjoint_text=True)
    assert apart(split, "speaker") and apart(split, "text")


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        pytest.param(2, {}, "2 clips cannot fill 3 sides \\(train, test, dev\\)", id="two clips"),
        pytest.param(0, {}, "0 clips cannot fill", id="none"),
        pytest.param(9, {"dev": 0.5, "test": 0.5}, "leave something to train on", id="nothing to train on"),
        pytest.param(9, {"dev": -0.1}, "the shares are 0 or more", id="below nothing"),
        pytest.param(9, {"by": "room"}, "by is 'auto', 'speaker' or 'utterance'", id="by something else"),
    ],
)
def test_what_cannot_be_split_is_an_error(count: int, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_examples(corpus(1, count), **options)  # type: ignore[arg-type]


def test_three_clips_fill_three_sides() -> None:
    assert [len(rows) for _, rows in split_examples(corpus(1, 3)).sides()] == [1, 1, 1]


def test_it_prints_clips_minutes_and_speakers_of_each_side_that_was_asked_for() -> None:
    assert repr(split_examples(corpus(10, 30), dev=0)).splitlines() == [
        "train      270 clips     9.0 min      9 speakers",
        "test        30 clips     1.0 min      1 speakers",
        "by speaker: 10 speakers, none on two sides",
    ]
