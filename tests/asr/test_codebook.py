"""A pretraining checkpoint's codebook against transformers' own quantiser; and what a CTC checkpoint is told."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining

from speechkit import audio, demo
from speechkit.asr.codebook import Codebook
from speechkit.asr.units import usage
from speechkit.errors import AudioError, ModelError

CLIP = demo.clips("en")[0].path


@pytest.fixture(scope="module", params=["group", "layer"], ids=["as base", "as XLSR"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published shape (2 groups of 320 codes), random weights, small width."""
    target = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(32,) * 7,
        codevector_dim=32, proj_codevector_dim=32, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
        feat_extract_norm=request.param, do_stable_layer_norm=request.param == "layer",
    )  # fmt: skip
    model = Wav2Vec2ForPreTraining(config)
    model.quantizer.weight_proj.weight.data.normal_()
    model.save_pretrained(target)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(target)
    return target


def test_codes_are_those_that_transformers_picks(folder: Path) -> None:
    codebook = Codebook.load(folder, device="cpu")
    assert codebook.sizes == (320, 320)
    found = codebook.units(CLIP)
    samples = audio.load(CLIP)
    model = Wav2Vec2ForPreTraining.from_pretrained(folder).eval()
    values = Wav2Vec2FeatureExtractor(do_normalize=True)(samples, sampling_rate=16000, return_tensors="pt").input_values
    with torch.inference_mode():
        picked = model(values)
        chosen = codebook.model.quantizer.codevectors[0].view(2, 320, -1)
        ours = torch.cat([chosen[g][torch.from_numpy(found.ids[:, g]).long()] for g in range(2)], dim=-1)
        projected = model.project_q(ours)
    torch.testing.assert_close(projected, picked.projected_quantized_states[0], atol=1e-5, rtol=1e-4)
    total = sum(row.perplexity for row in usage([found]))
    assert total == pytest.approx(float(picked.codevector_perplexity), rel=1e-3)


def test_lists_and_long_audio_go_window_by_window(folder: Path) -> None:
    codebook = Codebook.load(folder, device="cpu")
    long = np.concatenate([audio.load(CLIP)] * 10)
    one, two = codebook.units([CLIP, long])
    assert len(one) == codebook.grid.frames(len(audio.load(CLIP)))
    assert len(two) == codebook.grid.frames(len(long)) and two.duration_s == pytest.approx(len(long) / 16000, abs=0.02)
    with pytest.raises(AudioError, match="10 samples; one frame needs 400"):
        codebook.units(np.zeros(10, np.float32))


def test_a_ctc_checkpoint_is_told_what_to_do_instead(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"fine-tuning with CTC drops the quantiser.*KMeansUnits\.fit"):
        Codebook.load(folders["en"])
    with pytest.raises(ModelError, match=r"demo/en .* has no codebook"):
        Codebook.load("demo/en")


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        Codebook.load(tmp_path)


def test_old_checkpoints_without_safetensors_give_the_same_codes(folder: Path, tmp_path: Path) -> None:
    old = shutil.copytree(folder, tmp_path / "old")
    (old / "model.safetensors").unlink()
    model = Wav2Vec2ForPreTraining.from_pretrained(folder)
    torch.save(model.state_dict(), old / "pytorch_model.bin")
    with pytest.warns(UserWarning, match="restricted unpickler"):
        found = Codebook.load(old, device="cpu")
    np.testing.assert_array_equal(found.units(CLIP).ids, Codebook.load(folder, device="cpu").units(CLIP).ids)


def test_a_checkpoint_that_is_cut_or_has_no_quantiser_is_told(folder: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(folder, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        Codebook.load(cut)
    bare = shutil.copytree(folder, tmp_path / "bare")
    weights = load_file(bare / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("quantizer")}
    save_file(kept, bare / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="has no codebook"):
        Codebook.load(bare)


def test_broken_audio_in_a_list_is_named(folder: Path) -> None:
    with pytest.raises(AudioError, match="item 2 of 2"):
        Codebook.load(folder, device="cpu").units([CLIP, np.zeros(10, np.float32)])
