"""Voices that are misread are heard more often, and only synthetic training voices are looked at."""

import json
from pathlib import Path

import numpy as np
import pytest

from speechkit.demo.recipes import focus as subject
from speechkit.demo.recipes.batches import Batches, Mix, encode
from speechkit.demo.recipes.corpus import Store, write_store
from speechkit.demo.recipes.focus import LEAST, MOST, focus
from speechkit.demo.recipes.languages import tokens

IDS = {token: number for number, token in enumerate(tokens("en"))}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two voices, told apart by how loud they are, beside flite and a person."""

    def clips() -> object:
        for number in range(80):
            loud = number % 2
            samples = np.full(19200 + 240 * number, 0.5 if loud else 0.1, np.float32)  # 1.2 to 2.4 s
            yield samples, "aa aa aa aa" if loud else "bb bb bb bb", f"en+{'loud' if loud else 'low'}", "synthetic"
            yield samples, "cc cc cc", "flite", "synthetic"
            yield samples, "dd dd dd", "fsdd-lucas", "digits"

    return write_store(tmp_path / "store", clips())


@pytest.fixture
def deaf_to_the_loud(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A stand-in for the model: hears the low voice right and nothing of the loud one; notes how many clips it got."""
    heard = [0]

    def transcribe(clips: list[np.ndarray]) -> list[str]:
        heard[0] += len(clips)
        return ["" if clip.max() > 0.3 else "bb bb bb bb" for clip in clips]

    monkeypatch.setattr(subject, "training_model", lambda model, tokens: transcribe)
    return heard


def test_shares_follow_the_errors_and_are_measured_once(
    store: Store, tmp_path: Path, deaf_to_the_loud: list[int]
) -> None:
    shares = focus(None, store, tmp_path / "focus.json")  # type: ignore[arg-type]
    assert set(shares) == {"loud", "low"} and deaf_to_the_loud == [6]
    # rates 1 and 0 over three clips, two more at the common rate of 0.5 counted in
    assert shares["loud"] == pytest.approx((3 + 1) / (5 * 0.5)) and shares["low"] == max(LEAST, 1 / (5 * 0.5))
    assert all(LEAST <= share <= MOST for share in shares.values())
    assert focus(None, store, tmp_path / "focus.json") == shares  # type: ignore[arg-type]
    assert deaf_to_the_loud == [6] and json.loads((tmp_path / "focus.json").read_text()) == shares


def test_batches_hear_a_voice_as_often_as_its_share_says(store: Store) -> None:
    mix = Mix(shares=(("synthetic", 1.0),), short_share=0.0, wordless_share=0.0, mixed_share=0.0, longest_s=2.2)
    found = {}
    for shares in (None, {"loud": 3.0, "low": 1.0}):
        batches = Batches([store], 60, 1, mix=mix, focus=shares)
        rows = [row.tolist() for index in range(60) for row in batches[index]["labels"]]
        found[shares is None] = np.mean([encode("a", IDS)[0] in row for row in rows])
    assert found[True] == pytest.approx(0.5, abs=0.1) and found[False] == pytest.approx(0.75, abs=0.1)
