"""The card says what the recipe did; its numbers are counted again here."""

import json
from pathlib import Path

import pytest
from transformers import Wav2Vec2ForCTC

from speechkit import demo
from speechkit.demo.recipes import corpus
from speechkit.demo.recipes.asr import Recipe, model_config
from speechkit.demo.recipes.languages import language
from speechkit.demo.recipes.publish import card, describe, save
from speechkit.demo.recipes.score import Score

SYNTHETIC = {"synthetic": Score(0.05, 0.02, 300)}
EVERYTHING = SYNTHETIC | {"digits": Score(0.1, 0.05, 500), "words": Score(0.2, 0.1, 26), "clips": Score(0, 0, 10)}


@pytest.mark.parametrize("language", demo.languages())
def test_the_embedded_card_is_the_one_its_recipe_writes(language: str) -> None:
    folder = demo.model_path(language)
    row = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    scores = {name: Score(**result) for name, result in row["results"].items()}
    written = card(Recipe(**row["recipe"]), scores, row["flite"])
    assert (folder / "README.md").read_text(encoding="utf-8") == written


@pytest.mark.parametrize("code", ["en", "pl"])
def test_flite_is_named_only_where_it_speaks_the_language(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechkit.demo.recipes.publish.which", lambda _: "/usr/bin/flite")
    describe(Recipe(language=code), SYNTHETIC, tmp_path)
    assert ("flite" in (tmp_path / "README.md").read_text(encoding="utf-8")) is (code == "en")
    assert json.loads((tmp_path / "recipe.json").read_text(encoding="utf-8"))["flite"] is (code == "en")


def test_the_card_counts_parameters_voices_and_accents_right() -> None:
    text = card(Recipe(), EVERYTHING, flite=True)
    weights = sum(weight.numel() for weight in Wav2Vec2ForCTC(model_config()).parameters())
    assert f"({weights / 1e6:.1f} M parameters, 20 ms frames)" in text
    assert f"{len(corpus.VARIANTS)} speaker variants of its own and {corpus.DRAWN_VARIANTS} made-up ones in " in text
    assert f"{len(set(language('en').accents))} accents" in text


def test_the_card_names_the_steps_and_the_optimizer_of_its_recipe() -> None:
    assert "70 steps of 12 s of audio, AdamW, " in card(
        Recipe(steps=70, budget_s=12.0, optimizer="adamw"), SYNTHETIC, False
    )
    assert "Muon for the matrices" in card(Recipe(), SYNTHETIC, False)


def test_the_card_says_where_training_started() -> None:
    assert ", starting from an earlier model" in card(Recipe(started_from="an earlier model"), SYNTHETIC, False)
    assert "starting from" not in card(Recipe(), SYNTHETIC, False)


def test_the_card_names_only_what_was_used() -> None:
    bare, full = card(Recipe(), SYNTHETIC, flite=False), card(Recipe(), EVERYTHING, flite=True)
    for part in ("flite", "Free Spoken Digit Dataset", "Speech Commands", "LibriSpeech", "--speech-data"):
        assert part not in bare and part in full
    assert "--exclude-speaker fsdd-jackson" in full and "Never trained on: fsdd-jackson" in full


def test_every_file_that_the_card_names_exists() -> None:
    root = Path(demo.__file__).parents[2]
    text = card(Recipe(), SYNTHETIC, False)
    for name in ("speechkit/demo/recipes/grammar_en.toml", "speechkit/demo/recipes/LOG.md"):
        assert f"`{name}`" in text and (root / name).is_file()


def test_weights_over_the_limit_are_refused_with_both_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechkit.demo.recipes.publish.LIMIT_BYTES", 1_000_000)
    with pytest.raises(ValueError, match=r"the weights take 6\.4 MB, the limit is 1 MB"):
        save(Wav2Vec2ForCTC(model_config()), tmp_path)
