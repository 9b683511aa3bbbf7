"""The recipe runs from grammar to model folder, goes on from a checkpoint, and keeps excluded speakers out."""

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

from speechkit.demo.recipes import asr
from speechkit.demo.recipes.batches import encode
from speechkit.demo.recipes.clips import SPOKEN
from speechkit.demo.recipes.corpus import held_out, real_clips
from speechkit.demo.recipes.grammar import Grammar
from speechkit.demo.recipes.languages import tokens
from speechkit.errors import DataError

IDS = {token: number for number, token in enumerate(tokens("en"))}


def test_the_model_keeps_the_published_frame_grid_and_fits_its_budget() -> None:
    config = asr.model_config()
    hop = 1
    for stride in config.conv_stride:
        hop *= stride
    assert hop == 320
    assert 2 * sum(weight.numel() for weight in Wav2Vec2ForCTC(config).parameters()) < 8_000_000


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of training on a handful of sentences, published."""
    folder = tmp_path_factory.mktemp("recipe")
    arguments = ["--work", str(folder), "--sentences", "40", "--single-words", "6", "--test-sentences", "6"]
    arguments += ["--steps", "2", "--workers", "0"]
    assert asr.main(arguments) == 0
    return folder


@pytest.mark.slow
def test_the_published_folder_is_a_genuine_wav2vec2_ctc_model(work: Path) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(work / "model", dtype=torch.float32)
    processor = Wav2Vec2Processor.from_pretrained(work / "model")
    assert len(processor.tokenizer) == model.config.vocab_size
    assert processor.tokenizer("a cat").input_ids == encode("a cat", IDS)
    assert not list((work / "model").glob("*.bin"))
    card = (work / "model" / "README.md").read_text()
    assert "license: cc-by-sa-4.0" in card and "held-out voices and held-out sentences | 6 |" in card
    assert "LibriSpeech" not in card and "--speech-data" not in card, "no real recordings were used"


@pytest.mark.slow
def test_a_second_start_goes_on_from_the_checkpoint(work: Path) -> None:
    recipe = asr.Recipe(sentences=40, single_words=6, test_sentences=6, steps=3, workers=0)
    asr.train(recipe, work, asr.prepare(recipe, work, None))
    state = json.loads((work / "checkpoints" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3


@pytest.mark.slow
def test_stores_made_with_other_settings_are_not_taken_for_those_wanted(work: Path) -> None:
    for changed in ({"sentences": 41}, {"single_words": 7}, {"test_sentences": 7}, {"seed": 2}):
        settings = {"sentences": 40, "single_words": 6, "test_sentences": 6, "workers": 0} | changed
        with pytest.raises(DataError, match="name another --work or remove that folder"):
            asr.prepare(asr.Recipe(**settings), work, None)


def test_a_store_of_real_clips_is_not_used_for_another_excluded_speaker(tmp_path: Path) -> None:
    speech = tmp_path / "speech"
    speech.mkdir()
    rows = ["group\tpath\ttext\tspeaker"]
    for name in ("fsdd-jackson", "fsdd-lucas", "sc-1", "sc-3"):
        soundfile.write(speech / f"{name}.wav", np.zeros(8000, np.float32), 8000)
        rows.append(f"digits_en_fsdd\t{name}.wav\tOne!\t{name}")
    (speech / "manifest.tsv").write_text("\n".join(rows) + "\n")
    recipe = asr.Recipe(sentences=2, single_words=2, test_sentences=2)
    stores = asr.prepare(recipe, tmp_path / "work", speech)
    assert [clip.speaker for clip in stores["real"].clips] == ["fsdd-lucas", "sc-1"]
    assert [clip.speaker for clip in stores["real_test"].clips] == ["fsdd-jackson", "sc-3"]
    with pytest.raises(DataError, match=r"made from .*fsdd-jackson.*, wanted: .*fsdd-lucas"):
        asr.prepare(replace(recipe, exclude_speakers=("fsdd-lucas",)), tmp_path / "work", speech)


def test_scoring_a_finished_model_renders_no_training_material(tmp_path: Path) -> None:
    stores = asr.prepare(asr.Recipe(test_sentences=2), tmp_path, None, training=False)
    assert list(stores) == ["test"] and len(stores["test"].clips) == 2


def test_the_sentences_of_the_test_are_the_same_beside_any_training_set() -> None:
    drawn = [asr._texts(asr.Recipe(sentences=count), None, test=True) for count in (3, 30)]
    assert drawn[0] == drawn[1]


@pytest.mark.slow
def test_the_turn_to_the_voices_misread_is_made_once_and_survives_a_stop(tmp_path: Path) -> None:
    made = {"sentences": 20, "single_words": 4, "test_sentences": 4, "workers": 0, "focus_at": 0.5}
    stores = asr.prepare(asr.Recipe(**made, steps=4), tmp_path, None)
    asr.train(asr.Recipe(**made, steps=4), tmp_path, stores)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"checkpoint-2", "checkpoint-4"}
    shares = (tmp_path / "focus.json").read_text()
    asr.train(asr.Recipe(**made, steps=6), tmp_path, stores)
    assert (tmp_path / "checkpoints" / "checkpoint-6").is_dir() and (tmp_path / "focus.json").read_text() == shares


def test_sentences_of_training_are_neither_held_out_nor_spoken_in_an_embedded_clip() -> None:
    recipe = asr.Recipe(sentences=800, single_words=0)
    train, test = (set(asr._texts(recipe, None, kind)) for kind in (False, True))
    assert len(train) == 800 and len(test) == 300 and not train & test
    assert not {text for text, _ in SPOKEN["en"]} & train
    assert all(held_out(text) for text in test) and not any(map(held_out, train))


def test_half_of_the_single_words_are_digits() -> None:
    both, sentences = (asr._texts(asr.Recipe(sentences=50, single_words=n), None, test=False) for n in (400, 0))
    words = list((Counter(both) - Counter(sentences)).elements())
    assert len(words) == 400 and not any(" " in word for word in words)
    assert 150 < sum(word in Grammar("en").slots["digit"] for word in words) < 260


def test_speakers_named_on_the_command_line_are_the_ones_kept_out(tmp_path: Path) -> None:
    options = ["--work", str(tmp_path), "--exclude-speaker", "fsdd-lucas", "--exclude-speaker", "ls-26"]
    assert asr.recipe_of(asr._options(options)).exclude_speakers == ("fsdd-lucas", "ls-26")
    assert asr.recipe_of(asr._options(["--work", str(tmp_path)])) == asr.Recipe()


def test_checkpoints_of_other_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(asr.Recipe(learning_rate=1.0))))
    with pytest.raises(DataError, match="made with another learning_rate"):
        asr.train(asr.Recipe(), tmp_path, {})


def test_real_clips_carry_only_free_licences(speech_data: Path) -> None:
    speakers = {speaker for _, _, speaker, _ in real_clips(speech_data)}
    assert {"fsdd-jackson", "ls-19"} <= speakers
    assert not any(name.startswith(("deeply", "sppas", "yesno")) for name in speakers)


def test_a_speech_folder_without_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.tsv"):
        next(real_clips(tmp_path))
