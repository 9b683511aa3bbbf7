"""The recipe runs from grammar to model folder, goes on from a checkpoint, and keeps excluded speakers out."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

from speechkit.demo.recipes import asr
from speechkit.demo.recipes.batches import encode
from speechkit.demo.recipes.corpus import real_clips
from speechkit.errors import DataError


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
    arguments = ["--work", str(folder), "--sentences", "40", "--test-sentences", "6", "--steps", "2", "--workers", "0"]
    assert asr.main(arguments) == 0
    return folder


@pytest.mark.slow
def test_the_published_folder_is_a_genuine_wav2vec2_ctc_model(work: Path) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(work / "model", dtype=torch.float32)
    processor = Wav2Vec2Processor.from_pretrained(work / "model")
    assert len(processor.tokenizer) == model.config.vocab_size
    assert processor.tokenizer("a cat").input_ids == encode("a cat")
    assert not list((work / "model").glob("*.bin"))
    card = (work / "model" / "README.md").read_text()
    assert "license: cc-by-sa-4.0" in card and "held-out voices and held-out sentences | 6 |" in card


@pytest.mark.slow
def test_a_second_start_goes_on_from_the_checkpoint(work: Path) -> None:
    recipe = asr.Recipe(sentences=40, test_sentences=6, steps=3, workers=0)
    asr.train(recipe, work, asr.prepare(recipe, work, None))
    state = json.loads((work / "checkpoints" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3


def test_real_clips_carry_only_free_licences(speech_data: Path) -> None:
    speakers = {speaker for _, _, speaker, _ in real_clips(speech_data)}
    assert {"fsdd-jackson", "ls-19"} <= speakers
    assert not any(name.startswith(("deeply", "sppas", "yesno")) for name in speakers)


def test_a_speech_folder_without_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.tsv"):
        next(real_clips(tmp_path))
