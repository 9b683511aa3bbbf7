"""Whom a model has heard, from its recipe: embedded models, encoders, weights made from other weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from speechkit import demo
from speechkit.demo.recipes.encoder_speech import HELD_OUT_ARABIC
from speechkit.demo.recipes.heard import hearing, refuse_heard
from speechkit.errors import ModelError, PlanError

DIGIT_SPEAKERS = ("fsdd-george", "fsdd-jackson", "fsdd-lucas", "fsdd-nicolas")
REAL = {"synthetic": {}, "digits": {}, "words": {}}


def recipe(folder: Path, results: dict[str, Any] | None = None, **changes: Any) -> str:
    """A model folder that holds nothing but the recipe of a CTC model."""
    row = {"language": "en", "exclude_speakers": ["fsdd-jackson"], "steps": 100, "started_from": "", **changes}
    (folder / "recipe.json").write_text(json.dumps({"recipe": row, "results": results or {}}))
    return str(folder)


def encoder(folder: Path, **changes: Any) -> str:
    row = {"languages": ["en", "pl"], "real": True, "digits": False, **changes}
    (folder / "recipe.json").write_text(json.dumps({"recipe": row, "results": {}}))
    return str(folder)


def heard(model: str) -> list[str]:
    found = hearing(model)
    return [speaker for speaker in DIGIT_SPEAKERS if found.heard(speaker)]


def test_the_embedded_english_model_has_heard_all_digit_speakers_that_its_card_does_not_exclude() -> None:
    card = (demo.model_path("en") / "README.md").read_text(encoding="utf-8")
    excluded = [speaker for speaker in DIGIT_SPEAKERS if speaker in card.partition("Never trained on: ")[2]]
    assert heard("demo/en") == [speaker for speaker in DIGIT_SPEAKERS if speaker not in excluded]
    assert hearing("demo/en").heard("sc-37e8db82") is False and hearing("demo/en").heard("sc-93ec8b84") is True
    assert hearing("demo/en").heard("asc-00000001") is False


def test_a_fold_whose_speaker_was_heard_is_refused_and_the_speaker_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"demo/en has heard fsdd-george, fsdd-lucas in its own training"):
        refuse_heard("demo/en", ["fsdd-lucas", "fsdd-jackson", "fsdd-george"])
    assert refuse_heard("demo/en", ["fsdd-jackson"]).known
    clean = recipe(tmp_path, REAL, exclude_speakers=list(DIGIT_SPEAKERS))
    assert refuse_heard(clean, DIGIT_SPEAKERS).model == clean


def test_a_model_of_synthetic_speech_alone_has_heard_nobody(tmp_path: Path) -> None:
    assert heard(recipe(tmp_path, {"synthetic": {}}, exclude_speakers=[])) == []


def test_weights_remember_what_they_started_from(tmp_path: Path) -> None:
    """demo/en heard three of them, so what grew from it did too, whatever its own recipe leaves out."""
    for start in ("demo/en", "an earlier model of this recipe (21500 steps of 24 s)"):
        grown = recipe(tmp_path, REAL, exclude_speakers=list(DIGIT_SPEAKERS), started_from=start)
        assert heard(grown) == heard("demo/en") != []
    synthetic = recipe(tmp_path, {}, language="ko", started_from="demo/en")
    assert heard(synthetic) == heard("demo/en")


def test_what_started_from_unnamed_weights_is_not_known(tmp_path: Path) -> None:
    found = hearing(recipe(tmp_path, {}, started_from="the weights of mine"))
    assert not found.known and found.heard("fsdd-jackson") is None
    with_people = recipe(tmp_path, REAL, started_from="the weights of mine")
    assert hearing(with_people).heard("fsdd-lucas"), "its own training is enough to know that"
    assert hearing(with_people).heard("fsdd-jackson") is None


def test_an_encoder_has_heard_the_digit_speakers_only_where_it_was_given_them(tmp_path: Path) -> None:
    assert heard(encoder(tmp_path)) == []
    found = hearing(encoder(tmp_path))
    assert not any(found.heard(speaker) for speaker in HELD_OUT_ARABIC)
    assert found.heard("asc-00000001") and found.heard("sc-93ec8b84") and not found.heard("sc-37e8db82")
    assert heard(encoder(tmp_path, digits=True)) == list(DIGIT_SPEAKERS)
    alone = hearing(encoder(tmp_path, real=False, digits=True))
    assert not alone.heard("fsdd-lucas") and not alone.heard("asc-00000001")


def test_a_model_without_a_recipe_is_not_vouched_for_and_a_broken_recipe_is_an_error(tmp_path: Path) -> None:
    assert hearing("facebook/wav2vec2-base-960h").heard("fsdd-lucas") is None
    assert refuse_heard(tmp_path, DIGIT_SPEAKERS).known is False
    (tmp_path / "recipe.json").write_text('{"recipe": {}}')
    with pytest.raises(ModelError, match=r"recipe\.json cannot be read as a recipe \(KeyError\('results'\)\)"):
        hearing(tmp_path)
    with pytest.raises(ModelError, match="nothing-here does not exist"):
        hearing(tmp_path / "nothing-here")
