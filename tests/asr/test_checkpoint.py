"""Broken folders: each says what is wrong and what to do. Whole ones load without a word."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from asr_shapes import BASE, build
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, Wav2Vec2CTCTokenizer, Wav2Vec2ForCTC
from transformers.utils import logging

from speechkit.asr.checkpoint import check_vocabulary, quiet, read
from speechkit.errors import ModelError


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["en"], tmp_path / "model"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_loading_prints_and_warns_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(folder)
    assert capfd.readouterr() == ("", "")


def test_transformers_verbosity_is_restored_even_after_an_error() -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pytest.raises(ZeroDivisionError), quiet():
        raise ZeroDivisionError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_old_names_of_the_positional_convolution_load_exactly(folder: Path) -> None:
    """Published checkpoints predate torch's parametrizations: weight_g and weight_v, not original0 and original1."""
    state = load_file(folder / "model.safetensors")
    renames = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new, old in renames.items():
        name = f"wav2vec2.encoder.pos_conv_embed.conv.{new}"
        state[name.replace(new, old)] = state.pop(name)
    truth = Wav2Vec2ForCTC.from_pretrained(folder).state_dict()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = read(folder).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in truth.items())


def test_a_folder_with_only_pytorch_model_bin_loads_with_a_warning(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.warns(UserWarning, match="restricted unpickler"):
        model = read(folder).model
    assert torch.equal(model.lm_head.weight, state["lm_head.weight"])


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("ran",))


@pytest.mark.filterwarnings("ignore:.*restricted unpickler")
def test_a_pickle_that_would_run_code_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"lm_head.weight": Payload()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        read(folder)
    assert "ran" not in capsys.readouterr().out


def test_no_config(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ModelError, match=r"has no config\.json \(it holds: notes\.txt\)"):
        read(tmp_path)


def test_a_config_that_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        read(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no weights: model\.safetensors is missing"):
        read(folder)


def test_weights_cut_short(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"the weights of .* cannot be loaded"):
        read(folder)


def test_another_architecture_by_its_config(tmp_path: Path) -> None:
    tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    BertModel(tiny).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"holds a bert model \(BertModel\); speechkit reads CTC models"):
        read(tmp_path)


def test_another_architecture_by_its_weights(folder: Path) -> None:
    save_file({"bert.pooler.dense.weight": torch.zeros(2, 2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks \d+ of the model's weights.*belong to different models"):
        read(folder)


def test_a_pretraining_checkpoint_without_a_head(folder: Path) -> None:
    Wav2Vec2ForCTC.from_pretrained(folder).wav2vec2.save_pretrained(folder)
    edit(folder / "config.json", vocab_size=32)
    with pytest.raises(ModelError, match=r"has no CTC head .* Fine-tune it first"):
        read(folder)


def test_a_vocabulary_that_does_not_match_the_head_names_both_numbers(folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(BASE.tokens[:30])}))
    with pytest.raises(ModelError, match=r"vocabulary has 30 tokens but the CTC head has 32 outputs"):
        read(folder)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate((*BASE.tokens, "Ä"))}))
    with pytest.raises(ModelError, match=r"vocabulary has 33 tokens but the CTC head has 32 outputs"):
        read(folder)


def test_a_head_that_does_not_match_the_config_names_both_shapes(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["lm_head.weight"][:30].contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lm_head\.weight is \(30, 32\), the config says \(32, 32\)"):
        read(folder)


def test_tokens_that_transformers_appends_may_lie_beyond_the_head(folders: dict[str, Path]) -> None:
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folders["ko"])
    assert len(tokenizer) == 1207
    check_vocabulary(tokenizer, 1205, "korean")


def test_a_blank_outside_the_head(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", **{"pad_token": "[BLANK]"})
    with pytest.raises(ModelError, match=r"pad token '\[BLANK\]' \(id 32\) is not among the 32 outputs"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [("vocab.json", "pretraining checkpoint"), ("preprocessor_config.json", "how audio is normalised")],
)
def test_missing_processor_files(folder: Path, name: str, message: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=rf"has no {name}.*{message}"):
        read(folder)


def test_another_sample_rate(folder: Path) -> None:
    edit(folder / "preprocessor_config.json", sampling_rate=8000)
    with pytest.raises(ModelError, match=r"wants audio at 8000 Hz.*16000 Hz"):
        read(folder)


def test_an_adapter_that_changes_the_frame_grid(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="add_adapter=true"):
        read(build(tmp_path, BASE, add_adapter=True, output_hidden_size=32))
