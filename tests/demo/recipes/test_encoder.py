"""The encoder's recipe in miniature: who is heard and who is not, a whole run, what it publishes, the probe."""

from __future__ import annotations

import csv
import json
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from speechkit.asr.codebook import Codebook
from speechkit.demo.recipes import encoder_speech
from speechkit.demo.recipes.corpus import HELD_OUT_VARIANTS, held_out
from speechkit.demo.recipes.encoder import EncoderRecipe, main, prepare
from speechkit.demo.recipes.encoder_probe import probe
from speechkit.demo.recipes.encoder_speech import (
    HELD_OUT_ARABIC,
    LANGUAGES,
    REAL_GROUPS,
    Chain,
    kept_out,
    real_speech,
    synthetic_speech,
)
from speechkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from speechkit.demo.recipes.espeak import EspeakVoice


def manifest(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Which files `real_speech` reads; what they hold does not matter here."""
    paths: list[Path] = []

    def note(path: Path) -> np.ndarray:
        paths.append(path)
        return np.full(8_000, 0.1, np.float32)

    monkeypatch.setattr(encoder_speech, "_read", note)
    return paths


def test_no_test_speaker_and_no_licence_that_forbids_shipping_is_heard(speech_data: Path, read: list[Path]) -> None:
    for _ in real_speech(speech_data, times=1):
        pass
    rows = {speech_data / row["path"]: row for row in manifest(speech_data)}
    speakers = {rows[path]["speaker"] for path in read}
    assert not {s for s in speakers if s.startswith(("fsdd-", "sc-3", "sc-a"))}
    assert not speakers & set(HELD_OUT_ARABIC)
    assert len({s for s in speakers if s.startswith("asc-")}) == 18
    licences = {rows[path]["licence"] for path in read}
    assert all(licence.startswith(("CC BY 4.0", "Apache-2.0")) for licence in licences), licences
    assert len(read) == len(set(read)), "a recording is heard more often than asked for"


def test_digit_speakers_are_heard_only_when_asked_for(speech_data: Path, read: list[Path]) -> None:
    for _ in real_speech(speech_data, times=1, digits=True):
        pass
    assert sum("digits_en_fsdd" in str(path) for path in read) == 1978


def test_the_arabic_test_speakers_are_in_the_data(speech_data: Path) -> None:
    there = {row["speaker"] for row in manifest(speech_data) if row["group"] == "words_ar_asc"}
    assert set(HELD_OUT_ARABIC) < there
    assert len(HELD_OUT_ARABIC) == 6
    assert all(kept_out(name) for name in HELD_OUT_ARABIC)
    assert {row["group"] for row in manifest(speech_data)} > set(REAL_GROUPS)


def test_without_a_manifest_there_is_no_real_speech(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.tsv"):
        next(real_speech(tmp_path))


def test_held_out_voices_never_speak_and_test_sentences_are_never_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, EspeakVoice]] = []

    def note(text: str, voice: EspeakVoice) -> np.ndarray:
        said.append((text, voice))
        return np.full(16_000, 0.1, np.float32)

    monkeypatch.setattr(encoder_speech, "synthesize", note)
    for number in range(200):
        encoder_speech._clip((LANGUAGES[number % 8], number))
    voices = {voice.variant for _, voice in said}
    assert not voices & set(HELD_OUT_VARIANTS)
    assert sum(name.startswith("drawn") for name in voices) > 20
    grammatical = [text for text, _ in said if held_out(text)]
    made_up = sum(len(text.split()) > 1 for text in grammatical)
    assert made_up <= 0.05 * len(said), "more than the made-up phrases that happen to hash so"


def test_made_up_words_keep_to_the_pairs_of_letters_of_the_language() -> None:
    words = ["dzień", "dobry", "wieczór", "szczęście"]
    pairs = {pair for word in words for pair in zip(f" {word}", f"{word} ", strict=True)}
    chain, rng = Chain(words), random.Random(0)
    made = {chain.word(rng) for _ in range(300)}
    assert len(made) > 50
    for word in made:
        assert 2 <= len(word) <= 9
        assert set(zip(f" {word}", f"{word} ", strict=True)) <= pairs


def test_speech_is_as_long_as_asked_for_and_said_again_the_same_way() -> None:
    clips = list(synthetic_speech(0.004, seed=3, codes=("pl", "ko")))
    assert sum(map(len, clips)) / 16_000 >= 0.004 * 3600
    assert all(0 < len(clip) <= 15 * 16_000 and np.abs(clip).max() <= 1 for clip in clips)
    again = list(synthetic_speech(0.004, seed=3, codes=("pl", "ko")))
    # espeak-ng draws the noise of breathy voices by itself, and where it fades away a clip is cut, give or take a few
    # samples; what is said, by whom and how fast is ours
    assert len(clips) == len(again)
    assert max(abs(len(one) - len(other)) for one, other in zip(clips, again, strict=True)) <= 160


def test_a_run_from_nothing_is_published_with_card_and_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = tmp_path / "people"
    real.mkdir()
    soundfile.write(real / "a.flac", np.random.default_rng(0).normal(0, 0.1, 24_000), 16_000)
    header = "path language text speaker licence group".split()
    rows = [["a.flac", "ar", "x", "asc-00000001", "CC BY 4.0", "words_ar_asc"]]
    (real / "manifest.tsv").write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n")
    options = ["--work", str(tmp_path / "work"), "--real", "--speech-data", str(real), "--hours", "0.002"]
    options += ["--languages", "pl", "ko", "--steps", "2", "--probe-steps", "0"]
    assert main(options) == 0
    folder = tmp_path / "work" / "run-real" / "published"
    assert (folder / "model.safetensors").stat().st_size < 8_000_000
    codebook = Codebook.load(folder, device="cpu")
    assert codebook.sizes == (64, 64)
    record = json.loads((folder / "recipe.json").read_text())
    assert record["recipe"]["languages"] == ["pl", "ko"]
    assert record["results"]["step"] == 2
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(name in card for name in HELD_OUT_ARABIC)
    assert "Arabic Speech Commands Dataset" in card
    assert "--languages pl ko --real --speech-data FOLDER" in card
    assert "one of 100 clusters of\nMFCCs" in card and "Not probed yet." in card
    assert "2 steps" in capsys.readouterr().out


def test_speech_rendered_with_other_settings_is_not_taken(tmp_path: Path) -> None:
    recipe = EncoderRecipe(languages=("pl",), hours=0.001)
    assert len(prepare(recipe, tmp_path, None)) > 0
    with pytest.raises(DataError, match="name another --work or remove that folder"):
        prepare(EncoderRecipe(languages=("ko",), hours=0.001), tmp_path, None)
    with pytest.raises(DataError, match="needs --speech-data FOLDER"):
        prepare(EncoderRecipe(real=True), tmp_path, None)


def test_the_probe_scores_held_out_speech_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    from speechkit.demo.recipes import encoder_probe

    monkeypatch.setattr(encoder_probe, "TEST_CLIPS", 2)
    monkeypatch.setattr(encoder_probe, "BATCH_S", 4.0)
    found = probe(None, "pl", minutes=0.1, steps=4)
    assert found.steps == (1, 2, 3, 4)
    assert all(rate >= 0 for rate in found.cer)
    assert str(found).startswith("from scratch, 0.1 min of pl")
